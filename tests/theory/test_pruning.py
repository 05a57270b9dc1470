import itertools
import math
import statistics
from collections.abc import Callable
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate

from milkshake_mbp.theory.pruning import (
    MaskDraw,
    StrengthSearch,
    difference_moments,
    keep_probability,
    layer_generator,
    prune_probability,
    prune_thresholds,
    sample_mask,
    search_strength,
)

fixed = settings(derandomize=True, deadline=None, max_examples=60, database=None)
STRENGTHS = [0.01, 0.1, 0.5, 1.0, 3.0, 10.0, 100.0, 1000.0]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def exact_keep_probability(d: float) -> float:
    """1 − sqrt(d/(d+2)) with enough digits for the cancellation."""
    with localcontext() as context:
        context.prec = 700
        strength = Decimal(d)
        return float(1 - (strength / (strength + 2)).sqrt())


def gaussian_integral(function: Callable[[float], float]) -> float:
    """E function(a) for a ~ N(0, 1) and an even function, by quadrature over decades around 0."""
    edges = [0.0, 1e-3, 1e-2, 1e-1, 1.0, 3.0, 10.0, 40.0]
    density = 2 / math.sqrt(2 * math.pi)
    pieces = [
        integrate.quad(lambda a: density * math.exp(-a * a / 2) * function(a), low, high, epsabs=1e-16, epsrel=1e-12)[0]
        for low, high in itertools.pairwise(edges)
    ]
    return math.fsum(pieces)


def gaussian(shape: tuple[int, int], seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def off_diagonal(matrix: torch.Tensor) -> torch.Tensor:
    rows, columns = matrix.shape
    return matrix[~torch.eye(rows, columns, dtype=torch.bool)]


# χ(d)


@pytest.mark.parametrize("d", [*STRENGTHS, 1e-300, 1e-20, 1e-5, 1e6, 1e9, 1e16, 1e100, 1e300])
def test_keep_probability_has_no_cancellation(d: float) -> None:
    assert keep_probability(d) == pytest.approx(exact_keep_probability(d), rel=1e-15, abs=0)


def test_keep_probability_at_the_ends() -> None:
    assert keep_probability(0.0) == 1.0
    assert keep_probability(math.inf) == 0.0
    assert keep_probability(1.0) == pytest.approx(1 - 1 / math.sqrt(3), rel=1e-15)
    assert keep_probability(1.7e308) > 0


@pytest.mark.parametrize("d", STRENGTHS)
def test_keep_probability_is_the_integral_of_equations_9_to_11(d: float) -> None:
    assert keep_probability(d) == pytest.approx(gaussian_integral(lambda a: -math.expm1(-a * a / d)), rel=1e-9)


@pytest.mark.parametrize("d", STRENGTHS)
def test_keep_probability_against_bernoulli_draws(d: float) -> None:
    rng = np.random.default_rng(7)
    entries = rng.standard_normal(400_000)
    kept = rng.random(entries.size) >= np.exp(-(entries**2) / d)
    chi = keep_probability(d)
    assert abs(kept.mean() - chi) <= 3 * math.sqrt(chi * (1 - chi) / entries.size)


@fixed
@given(st.floats(0, 1e6), st.floats(1e-6, 1e6))
def test_keep_probability_falls_with_d(d: float, more: float) -> None:
    assert 0 < keep_probability(d + more) < keep_probability(d) <= 1


@pytest.mark.parametrize("d", [-1e-300, -1.0, -math.inf, math.nan])
def test_a_strength_below_zero_raises(d: float) -> None:
    weight = gaussian((3, 3))
    for call in (
        lambda: keep_probability(d),
        lambda: difference_moments(d, 1.0),
        lambda: prune_probability(weight, d),
        lambda: sample_mask(weight, d),
        lambda: MaskDraw([weight]).masks(d),
    ):
        with pytest.raises(ValueError, match="d must be"):
            call()


# Moments of Δ


@pytest.mark.parametrize("d", STRENGTHS)
def test_difference_moments_by_quadrature(d: float) -> None:
    psi = 0.37
    second, fourth = difference_moments(d, psi)
    assert second == pytest.approx(psi * gaussian_integral(lambda a: a**2 * math.exp(-a * a / d)), rel=1e-9)
    assert fourth == pytest.approx(psi**2 * gaussian_integral(lambda a: a**4 * math.exp(-a * a / d)), rel=1e-9)


@pytest.mark.parametrize("d", STRENGTHS)
def test_difference_moments_by_simulation(d: float) -> None:
    psi, rng = 0.37, np.random.default_rng(11)
    entries = math.sqrt(psi) * rng.standard_normal(400_000)
    difference = np.where(rng.random(entries.size) < np.exp(-(entries**2) / (d * psi)), -entries, 0.0)
    for power, expected in zip((2, 4), difference_moments(d, psi), strict=True):
        samples = difference**power
        assert abs(samples.mean() - expected) <= 3 * samples.std() / math.sqrt(samples.size)


def test_difference_moments_at_the_ends() -> None:
    assert difference_moments(0.0, 2.0) == (0.0, 0.0)
    assert difference_moments(math.inf, 2.0) == (2.0, 12.0)  # everything is pruned: Δ = −a, and E a⁴ = 3Ψ²
    assert difference_moments(1e300, 2.0) == pytest.approx((2.0, 12.0), rel=1e-15)


# Probabilities and masks


@pytest.mark.parametrize("d", [0.05, 1.0, 40.0])
@pytest.mark.parametrize("mean", [0.0, 3.0])
def test_prune_probability_entry_by_entry(d: float, mean: float) -> None:
    """The exponent uses a², not (a − mean)², and Ψ is the population variance: a 2×3 matrix tells ddof 0 from 1."""
    entries = [[0.3, -1.2, 0.0], [2.5, 0.7, -0.1]]
    entries = [[a + mean for a in row] for row in entries]
    psi = statistics.pvariance([a for row in entries for a in row])
    probability = prune_probability(torch.tensor(entries, dtype=torch.float64), d, keep_diagonal=False)
    assert probability.dtype == torch.float64
    for i in range(2):
        for j in range(3):
            assert float(probability[i, j]) == pytest.approx(math.exp(-(entries[i][j] ** 2) / (d * psi)), rel=1e-12)


def test_prune_probability_takes_the_given_variance() -> None:
    weight = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    expected = torch.tensor([[0.0, math.exp(-4 / 1.5)], [math.exp(-9 / 1.5), 0.0]], dtype=torch.float64)
    torch.testing.assert_close(prune_probability(weight, 0.5, variance=3.0), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(prune_probability(weight, 0.5, variance=torch.tensor(3.0)), expected, rtol=1e-12, atol=0)


def test_prune_probability_at_the_ends() -> None:
    weight = gaussian((3, 4))
    assert not prune_probability(weight, 0.0, keep_diagonal=False).any()
    assert (prune_probability(weight, math.inf, keep_diagonal=False) == 1).all()


@pytest.mark.parametrize("keep_diagonal", [True, False])
def test_masks_prune_with_the_stated_frequency(keep_diagonal: bool) -> None:
    weight, d, draws = gaussian((3, 5), seed=1), 0.8, 4000
    generator = torch.Generator().manual_seed(5)
    pruned = torch.zeros(weight.shape, dtype=torch.float64)
    for _ in range(draws):
        pruned += ~sample_mask(weight, d, keep_diagonal=keep_diagonal, generator=generator)
    probability = prune_probability(weight, d, keep_diagonal=keep_diagonal)
    error = 3 * (probability * (1 - probability) / draws).sqrt()
    assert ((pruned / draws - probability).abs() <= error).all()


@pytest.mark.parametrize("d", STRENGTHS)
def test_sampled_masks_keep_a_fraction_chi_off_the_diagonal(d: float) -> None:
    kept = off_diagonal(sample_mask(gaussian((600, 500), seed=2), d, generator=torch.Generator().manual_seed(3)))
    chi = keep_probability(d)
    assert abs(kept.double().mean().item() - chi) <= 3 * math.sqrt(chi * (1 - chi) / kept.numel())


@pytest.mark.parametrize("shape", [(4, 4), (3, 7), (7, 3), (1, 5), (5, 1)])
def test_the_diagonal_is_exempt(shape: tuple[int, int]) -> None:
    weight = gaussian(shape, seed=3)
    for d in (1e12, math.inf):
        mask = sample_mask(weight, d)
        for i in range(shape[0]):
            for j in range(shape[1]):
                assert bool(mask[i, j]) == (i == j)
    assert not prune_probability(weight, 5.0).diagonal().any()
    assert not sample_mask(weight, math.inf, keep_diagonal=False).any()
    assert not MaskDraw([weight]).masks(math.inf, keep_diagonal=False)[0].any()
    assert int(MaskDraw([weight]).masks(math.inf)[0].sum()) == min(shape)


@pytest.mark.parametrize("d", [1e-12, 1.0, math.inf])
def test_zero_entries_are_pruned_at_any_positive_strength(d: float) -> None:
    weight = torch.tensor([[1.0, 0.0, -2.0], [0.0, 3.0, 0.0]])
    mask = sample_mask(weight, d, keep_diagonal=False)
    assert not mask[weight == 0].any()
    assert sample_mask(weight, 0.0, keep_diagonal=False).all()
    assert (prune_probability(weight, d, keep_diagonal=False)[weight == 0] == 1).all()


@pytest.mark.parametrize("value", [0.1, -0.3, 1.0, 7e-5])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_constant_layer_is_never_pruned(value: float, dtype: torch.dtype) -> None:
    """Its variance is 0, so exp(−a²/(dΨ)) is 0 for every nonzero entry, whatever the rounding of the mean."""
    weight = torch.full((7, 11), value, dtype=dtype)
    for d in (0.01, 1.0, 1e6):
        assert sample_mask(weight, d, keep_diagonal=False).all()
        assert not prune_probability(weight, d, keep_diagonal=False).any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_float_dtype_is_computed_in_float64(dtype: torch.dtype) -> None:
    """Entries near 300, whose squares and sums overflow float16."""
    weight = gaussian((20, 30), seed=4, scale=300.0).to(dtype)
    mask = sample_mask(weight, 1.0, generator=torch.Generator().manual_seed(0))
    assert mask.dtype == torch.bool and mask.shape == weight.shape
    assert torch.equal(mask, sample_mask(weight.double(), 1.0, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(
        prune_probability(weight, 1.0), prune_probability(weight.double(), 1.0), rtol=1e-12, atol=0
    )
    assert 0.3 < off_diagonal(mask).double().mean() < 0.55  # χ(1) = 0.42


@fixed
@given(st.integers(0, 10**6), st.floats(0, 50), st.floats(0, 50), st.booleans())
def test_masks_of_one_seed_are_nested(seed: int, first: float, second: float, keep_diagonal: bool) -> None:
    weak, strong = sorted((first, second))
    draw = MaskDraw([gaussian((6, 9), seed=seed)], seed)
    (many,), (few,) = draw.masks(weak, keep_diagonal), draw.masks(strong, keep_diagonal)
    assert not (few & ~many).any()


@fixed
@given(st.integers(0, 10**6), st.integers(-60, 60))
def test_masks_do_not_depend_on_the_layers_scale(seed: int, exponent: int) -> None:
    weight = gaussian((5, 8), seed=seed)
    assert torch.equal(MaskDraw([weight], 1).masks(1.0)[0], MaskDraw([weight * 2.0**exponent], 1).masks(1.0)[0])


# Any scale, and none: c·A is pruned as A is


@fixed
@given(
    st.integers(0, 10**6),
    st.sampled_from([-1040, -1021, -600, -540, -512, -100, 0, 37, 511, 512, 540, 1000, 1021]),
    st.floats(1e-6, 50),
    st.booleans(),
)
def test_what_algorithm_1_does_is_free_of_scale(seed: int, exponent: int, d: float, keep_diagonal: bool) -> None:
    """To the last bit for powers of two, from subnormal weights to the largest floats (weights of 22 bits)."""
    weight = gaussian((5, 8), seed=seed).mul_(2.0**18).round_().mul_(2.0**-20)
    scaled = weight * 2.0 ** (exponent // 2) * 2.0 ** (exponent - exponent // 2)
    assert scaled.isfinite().all() and torch.equal(scaled == 0, weight == 0)
    assert torch.equal(prune_probability(weight, d), prune_probability(scaled, d))
    (before,), (after,) = MaskDraw([weight], seed).thresholds, MaskDraw([scaled], seed).thresholds
    assert torch.equal(before, after)
    assert torch.equal(MaskDraw([weight], 1).masks(d)[0], MaskDraw([scaled], 1).masks(d)[0])
    draws = [
        sample_mask(matrix, d, keep_diagonal=keep_diagonal, generator=torch.Generator().manual_seed(seed))
        for matrix in (weight, scaled, -scaled)
    ]
    assert torch.equal(draws[0], draws[1]) and torch.equal(draws[1], draws[2])


@fixed
@given(st.integers(0, 10**6), st.floats(-290, 290))
def test_masks_do_not_depend_on_the_unit_of_the_weights(seed: int, decades: float) -> None:
    weight = gaussian((5, 8), seed=seed)
    scaled = weight * 10.0**decades
    assert torch.equal(MaskDraw([weight], 1).masks(1.0)[0], MaskDraw([scaled], 1).masks(1.0)[0])
    torch.testing.assert_close(prune_probability(scaled, 0.7), prune_probability(weight, 0.7), rtol=1e-12, atol=0)


@pytest.mark.parametrize("scale", [1e-320, 1e-200, 1e-170, 1e-154, 1.0, 1e154, 1e200, 1e307])
def test_probabilities_far_from_one_unit(scale: float) -> None:
    """The formula in rational numbers."""
    weight = scale * torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, -1.5]], dtype=torch.float64)
    entries = [Fraction(a) for a in weight.flatten().tolist()]
    psi = statistics.pvariance(entries)
    expected = [math.exp(-float(a * a / psi) / 0.8) for a in entries]
    assert prune_probability(weight, 0.8, keep_diagonal=False).flatten().tolist() == pytest.approx(expected, rel=1e-12)
    if 1e-150 < scale < 1e150:
        given_psi = prune_probability(weight, 0.8, float(psi), keep_diagonal=False)
        assert given_psi.flatten().tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("variance", [5e-324, 1e-310, 1e-200, 0.1, 1e200, 1.7e308])
def test_a_given_variance_of_any_size(variance: float) -> None:
    """In units of √Ψ all is as at Ψ = 1; a Python float is not rounded to float32 on its way."""
    ratios = torch.tensor([[0.3, 1.0, 5.0]], dtype=torch.float64)
    probability = prune_probability(ratios * math.sqrt(variance), 2.0, variance, keep_diagonal=False)
    torch.testing.assert_close(probability, torch.exp(-ratios.square() / 2), rtol=1e-9, atol=0)
    extremes = torch.tensor([[1e-100, 1e100]], dtype=torch.float64) * math.sqrt(variance)
    beyond = prune_probability(extremes, 1.0, variance, keep_diagonal=False)
    assert beyond.tolist() == [[1.0, 0.0]]


def test_mixed_magnitudes_in_one_layer() -> None:
    """Beside a large entry the others are pruned at any d but 0, and are not zeros yet."""
    weight = torch.tensor([[1e200, -1e-200, 0.0], [5e-324, 1e100, 1.0]], dtype=torch.float64)
    thresholds = prune_thresholds(weight, generator=torch.Generator().manual_seed(0))
    assert torch.equal(thresholds == 0, weight == 0) and thresholds.isfinite().all()
    assert prune_probability(weight, 1e-9, keep_diagonal=False).tolist() == [[0.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    draw = MaskDraw([weight])
    assert torch.equal(draw.masks(draw.smallest, keep_diagonal=False)[0], weight != 0)


@pytest.mark.parametrize("value", [1e-320, -1e-170, 1e-30, 0.1, -7.0, 1e200, 1.7e308])
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (7, 11)])
def test_equal_entries_are_never_pruned(value: float, shape: tuple[int, int]) -> None:
    """Ψ = 0: a²/(dΨ) is infinite for every nonzero entry, at any d, be it as large as floats are."""
    weight = torch.full(shape, value, dtype=torch.float64)
    assert prune_thresholds(weight).isinf().all()
    for d in (0.0, 1e-300, 1.0, 1e40, 1e308, math.inf):
        assert sample_mask(weight, d, keep_diagonal=False).all()
        assert not prune_probability(weight, d, keep_diagonal=False).any()
    assert MaskDraw([weight]).smallest == math.inf


@pytest.mark.parametrize("variance", [None, 0.0, 2.0])
def test_a_zero_layer_is_pruned_at_any_positive_strength(variance: float | None) -> None:
    weight = torch.zeros(3, 4)
    for d in (5e-324, 1.0, math.inf):
        assert (prune_probability(weight, d, variance, keep_diagonal=False) == 1).all()
        assert not sample_mask(weight, d, variance=variance, keep_diagonal=False).any()
    assert not prune_probability(weight, 0.0, variance).any() and sample_mask(weight, 0.0, variance=variance).all()


def test_a_variance_of_zero_prunes_zeros_alone() -> None:
    weight = torch.tensor([[1e-170, 0.0, -2.0]], dtype=torch.float64)
    for d in (1e-9, 1e9, math.inf):
        assert prune_probability(weight, d, 0.0, keep_diagonal=False).tolist() == [[0.0, 1.0, 0.0]]
        assert sample_mask(weight, d, variance=0.0, keep_diagonal=False).tolist() == [[True, False, True]]


@pytest.mark.parametrize("variance", [-1.0, math.nan, math.inf])
def test_a_variance_that_is_none_raises(variance: float) -> None:
    for call in (prune_probability, sample_mask):
        with pytest.raises(ValueError, match="variance"):
            call(gaussian((2, 3)), 1.0, variance=variance)


@pytest.mark.parametrize("d", [1e-100, 1e-3, 1.0, math.inf])
@pytest.mark.parametrize("variance", [1e-300, 1e-100, 1e100, 1e149, 1e155, 1e300])
def test_difference_moments_of_any_scale(d: float, variance: float) -> None:
    """In rational numbers where they are floats at all; 0 and infinity beyond."""
    second, fourth = difference_moments(d, variance)
    with localcontext() as context:
        context.prec, context.Emax, context.Emin = 60, 99999, -99999
        ratio = Decimal(1) if math.isinf(d) else Decimal(d) / (Decimal(d) + 2)
        assert second == pytest.approx(float(Decimal(variance) * ratio ** Decimal("1.5")), rel=1e-12)
        expected = float(3 * Decimal(variance) ** 2 * ratio ** Decimal("2.5"))
        assert fourth == pytest.approx(expected, rel=1e-12, abs=1e-300)


def test_thresholds_are_where_masks_change() -> None:
    weight = gaussian((4, 6), seed=5)
    thresholds = prune_thresholds(weight, generator=torch.Generator().manual_seed(9))
    for i in range(4):
        for j in range(6):
            d = float(thresholds[i, j])
            at = sample_mask(weight, d, keep_diagonal=False, generator=torch.Generator().manual_seed(9))
            above = sample_mask(weight, d * (1 + 1e-9), keep_diagonal=False, generator=torch.Generator().manual_seed(9))
            assert at[i, j] and not above[i, j]


def test_a_seed_fixes_every_layers_mask() -> None:
    weights = [gaussian((20, 20), seed=6)] * 3
    first, again, other = (MaskDraw(weights, seed).masks(1.0) for seed in (4, 4, 5))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert not torch.equal(first[0], first[1]) and not torch.equal(first[1], first[2])


def test_draws_of_nearby_seeds_and_layers_are_all_different() -> None:
    states = {layer_generator(seed, layer).get_state().numpy().tobytes() for seed in range(50) for layer in range(20)}
    assert len(states) == 1000


def test_a_draw_agrees_with_sample_mask() -> None:
    weights = [gaussian((9, 5), seed=7), gaussian((4, 9), seed=8)]
    for keep_diagonal in (True, False):
        expected = [
            sample_mask(weight, 0.7, keep_diagonal=keep_diagonal, generator=layer_generator(3, layer))
            for layer, weight in enumerate(weights)
        ]
        for mask, other in zip(MaskDraw(weights, 3).masks(0.7, keep_diagonal), expected, strict=True):
            assert torch.equal(mask, other)


def test_a_generator_leaves_the_global_state_alone() -> None:
    weight = gaussian((5, 5))
    before = torch.get_rng_state()
    sample_mask(weight, 1.0, generator=torch.Generator().manual_seed(0))
    prune_thresholds(weight, generator=torch.Generator().manual_seed(0))
    MaskDraw([weight, weight], 3).masks(2.0)
    assert torch.equal(before, torch.get_rng_state())


def test_without_a_generator_torchs_own_is_used() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        first, second = sample_mask(gaussian((9, 9)), 1.0), sample_mask(gaussian((9, 9)), 1.0)
        torch.manual_seed(1)
        assert torch.equal(first, sample_mask(gaussian((9, 9)), 1.0))
    assert not torch.equal(first, second)


def test_sampling_changes_nothing_about_the_weight() -> None:
    weight = gaussian((4, 4)).requires_grad_()
    copy = weight.detach().clone()
    sample_mask(weight, 1.0), prune_probability(weight, 1.0)
    assert torch.equal(weight.detach(), copy) and weight.grad is None


@pytest.mark.parametrize("variance", [None, 1.0])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_raise(bad: float, variance: float | None) -> None:
    weight = gaussian((3, 4))
    weight[1, 2] = bad
    for call in (
        lambda: prune_probability(weight, 1.0, variance=variance),
        lambda: sample_mask(weight, 1.0, variance=variance),
        lambda: prune_thresholds(weight, variance=variance),
    ):
        with pytest.raises(ValueError, match="NaN or infinity"):
            call()


@pytest.mark.parametrize("shape", [(3,), (2, 3, 4), ()])
def test_weights_that_are_not_matrices_raise(shape: tuple[int, ...]) -> None:
    for call in (prune_probability, sample_mask):
        with pytest.raises(ValueError, match="matri"):
            call(torch.ones(shape), 1.0)


def test_the_smallest_threshold_prunes_nothing_but_zeros() -> None:
    weights = [gaussian((6, 4), seed=9), gaussian((3, 6), seed=10)]
    weights[0][2, 1] = 0.0
    draw = MaskDraw(weights, 2)
    for weight, mask in zip(weights, draw.masks(draw.smallest, keep_diagonal=False), strict=True):
        assert torch.equal(mask, weight != 0)
    after = draw.masks(draw.smallest * (1 + 1e-12), keep_diagonal=False)
    assert sum(int((~mask).sum()) for mask in after) == 2
    assert MaskDraw([torch.zeros(2, 2)]).smallest == math.inf


# The search for d


def search(log_needed: Callable[[float], float], margin: float, **options: float) -> tuple[StrengthSearch, list[float]]:
    visited: list[float] = []

    def recorded(d: float) -> float:
        visited.append(d)
        return log_needed(d)

    options = {"smallest": 1e-9, "start": 1e-3, **options}
    found = search_strength(recorded, margin, **options)
    assert found.evaluations == len(visited)
    return found, visited


def assert_valid(found: StrengthSearch, visited: list[float], log_needed: Callable[[float], float]) -> None:
    """Affordable, reported as evaluated, and within 1% of a strength that was seen not to be."""
    assert log_needed(found.d) <= found.log_margin
    assert found.log_needed == pytest.approx(log_needed(found.d), abs=1e-12)
    beyond = [d for d in visited if found.d < d <= found.d * 1.01 * (1 + 1e-12) and log_needed(d) > found.log_margin]
    assert beyond, "nothing unaffordable was seen within 1% of the answer"
    assert len(visited) <= 60


@fixed
@given(st.floats(0.2, 4), st.floats(-12, 12), st.floats(1e-6, 9.9), st.floats(1e-12, 1e3))
def test_search_on_power_laws(slope: float, log_margin: float, root: float, start: float) -> None:
    margin = math.exp(log_margin)

    def log_needed(d: float) -> float:
        return -math.inf if d <= 1e-9 else math.log(margin) + slope * math.log(d / root)

    found, visited = search(log_needed, margin, start=start)
    assert_valid(found, visited, log_needed)
    assert root / 1.01 * (1 - 1e-9) <= found.d <= root * (1 + 1e-9)


def test_a_power_law_of_the_expected_slope_takes_few_evaluations() -> None:
    found, _ = search(lambda d: 0.75 * math.log(d / 0.02), 1.0, start=0.01)
    assert found.evaluations <= 8
    assert 0.02 / 1.01 <= found.d <= 0.02


@fixed
@given(st.integers(0, 10**6), st.integers(1, 40), st.floats(1e-12, 1e3), st.floats(0.01, 0.99))
def test_search_on_step_functions(seed: int, jumps: int, start: float, level: float) -> None:
    """What needed(d) really is: a staircase that starts at 0."""
    rng = np.random.default_rng(seed)
    edges = np.sort(10 ** rng.uniform(-9, 0.99, jumps))
    heights = np.concatenate([[0.0], np.cumsum(rng.exponential(size=jumps))])
    margin = float(level * heights[-1])

    def log_needed(d: float) -> float:
        height = heights[np.searchsorted(edges, d, side="left")]
        return math.log(height) if height > 0 else -math.inf

    found, visited = search(log_needed, margin, smallest=float(edges[0]) * (1 - 1e-9), start=start)
    assert_valid(found, visited, log_needed)
    crossing = edges[np.flatnonzero(heights[1:] > margin)[0]]
    assert crossing / 1.01 * (1 - 1e-8) <= found.d <= crossing


@fixed
@given(st.integers(0, 10**6), st.floats(0.05, 3))
def test_search_on_a_wavy_function(seed: int, amplitude: float) -> None:
    rng = np.random.default_rng(seed)
    frequency, phase, level = rng.uniform(0.5, 20), rng.uniform(0, 6.3), rng.uniform(-10, 0.7)

    def log_needed(d: float) -> float:
        return -math.inf if d <= 1e-9 else 0.75 * math.log(d) + amplitude * math.sin(frequency * math.log(d) + phase)

    found, visited = search(log_needed, math.exp(level))
    if found.d == 10.0:
        assert log_needed(10.0) <= found.log_margin
    else:
        assert_valid(found, visited, log_needed)


@pytest.mark.parametrize("smallest", [1e-300, 1e-30, 0.1, 9.999])
def test_search_is_bounded_however_wide_the_range(smallest: float) -> None:
    def log_needed(d: float) -> float:
        return -math.inf if d <= smallest * 1.0001 else 1e6

    found, visited = search(log_needed, 1.0, smallest=smallest, start=1.0)
    assert_valid(found, visited, log_needed)


@fixed
@given(st.floats(1e-9, 1))
def test_search_never_passes_the_smallest_threshold(smallest: float) -> None:
    """The first pruned entry already costs too much: exp(ln d) must not land a rounding error above d."""
    found, _ = search(lambda d: -math.inf if d <= smallest else 50.0, 1.0, smallest=smallest, start=1.0)
    assert found.d <= smallest
    assert found.log_needed == -math.inf


def test_search_returns_the_largest_if_it_is_affordable() -> None:
    for margin in (1.0, math.inf):
        found, visited = search(lambda d: 0.75 * math.log(d / 10), margin)
        assert found.d == 10.0
        assert visited == [10.0]
    assert search(lambda d: math.log(d), 3.0, largest=2.5)[0].d == 2.5


@pytest.mark.parametrize("margin", [0.0, -1.0, -math.inf, math.nan])
def test_without_a_positive_margin_nothing_is_pruned(margin: float) -> None:
    found, visited = search(lambda d: -math.inf, margin)
    assert (found.d, found.log_needed, found.log_margin) == (0.0, -math.inf, -math.inf)
    assert visited == []


@pytest.mark.parametrize("tolerance", [0.1, 0.001])
def test_search_keeps_the_tolerance_asked_for(tolerance: float) -> None:
    found, _ = search(lambda d: math.log(d), 0.4, tolerance=tolerance)
    assert 0.4 / (1 + tolerance) <= found.d <= 0.4
