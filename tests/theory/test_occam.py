import itertools
import math
from decimal import Decimal
from fractions import Fraction

import mpmath  # type: ignore[import-untyped]
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta

from milkshake_mbp.theory.bounds import bound_table
from milkshake_mbp.theory.occam import (
    _exhausts,
    binomial_upper_limit,
    elias_gamma_length,
    kl_inverse,
    occam_bound,
    sparse_code_length,
)
from milkshake_mbp.theory.perturbation import default_step, discretize
from milkshake_mbp.theory.pruning import MaskDraw

fixed = settings(derandomize=True, deadline=None, max_examples=200, database=None)
probabilities = st.floats(0, 1)
budgets = st.floats(0, 50)


def kl(q: float, p: float) -> float:
    parts = [(q, p), (1 - q, 1 - p)]
    return sum(a * math.log(a / b) if a else 0.0 for a, b in parts if a or b)


@fixed
@given(probabilities, budgets)
def test_kl_inverse_is_the_largest_p_within_the_budget(q: float, c: float) -> None:
    p = kl_inverse(q, c)
    assert q <= p <= 1
    if 0 < q < 1 and p < 1 - 1e-6:
        assert kl(q, p) == pytest.approx(c, rel=1e-6, abs=1e-9)
        assert kl(q, min(1 - 1e-16, p + 1e-9 * (1 - p))) >= c - 1e-12


@fixed
@given(probabilities, probabilities, budgets, budgets)
def test_kl_inverse_grows_with_both_arguments(q: float, r: float, c: float, e: float) -> None:
    assert kl_inverse(min(q, r), c) <= kl_inverse(max(q, r), c) + 1e-12
    assert kl_inverse(q, min(c, e)) <= kl_inverse(q, max(c, e)) + 1e-12


def test_kl_inverse_at_the_ends() -> None:
    for c in (0.0, 1e-9, 0.3, 5.0):
        assert kl_inverse(0.0, c) == pytest.approx(1 - math.exp(-c), rel=1e-12)
        assert kl_inverse(1.0, c) == 1.0
    assert kl_inverse(0.3, 0.0) == pytest.approx(0.3, abs=1e-7)
    assert kl_inverse(0.3, math.inf) == 1.0
    for q, c in ((-0.1, 1.0), (1.1, 1.0), (math.nan, 1.0), (0.5, -1.0), (0.5, math.nan)):
        with pytest.raises(ValueError):
            kl_inverse(q, c)


# Rounding


def exact_kl(q: mpmath.mpf, p: float) -> mpmath.mpf:
    """kl(q‖p) with 400 digits."""
    p = mpmath.mpf(p)
    return (q * mpmath.log(q / p) if q else 0) + ((1 - q) * mpmath.log((1 - q) / (1 - p)) if q < 1 else 0)


def assert_not_below(value: float, q: mpmath.mpf, c: mpmath.mpf) -> None:
    """kl grows in p above q: p ≥ kl⁻¹(q, c) exactly if kl(q‖p) ≥ c."""
    assert value == 1 or (value >= q and exact_kl(q, value) >= c), (value, q, c)


ANY_PROBABILITY = st.one_of(
    probabilities,
    st.sampled_from([0.0, 5e-324, 1e-310, 1e-300, 1e-17, 0.5, 1 - 2**-53, 1 - 2**-52, math.nextafter(0.5, 1)]),
    st.floats(-308, 0).map(lambda exponent: 10.0**exponent),
    st.floats(-16, 0).map(lambda exponent: 1 - 10.0**exponent),
    st.integers(0, 60_000).map(lambda errors: errors / 60_000),
)
ANY_BUDGET = st.one_of(
    budgets,
    st.sampled_from([0.0, 5e-324, 1e-310, 2.0**-53, 36.8, 745.0, 746.0, 1e300]),
    st.floats(-323, 3).map(lambda exponent: 10.0**exponent),
)


@pytest.mark.long
@settings(fixed, max_examples=1500)
@given(ANY_PROBABILITY, ANY_BUDGET)
def test_kl_inverse_is_never_below_the_true_value(q: float, c: float) -> None:
    with mpmath.workdps(400):
        assert_not_below(kl_inverse(q, c), mpmath.mpf(q), mpmath.mpf(c))


@pytest.mark.parametrize("c", [0.0, 5e-324, 1.5e-323, 1e-300, 1e-17, 3e-9, 0.1, 0.7, 36.7, 40.0, 800.0, 1e308])
@pytest.mark.parametrize("q", [0.0, 5e-324, 1e-16, 1 / 3, 0.5, 1 - 2**-53])
def test_kl_inverse_is_above_the_true_value_by_rounding_only(q: float, c: float) -> None:
    """Within what float64's kl can resolve, and by an ulp or two at q = 0."""
    value = kl_inverse(q, c)
    with mpmath.workdps(800):
        assert_not_below(value, mpmath.mpf(q), mpmath.mpf(c))
        if q == 0:
            truth = -mpmath.expm1(-mpmath.mpf(c))
            assert value - truth <= 2 * math.ulp(value)
        elif value < 1:
            lower = max(q, math.nextafter(math.nextafter(value, 0), 0))
            assert exact_kl(mpmath.mpf(q), lower) <= mpmath.mpf(c) * (1 + 1e-12) + 1e-15


def test_nothing_below_the_empirical_error_is_enough() -> None:
    enough = _exhausts(Decimal("0.3"), Decimal("0.1"))
    assert not enough(0.2) and not enough(0.3) and not enough(0.31) and enough(0.9)


def test_rounding_up_moves_a_value_only_if_it_was_below() -> None:
    """Against plain float64: −expm1(−c) at q = 0 is kept wherever it is not below 1 − e^{−c}, else the next float."""
    rng, moved = np.random.default_rng(3), 0
    for c in 10 ** rng.uniform(-12, 1.2, 300):
        plain = -math.expm1(-c)
        with mpmath.workdps(60):
            below = mpmath.mpf(plain) < -mpmath.expm1(-mpmath.mpf(c))
        moved += below
        assert kl_inverse(0.0, c) == (math.nextafter(plain, 1) if below else plain)
    assert 20 < moved < 280


@settings(fixed, max_examples=500)
@given(
    st.integers(1, 10**6),
    st.floats(0, 1),
    st.one_of(st.floats(0, 1e6), st.integers(0, 10**6).map(float), st.sampled_from([0.0, 5e-324, 1e300])),
    st.one_of(st.floats(5e-324, 1), st.sampled_from([0.05, 0.0125, 1e-300, 5e-324, 1.0, 1 - 2**-53])),
)
def test_an_occam_bound_is_never_below_its_formula(n: int, share: float, bits: float, delta: float) -> None:
    """With k/n and (C + ln 1/δ)/n before their rounding to float64."""
    errors = int(share * n)
    value = occam_bound(errors / n, bits, n, delta)
    with mpmath.workdps(400):
        budget = (mpmath.mpf(bits) * mpmath.log(2) - mpmath.log(mpmath.mpf(delta))) / n
        assert_not_below(value, mpmath.mpf(errors) / n, budget)


# The exact binomial limit


def exact_tail(errors: int, n: int, p: float) -> Fraction:
    """P(Bin(n, p) ≤ errors), in rational numbers."""
    hit = Fraction(p)
    return sum((math.comb(n, k) * hit**k * (1 - hit) ** (n - k) for k in range(errors + 1)), Fraction(0))


@pytest.mark.parametrize("delta", [1e-12, 0.05, 0.5, 0.999, 1 - 2**-53, 5e-324])
@pytest.mark.parametrize("n", [1, 2, 7, 30])
def test_the_binomial_limit_by_brute_force(n: int, delta: float) -> None:
    """The least float whose tail is at most δ, or the next one where the tail is δ itself."""
    for errors in range(n):
        limit = binomial_upper_limit(errors, n, delta)
        assert exact_tail(errors, n, limit) <= delta
        assert exact_tail(errors, n, math.nextafter(math.nextafter(limit, 0), 0)) > delta
    assert binomial_upper_limit(n, n, delta) == 1.0


@settings(fixed, max_examples=60)
@given(st.integers(1, 3000), st.floats(0, 1), st.one_of(st.floats(1e-9, 1), st.floats(-300, 0).map(lambda e: 10.0**e)))
def test_the_binomial_limit_against_a_sum_of_many_digits(n: int, share: float, delta: float) -> None:
    errors = min(n - 1, int(share * n))
    limit = binomial_upper_limit(errors, n, delta)

    def tail(p: float) -> mpmath.mpf:
        hit = mpmath.mpf(p)
        term = total = (1 - hit) ** n
        for k in range(errors):
            term *= hit * (n - k) / ((1 - hit) * (k + 1))
            total += term
        return total

    with mpmath.workdps(60):
        assert limit == 1 or tail(limit) <= delta
        if limit > 1e-300:
            assert tail(limit * (1 - 1e-14)) > delta or delta == 1


def test_the_binomial_limit_of_large_samples() -> None:
    """Stirling's series against log-gamma; SciPy's quantile is right to some 1e-8 there."""
    for errors, n, delta in ((0, 10**9, 0.05), (3, 10**9, 1e-9), (5 * 10**4, 10**5, 0.05), (10**5 - 1, 10**5, 0.3)):
        limit = binomial_upper_limit(errors, n, delta)
        assert limit == pytest.approx(beta.ppf(1 - delta, errors + 1, n - errors), rel=1e-7)
    assert binomial_upper_limit(0, 10**9, 0.05) == pytest.approx(-math.expm1(math.log(0.05) / 10**9), rel=1e-15)


@pytest.mark.parametrize("delta", [0.05, 0.3])
@pytest.mark.parametrize("n", [5, 40])
def test_the_binomial_limit_covers(n: int, delta: float) -> None:
    """P(limit < p) ≤ δ for every p, exactly, and close to δ for some; and in simulation."""
    limits = np.array([binomial_upper_limit(errors, n, delta) for errors in range(n + 1)])
    assert np.all(np.diff(limits) > 0)
    misses = []
    for p in np.linspace(0, 1, 401)[1:-1]:
        chances = np.array([math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)])
        misses.append(float(chances[limits < p].sum()))
    assert 0.8 * delta < max(misses) <= delta + 1e-12
    rng, p = np.random.default_rng(n), 0.17
    seen = limits[rng.binomial(n, p, 4000)] < p
    assert seen.mean() <= delta + 3 * math.sqrt(delta * (1 - delta) / 4000)


@settings(fixed, max_examples=60)
@given(st.integers(1, 2000), st.floats(0, 1), st.floats(1e-6, 0.9))
def test_no_bound_from_a_code_is_below_the_binomial_limit(n: int, share: float, delta: float) -> None:
    errors = int(share * n)
    assert binomial_upper_limit(errors, n, delta) <= occam_bound(errors / n, 0, n, delta)


@pytest.mark.parametrize(
    "arguments", [(-1, 5, 0.1), (6, 5, 0.1), (0, 0, 0.1), (1, 5, 0.0), (1, 5, 1.1), (1, 5, math.nan)]
)
def test_bad_arguments_of_the_binomial_limit_raise(arguments: tuple[int, int, float]) -> None:
    with pytest.raises(ValueError, match="binomial limit"):
        binomial_upper_limit(*arguments)


@pytest.mark.parametrize("n", [10, 100, 1000])
@pytest.mark.parametrize("delta", [0.01, 0.2])
def test_without_a_code_the_bound_is_no_smaller_than_the_exact_binomial_limit(n: int, delta: float) -> None:
    """Clopper–Pearson's one-sided limit is the smallest that holds; Chernoff–kl must lie above it, and not by much."""
    for errors in range(n):
        exact = beta.ppf(1 - delta, errors + 1, n - errors)
        bound = occam_bound(errors / n, 0, n, delta)
        assert exact - 1e-12 <= bound <= exact + 2.5 / math.sqrt(n)


def test_the_bound_is_at_least_as_good_as_hoeffding() -> None:
    for error in (0.0, 0.02, 0.3, 0.9):
        for bits in (0, 100, 1000):
            slack = math.sqrt((bits * math.log(2) + math.log(20)) / (2 * 5000))
            assert occam_bound(error, bits, 5000, 0.05) <= error + slack + 1e-12


def test_bad_arguments_of_the_bound_raise() -> None:
    for arguments in (
        (0.1, -1, 10, 0.1),
        (0.1, 1, 0, 0.1),
        (0.1, 1, 10, 0.0),
        (0.1, 1, 10, 1.5),
        (math.nan, 1, 10, 0.1),
    ):
        with pytest.raises(ValueError):
            occam_bound(*arguments)


def test_violations_over_2000_draws_of_a_class_whose_true_risk_is_known() -> None:
    """The learner picks, of 64 hypotheses, the one with the lowest bound, hence the one that flatters itself most.

    Without its code length the same learner breaks the bound more often than δ allows, so the simulation can tell.
    """
    rng = np.random.default_rng(0)
    n, size, delta, draws = 40, 64, 0.1, 2000
    risks = np.full(size, 0.5)
    paid = free = 0
    for _ in range(draws):
        errors = rng.binomial(n, risks)  # independent over hypotheses, the hardest case for a union bound
        best = int(errors.argmin())
        paid += occam_bound(errors[best] / n, math.log2(size), n, delta) < risks[best]
        free += occam_bound(errors[best] / n, 0, n, delta) < risks[best]
    assert paid <= delta * draws
    assert free > delta * draws


@pytest.mark.long
def test_rigorous_rows_over_2000_draws_of_a_population_that_is_known() -> None:
    """Networks on a finite population: the learner keeps the best of many on each sample; true risks by enumeration."""
    rng = np.random.default_rng(1)
    points = torch.tensor(rng.standard_normal((60, 2))).float()
    labels = torch.tensor(rng.integers(0, 2, 60))
    nets = [torch.tensor(rng.integers(-1, 2, (2, 2))).float() for _ in range(30)]
    margins_of = []
    for weight in nets:
        logits = points.double() @ weight.double().T
        own = logits.gather(1, labels[:, None])[:, 0]
        margins_of.append(own - logits.gather(1, 1 - labels[:, None])[:, 0])
    true = [float((m <= 0).double().mean()) for m in margins_of]
    violations, bounds = 0, []
    for _ in range(2000):
        sample = torch.tensor(rng.integers(0, 60, 400))
        best = min(range(30), key=lambda i: int((margins_of[i][sample] <= 0).sum()))
        m = margins_of[best][sample]
        options = {"margins": m, "num_samples": 400, "input_norm": 3.0, "compressed_margins": m, "delta": 0.2}
        rows = bound_table([nets[best]], convention="rigorous", d=0.0, **options)  # type: ignore[arg-type]
        violations += any(true[best] > math.exp(row.log_value) for row in rows)
        bounds += [math.exp(row.log_value) for row in rows]
    assert violations <= 0.2 * 2000
    assert min(bounds) < 0.9  # below what would hold of any classifier


def test_kraft_elias_gamma() -> None:
    total = math.fsum(math.exp(-elias_gamma_length([i])) for i in range(2**16 - 1))
    assert total == pytest.approx(1 - 2**-16, rel=1e-12)
    assert elias_gamma_length([0, 1, 2, 3]) == pytest.approx((1 + 3 + 3 + 5) * math.log(2))


@pytest.mark.parametrize("shape", [(2, 2), (1, 3), (2, 3)])
@pytest.mark.parametrize("alphabet", [3, 5])
def test_kraft_sparse_code(shape: tuple[int, int], alphabet: int) -> None:
    """Every matrix on the grid by brute force: Σ e^{−length} ≤ 1, so that a prefix code of these lengths exists."""
    size, reach = shape[0] * shape[1], alphabet // 2
    # ρ and r, whose own codes are complete, cost the same for all of these.
    shared = 32 * math.log(2) + elias_gamma_length([alphabet])
    total = 0.0
    for entries in itertools.product(range(-reach, reach + 1), repeat=size):
        matrix = np.array(entries).reshape(shape)
        nonzeros, on_diagonal = np.count_nonzero(matrix), np.count_nonzero(matrix.diagonal())
        total += math.exp(shared - sparse_code_length(size, nonzeros, alphabet, min(shape), on_diagonal))
    assert 0.2 < total <= 1 + 1e-12


def test_a_sparse_code_is_as_long_as_the_formula() -> None:
    """Spec §4, "naive", from integers."""
    size, nonzeros, r = 50 * 40, 300, 17
    ln2 = math.log(2)
    scattered = math.log(size + 1) + math.log(math.comb(size, nonzeros)) + nonzeros * math.log(r - 1)
    assert sparse_code_length(size, nonzeros, r) == pytest.approx(ln2 + scattered + 32 * ln2 + 9 * ln2, rel=1e-12)
    apart = math.log(1961) + math.log(math.comb(1960, 262)) + 262 * math.log(r - 1) + 40 * math.log(r)
    assert sparse_code_length(size, nonzeros, r, 40, 38) == pytest.approx(
        ln2 + min(scattered, apart) + 41 * ln2, rel=1e-12
    )


def test_rigorous_rows_by_brute_force() -> None:
    rng = np.random.default_rng(2)
    weights = [torch.tensor(rng.standard_normal(shape)).float() for shape in ((12, 9), (3, 12))]
    margins = torch.tensor(rng.standard_normal(500) + 2)
    pruned_margins = torch.cat([margins[:-4] - 0.5, torch.tensor([0.0, math.nan, -1.0, 1.0]).double()])
    draw = MaskDraw(weights, 5)
    ln2, n, d, delta = math.log(2), 500, 0.7, 0.04
    rows = {
        row.name: row
        for row in bound_table(
            weights,
            convention="rigorous",
            margins=margins,
            num_samples=n,
            input_norm=1.0,
            d=d,
            draw=draw,
            compressed_margins=pruned_margins,
            biases=15,
            delta=delta,
        )
    }

    def gamma(i: int) -> float:
        return (2 * math.floor(math.log2(i + 1)) + 1) * ln2

    header = 8 * ln2 + 15 * 32 * ln2 + gamma(2) + gamma(9) + gamma(12) + gamma(3)
    each = delta / 4

    def bound(margins: torch.Tensor, length: float) -> float:
        errors = sum(not float(m) > 0 for m in margins)
        return kl_inverse(errors / n, (length - math.log(each)) / n)

    dense = header + (12 * 9 + 3 * 12) * 32 * ln2
    assert math.exp(rows["dense"].log_value) == pytest.approx(bound(margins, dense), rel=1e-9)
    naive = header
    for weight, mask in zip(weights, draw.masks(d), strict=True):
        step = default_step(weight)
        integers = (discretize(weight.double() * mask, step) / step).round().long().numpy()
        alphabet = 2 * math.ceil(float((weight * mask).abs().max()) / step) + 1
        assert abs(integers).max() <= alphabet // 2
        size, diagonal = integers.size, min(integers.shape)
        on = int(np.count_nonzero(integers.diagonal()))
        off = int(np.count_nonzero(integers)) - on
        plain = math.log(size + 1) + math.log(math.comb(size, on + off)) + (on + off) * math.log(alphabet - 1)
        apart = math.log(size - diagonal + 1) + math.log(math.comb(size - diagonal, off))
        apart += off * math.log(alphabet - 1) + diagonal * math.log(alphabet)
        naive += ln2 + min(plain, apart) + 32 * ln2 + gamma(alphabet)
    assert rows["naive"].terms["bits"] == pytest.approx(naive / ln2, rel=1e-9)
    assert math.exp(rows["naive"].log_value) == pytest.approx(bound(pruned_margins, naive), rel=1e-9)
    assert all(row.holds_with == pytest.approx(1 - each) and row.applies for row in rows.values())


def test_a_rounded_layer_is_a_function_of_integers_and_a_32_bit_step() -> None:
    weight = torch.randn(30, 40, generator=torch.Generator().manual_seed(0))
    step = default_step(weight)
    assert float(np.float32(step)) == step
    rounded = discretize(weight, step)
    assert rounded.dtype == torch.float32
    assert torch.equal(rounded, (torch.round(weight.double() / step) * step).float())
