import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from milkshake_mbp.theory.bounds import (
    ROWS,
    Bound,
    LayerNorms,
    PrunedLayer,
    bound_table,
    evaluate,
    prune_layers,
    search_paper_strength,
)
from milkshake_mbp.theory.pruning import MaskDraw, StrengthSearch, keep_probability

fixed = settings(derandomize=True, deadline=None, max_examples=25, database=None)
Shapes = Sequence[tuple[int, int]]
MNIST: Shapes = ((784, 784), (784, 784), (784, 784), (784, 784), (10, 784))
NORM_ROWS = ["neyshabur_2015", "neyshabur_2017", "bartlett_2017"]
COUNTING_ROWS = ["theorem_5_2", "theorem_5_2_measured", "naive"]


def top(matrix: np.ndarray) -> float:
    return float(np.linalg.svd(matrix, compute_uv=False)[0])


def network(seed: int, shapes: Shapes = ((12, 20), (14, 12), (5, 14)), scale: float = 1.0) -> list[torch.Tensor]:
    rng = np.random.default_rng(seed)
    return [torch.tensor(rng.standard_normal(shape) * scale / math.sqrt(shape[1])).float() for shape in shapes]


def training_margins(seed: int, n: int = 200, low: float = 0.5) -> torch.Tensor:
    return torch.tensor(low + np.random.default_rng(seed + 1000).gamma(2.0, 5.0, n))


def table(weights: Sequence[torch.Tensor], convention: str, **options: Any) -> dict[str, Bound]:
    defaults: dict[str, Any] = {"margins": training_margins(0), "num_samples": 200, "input_norm": 1.5}
    rows = bound_table(weights, convention=convention, **{**defaults, **options})  # type: ignore[arg-type]
    return {row.name: row for row in rows}


def shapes_of(weights: Sequence[torch.Tensor]) -> Shapes:
    return [(int(weight.shape[0]), int(weight.shape[1])) for weight in weights]


def arrays(weights: Sequence[torch.Tensor]) -> list[np.ndarray]:
    return [weight.double().numpy() for weight in weights]


# The `paper` rows, once more, from spec §4


def frobenius_square(a: np.ndarray) -> float:
    return sum(float(entry) ** 2 for row in a for entry in row)


def reference_norm_rows(weights: Sequence[torch.Tensor], gamma: float) -> dict[str, float]:
    layers = arrays(weights)
    squares = [top(a) ** 2 for a in layers]
    product = math.prod(squares)
    return {
        "neyshabur_2015": math.prod(frobenius_square(a) for a in layers) / gamma**2,
        "neyshabur_2017": product
        * sum(a.shape[1] * frobenius_square(a) / s for a, s in zip(layers, squares, strict=True))
        / gamma**2,
        "bartlett_2017": product
        * sum(frobenius_square(a) / s for a, s in zip(layers, squares, strict=True))
        / gamma**2,
    }


def reference_needed(weights: Sequence[torch.Tensor], n: int, radius: float, d: float, seed: int) -> float:
    masks = MaskDraw(weights, seed).masks(d, keep_diagonal=False)
    product, total = 1.0, 0.0
    for a, mask in zip(arrays(weights), masks, strict=True):
        rows, columns = a.shape
        kappa = 1.0
        if rows < columns:
            kappa = min(1.0, math.sqrt(math.log(100 * n) / columns) * math.sqrt(rows))
        product *= kappa * top(a)
        total += top(np.where(mask.numpy(), 0.0, a)) / top(a)
    return math.e * radius * product * total


def log_squared_count(shapes: Shapes) -> float:
    total = 0.0
    for rows, columns in shapes:
        total += rows * columns * math.log(max(rows, columns)) ** 2
    return total


def reference_theorem_5_2(
    weights: Sequence[torch.Tensor], margins: torch.Tensor, n: int, radius: float, d: float, seed: int
) -> float:
    needed = reference_needed(weights, n, radius, d, seed)
    risk = sum(1 for margin in margins.tolist() if margin < needed) / len(margins)
    chi = 1 - math.sqrt(d / (d + 2))
    return risk + math.sqrt(chi * log_squared_count(shapes_of(weights)) / n)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("low", [0.5, 4.0, 200.0])
@pytest.mark.parametrize("shapes", [((12, 20), (14, 12), (5, 14)), ((20, 400), (3, 20))], ids=["κ = 1", "κ < 1"])
def test_paper_rows_by_brute_force(seed: int, low: float, shapes: Shapes) -> None:
    weights, margins = network(seed, shapes), training_margins(seed, low=low)
    rows = table(weights, "paper", margins=margins, seed=seed)
    gamma = min(margins.tolist())
    for name, expected in reference_norm_rows(weights, gamma).items():
        assert math.exp(rows[name].log_value) == pytest.approx(expected, rel=1e-6)
    row = rows["theorem_5_2"]
    d = row.terms["d"]
    assert 0 < d <= 10
    expected = reference_theorem_5_2(weights, margins, 200, 1.5, d, seed)
    assert math.exp(row.log_value) == pytest.approx(expected, rel=1e-6)
    assert row.terms["empirical_risk"] == 0.0
    assert reference_needed(weights, 200, 1.5, d, seed) <= gamma * (1 + 1e-9)
    if d < 9.9:  # it is not timid: a percent or so further the margin no longer suffices
        further = np.linspace(d, 1.02 * d, 30)
        assert max(reference_needed(weights, 200, 1.5, x, seed) for x in further) > 0.995 * gamma


@pytest.mark.parametrize("d", [0.0, 0.01, 0.3, 4.0])
def test_the_paper_row_at_a_given_strength(d: float) -> None:
    """Beyond the affordable d the margins fall below needed(d) and the first term counts them."""
    weights, margins = network(3), training_margins(3)
    row = table(weights, "paper", margins=margins, d=d, seed=4)["theorem_5_2"]
    expected = reference_theorem_5_2(weights, margins, 200, 1.5, d, 4)
    assert row.terms["d"] == d
    assert math.exp(row.log_value) == pytest.approx(expected, rel=1e-6)
    needed = reference_needed(weights, 200, 1.5, d, 4)
    risk = sum(1 for margin in margins.tolist() if margin < needed) / 200
    assert row.terms["empirical_risk"] == pytest.approx(risk, abs=1e-12)
    assert (risk > 0) == (d > 0)


def paper_row_of_shapes(shapes: Shapes, n: int, d: float) -> Bound:
    """Theorem 5.2's row where every margin suffices: it reads the shapes alone."""
    zeros = (0.0,) * len(shapes)
    rows = table(
        [],
        "paper",
        margins=torch.ones(5),
        num_samples=n,
        norms=LayerNorms(tuple(shapes), zeros, zeros, zeros),
        search=StrengthSearch(d, -math.inf, 0.0, 1),
        num_classes=10,
    )
    return rows["theorem_5_2"]


def test_golden_theorem_5_2_without_pruning() -> None:
    """Spec §5."""
    assert paper_row_of_shapes(MNIST, 60000, 0.0).log_value == pytest.approx(3.755, abs=5e-4)


@pytest.mark.parametrize(
    ("width", "printed"), [(500, 3.36), (784, 3.77), (1000, 4.00), (1500, 4.40), (2000, 4.73), (2500, 4.96)]
)
def test_the_papers_own_column_is_no_pruning_at_all(width: int, printed: float) -> None:
    shapes = [(width, 784), *[(width, width)] * 3, (10, width)]
    assert paper_row_of_shapes(shapes, 60000, 0.0).log_value == pytest.approx(printed, abs=0.035)


def test_the_cifar_column_is_beyond_the_formula() -> None:
    """Width 784 cannot reach the printed 4.68, even if every margin fell short."""
    shapes = [(784, 3072), *[(784, 784)] * 3, (10, 784)]
    row = paper_row_of_shapes(shapes, 50000, 0.0)
    assert row.log_value == pytest.approx(4.233, abs=5e-4)
    assert math.log(1 + math.exp(row.log_value)) < 4.36 < 4.68


@pytest.mark.parametrize("d", [1e-4, 0.1, 1.0, 10.0])
def test_the_strength_enters_theorem_5_2_through_chi_alone(d: float) -> None:
    """A search at its own γ, so no margin falls short: ½ ln χ(d) above the row without pruning."""
    difference = paper_row_of_shapes(MNIST, 60000, d).log_value - paper_row_of_shapes(MNIST, 60000, 0.0).log_value
    assert difference == pytest.approx(0.5 * math.log(1 - math.sqrt(d / (d + 2))), rel=1e-9)


# The `leading` rows


def reference_best_margin(margins: torch.Tensor, numerator: float) -> tuple[float, float]:
    """min over the positive margins γ of (fraction below γ) + numerator/γ, and the γ: by trying them all."""
    values = margins.tolist()
    best = (math.inf, math.inf)
    for gamma in values:
        if gamma > 0:
            best = min(best, (sum(1 for m in values if m < gamma) / len(values) + numerator / gamma, gamma))
    return best


def reference_leading_numerators(
    weights: Sequence[torch.Tensor], n: int, radius: float, reference: Sequence[torch.Tensor] | None = None
) -> dict[str, float]:
    """What stands over γ in each norm row."""
    layers = arrays(weights)
    depth, widest = len(layers), max(max(a.shape) for a in layers)
    centres = arrays(reference) if reference is not None else [np.zeros_like(a) for a in layers]
    product = math.prod(top(a) for a in layers)
    distances = [sum(math.sqrt(sum(e * e for e in row)) for row in a - m) for a, m in zip(layers, centres, strict=True)]
    spread = sum((distance / top(a)) ** (2 / 3) for distance, a in zip(distances, layers, strict=True)) ** 1.5
    ranks = sum(frobenius_square(a) / top(a) ** 2 for a in layers)
    return {
        "neyshabur_2015": 2 ** (depth - 1)
        * radius
        * math.prod(math.sqrt(frobenius_square(a)) for a in layers)
        / n**0.5,
        "neyshabur_2017": math.sqrt(radius**2 * depth**2 * widest * math.log(depth * widest) * product**2 * ranks / n),
        "bartlett_2017": radius * product * spread * math.log(widest) / math.sqrt(n),
    }


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("scale", [0.05, 1.0])
@pytest.mark.parametrize("low", [-8.0, 0.5])
def test_leading_norm_rows_by_brute_force(seed: int, scale: float, low: float) -> None:
    weights, margins = network(seed, scale=scale), training_margins(seed, low=low)
    rows = table(weights, "leading", margins=margins)
    for name, numerator in reference_leading_numerators(weights, 200, 1.5).items():
        value, gamma = reference_best_margin(margins, numerator)
        row = rows[name]
        assert math.exp(row.log_value) == pytest.approx(value, rel=1e-6)
        assert row.terms["gamma"] == pytest.approx(gamma, rel=1e-9)
        risk = sum(1 for m in margins.tolist() if m < gamma) / 200
        assert row.terms["empirical_risk"] == pytest.approx(risk, rel=1e-6)
        assert math.exp(row.terms["log_complexity"]) == pytest.approx(numerator / gamma, rel=1e-6)
        assert row.applies and row.holds_with is None


def test_the_empirical_risk_is_a_fraction_in_float64() -> None:
    """k/n as a Python float, not as a float32."""
    margins = torch.tensor([-1.0, 30.0, 30.0, 30.0, 30.0, 30.0, 30.0])
    row = table(network(0, scale=0.01), "leading", margins=margins)["bartlett_2017"]
    assert row.terms["empirical_risk"] == pytest.approx(1 / 7, rel=1e-12)


def test_the_minimising_margin_is_not_simply_the_smallest_or_the_largest() -> None:
    """One tiny margin, a crowd, one huge one: the crowd's own margin wins."""
    margins = torch.tensor([1e-6] + [50.0] * 98 + [1e5])
    row = table(network(1, scale=0.3), "leading", margins=margins, num_samples=100)["neyshabur_2015"]
    assert row.terms["gamma"] == 50.0
    assert row.terms["empirical_risk"] == pytest.approx(0.01, rel=1e-6)


def test_bartletts_bound_from_the_initial_weights() -> None:
    weights, start = network(0, scale=0.1), network(9, scale=0.1)
    margins = training_margins(0)
    row = table(weights, "leading", initial=start)["bartlett_2017_initial"]
    numerator = reference_leading_numerators(weights, 200, 1.5, start)["bartlett_2017"]
    assert math.exp(row.log_value) == pytest.approx(reference_best_margin(margins, numerator)[0], rel=1e-6)
    at_zero = table(weights, "leading", initial=[torch.zeros_like(w) for w in weights])["bartlett_2017_initial"]
    assert at_zero.log_value == pytest.approx(table(weights, "leading")["bartlett_2017"].log_value, rel=1e-12)
    assert table(weights, "leading", initial=weights)["bartlett_2017_initial"].terms["log_complexity"] == -math.inf


def reference_counting(
    weights: Sequence[torch.Tensor],
    margins: torch.Tensor,
    n: int,
    radius: float,
    d: float,
    seed: int,
    steps: Sequence[float] | None = None,
    failure: float = 0.05,
) -> dict[str, Any]:
    """The pruning rows from spec §4, with loops and numpy: the totals under the roots, γ and the risk at it."""
    masks = MaskDraw(weights, seed).masks(d)
    depth = len(weights)
    lam = 2 * depth / (failure - sum(1 / max(w.shape) ** 2 for w in weights))
    chi = 1 - math.sqrt(d / (d + 2))
    ratios, products, moved_products = [], [], []
    totals = dict.fromkeys(COUNTING_ROWS, 0.0)
    for layer, (a, mask) in enumerate(zip(arrays(weights), masks, strict=True)):
        rows, columns = a.shape
        pruned = a * mask.numpy()
        rho = steps[layer] if steps else abs(a).max() / 256
        rounded = np.round(pruned / rho)
        alphabet = 2 * math.ceil(abs(pruned).max() / rho) + 1
        alpha = int(np.count_nonzero(rounded))
        in_column = max(sum(1 for i in range(rows) if pruned[i, j] != 0) for j in range(columns))
        in_row = max(sum(1 for j in range(columns) if pruned[i, j] != 0) for i in range(rows))
        support = int(np.count_nonzero(pruned))
        move = top(pruned - a) + rho / 2 * min(math.sqrt(support), math.sqrt(in_column * in_row))
        ratios.append(move / top(a))
        products.append(top(a))
        moved_products.append(top(a) + move)
        log_p = math.log(max(rows, columns)) ** 2
        totals["theorem_5_2"] += 3 * lam * chi * rows * columns * log_p * math.log(alphabet)
        totals["theorem_5_2_measured"] += max(in_row * rows, in_column * columns) * log_p * math.log(alphabet)
        totals["naive"] += math.log(math.comb(rows * columns, alpha)) + alpha * math.log(alphabet)
    gamma = math.sqrt(2) * math.e * radius * math.prod(products) * sum(ratios)
    risk = sum(1 for m in margins.tolist() if m < gamma) / len(margins)
    telescoping = sum(
        math.prod(products[:layer]) * ratios[layer] * products[layer] * math.prod(moved_products[layer + 1 :])
        for layer in range(depth)
    )
    return {
        "values": {name: risk + math.sqrt(total / n) for name, total in totals.items()},
        "gamma": gamma,
        "telescoping": math.sqrt(2) * radius * telescoping,
        "risk": risk,
        "lambda": lam,
        "holds": all(ratio <= 1 / depth for ratio in ratios),
    }


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("d", [0.0, 1e-3, 0.1, 1.0, 10.0])
def test_counting_rows_by_brute_force(seed: int, d: float) -> None:
    weights, margins = network(seed), training_margins(seed)
    rows = table(weights, "leading", margins=margins, d=d, seed=seed)
    expected = reference_counting(weights, margins, 200, 1.5, d, seed)
    for name in COUNTING_ROWS:
        row = rows[name]
        assert math.exp(row.log_value) == pytest.approx(expected["values"][name], rel=1e-6)
        assert math.exp(row.terms["log_gamma"]) == pytest.approx(expected["gamma"], rel=1e-6)
        assert math.exp(row.terms["log_gamma_telescoping"]) == pytest.approx(expected["telescoping"], rel=1e-6)
        assert row.terms["empirical_risk"] == pytest.approx(expected["risk"], abs=1e-9)
        assert row.terms["d"] == d
        assert row.applies == expected["holds"] and bool(row.reason) != row.applies
    assert rows["theorem_5_2"].terms["lambda"] == pytest.approx(expected["lambda"], rel=1e-12)


def test_the_default_strength_is_one() -> None:
    weights = network(2)
    assert table(weights, "leading") == table(weights, "leading", d=1.0)


def test_counting_rows_with_given_steps() -> None:
    weights, margins, steps = network(5), training_margins(5), [0.07, 0.3, 0.011]
    rows = table(weights, "leading", margins=margins, d=0.2, steps=steps, seed=6)
    expected = reference_counting(weights, margins, 200, 1.5, 0.2, 6, steps)
    for name in COUNTING_ROWS:
        assert math.exp(rows[name].log_value) == pytest.approx(expected["values"][name], rel=1e-6)
        assert math.exp(rows[name].terms["log_gamma"]) == pytest.approx(expected["gamma"], rel=1e-6)


def test_without_a_seed_masks_are_those_of_seed_0() -> None:
    weights = network(0)
    masks = MaskDraw(weights, 0).masks(1.0, keep_diagonal=True)
    assert [layer.nonzeros for layer in prune_layers(weights, 1.0)] == [int(mask.sum()) for mask in masks]
    found = [
        search_paper_strength(weights, LayerNorms.measure(weights), 5.0, 200, 0.0, **given)
        for given in ({}, {"seed": 0}, {"seed": 1})
    ]
    assert found[0] == found[1] != found[2]
    given = search_paper_strength(weights, LayerNorms.measure(weights), 5.0, 200, 0.0, d=0.5)
    assert (given.d, given.evaluations) == (0.5, 1)


def test_a_given_draw_is_used() -> None:
    weights = network(5)
    draw = MaskDraw(weights, 77)
    for convention in ("paper", "leading"):
        assert table(weights, convention, draw=draw) == table(weights, convention, seed=77)
        assert table(weights, convention, draw=draw) != table(weights, convention, seed=78)


@pytest.mark.parametrize("d", [0.0, 0.5, 20.0])
@pytest.mark.parametrize("step", [None, 1e-3, 0.2, 0.9, 5.0])
def test_a_pruned_layer_moved_no_further_than_reported(d: float, step: float | None) -> None:
    """‖Ã − A‖₂ against numpy, coarse steps included, where most entries round to zero."""
    (weight,) = network(7, [(15, 22)])
    (mask,) = MaskDraw([weight], 3).masks(d)
    layer = PrunedLayer.measure(weight, mask, step)
    pruned = weight.double().numpy() * mask.numpy()
    rounded = np.round(pruned / layer.step)
    assert layer.step == (step or abs(weight.double().numpy()).max() / 256)
    assert top(rounded * layer.step - weight.double().numpy()) <= math.exp(layer.log_distance) * (1 + 1e-6)
    assert layer.nonzeros == np.count_nonzero(pruned)
    assert layer.coded_nonzeros == np.count_nonzero(rounded)
    assert abs(rounded).max() <= (layer.alphabet - 1) / 2  # r counts every value that an entry can take
    assert len(np.unique(rounded)) <= layer.alphabet


def test_claimed_and_honest_probabilities() -> None:
    """`claimed` is 1 − Σ(1/λ + 1/ε + p⁻²) at λ = ε; Lemma 5.1 also loses d_out^{−1/3} + d_in^{−1/3} a layer (E11)."""
    weights = network(0)
    row = table(weights, "leading", failure=0.2)["theorem_5_2"]
    lam, claimed, honest = row.terms["lambda"], 1.0, 1.0
    for weight in weights:
        rows, columns = weight.shape
        claimed -= 2 / lam + 1 / max(rows, columns) ** 2
        honest -= 2 / lam + 1 / max(rows, columns) ** 2 + 1 / rows ** (1 / 3) + 1 / columns ** (1 / 3)
    assert row.claimed == pytest.approx(claimed, rel=1e-12) == pytest.approx(0.8, rel=1e-12)
    assert row.terms["honest_probability"] == pytest.approx(honest, rel=1e-12)


def test_a_failure_that_no_lambda_gives() -> None:
    """Σ p⁻² = 1/4 + 1/4 alone exceeds 0.05."""
    weights = network(0, [(2, 2), (2, 2)])
    row = table(weights, "leading")["theorem_5_2"]
    assert row.log_value == math.inf and not row.applies and "0.05" in row.reason
    assert row.vacuous and row.trivial
    assert math.isfinite(table(weights, "leading", failure=0.9)["theorem_5_2"].log_value)


def test_dense_counts_floats() -> None:
    weights = network(0)
    margins = torch.tensor([-1.0, 2.0, 3.0, 4.0])
    row = table(weights, "leading", margins=margins, num_samples=4)["dense"]
    parameters = 12 * 20 + 14 * 12 + 5 * 14
    assert math.exp(row.log_value) == pytest.approx(0.25 + math.sqrt(parameters * math.log(2**32) / 4), rel=1e-12)


@pytest.mark.parametrize("d", [0.0, 0.3, 10.0])
def test_dense_beats_theorem_5_2_at_mnist_sizes(d: float) -> None:
    """Spec §4: for every d in [0, 10]. And Lemma 5.1's probability is below zero there (E10)."""
    weights = [torch.randn(shape, generator=torch.Generator().manual_seed(1)) / 28 for shape in MNIST]
    zeros = (0.0,) * 5
    rows = table(
        weights,
        "leading",
        d=d,
        num_samples=60000,
        norms=LayerNorms(tuple(MNIST), zeros, zeros, zeros),
    )
    assert rows["dense"].log_value < rows["theorem_5_2"].log_value
    assert rows["dense"].terms["log_complexity"] < rows["theorem_5_2"].terms["log_complexity"] - 2
    assert rows["naive"].terms["log_complexity"] < rows["theorem_5_2"].terms["log_complexity"]
    assert rows["theorem_5_2"].terms["honest_probability"] < 0
    assert rows["theorem_5_2"].claimed == pytest.approx(0.95)


def test_the_sketched_count_needs_a_large_d_to_beat_dense() -> None:
    """E9: with λ = 1 and 32 bits a number, 3χ(d)ln²(784) < 1 only for d > 132."""
    per_entry = 3 * math.log(784) ** 2
    assert per_entry * keep_probability(131) > 1 > per_entry * keep_probability(133)


# Invariances and scaling laws


def assert_same(first: Bound, second: Bound, rel: float = 1e-8) -> None:
    assert second.log_value == pytest.approx(first.log_value, rel=rel, abs=rel), first.name


@fixed
@given(st.integers(0, 10**6))
def test_hidden_units_have_no_order(seed: int) -> None:
    weights, rng = network(seed), np.random.default_rng(seed)
    permuted = [weight.clone() for weight in weights]
    for layer in range(len(weights) - 1):
        order = torch.tensor(rng.permutation(weights[layer].shape[0]))
        permuted[layer] = permuted[layer][order]
        permuted[layer + 1] = permuted[layer + 1][:, order]
    for convention, names in (("paper", NORM_ROWS), ("leading", [*NORM_ROWS, "dense"])):
        before, after = table(weights, convention), table(permuted, convention)
        for name in names:
            assert_same(before[name], after[name])


@fixed
@given(st.integers(0, 10**6), st.integers(-20, 20))
def test_rescaling_two_layers_against_each_other_changes_nothing(seed: int, exponent: int) -> None:
    """(cA_l, A_{l+1}/c) computes the same function; masks, steps and every row are those of the original."""
    weights = network(seed)
    rescaled = [weights[0] * 2.0**exponent, weights[1] * 2.0**-exponent, weights[2]]
    for convention in ("paper", "leading"):
        before, after = table(weights, convention, seed=seed), table(rescaled, convention, seed=seed)
        for name in before:
            assert_same(before[name], after[name], rel=1e-6)


@fixed
@given(st.integers(0, 10**6), st.integers(-20, 20))
def test_the_units_of_the_output_do_not_matter(seed: int, exponent: int) -> None:
    """The last layer and the margins scaled by c: γ/needed, γ/Π‖A‖ and so every row stay."""
    weights, margins, c = network(seed), training_margins(seed), 2.0**exponent
    scaled = [*weights[:-1], weights[-1] * c]
    for convention in ("paper", "leading"):
        before = table(weights, convention, margins=margins, seed=seed)
        after = table(scaled, convention, margins=margins * c, seed=seed)
        for name in before:
            assert_same(before[name], after[name], rel=1e-6)


@fixed
@given(st.integers(0, 10**6), st.floats(0.01, 100))
def test_the_norm_rows_scale_with_the_margin(seed: int, factor: float) -> None:
    weights, margins = network(seed), training_margins(seed)
    before, after = (
        table(weights, "paper", margins=margins),
        table(weights, "paper", margins=factor * margins),
    )
    for name in NORM_ROWS:
        assert after[name].log_value == pytest.approx(before[name].log_value - 2 * math.log(factor), abs=1e-9)
    # In `leading`, margins c times as large are inputs c times as small.
    before = table(weights, "leading", margins=factor * margins, input_norm=1.5)
    after = table(weights, "leading", margins=margins, input_norm=1.5 / factor)
    for name in NORM_ROWS:
        assert_same(before[name], after[name])


@fixed
@given(st.integers(0, 10**6), st.integers(1, 10**6))
def test_complexities_fall_like_one_over_root_n(seed: int, n: int) -> None:
    """All margins equal, so that no trade-off moves γ."""
    weights, margins = network(seed), torch.full((50,), 3.0)
    before = table(weights, "leading", margins=margins, num_samples=n)
    after = table(weights, "leading", margins=margins, num_samples=4 * n)
    for name in [*NORM_ROWS, *COUNTING_ROWS, "dense"]:
        change = before[name].terms["log_complexity"] - after[name].terms["log_complexity"]
        assert change == pytest.approx(math.log(2), abs=1e-9)
    paper = [table(weights, "paper", margins=margins, num_samples=m, d=0.5)["theorem_5_2"] for m in (n, 4 * n)]
    assert paper[0].terms["log_complexity"] - paper[1].terms["log_complexity"] == pytest.approx(math.log(2), abs=1e-9)


def test_pruning_more_costs_less_and_needs_more_margin() -> None:
    weights = network(4, [(40, 60), (30, 40), (10, 30)])
    for weaker, stronger in itertools.pairwise([0.0, 0.01, 0.1, 1.0, 10.0, 100.0]):
        less, more = table(weights, "leading", d=weaker), table(weights, "leading", d=stronger)
        for name in COUNTING_ROWS:
            assert more[name].terms["log_complexity"] <= less[name].terms["log_complexity"]
            assert more[name].terms["log_gamma"] > less[name].terms["log_gamma"]


def test_margins_come_in_any_order_and_dtype() -> None:
    weights, margins = network(1), training_margins(1).half()
    for convention in ("paper", "leading"):
        plain = table(weights, convention, margins=margins.double())
        assert table(weights, convention, margins=margins.flip(0)) == plain
        assert table(weights, convention, margins=margins.float()) == plain


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_are_measured_in_float64(dtype: torch.dtype) -> None:
    weights = [(300 * weight).to(dtype) for weight in network(6)]
    for convention in ("paper", "leading"):
        half, double = table(weights, convention), table([w.double() for w in weights], convention)
        for name in half:
            assert_same(half[name], double[name])


def test_nothing_is_modified_and_no_global_randomness_is_used() -> None:
    weights, margins = network(6), training_margins(6)
    copies, state = [w.clone() for w in weights], torch.get_rng_state()
    first = table(weights, "paper", margins=margins), table(weights, "leading", margins=margins)
    torch.rand(7)
    assert first == (table(weights, "paper", margins=margins), table(weights, "leading", margins=margins))
    torch.set_rng_state(state)
    table(weights, "leading", margins=margins)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(weights, copies, strict=True))


# Extremes


@pytest.mark.parametrize("scale", [1e20, 1e-20])
def test_fifty_layers_stay_finite(scale: float) -> None:
    """Π‖A_l‖ is near 10^±1000; the rows are still what sums of logs say."""
    rng = np.random.default_rng(0)
    weights = [torch.tensor(scale * rng.standard_normal((8, 8))) for _ in range(50)]
    margins = torch.full((20,), 2.0)
    paper = table(weights, "paper", margins=margins)
    leading = table(weights, "leading", margins=margins, failure=0.9)
    for row in (*paper.values(), *leading.values()):
        assert math.isfinite(row.log_value), row.name
    log_frobenius = sum(math.log(np.linalg.norm(w.numpy() / scale)) + math.log(scale) for w in weights)
    log_spectral = sum(math.log(top(w.numpy() / scale)) + math.log(scale) for w in weights)
    ranks = sum(np.linalg.norm(w.numpy() / scale) ** 2 / top(w.numpy() / scale) ** 2 for w in weights)
    assert paper["neyshabur_2015"].log_value == pytest.approx(2 * log_frobenius - 2 * math.log(2), rel=1e-9)
    expected = 2 * log_spectral + math.log(ranks) - 2 * math.log(2)
    assert paper["bartlett_2017"].log_value == pytest.approx(expected, rel=1e-9)
    assert paper["neyshabur_2017"].log_value == pytest.approx(expected + math.log(8), rel=1e-9)
    log_value = 49 * math.log(2) + math.log(1.5) + log_frobenius - 0.5 * math.log(200) - math.log(2)
    assert leading["neyshabur_2015"].log_value == pytest.approx(log_value, rel=1e-9)
    assert leading["naive"].terms["empirical_risk"] == (1.0 if scale > 1 else 0.0)
    assert paper["theorem_5_2"].terms["empirical_risk"] == 0.0


@pytest.mark.parametrize("smallest", [0.0, -0.7, math.nan, -math.inf])
def test_without_a_positive_margin_nothing_is_pruned(smallest: float) -> None:
    margins = training_margins(0)
    margins[3] = smallest
    weights = network(0)
    rows = table(weights, "paper", margins=margins)
    for name in NORM_ROWS:
        assert rows[name].log_value == math.inf
    row = rows["theorem_5_2"]
    assert row.terms["d"] == 0.0
    shapes = shapes_of(weights)
    risk = 0.0 if smallest == 0 else 1 / 200  # the paper's convention counts margins < needed(0) = 0
    assert math.exp(row.log_value) == pytest.approx(risk + math.sqrt(log_squared_count(shapes) / 200), rel=1e-9)


def test_only_errors_leave_no_margin_to_choose() -> None:
    rows = table(network(0), "leading", margins=torch.tensor([-1.0, -2.0, 0.0]), num_samples=3)
    for name in NORM_ROWS:
        assert rows[name].log_value == math.inf and not rows[name].applies and "margin" in rows[name].reason
    for name in ("dense", *COUNTING_ROWS):
        assert math.isfinite(rows[name].log_value)


def test_ties_are_errors_of_a_collapsed_network() -> None:
    """A zero last layer: f ≡ 0, every sample is a tie, and R₀ = P(f[y] ≤ max) = 1 (§3.1): no R̂ may be 0."""
    weights = network(0)
    weights[-1].zero_()
    rows = table(weights, "leading", margins=torch.zeros(50), num_samples=10**9)
    assert rows["dense"].terms["empirical_risk"] == 1.0
    for name in COUNTING_ROWS:
        assert rows[name].terms["empirical_risk"] == 1.0


@pytest.mark.parametrize("layer", [0, 2])
def test_a_zero_layer_gives_no_nan(layer: int) -> None:
    """f ≡ 0 has γ = 0, so the paper's norm rows are +inf (spec §4)."""
    weights = network(0)
    weights[layer].zero_()
    for convention in ("paper", "leading"):
        rows = table(weights, convention, margins=torch.zeros(50), num_samples=50)
        assert not [row.name for row in rows.values() if math.isnan(row.log_value)]
        assert all(rows[name].log_value == math.inf for name in NORM_ROWS)


@pytest.mark.parametrize("layer", [0, 2])
def test_a_zero_layer_under_a_bias_gives_no_nan(layer: int) -> None:
    """With biases a network can have positive margins though a weight matrix is zero: Π‖A‖ = 0 and the rows follow."""
    weights, margins = network(0), training_margins(0)
    weights[layer].zero_()
    paper = table(weights, "paper", margins=margins)
    leading = table(weights, "leading", margins=margins, violated="it has biases")
    assert not [row.name for row in (*paper.values(), *leading.values()) if math.isnan(row.log_value)]
    assert paper["neyshabur_2015"].log_value == leading["neyshabur_2015"].log_value == -math.inf
    assert paper["bartlett_2017"].log_value == -math.inf  # ‖A_l‖_F = 0, and the other terms hold ‖A_l‖₂² = 0
    assert leading["bartlett_2017"].log_value == -math.inf
    assert not any(row.applies for row in leading.values() if row.name != "dense")


def test_inputs_of_norm_zero_need_no_margin() -> None:
    rows = table(network(0), "leading", input_norm=0.0)
    for name in NORM_ROWS:
        assert rows[name].log_value == -math.inf
    assert rows["naive"].terms["empirical_risk"] == 0.0
    assert table(network(0), "paper", input_norm=0.0)["theorem_5_2"].terms["d"] == 10.0


# Flags


def test_the_tables_rows() -> None:
    weights = network(0)
    for convention in ("paper", "leading"):
        rows = bound_table(weights, convention=convention, margins=training_margins(0), num_samples=200, input_norm=1.0)
        assert [row.name for row in rows] == [
            row.name for row in ROWS if row.convention == convention and not row.needs
        ]
        assert {row.convention for row in rows} == {convention}
        assert all(row.holds_with is None for row in rows)  # constants are hidden in every one of them
    names = [(row.name, row.convention) for row in ROWS]
    assert len(set(names)) == len(names)
    assert {name for name, convention in names if convention == "paper"} == {*NORM_ROWS, "theorem_5_2"}
    assert {name for name, convention in names if convention == "leading"} >= {
        *NORM_ROWS,
        *COUNTING_ROWS,
        "dense",
    }


@pytest.mark.parametrize("convention", ["paper", "leading"])
def test_vacuous_and_trivial(convention: str) -> None:
    """Chance for k classes is 1 − 1/k: a bound of at least that is vacuous, of at least 1 trivial."""
    weights, seen = network(0, scale=0.1), set()
    for n in (10, 10**3, 3 * 10**3, 4 * 10**3, 6 * 10**3, 10**4, 10**8):
        for classes in (2, 3, 5):
            rows = table(weights, convention, margins=torch.full((9,), 40.0), num_samples=n, num_classes=classes)
            for row in rows.values():
                if convention == "paper" and row.name in NORM_ROWS:
                    assert row.vacuous is None and row.trivial is None
                    continue
                value = math.exp(row.log_value)
                assert row.vacuous == (value >= 1 - 1 / classes)
                assert row.trivial == (value >= 1)
                seen.add((row.vacuous, row.trivial))
    assert seen == {(False, False), (True, False), (True, True)}


def test_the_number_of_classes_is_by_default_that_of_the_outputs() -> None:
    weights = network(0, [(30, 20), (2, 30)], scale=0.1)
    total = log_squared_count([(30, 20), (2, 30)])
    for wanted, vacuous in ((0.49, False), (0.51, True)):
        n = round(total / wanted**2)
        rows = table(weights, "paper", margins=torch.full((9,), 40.0), num_samples=n, d=0.0)
        assert rows["theorem_5_2"].vacuous is vacuous


@pytest.mark.parametrize("convention", ["paper", "leading"])
def test_one_class_is_none(convention: str) -> None:
    with pytest.raises(ValueError, match="at least two classes"):
        table(network(0), convention, num_classes=1)


def test_a_violated_assumption_spares_only_what_needs_none() -> None:
    weights = network(0, scale=0.1)
    options: dict[str, Any] = {"margins": torch.full((20,), 1e4), "d": 1e-3}
    for row in table(weights, "leading", **options).values():
        assert row.applies == (row.name != "theorem_6_2") == (row.reason == "")
    for row in table(weights, "leading", violated="it has biases", **options).values():
        assert row.applies == (row.name == "dense")
        assert ("it has biases" in row.reason) == (row.name != "dense")
    for convention in ("paper", "rigorous", "measure"):
        for row in table(weights, convention, violated="it has biases", **options).values():
            assert row.applies and row.reason == ""


def test_a_violation_joins_other_reasons() -> None:
    reason = table(network(0), "leading", d=10.0, violated="it has biases")["naive"].reason
    assert "it has biases" in reason and "Lemma B.2" in reason


# Bad input


@pytest.mark.parametrize("convention", ["paper", "leading"])
@pytest.mark.parametrize(
    "options",
    [
        {"margins": torch.empty(0)},
        {"num_samples": 0},
        {"num_samples": -5},
        {"input_norm": -1.0},
        {"input_norm": math.nan},
        {"input_norm": math.inf},
        {"d": -0.5},
        {"d": math.nan},
    ],
    ids=str,
)
def test_bad_numbers_raise(convention: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        table(network(0), convention, **options)


def test_an_unknown_convention_raises() -> None:
    with pytest.raises(ValueError, match='unknown convention "folklore"'):
        table(network(0), "folklore")
    measured: Any = None  # which is not looked at
    with pytest.raises(ValueError, match='unknown convention "folklore"'):
        evaluate(measured, "folklore")


@pytest.mark.parametrize("convention", ["paper", "leading"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_not_finite_raise(convention: str, bad: float) -> None:
    weights = network(0)
    weights[1][2, 3] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        table(weights, convention)


@pytest.mark.parametrize("convention", ["paper", "leading"])
@pytest.mark.parametrize("layer", [torch.ones(12), torch.ones(14, 12, 3)], ids=["vector", "kernel"])
def test_weights_that_are_not_matrices_raise(convention: str, layer: torch.Tensor) -> None:
    weights = network(0)
    weights[1] = layer
    with pytest.raises(ValueError):
        table(weights, convention)


@pytest.mark.parametrize("convention", ["paper", "leading"])
def test_layers_that_do_not_chain_raise(convention: str) -> None:
    with pytest.raises(ValueError, match="layer 0 has 12 outputs but layer 1 takes 13 inputs"):
        table(network(0, [(12, 20), (14, 13)]), convention)


@pytest.mark.parametrize("convention", ["paper", "leading"])
def test_no_layers_raise(convention: str) -> None:
    with pytest.raises(ValueError):
        table([], convention)


@pytest.mark.parametrize("options", [{"steps": [0.1, 0.1]}, {"steps": [0.1] * 4}, {"steps": [0.1, -0.1, 0.1]}], ids=str)
def test_steps_that_do_not_fit_raise(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        table(network(0), "leading", **options)


def test_initial_weights_that_do_not_fit_raise() -> None:
    with pytest.raises(ValueError):
        table(network(0), "leading", initial=network(0)[:2])
