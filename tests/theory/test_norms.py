import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from milkshake_mbp.theory.norms import (
    frobenius_norm,
    group_norm,
    log_path_norm,
    norm_2_1,
    spectral_norm,
    spectral_norm_estimate,
)

fixed = settings(derandomize=True, deadline=None, max_examples=30, database=None)
SHAPES = [
    (1, 1),
    (1, 9),
    (9, 1),
    (3, 5),
    (10, 784),
    (784, 10),
    (129, 129),
    (300, 300),
    (400, 200),
    (200, 400),
]


def gaussian(shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def with_singular_values(values: np.ndarray, shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    left = np.linalg.qr(gaussian((shape[0], len(values)), seed))[0]
    right = np.linalg.qr(gaussian((shape[1], len(values)), seed + 1))[0]
    return left @ np.diag(values) @ right.T


def truth(matrix: np.ndarray) -> float:
    return float(np.linalg.svd(matrix, compute_uv=False)[0])


# Every one a trap: sides above and below the switch to Lanczos, tops that are clustered, tied, hidden or far away.
CASES = {
    **{f"gaussian {rows}x{columns}": gaussian((rows, columns)) for rows, columns in SHAPES},
    "clustered": with_singular_values(np.r_[1 - 1e-7 * np.arange(10), np.linspace(0.9, 0, 190)], (300, 200)),
    "clustered to rounding": with_singular_values(1 - 1e-13 * np.arange(200), (200, 250)),
    "a slow decay": with_singular_values(1 - 1e-3 * np.arange(300), (300, 300)),
    "tied": with_singular_values(np.r_[2, 2, 2, np.linspace(1.99, 0.1, 147)], (150, 170)),
    "a lone top": with_singular_values(np.r_[1, np.full(255, 0.98)], (256, 256)),
    "rank one": gaussian((300, 1)) @ gaussian((1, 200), 1),
    "rank two": gaussian((200, 2)) @ gaussian((2, 300), 1),
    "identity": np.eye(300),
    "wide identity": np.eye(140, 500),
    "one entry": np.pad([[3.0]], ((150, 149), (7, 192))),
    "very sparse": gaussian((300, 300)) * (gaussian((300, 300), 1) > 3.5),
    "all ones": np.ones((200, 300)),
    "signs": np.sign(gaussian((256, 128))),
    "heavy tails": gaussian((300, 200)) ** 5,
    "block of zeros": np.pad(gaussian((20, 20)), ((0, 280), (180, 0))),
}


@pytest.mark.parametrize("name", CASES)
def test_spectral_norm_is_the_largest_singular_value(name: str) -> None:
    expected = truth(CASES[name])
    value = spectral_norm(torch.tensor(CASES[name]))
    assert value.dtype == torch.float64 and value.ndim == 0
    assert value.item() == pytest.approx(expected, rel=1e-9)
    assert value.item() <= expected * (1 + 1e-12)


@pytest.mark.parametrize("name", CASES)
def test_the_estimate_is_within_a_percent_and_never_above(name: str) -> None:
    expected = truth(CASES[name])
    value = spectral_norm_estimate(torch.tensor(CASES[name])).item()
    assert 0.99 * expected <= value <= expected * (1 + 1e-12)


def test_a_finer_estimate_is_a_better_one() -> None:
    matrix = CASES["gaussian 300x300"]
    assert spectral_norm_estimate(torch.tensor(matrix), tolerance=1e-8).item() == pytest.approx(truth(matrix), rel=1e-6)


@pytest.mark.parametrize("shape", [(1, 1), (4, 3), (200, 150), (150, 600)])
def test_a_zero_matrix_has_norm_zero(shape: tuple[int, int]) -> None:
    for norm in (spectral_norm, spectral_norm_estimate, frobenius_norm, norm_2_1):
        assert norm(torch.zeros(shape)).item() == 0.0


@pytest.mark.parametrize("shape", [(6, 9), (200, 150), (150, 300)])
@pytest.mark.parametrize("density", [0.0, 0.01, 0.3])
def test_spectral_norms_of_sparse_tensors(shape: tuple[int, int], density: float) -> None:
    matrix = gaussian(shape) * (np.random.default_rng(1).random(shape) < density)
    weight = torch.tensor(matrix).to_sparse().coalesce()
    assert spectral_norm(weight).item() == pytest.approx(truth(matrix), rel=1e-9, abs=0)
    assert 0.99 * truth(matrix) <= spectral_norm_estimate(weight).item() <= truth(matrix) * (1 + 1e-12)


@pytest.mark.parametrize("exponent", [-150, -20, 20, 150])
@pytest.mark.parametrize("shape", [(6, 4), (150, 200)])
def test_the_spectral_norm_survives_any_scale(exponent: int, shape: tuple[int, int]) -> None:
    matrix = gaussian(shape)
    scaled = torch.tensor(matrix * 10.0**exponent)
    expected = truth(matrix) * 10.0**exponent
    assert spectral_norm(scaled).item() == pytest.approx(expected, rel=1e-9)
    assert 0.99 * expected <= spectral_norm_estimate(scaled).item() <= expected * (1 + 1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(20, 30), (160, 200)])
def test_every_float_dtype_is_computed_in_float64(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    """Entries near 300, whose squares overflow float16."""
    weight = torch.tensor(300 * gaussian(shape)).to(dtype)
    exact = weight.double().numpy()
    for norm, expected in (
        (spectral_norm, truth(exact)),
        (frobenius_norm, math.sqrt(math.fsum(a * a for a in exact.ravel().tolist()))),
        (norm_2_1, math.fsum(math.sqrt(math.fsum(a * a for a in row)) for row in exact.tolist())),
    ):
        assert norm(weight).dtype == torch.float64
        assert norm(weight).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("shape", [(3, 4), (150, 150)])
def test_norms_of_what_is_not_finite_raise(bad: float, shape: tuple[int, int]) -> None:
    weight = torch.ones(shape)
    weight[1, 2] = bad
    for norm in (spectral_norm, spectral_norm_estimate):
        with pytest.raises(ValueError, match="NaN or infinity"):
            norm(weight)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4)])
def test_spectral_norms_of_what_is_not_a_matrix_raise(shape: tuple[int, ...]) -> None:
    for norm in (spectral_norm, spectral_norm_estimate):
        with pytest.raises(ValueError, match="matrix"):
            norm(torch.ones(shape))


@pytest.mark.parametrize("shape", [(30, 40), (200, 150)])
def test_norms_are_deterministic_and_leave_the_world_alone(shape: tuple[int, int]) -> None:
    weight = torch.tensor(gaussian(shape)).requires_grad_()
    state, copy = torch.get_rng_state(), weight.detach().clone()
    for norm in (spectral_norm, spectral_norm_estimate):
        first = norm(weight)
        torch.rand(3, generator=torch.Generator().manual_seed(1))
        assert first.item() == norm(weight).item() and not first.requires_grad
    assert torch.equal(state, torch.get_rng_state()) and torch.equal(weight.detach(), copy)


@fixed
@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 12), st.floats(-50, 50))
def test_invariances_of_the_spectral_norm(seed: int, rows: int, columns: int, factor: float) -> None:
    matrix = gaussian((rows, columns), seed)
    rotation = np.linalg.qr(gaussian((rows, rows), seed + 1))[0]
    norm = spectral_norm(torch.tensor(matrix)).item()
    for same in (matrix.T, rotation @ matrix, matrix[::-1], matrix[:, ::-1], -matrix):
        assert spectral_norm(torch.tensor(same.copy())).item() == pytest.approx(norm, rel=1e-9)
    assert spectral_norm(torch.tensor(factor * matrix)).item() == pytest.approx(abs(factor) * norm, rel=1e-9)


@fixed
@given(st.integers(0, 10**6), st.integers(2, 12), st.integers(2, 12))
def test_inequalities_between_norms(seed: int, rows: int, columns: int) -> None:
    matrix, other = gaussian((rows, columns), seed), gaussian((rows, columns), seed + 1)
    spectral = spectral_norm(torch.tensor(matrix)).item()
    frobenius, two_one = frobenius_norm(torch.tensor(matrix)).item(), norm_2_1(torch.tensor(matrix)).item()
    assert abs(matrix).max() <= spectral * (1 + 1e-9)
    assert spectral <= frobenius * (1 + 1e-9) <= spectral * math.sqrt(min(rows, columns)) * (1 + 1e-8)
    assert frobenius <= two_one * (1 + 1e-9) <= math.sqrt(rows) * frobenius * (1 + 1e-8)
    assert spectral_norm(torch.tensor(matrix[1:, 1:])).item() <= spectral * (1 + 1e-9)
    total = spectral_norm(torch.tensor(matrix + other)).item()
    assert total <= (spectral + spectral_norm(torch.tensor(other)).item()) * (1 + 1e-9)


def test_norm_2_1_sums_over_output_units() -> None:
    """(out, in): two units with incoming weights (3, 4, 0) and (0, 0, 2); the transpose would give 3 + 4 + 2."""
    weight = torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 2.0]])
    assert norm_2_1(weight).item() == pytest.approx(7.0, rel=1e-15)
    assert norm_2_1(weight.T).item() == pytest.approx(9.0, rel=1e-15)
    assert frobenius_norm(weight).item() == pytest.approx(math.sqrt(29), rel=1e-15)


@fixed
@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 9))
def test_frobenius_and_2_1_by_loops(seed: int, rows: int, columns: int) -> None:
    matrix = gaussian((rows, columns), seed)
    squares = two_one = 0.0
    for i in range(rows):
        row = 0.0
        for j in range(columns):
            row += matrix[i, j] ** 2
        squares += row
        two_one += math.sqrt(row)
    assert frobenius_norm(torch.tensor(matrix)).item() == pytest.approx(math.sqrt(squares), rel=1e-12)
    assert norm_2_1(torch.tensor(matrix)).item() == pytest.approx(two_one, rel=1e-12)


# Group norms


@fixed
@given(
    st.integers(0, 10**6),
    st.integers(1, 9),
    st.integers(1, 9),
    st.sampled_from([1, 1.5, 2, 3, 4]),
    st.sampled_from([1, 1.5, 2, 3, math.inf]),
)
def test_group_norms_by_loops(seed: int, rows: int, columns: int, p: float, q: float) -> None:
    matrix = gaussian((rows, columns), seed)
    units = []
    for i in range(rows):
        total = 0.0
        for j in range(columns):
            total += abs(matrix[i, j]) ** p
        units.append(total ** (1 / p))
    expected = max(units) if math.isinf(q) else sum(unit**q for unit in units) ** (1 / q)
    assert group_norm(torch.tensor(matrix), p, q).item() == pytest.approx(expected, rel=1e-12)


def test_group_norms_are_of_the_rows() -> None:
    """(out, in): two units with incoming weights (3, 4, 0) and (0, 0, 2)."""
    weight = torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 2.0]])
    assert group_norm(weight, 1, math.inf).item() == 7.0
    assert group_norm(weight.T, 1, math.inf).item() == 4.0
    assert group_norm(weight, 2, 1).item() == pytest.approx(norm_2_1(weight).item(), rel=1e-15)
    assert group_norm(weight, 2, 2).item() == pytest.approx(frobenius_norm(weight).item(), rel=1e-15)


@fixed
@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 12))
def test_group_norms_fall_in_p_and_in_q(seed: int, rows: int, columns: int) -> None:
    weight = torch.tensor(gaussian((rows, columns), seed))
    exponents = [1, 1.5, 2, 3, 8]
    for fixed_one in exponents:
        in_p = [group_norm(weight, p, fixed_one).item() for p in exponents]
        in_q = [group_norm(weight, fixed_one, q).item() for q in [*exponents, math.inf]]
        for values in (in_p, in_q):
            assert all(after <= before * (1 + 1e-12) for before, after in itertools.pairwise(values))
    spectral = spectral_norm(weight).item()
    assert group_norm(weight, 2, math.inf).item() <= spectral * (1 + 1e-9)
    assert spectral <= group_norm(weight, 2, 2).item() * (1 + 1e-9)


@pytest.mark.parametrize("exponent", [-150, -20, 20, 150])
def test_group_norms_survive_any_scale(exponent: int) -> None:
    matrix = gaussian((6, 4))
    for p, q in ((1, math.inf), (3, 1.5), (2, 2)):
        expected = group_norm(torch.tensor(matrix), p, q).item() * 10.0**exponent
        assert group_norm(torch.tensor(matrix * 10.0**exponent), p, q).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("exponent", [-1063, -1040, -1022, -700, 900, 1017])
@pytest.mark.parametrize("shape", [(6, 4), (1, 1), (140, 5)])
def test_norms_of_subnormal_and_of_huge_weights(exponent: int, shape: tuple[int, int]) -> None:
    """c·A for c = 2^exponent, A of ten bits so that c·A is exact; one row is zero."""
    matrix = torch.tensor(gaussian(shape)).mul_(2.0**8).round_().mul_(2.0**-8)
    matrix[shape[0] // 2] *= shape[0] == 1
    scaled = matrix * 2.0 ** (exponent // 2) * 2.0 ** (exponent - exponent // 2)
    assert scaled.isfinite().all() and torch.equal(scaled == 0, matrix == 0)
    norms: list[Callable[[torch.Tensor], torch.Tensor]] = [
        spectral_norm,
        spectral_norm_estimate,
        frobenius_norm,
        *(lambda weight, p=p, q=q: group_norm(weight, p, q) for p, q in ((1, math.inf), (3, 1.5), (2, 2))),
    ]
    for norm in norms:
        expected = math.ldexp(norm(matrix).item(), exponent)
        assert norm(scaled).item() == pytest.approx(expected, rel=1e-9, abs=5e-324)
    for p in (1, 2, 3):
        expected = log_path_norm([matrix], p) + exponent * math.log(2)
        torch.testing.assert_close(log_path_norm([scaled], p), expected, rtol=1e-13, atol=1e-9)


@pytest.mark.parametrize(("p", "q"), [(0.5, 1), (math.inf, 1), (math.nan, 1), (2, 0.5), (2, math.nan)])
def test_exponents_that_give_no_group_norm_raise(p: float, q: float) -> None:
    with pytest.raises(ValueError, match="group norm"):
        group_norm(torch.ones(2, 2), p, q)


# Path norms


def chain(seed: int, widths: tuple[int, ...]) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((after, before)) for before, after in itertools.pairwise(widths)]


def path_norm_by_enumeration(layers: list[np.ndarray], p: float) -> list[float]:
    """(Σ over every path of Π|w|^p)^{1/p} into each output unit, one path at a time."""
    widths = [layers[0].shape[1], *(a.shape[0] for a in layers)]
    totals = [0.0] * widths[-1]
    for path in itertools.product(*(range(width) for width in widths)):
        product = 1.0
        for layer, (before, after) in zip(layers, itertools.pairwise(path), strict=True):
            product *= abs(layer[after, before]) ** p
        totals[path[-1]] += product
    return [total ** (1 / p) for total in totals]


def tensors(layers: list[np.ndarray]) -> list[torch.Tensor]:
    return [torch.tensor(layer) for layer in layers]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("widths", [(3, 2), (1, 1, 1), (4, 3, 5, 2), (2, 3, 2, 3, 2, 3)], ids=str)
@pytest.mark.parametrize("p", [1, 1.5, 2, 3])
def test_path_norms_by_enumerating_every_path(seed: int, widths: tuple[int, ...], p: float) -> None:
    layers = chain(seed, widths)
    value = log_path_norm(tensors(layers), p)
    assert value.dtype == torch.float64 and value.shape == (widths[-1],)
    assert value.exp().tolist() == pytest.approx(path_norm_by_enumeration(layers, p), rel=1e-12)


@fixed
@given(st.integers(0, 10**6), st.sampled_from([1, 2, 3]))
def test_path_norms_forget_the_scales_of_hidden_units(seed: int, p: float) -> None:
    """(A_1 rows × s, A_2 columns / s) is the same function; s from 1e-100 to 1e100, unit by unit."""
    layers = chain(seed, (4, 6, 3))
    scales = 10.0 ** np.random.default_rng(seed).integers(-100, 100, 6)
    rescaled = [layers[0] * scales[:, None], layers[1] / scales]
    assert log_path_norm(tensors(rescaled), p).tolist() == pytest.approx(
        log_path_norm(tensors(layers), p).tolist(), abs=1e-9
    )


@fixed
@given(st.integers(0, 10**6), st.sampled_from([1, 2, 3]))
def test_path_norms_are_the_least_group_norms(seed: int, p: float) -> None:
    """φ_p ≤ Π‖A_l‖_{p,∞}, with equality once every hidden unit's weights have norm 1 (Neyshabur et al. 2015)."""
    layers = chain(seed, (4, 6, 5, 3))
    worst = log_path_norm(tensors(layers), p).amax().exp().item()
    assert worst <= math.prod(group_norm(a, p, math.inf).item() for a in tensors(layers)) * (1 + 1e-12)
    for index in range(len(layers) - 1):
        norms = (abs(layers[index]) ** p).sum(axis=1) ** (1 / p)
        layers[index], layers[index + 1] = layers[index] / norms[:, None], layers[index + 1] * norms
    product = math.prod(group_norm(a, p, math.inf).item() for a in tensors(layers))
    assert product == pytest.approx(worst, rel=1e-12)


@pytest.mark.parametrize("scale", [1e-20, 1e20, 1e-150, 1e150])
@pytest.mark.parametrize("p", [1, 2])
def test_path_norms_of_fifty_layers(scale: float, p: float) -> None:
    layers = chain(0, (8,) * 51)
    plain = log_path_norm(tensors(layers), p)
    shifted = log_path_norm([scale * layer for layer in tensors(layers)], p) - 50 * math.log(scale)
    assert shifted.tolist() == pytest.approx(plain.tolist(), rel=1e-9)


def test_path_norms_of_disconnected_units() -> None:
    layers = tensors(chain(0, (4, 3, 3, 2)))
    layers[-1][1] = 0
    value = log_path_norm(layers, 2)
    assert math.isfinite(value[0]) and value[1] == -math.inf
    for dead in range(3):
        zeroed = [layer.clone() for layer in layers]
        zeroed[dead].zero_()
        assert log_path_norm(zeroed, 2).tolist() == [-math.inf] * 2


@pytest.mark.parametrize("p", [0.5, math.inf, math.nan])
def test_exponents_that_give_no_path_norm_raise(p: float) -> None:
    with pytest.raises(ValueError, match="path norm"):
        log_path_norm([torch.ones(2, 2)], p)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_group_and_path_norms_of_what_is_not_finite_raise(bad: float) -> None:
    weight = torch.ones(3, 4)
    weight[1, 2] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        group_norm(weight, 1, 1)
    with pytest.raises(ValueError, match="NaN or infinity"):
        log_path_norm([weight], 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_group_and_path_norms_are_computed_in_float64(dtype: torch.dtype) -> None:
    weights = [(300 * torch.tensor(layer)).to(dtype) for layer in chain(0, (30, 20, 4))]
    exact = [weight.double() for weight in weights]
    assert log_path_norm(weights, 2).tolist() == log_path_norm(exact, 2).tolist()
    assert group_norm(weights[0], 3, 1.5).item() == group_norm(exact[0], 3, 1.5).item()
