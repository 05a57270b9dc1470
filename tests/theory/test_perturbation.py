import itertools
import math
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from milkshake_mbp.theory.perturbation import (
    NeededMargin,
    affordable_strength,
    default_step,
    discretization_error,
    discretize,
    expected_difference_norm,
    log_output_perturbation,
    log_telescoping_perturbation,
    logsumexp,
    output_perturbation,
    perturbation_condition,
    safe_log,
    subgaussian_factor,
)
from milkshake_mbp.theory.pruning import MaskDraw, difference_moments

fixed = settings(derandomize=True, deadline=None, max_examples=60, database=None)


def top(matrix: np.ndarray) -> float:
    return float(np.linalg.svd(matrix, compute_uv=False)[0])


def logs(values: Iterable[float]) -> list[float]:
    return [math.log(value) if value > 0 else -math.inf for value in values]


def forward(layers: Sequence[np.ndarray], x: np.ndarray, biases: Sequence[np.ndarray] | None = None) -> np.ndarray:
    for index, layer in enumerate(layers):
        x = layer @ (np.maximum(x, 0) if index else x) + (biases[index] if biases else 0)
    return x


# Γ


@pytest.mark.parametrize("shape", [(60, 60), (20, 120), (120, 30), (1, 50)])
@pytest.mark.parametrize("d", [0.01, 0.1, 1.0, 10.0, 1000.0])
def test_the_expected_difference_norm_bounds_simulated_ones(shape: tuple[int, int], d: float) -> None:
    """Lemma 4.2 with C = 1, and Γ is no wild overestimate: ‖Δ‖₂ is at least √EΔ²·√max(shape)/2 on average."""
    rng, psi = np.random.default_rng(1), 0.3
    norms = []
    for _ in range(25):
        entries = math.sqrt(psi) * rng.standard_normal(shape)
        norms.append(top(np.where(rng.random(shape) < np.exp(-(entries**2) / (d * psi)), entries, 0.0)))
    mean, error = np.mean(norms), 3 * np.std(norms) / math.sqrt(len(norms))
    gamma = expected_difference_norm(shape, d, psi)
    assert mean + error <= gamma
    assert mean >= 0.2 * gamma


@fixed
@given(st.integers(1, 900), st.integers(1, 900), st.floats(1e-3, 100), st.floats(1e-6, 100), st.floats(0.1, 5))
def test_scaling_of_the_expected_difference_norm(
    rows: int, columns: int, d: float, psi: float, constant: float
) -> None:
    gamma = expected_difference_norm((rows, columns), d, psi)
    assert expected_difference_norm((columns, rows), d, psi) == pytest.approx(gamma, rel=1e-12)
    assert expected_difference_norm((rows, columns), d, 4 * psi) == pytest.approx(2 * gamma, rel=1e-12)
    assert expected_difference_norm((rows, columns), d, psi, constant=constant) == pytest.approx(constant * gamma)
    assert expected_difference_norm((4 * rows, 4 * columns), d, psi) == pytest.approx(2 * gamma, rel=1e-12)
    assert expected_difference_norm((rows, columns), 1.01 * d, psi) > gamma


def test_the_expected_difference_norm_at_the_ends() -> None:
    """Everything pruned: Δ = −A, E Δ² = Ψ, E Δ⁴ = 3Ψ²."""
    assert expected_difference_norm((5, 7), 0.0, 1.0) == 0.0
    expected = math.sqrt(2) * (math.sqrt(5) + math.sqrt(7)) + (35 * 3 * 4) ** 0.25
    assert expected_difference_norm((5, 7), math.inf, 2.0) == pytest.approx(expected, rel=1e-12)
    for d in (-1.0, math.nan):
        with pytest.raises(ValueError, match="d must be"):
            expected_difference_norm((5, 7), d, 1.0)


def test_erratum_14_at_five_layers() -> None:
    """A probability above 0 needs ε > L = 5, and Lemma B.2 then ε Γ ≤ ‖A‖/L: d ≤ 0.0091 for a Gaussian layer."""
    spectral = 2 * math.sqrt(784)  # of a 784×784 standard Gaussian matrix
    assert 5 * expected_difference_norm((784, 784), 0.0090, 1.0) <= spectral / 5
    assert 5 * expected_difference_norm((784, 784), 0.0092, 1.0) > spectral / 5


# κ


def test_subgaussian_factor_values() -> None:
    assert subgaussian_factor((784, 784), 60000) == 1.0
    assert subgaussian_factor((785, 784), 60000) == 1.0
    assert subgaussian_factor((783, 784), 60000) == 1.0  # t√d_out > 1
    assert subgaussian_factor((10, 784), 60000) == pytest.approx(math.sqrt(math.log(6e6) / 784) * math.sqrt(10))
    assert subgaussian_factor((10, 784), 60000) == pytest.approx(0.446175, abs=1e-6)
    assert subgaussian_factor((1, 100), 1, failure=1.0) == 0.0
    for shape in ((50, 50), (51, 50)):  # κ = 1 unless d_out < d_in, however small t is
        assert subgaussian_factor(shape, 1, failure=0.5) == 1.0


@fixed
@given(st.integers(1, 9), st.integers(300, 5000), st.integers(2, 10**6), st.floats(1e-3, 0.5), st.floats(0.5, 2))
def test_subgaussian_factor_spends_exactly_the_failure(
    rows: int, columns: int, n: int, failure: float, rate: float
) -> None:
    """With t = κ/√d_out, n·a·exp(−b t² d_in) is the failure probability again."""
    factor = subgaussian_factor((rows, columns), n, failure, a=1.5, b=rate)
    assume(factor < 1)
    assert n * 1.5 * math.exp(-rate * factor**2 / rows * columns) == pytest.approx(failure, rel=1e-9)


# Lemma B.2 and the telescoping bound


def random_network(
    seed: int, size: float, adversarial: bool
) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """Layers A_l, perturbations of norm size·‖A_l‖₂/L, and inputs on the unit sphere."""
    rng = np.random.default_rng(seed)
    depth = int(rng.integers(1, 6))
    widths = rng.integers(1, 13, depth + 1)
    layers, moves = [], []
    for columns, rows in itertools.pairwise(widths):
        layer = rng.standard_normal((rows, columns)) * rng.uniform(0.2, 3)
        move = rng.standard_normal((rows, columns))
        if adversarial:  # positive layers let every perturbation add up
            layer, move = abs(layer), abs(layer)
        layers.append(layer)
        moves.append(move * size * top(layer) / (depth * top(move)))
    inputs = [x / np.linalg.norm(x) for x in rng.standard_normal((20, widths[0]))]
    inputs += [abs(x) for x in inputs]
    return layers, moves, inputs


@fixed
@given(st.integers(0, 10**6), st.floats(0, 1), st.booleans(), st.floats(0.01, 100))
def test_lemma_b2_and_the_telescoping_bound(seed: int, size: float, adversarial: bool, radius: float) -> None:
    layers, moves, inputs = random_network(seed, size * (1 - 1e-9), adversarial)
    moved = [a + u for a, u in zip(layers, moves, strict=True)]
    spectral, perturbed, difference = ([top(m) for m in each] for each in (layers, moved, moves))
    assert all(perturbation_condition(logs(spectral), logs(difference)))
    lemma = output_perturbation(spectral, difference, radius)
    telescoping = math.exp(
        log_telescoping_perturbation(logs(spectral), logs(perturbed), logs(difference), math.log(radius))
    )
    worst = max(np.linalg.norm(forward(moved, radius * x) - forward(layers, radius * x)) for x in inputs)
    assert worst <= telescoping * (1 + 1e-9) + 1e-12 * radius
    assert telescoping <= lemma * (1 + 1e-9)


@fixed
@given(st.integers(0, 10**6), st.floats(0, 30), st.booleans())
def test_the_telescoping_bound_needs_no_condition(seed: int, size: float, adversarial: bool) -> None:
    layers, moves, inputs = random_network(seed, size, adversarial)
    moved = [a + u for a, u in zip(layers, moves, strict=True)]
    spectral, perturbed, difference = ([top(m) for m in each] for each in (layers, moved, moves))
    bound = math.exp(log_telescoping_perturbation(logs(spectral), logs(perturbed), logs(difference), 0.0))
    looser = [s + u for s, u in zip(spectral, difference, strict=True)]
    assert bound <= math.exp(log_telescoping_perturbation(logs(spectral), logs(looser), logs(difference), 0.0)) * 1.001
    worst = max(np.linalg.norm(forward(moved, x) - forward(layers, x)) for x in inputs)
    assert worst <= bound * (1 + 1e-9) + 1e-12


@pytest.mark.parametrize("depth", [1, 2, 5, 20])
def test_the_telescoping_bound_is_attained(depth: int) -> None:
    """A chain of ones, each moved to 1 + 1/L: the output moves from B to B(1 + 1/L)^L, and Lemma B.2 says eB."""
    ones, moves, moved = [0.0] * depth, [-math.log(depth)] * depth, [math.log1p(1 / depth)] * depth
    exact = 3 * ((1 + 1 / depth) ** depth - 1)
    assert math.exp(log_telescoping_perturbation(ones, moved, moves, math.log(3))) == pytest.approx(exact, rel=1e-12)
    assert output_perturbation([1.0] * depth, [1 / depth] * depth, 3.0) == pytest.approx(3 * math.e, rel=1e-12)
    assert perturbation_condition(ones, [u - 1e-12 for u in moves]) == [True] * depth


def test_lemma_b2_is_false_without_its_condition() -> None:
    """Two layers of 1, each moved to 11: the output moves by 120, the lemma would say e·20 = 54."""
    assert perturbation_condition([0.0, 0.0], logs([10.0, 10.0])) == [False, False]
    assert perturbation_condition([0.0, 0.0], logs([0.49, 0.51])) == [True, False]
    moved = np.array([[11.0]])
    change = forward([moved, moved], np.ones(1)) - forward([np.eye(1), np.eye(1)], np.ones(1))
    assert change[0] == 120 > output_perturbation([1.0, 1.0], [10.0, 10.0], 1.0)
    bound = math.exp(log_telescoping_perturbation([0.0, 0.0], logs([11.0, 11.0]), logs([10.0, 10.0]), 0.0))
    assert bound == pytest.approx(120, rel=1e-12)


def test_lemma_b2_is_false_with_biases() -> None:
    """At x = 0 the bound is 0, but a bias feeds the perturbed second layer."""
    layers, biases = [np.eye(2), np.eye(2)], [np.ones(2), np.zeros(2)]
    moved = [np.eye(2), 1.5 * np.eye(2)]
    x = np.zeros(2)
    assert output_perturbation([1.0, 1.0], [0.0, 0.5], float(np.linalg.norm(x))) == 0.0
    assert all(perturbation_condition([0.0, 0.0], logs([0.0, 0.5])))
    assert np.linalg.norm(forward(moved, x, biases) - forward(layers, x, biases)) == pytest.approx(0.5 * math.sqrt(2))


@fixed
@given(st.integers(0, 10**6), st.integers(1, 6), st.floats(0.1, 10), st.floats(0.1, 10))
def test_output_perturbation_by_loops_and_scaling(seed: int, depth: int, radius: float, lipschitz: float) -> None:
    rng = np.random.default_rng(seed)
    spectral, difference, factors = (
        rng.uniform(0.1, 3, depth),
        rng.uniform(0, 1, depth),
        rng.uniform(0.1, 1, depth),
    )
    # A factor for every layer as printed; for lip < 1, where that is no bound, for every activation (E32).
    product, total = 1.0 if lipschitz >= 1 else 1 / lipschitz, 0.0
    for layer in range(depth):
        product *= lipschitz * factors[layer] * spectral[layer]
        total += difference[layer] / spectral[layer]
    expected = math.e * radius * product * total
    options: dict[str, Any] = {"lipschitz": lipschitz, "factors": list(factors)}
    assert output_perturbation(list(spectral), list(difference), radius, **options) == pytest.approx(expected, rel=1e-9)
    assert math.exp(
        log_output_perturbation(logs(spectral), logs(difference), math.log(radius), **options)
    ) == pytest.approx(expected, rel=1e-9)
    twice = output_perturbation(list(spectral), list(2 * difference), radius, **options)
    assert twice == pytest.approx(2 * expected, rel=1e-9)


def test_contracting_activations_do_not_make_the_bound_false() -> None:
    """One linear layer has no activation at all: ‖x̂ − x‖ = ‖U‖·B, whatever lip is (E32)."""
    for lipschitz in (0.01, 0.1, 1.0, 3.0):
        assert output_perturbation([1.0], [1.0], 2.0, lipschitz=lipschitz) >= 2.0


def test_output_perturbation_takes_tensors_and_zero_norms() -> None:
    one: Any = torch.ones(())
    assert output_perturbation([one, 2 * one], [0 * one, one], 1.0) == pytest.approx(math.e, rel=1e-12)
    assert output_perturbation([1.0, 2.0], [0.0, 0.0], 1.0) == 0.0
    assert output_perturbation([0.0, 2.0], [0.0, 1.0], 1.0) == 0.0
    assert output_perturbation([1.0, 2.0], [0.5, 0.5], 0.0) == 0.0
    with pytest.raises(ValueError):
        output_perturbation([1.0, 2.0], [0.5], 1.0)


def test_telescoping_with_lipschitz_activations() -> None:
    """L − 1 activations stand between L layers."""
    plain = log_telescoping_perturbation([0.1, 0.2, 0.3], [0.2, 0.3, 0.4], [-1.0, -2.0, -3.0], 0.5)
    stretched = log_telescoping_perturbation([0.1, 0.2, 0.3], [0.2, 0.3, 0.4], [-1.0, -2.0, -3.0], 0.5, lipschitz=3.0)
    assert stretched == pytest.approx(plain + 2 * math.log(3), rel=1e-12)


def test_a_zero_layer_leaves_the_product_of_the_others() -> None:
    """‖U_l‖/‖A_l‖·Π‖A_i‖ is ‖U_l‖·Π_{i≠l}‖A_i‖, which a zero layer does not make NaN; the condition is broken."""
    value = log_output_perturbation([-math.inf, math.log(2.0)], [math.log(3.0), -math.inf], 0.0)
    assert value == pytest.approx(1 + math.log(6), rel=1e-12)
    assert output_perturbation([0.0, 2.0], [3.0, 0.0], 1.0) == pytest.approx(6 * math.e, rel=1e-12)
    assert output_perturbation([0.0, 2.0, 0.0], [3.0, 0.0, 0.0], 1.0) == 0.0
    assert perturbation_condition([-math.inf, 0.0], [0.0, -math.inf]) == [False, True]
    assert perturbation_condition([-math.inf, 0.0], [-math.inf, -math.inf]) == [True, True]


@pytest.mark.parametrize("size", [1e20, 1e-20])
def test_fifty_layers_do_not_overflow(size: float) -> None:
    depth, moved = 50, 1e-3
    value = log_output_perturbation([math.log(size)] * depth, [math.log(size * moved)] * depth, math.log(7))
    assert value == pytest.approx(1 + math.log(7) + depth * math.log(size) + math.log(depth * moved), rel=1e-12)
    value = log_telescoping_perturbation(
        [math.log(size)] * depth, [math.log(size)] * depth, [math.log(size * moved)] * depth, math.log(7)
    )
    assert value == pytest.approx(math.log(7) + depth * math.log(size) + math.log(depth * moved), rel=1e-12)
    plain = output_perturbation([size] * depth, [size * moved] * depth, 7.0)
    assert plain == (math.inf if size > 1 else 0.0)


def test_logsumexp_and_safe_log() -> None:
    assert logsumexp([]) == -math.inf
    assert logsumexp([-math.inf, -math.inf]) == -math.inf
    assert logsumexp([-math.inf, 2.0]) == pytest.approx(2.0, rel=1e-15)
    assert logsumexp([math.inf, 1.0]) == math.inf
    assert logsumexp([1000.0, 1000.0]) == pytest.approx(1000 + math.log(2), rel=1e-15)
    assert logsumexp([math.log(1.0), math.log(2.0), math.log(4.0)]) == pytest.approx(math.log(7), rel=1e-14)
    assert safe_log(0.0) == -math.inf and safe_log(math.e) == pytest.approx(1.0)


# Discretization


def test_discretize_halves_to_even() -> None:
    weight = torch.tensor([0.25, 0.75, 1.25, -0.25, -0.75, 0.2, 0.3, -0.9])
    assert discretize(weight, 0.5).tolist() == [0.0, 1.0, 1.0, 0.0, -1.0, 0.0, 0.5, -1.0]


@fixed
@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=10), st.integers(-8, 3))
def test_discretize_in_exact_arithmetic(entries: list[float], exponent: int) -> None:
    step = 2.0**exponent
    result = discretize(torch.tensor(entries, dtype=torch.float64), step)
    for entry, rounded in zip(entries, result.tolist(), strict=True):
        assert Fraction(rounded) == round(Fraction(entry) / Fraction(step)) * Fraction(step)


@fixed
@given(
    st.integers(0, 10**6),
    st.floats(1e-4, 3),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_discretize_is_near_on_the_grid_and_idempotent(seed: int, step: float, dtype: torch.dtype) -> None:
    weight = torch.tensor(np.random.default_rng(seed).normal(size=(4, 5)), dtype=dtype)
    result = discretize(weight, step)
    assert result.dtype == dtype
    rounding = torch.finfo(dtype).eps * weight.abs().double()
    assert ((result.double() - weight.double()).abs() <= step / 2 * (1 + 1e-12) + rounding).all()
    multiples = result.double() / step
    assert ((multiples - multiples.round()).abs() * step <= 2 * torch.finfo(dtype).eps * result.double().abs()).all()
    assert torch.equal(discretize(result, step), result)
    assert torch.equal(discretize(-weight, step), -result)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_discretize_moves_half_precision_weights_by_at_most_half_a_step(dtype: torch.dtype) -> None:
    """The default ρ = max|A|/256 is finer than bfloat16's own grid."""
    weight = torch.tensor(np.random.default_rng(0).normal(size=(40, 50))).to(dtype)
    step = weight.abs().max().item() / 256
    error = (discretize(weight, step).double() - weight.double()).abs()
    assert error.max().item() <= step / 2 * (1 + 1e-9)


@pytest.mark.parametrize("step", [0.0, -1.0, math.nan, math.inf])
def test_a_step_that_is_not_positive_raises(step: float) -> None:
    with pytest.raises(ValueError, match="step"):
        discretize(torch.ones(2), step)


@fixed
@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 9), st.floats(0.05, 1), st.floats(0.01, 5))
def test_discretization_error_bounds_the_spectral_norm(
    seed: int, rows: int, columns: int, density: float, step: float
) -> None:
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(rows, columns)) * (rng.random((rows, columns)) < density)
    nonzero = matrix != 0
    error = top(discretize(torch.tensor(matrix), step).numpy() - matrix)
    bound = discretization_error(step, int(nonzero.sum()), int(nonzero.sum(0).max()), int(nonzero.sum(1).max()))
    assert error <= bound * (1 + 1e-9)
    assert bound <= step * nonzero.sum() / 2  # E6: never worse than the paper's ρJ, and half of it


def test_discretization_error_is_attained_by_both_terms() -> None:
    """Every entry moved by ρ/2: a full block attains √J = √(j_r j_c), the identity √(j_r j_c) alone."""
    assert discretization_error(0.5, 12, 3, 4) == pytest.approx(top(np.full((3, 4), 0.25)), rel=1e-12)
    assert discretization_error(0.5, 9, 1, 1) == pytest.approx(top(0.25 * np.eye(9)), rel=1e-12)
    assert discretization_error(0.5, 5, 3, 3) == pytest.approx(0.25 * math.sqrt(5), rel=1e-12)
    assert discretization_error(0.5, 0, 0, 0) == 0.0


def test_the_nonzeros_are_counted_before_rounding() -> None:
    """Entries that round to zero move too: counted after rounding, J = 0 and the bound would be 0."""
    matrix = torch.full((4, 6), 0.4, dtype=torch.float64)
    rounded = discretize(matrix, 1.0)
    assert not rounded.any()
    error = top((rounded - matrix).numpy())
    assert discretization_error(1.0, 0, 0, 0) < error <= discretization_error(1.0, 24, 4, 6)


# needed(d)


def network(seed: int, shapes: Sequence[tuple[int, int]] = ((9, 14), (11, 9), (3, 11))) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape) / math.sqrt(shape[1]) for shape in shapes]


def needed_margin(layers: Sequence[np.ndarray], radius: float, factors: Sequence[float], seed: int = 0) -> NeededMargin:
    weights = [torch.tensor(layer) for layer in layers]
    return NeededMargin(weights, MaskDraw(weights, seed), logs([top(a) for a in layers]), math.log(radius), factors)


def brute_force_needed(
    layers: Sequence[np.ndarray], radius: float, factors: Sequence[float], d: float, seed: int = 0
) -> float:
    """Spec §4 with numpy's SVD, for the masks of the same draw, the diagonal pruned like everything else."""
    thresholds = MaskDraw([torch.tensor(layer) for layer in layers], seed).thresholds
    product, total = math.e * radius, 0.0
    for layer, threshold, factor in zip(layers, thresholds, factors, strict=True):
        difference = np.where(threshold.numpy() < d, layer, 0.0)
        product *= factor * top(layer)
        total += top(difference) / top(layer)
    return product * total


@pytest.mark.parametrize("d", [1e-6, 1e-3, 0.01, 0.010001, 0.05, 0.7, 5.0, 1e6])
def test_needed_margin_by_brute_force(d: float) -> None:
    layers, factors = network(0), (1.0, 0.7, 0.3)
    for seed in range(3):
        expected = brute_force_needed(layers, 2.5, factors, d, seed)
        log_needed = needed_margin(layers, 2.5, factors, seed).log_needed(d)
        assert log_needed == pytest.approx(math.log(expected), abs=1e-8) if expected else log_needed == -math.inf


def test_needed_margin_of_a_layer_pruned_away() -> None:
    """At d = 1e12 every entry goes, the diagonal too: ‖Δ_l‖ = ‖A_l‖ and needed = e·B·Π‖A_l‖·L."""
    layers = network(1)
    needed = needed_margin(layers, 1.0, (1.0, 1.0, 1.0))
    assert needed.difference_norms(1e12) == pytest.approx([top(a) for a in layers], rel=1e-9)
    assert math.exp(needed.log_needed(1e12)) == pytest.approx(math.e * 3 * math.prod(top(a) for a in layers), rel=1e-8)
    assert needed.log_needed(needed.draw.smallest) == -math.inf
    assert needed.log_needed(needed.draw.smallest * (1 + 1e-12)) > -math.inf


@pytest.mark.parametrize("below", [0.01, 0.5, 3.0])
def test_the_search_begins_where_gaussian_differences_would_end_it(below: float) -> None:
    """Where ‖Δ_l‖₂ = √EΔ²(√d_out + √d_in) takes just the margin; it never takes more than where all is pruned."""
    layers, factors = network(2), (1.0, 0.7, 0.3)
    needed = needed_margin(layers, 2.5, factors)

    def predicted(d: float) -> float:
        sizes = [
            math.sqrt(difference_moments(d, float(layer.var()))[0]) * (layer.shape[0] ** 0.5 + layer.shape[1] ** 0.5)
            for layer in layers
        ]
        return log_output_perturbation(
            logs([top(layer) for layer in layers]), logs(sizes), math.log(2.5), factors=factors
        )

    log_margin = predicted(1e9) - below
    assert predicted(needed.guess(log_margin)) == pytest.approx(log_margin, abs=1e-6)


def test_a_spectral_norm_of_the_difference_can_fall_as_the_mask_grows() -> None:
    """Spec §2, by brute force over the sign matrices: ‖Δ‖₂ of three entries beats that of all four."""
    falls = []
    for signs in itertools.product((-1.0, 1.0), repeat=4):
        full = np.reshape(signs, (2, 2))
        for hole in range(4):
            part = full.copy()
            part.flat[hole] = 0.0
            if top(part) > top(full) * 1.001:
                falls.append(signs)
    assert (1.0, 1.0, 1.0, -1.0) in falls
    golden_ratio = (1 + math.sqrt(5)) / 2
    assert top(np.array([[1.0, 1.0], [1.0, 0.0]])) == pytest.approx(golden_ratio)
    assert top(np.array([[1.0, 1.0], [1.0, -1.0]])) == pytest.approx(math.sqrt(2))


def test_needed_margin_need_not_be_monotone() -> None:
    layer = np.array([[1.0, 1.0], [1.0, -1.0]])
    for seed in range(5):
        needed = needed_margin([layer], 1.0, (1.0,), seed)
        edges = sorted(needed.draw.thresholds[0].flatten().tolist())
        three, four = needed.log_needed(edges[3]), needed.log_needed(edges[3] * (1 + 1e-9))
        assert math.exp(three - 1) == pytest.approx((1 + math.sqrt(5)) / 2, rel=1e-9)
        assert math.exp(four - 1) == pytest.approx(math.sqrt(2), rel=1e-9)


@pytest.mark.parametrize("seed", range(12))
def test_an_affordable_strength_is_affordable(seed: int) -> None:
    rng = np.random.default_rng(seed)
    layers = network(seed, [(20, 30), (25, 20), (4, 25)]) if seed % 2 else network(seed)
    factors = rng.uniform(0.2, 1, 3).tolist()
    needed = needed_margin(layers, 3.0, factors, seed)
    thresholds = np.sort(np.concatenate([t.numpy().ravel() for t in needed.draw.thresholds]))
    margin = brute_force_needed(layers, 3.0, factors, min(9.0, float(rng.choice(thresholds))), seed) * 0.9999
    found = affordable_strength(needed, margin)
    assert 0 < found.d <= 10
    assert brute_force_needed(layers, 3.0, factors, found.d, seed) <= margin * (1 + 1e-9)
    assert found.log_needed == pytest.approx(needed.log_needed(found.d), abs=1e-12) or found.log_needed == -math.inf
    assert found.log_margin == pytest.approx(math.log(margin))
    assert found.evaluations <= 60
    if found.d < 9.9:  # it is not timid: something a little further costs more than the margin, give or take 0.5%
        further = np.linspace(found.d, found.d * 1.02, 30)
        assert max(brute_force_needed(layers, 3.0, factors, d, seed) for d in further) > margin * 0.995


def test_an_affordable_strength_recomputed_with_svdvals_on_wide_layers() -> None:
    """Sides beyond the switch to Lanczos, where the search runs on estimates from below."""
    layers = network(3, [(150, 200), (140, 150), (10, 140)])
    needed = needed_margin(layers, 1.0, (1.0, 1.0, 1.0))
    for margin, used in (
        (0.01, 0.5),
        (1.0, 0.9),
        (8.0, 0.97),
    ):  # a small margin buys few entries, in large steps
        found = affordable_strength(needed, margin)
        product, total = math.e, 0.0
        for layer, threshold in zip(layers, needed.draw.thresholds, strict=True):
            weight = torch.tensor(layer)
            norm = torch.linalg.svdvals(weight)[0].item()
            product *= norm
            total += torch.linalg.svdvals(torch.where(threshold < found.d, weight, 0.0))[0].item() / norm
        assert used * margin <= product * total <= margin * (1 + 1e-9)
        assert found.evaluations <= 60


def test_affordable_strength_at_the_ends() -> None:
    needed = needed_margin(network(2), 1.0, (1.0, 1.0, 1.0))
    assert affordable_strength(needed, 1e9).d == 10.0
    assert affordable_strength(needed, 1e9, largest=2.0).d == 2.0
    for margin in (0.0, -1.0):
        found = affordable_strength(needed, margin)
        assert (found.d, found.log_needed) == (0.0, -math.inf)
    tiny = affordable_strength(needed, 1e-200)
    assert 0 < tiny.d <= needed.draw.smallest and tiny.log_needed == -math.inf


@pytest.mark.parametrize("share", [1.1, 1.02, 1.001, 1.0001])
def test_the_largest_strength_is_returned_if_it_is_affordable(share: float) -> None:
    """Spec §4: 10 if needed(10) ≤ γ, even by a hair."""
    layers = network(0, [(150, 200)])
    margin = share * brute_force_needed(layers, 1.0, (1.0,), 10.0)
    assert affordable_strength(needed_margin(layers, 1.0, (1.0,)), margin).d == 10.0


@pytest.mark.parametrize("share", [0.9999, 0.999, 0.99, 0.97, 0.95, 0.9, 0.7, 0.3, 0.03])
def test_the_bracket_closes_to_a_percent_in_d(share: float) -> None:
    """Near d = 10 needed(d) is flat, and an estimate that is a little off moves the root by much."""
    layers = network(0, [(150, 200)])
    margin = share * brute_force_needed(layers, 1.0, (1.0,), 10.0)
    found = affordable_strength(needed_margin(layers, 1.0, (1.0,)), margin)
    assert brute_force_needed(layers, 1.0, (1.0,), found.d) <= margin * (1 + 1e-9)
    beyond = np.linspace(found.d, min(10.0, found.d * 1.01), 40)
    assert max(brute_force_needed(layers, 1.0, (1.0,), d) for d in beyond) > margin


@pytest.mark.parametrize("largest", [1e-3, 0.01, 0.3])
def test_affordable_strength_on_any_range(largest: float) -> None:
    layers, factors = network(2), (1.0, 1.0, 1.0)
    needed = needed_margin(layers, 1.0, factors)
    margin = 0.7 * brute_force_needed(layers, 1.0, factors, largest)
    assert margin > 0
    found = affordable_strength(needed, margin, largest=largest)
    assert 0 < found.d < largest
    assert brute_force_needed(layers, 1.0, factors, found.d) <= margin * (1 + 1e-9)
    assert affordable_strength(needed, 2 * margin, largest=largest).d == largest


def test_affordable_strength_of_layers_that_cannot_be_pruned() -> None:
    """Constant and zero layers lose nothing at any strength."""
    layers = [np.full((3, 4), 0.5), np.full((2, 3), -0.25)]
    assert affordable_strength(needed_margin(layers, 1.0, (1.0, 1.0)), 1e-30).d == 10.0
    assert affordable_strength(needed_margin([np.zeros((3, 4)), layers[1]], 1.0, (1.0, 1.0)), 1e-30).d == 10.0


@fixed
@example(seed=0, exponent=0)
@given(st.integers(0, 10**6), st.integers(-40, 40))
def test_the_search_does_not_depend_on_the_units_of_the_output(seed: int, exponent: int) -> None:
    """Scaling the last layer scales the margin and needed(d) alike: the same d."""
    layers, scale = network(seed), 2.0**exponent
    scaled = [*layers[:-1], layers[-1] * scale]
    first = affordable_strength(needed_margin(layers, 1.0, (1.0, 1.0, 1.0)), 0.8)
    second = affordable_strength(needed_margin(scaled, 1.0, (1.0, 1.0, 1.0)), 0.8 * scale)
    assert second.d == pytest.approx(first.d, rel=1e-6)


@pytest.mark.parametrize("scale", [1e-320, 1e-170, 1e-44, 1e-3, 1e3, 1e200])
def test_the_default_step_follows_weights_of_any_scale(scale: float) -> None:
    weight = torch.tensor([[0.3, -1.0], [0.5, 0.0]], dtype=torch.float64) * scale
    step = default_step(weight)
    assert step == pytest.approx(float(weight.abs().max()) / 256, rel=1e-6, abs=5e-324)
    if 1e-35 < scale < 1e35:
        assert step == float(torch.tensor(step).float()), "a code holds it in 32 bits"
    assert default_step(torch.zeros(2, 2)) == 1.0


def test_the_default_step_is_a_float32_where_float32_has_its_range() -> None:
    # 2⁻¹¹⁸/256 is the smallest normal float32; below it the step keeps its digits.
    third = 4 / 3 * 2.0**-118
    assert default_step(torch.tensor([[third]], dtype=torch.float64)) == float(torch.tensor(third).float()) / 256
    assert default_step(torch.tensor([[third / 2]], dtype=torch.float64)) == third / 512
