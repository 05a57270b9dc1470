import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from milkshake_mbp.theory import symbol
from milkshake_mbp.theory.layers import Layer, Window
from milkshake_mbp.theory.norms import (
    frobenius_norm,
    group_norm,
    log_group_norm,
    norm_2_1,
    operator_norm,
    operator_norm_estimate,
    reshaped_norm,
    spectral_norm,
    spectral_norm_estimate,
)
from milkshake_mbp.theory.symbol import bound_eigenvalues, symbol_norm
from tests.theory.layer_instances import convolution, linear, random_convolution, spectral, unrolled
from tests.theory.test_norms import CASES, truth

KINDS = {
    "plain": convolution((2, 3), (3, 3), (6, 5), padding=1),
    "valid": convolution((2, 3), (3, 3), (6, 5)),
    "strided": convolution((2, 3), (3, 2), (7, 6), stride=(2, 3), padding=(1, 0)),
    "dilated": convolution((2, 2), (3, 3), (8, 9), dilation=(2, 3), padding=(2, 3)),
    "strided and dilated": convolution((2, 2), (3, 3), (9, 9), stride=2, dilation=(2, 3), padding=3),
    "grouped": convolution((4, 6), (3, 3), (5, 5), groups=2, padding=1, gain=True),
    "depthwise": convolution((4, 4), (5, 5), (6, 6), groups=4, padding=2),
    "pointwise": convolution((5, 4), (1, 1), (3, 4), gain=True),
    "patches": convolution((3, 8), (2, 2), (6, 6), stride=2),
    "gaps": convolution((3, 4), (1, 1), (5, 5), stride=2),
    "an image smaller than the kernel": convolution((2, 2), (5, 5), (2, 3), padding=2),
    "one pixel": convolution((3, 4), (3, 3), (1, 1), padding=1),
    "more padding than reach": convolution((2, 2), (2, 2), (3, 3), padding=3),
    "disjoint windows, none whole": convolution((2, 2), (3,), (2,), stride=3, padding=2),
    "one dimension": convolution((2, 3), (4,), (11,), stride=2, padding=1),
    "three dimensions": convolution((2, 2), (2, 3, 2), (3, 4, 3), padding=(1, 1, 0), stride=(1, 2, 1)),
    "more inputs than outputs": convolution((7, 2), (3, 3), (4, 4), stride=2, padding=1),
}


@pytest.mark.parametrize("name", KINDS)
def test_the_adjoint_by_inner_products(name: str) -> None:
    layer = KINDS[name]
    rng = np.random.default_rng(1)
    x, y = (torch.tensor(rng.standard_normal((2, *shape))) for shape in (layer.inputs, layer.outputs))
    kernel = layer.effective_kernel
    left = (layer.apply(kernel, x) * y).flatten(1).sum(dim=1)
    right = (x * layer.adjoint(kernel, y)).flatten(1).sum(dim=1)
    assert left.tolist() == pytest.approx(right.tolist(), rel=1e-12)


def test_the_adjoint_of_a_linear_layer() -> None:
    layer = linear((3, 5))
    x, y = torch.ones(1, 5, dtype=torch.float64), torch.ones(1, 3, dtype=torch.float64)
    assert (layer.apply(layer.kernel, x) * y).sum().item() == pytest.approx(
        (x * layer.adjoint(layer.kernel, y)).sum().item()
    )


# Spectral norms


@pytest.mark.parametrize("name", KINDS)
def test_operator_norms_against_the_matrix(name: str) -> None:
    layer = KINDS[name]
    exact = spectral(unrolled(layer))
    low, high = operator_norm(layer)
    assert low <= exact * (1 + 1e-13) and exact <= high * (1 + 1e-13)
    assert high <= exact * (1 + 1e-9)  # small enough to be written out
    assert exact <= symbol_norm(layer) * (1 + 1e-13)


@pytest.mark.parametrize("name", ["plain", "more inputs than outputs"])
def test_an_entry_of_the_symbols_gram_sums_as_many_products_as_is_said(name: str) -> None:
    """What rounding may change grows with that number: for each tap the channels of the side that has more of them."""
    layer = KINDS[name]
    dimensions = symbol.axes(layer)
    grams = symbol._Grams.of(symbol.taps(layer, dimensions, layer.effective_kernel), dimensions)
    assert grams.inner == max(layer.outputs[0], layer.inputs[0])


def test_tolerances_do_not_add_up_over_the_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = KINDS["plain"]
    dimensions = symbol.axes(layer)
    grams = symbol._Grams.of(symbol.taps(layer, dimensions, layer.effective_kernel), dimensions)
    exact = grams.bound((0, 0), 0.0, tolerance=1e-12)
    monkeypatch.setattr(symbol, "_CHUNK", 1)  # each frequency by itself
    assert exact * (1 - 1e-11) <= grams.bound((0, 0), 0.0, tolerance=0.1) <= 1.1 * exact * (1 + 1e-9)


def test_taps_beyond_the_grid_do_not_count_in_its_norm() -> None:
    layer = convolution((1, 1), (3, 3), (5, 5), padding=1)
    kernel = torch.full_like(layer.kernel, 0.01)
    kernel[0, -1] = 1.0  # the last tap
    norm = symbol.grid_norm(replace(layer, kernel=kernel), (2, 2))
    assert norm == pytest.approx(0.04, rel=2e-3)


@pytest.mark.parametrize(
    "start", [0, *(pytest.param(start, marks=pytest.mark.slow) for start in range(400, 2000, 400))]
)
def test_certified_intervals_of_random_convolutions(start: int) -> None:
    """2,000 of them; the symbol and Lanczos by themselves, which larger layers rely on, too."""
    ratios = []
    for seed in range(start, start + 400):
        layer = random_convolution(seed, largest=7, dimensions=(1, 2))
        exact = spectral(unrolled(layer))
        low, high = operator_norm(layer)
        assert low <= exact * (1 + 1e-13) and exact <= high * (1 + 1e-13), seed
        assert high - low <= 1e-9 * high, seed
        bound = symbol_norm(layer)
        assert exact <= bound * (1 + 1e-13), seed
        ratios.append(bound / exact if exact else 1.0)
    assert np.median(ratios) <= 1.05


@pytest.mark.parametrize(
    "layer",
    {
        "plain": convolution((4, 6), (3, 3), (12, 12), padding=1),
        "strided": convolution((6, 4), (5, 5), (15, 14), padding=2, stride=2, gain=True),
        "depthwise": convolution((24, 24), (3, 3), (6, 6), padding=1, groups=24),
        "grouped": convolution((6, 4), (3, 3), (12, 12), padding=2, dilation=2, groups=2),
        "one dimension": convolution((4, 4), (7,), (150,), padding=3),
        "stem": convolution((3, 16), (7, 7), (16, 16), padding=3, stride=2),
    }.items(),
    ids=lambda layer: layer[0],
)
def test_operator_norms_of_layers_too_large_to_write_out(
    layer: tuple[str, Layer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("milkshake_mbp.theory.norms._CHEAP", 0)
    exact = spectral(unrolled(layer[1]))
    low, high = operator_norm(layer[1])
    assert 0.99 * exact <= low <= exact * (1 + 1e-13) and exact <= high <= 1.05 * exact


@pytest.mark.parametrize("seed", range(30))
def test_intervals_from_the_symbol_and_lanczos(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("milkshake_mbp.theory.norms._CHEAP", 0)
    layer = random_convolution(seed)
    exact = spectral(unrolled(layer))
    low, high = operator_norm(layer)
    assert 0.98 * exact <= low <= exact * (1 + 1e-13) and exact <= high * (1 + 1e-13)


@pytest.mark.parametrize("name", KINDS)
def test_estimates_are_close_from_below(name: str) -> None:
    exact = spectral(unrolled(KINDS[name]))
    assert 0.98 * exact <= operator_norm_estimate(KINDS[name]) <= exact * (1 + 1e-5)  # in float32
    assert operator_norm_estimate(KINDS[name].kernel) == spectral_norm_estimate(KINDS[name].kernel).item()
    assert operator_norm_estimate(linear((3, 5), gain=True)) <= operator_norm(linear((3, 5), gain=True))[1]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_bounds_on_eigenvalues_of_many_matrices(seed: int, dtype: torch.dtype) -> None:
    """Of all scales and ranks, in any order, some of them zero; diagonals and norms need not agree on the largest."""
    generator = torch.Generator().manual_seed(seed)
    size = 2 + seed % 7
    factors = torch.randn(12, size, 1 + seed % 9, dtype=dtype, generator=generator)
    factors = factors * 10 ** (1.5 * torch.randn(12, 1, 1, dtype=torch.float64, generator=generator))
    factors[seed % 12] = 0
    grams = torch.cat([factors @ factors.mH, torch.ones(1, size, size).to(dtype) * torch.rand(1, generator=generator)])
    exact = torch.linalg.eigvalsh(grams).amax().item()
    for least in (0.0, 0.5 * exact, exact, 2 * exact):
        largest = max(exact, least)
        assert largest * (1 - 1e-14) <= bound_eigenvalues(grams.clone(), least) <= largest * 1.0021
    assert bound_eigenvalues(grams.clone(), 0.0, enough=0.9 * exact) == math.inf
    assert bound_eigenvalues(grams.clone(), 0.0, enough=1.1 * exact) <= exact * 1.0021


def test_an_eigenvalue_that_power_iterations_miss_is_found() -> None:
    """0.9I + 0.2uuᵀ, u orthogonal to where they start, beside wwᵀ, w along it, and a small matrix, in any order."""
    start = torch.randn(8, dtype=torch.float64, generator=torch.Generator().manual_seed(8))
    along = start / start.norm()
    across = torch.linalg.qr(torch.stack([along, torch.ones(8, dtype=torch.float64)], dim=1)).Q[:, 1]
    hidden = 0.9 * torch.eye(8, dtype=torch.float64) + 0.2 * torch.outer(across, across)
    for order in itertools.permutations([hidden, 1e-3 * hidden, torch.outer(along, along)]):
        assert 1.1 * (1 - 1e-14) <= bound_eigenvalues(torch.stack(order)) <= 1.1 * 1.0021


def test_a_smoothing_kernel_attains_the_bound_of_a_grid_that_changes_sign() -> None:
    """The second differences and sums of h entries have the norms 2 ± 2cos(π/(h + 1)); a plain grid gives 4."""
    for h in (1, 2, 5, 8):
        for sign in (1, -1):
            layer = Layer("l", torch.tensor([[1.0, 2.0 * sign, 1.0]]), (1, h), (1, h), Window((3,), (1,), (1,), (1,)))
            assert symbol_norm(layer) == pytest.approx(2 + 2 * math.cos(math.pi / (h + 1)), rel=1e-3)


def test_the_grid_of_the_image_is_too_small() -> None:
    """On the image's own grid the Fourier value is no bound, however many of these kernels respect it."""
    broken = 0
    for seed in range(300):
        layer = convolution((1, 1), (3, 3), (3, 3), padding=1, seed=seed)
        kernel = layer.kernel.reshape(3, 3).numpy()
        broken += bool(np.abs(np.fft.fft2(kernel, (3, 3))).max() < spectral(unrolled(layer)))
    assert broken


@pytest.mark.parametrize("shape", [(3, 5), (1, 1), (200, 150), (150, 600)])
def test_operator_norms_of_matrices(shape: tuple[int, int]) -> None:
    layer = linear(shape)
    low, high = operator_norm(layer)
    exact = spectral(layer.kernel.numpy())
    assert low <= exact * (1 + 1e-14) and exact <= high * (1 + 1e-14) and high - low <= 1e-9 * high
    assert operator_norm(layer.kernel) == (low, high)
    assert spectral_norm(layer.kernel).item() == pytest.approx(low, rel=1e-9)
    scaled = linear(shape, gain=True)
    assert operator_norm(scaled)[1] == pytest.approx(spectral(unrolled(scaled)), rel=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_intervals_of_matrices_that_are_traps(name: str) -> None:
    low, high = operator_norm(torch.tensor(CASES[name]))
    exact = truth(CASES[name])
    assert low <= exact * (1 + 1e-14) and exact <= high * (1 + 1e-14) and high - low <= 1e-9 * high


@pytest.mark.parametrize("exponent", [-150, -20, 20, 150])
def test_operator_norms_survive_any_scale(exponent: int) -> None:
    for layer in (KINDS["strided"], convolution((4, 6), (3, 3), (16, 16), padding=1)):
        low, high = operator_norm(layer)
        scaled = operator_norm(layer.with_kernel(layer.kernel * 10.0**exponent))
        assert scaled == pytest.approx((low * 10.0**exponent, high * 10.0**exponent), rel=1e-6)


@pytest.mark.parametrize("name", ["plain", "one pixel", "patches"])
def test_a_zero_kernel_has_norm_zero(name: str) -> None:
    layer = KINDS[name].with_kernel(torch.zeros_like(KINDS[name].kernel))
    assert operator_norm(layer) == (0.0, 0.0) and symbol_norm(layer) == 0.0
    assert log_group_norm(layer, 2, 2) == -math.inf


def test_a_kernel_that_meets_only_padding_has_norm_zero() -> None:
    layer = convolution((1, 1), (2,), (1,), dilation=2, padding=1)  # the window's two taps pass the one entry by
    assert not unrolled(layer).any() and operator_norm(layer) == (0.0, 0.0)


@pytest.mark.parametrize("name", ["plain", "patches", "grouped"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_norms_of_a_kernel_that_is_not_finite_raise(name: str, bad: float) -> None:
    kernel = KINDS[name].kernel.clone()
    kernel[1, 0] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        operator_norm(KINDS[name].with_kernel(kernel))
    with pytest.raises(ValueError, match="NaN or infinity"):
        operator_norm(kernel)
    with pytest.raises(ValueError, match="NaN or infinity"):
        log_group_norm(KINDS[name].with_kernel(kernel), 2, 1)


def test_a_convolution_needs_the_size_of_its_input() -> None:
    layer = Layer("features.0", torch.ones(1, 9), window=Window((3, 3), (1, 1), (1, 1), (1, 1)))
    for norm in (operator_norm, symbol_norm, lambda layer: log_group_norm(layer, 2, 2)):
        with pytest.raises(ValueError, match=r"features\.0 .* sizes of its input and output"):
            norm(layer)


@pytest.mark.parametrize("name", ["plain", "valid", "strided", "dilated", "pointwise", "patches"])
def test_the_reshaped_norm_is_a_lower_bound_where_a_window_is_whole(name: str) -> None:
    layer = KINDS[name]
    assert layer.window is not None
    overlap = math.prod(math.ceil(k / s) for k, s in zip(layer.window.size, layer.window.stride, strict=True))
    exact, reshaped = spectral(unrolled(layer)), reshaped_norm(layer).item()
    assert reshaped <= exact * (1 + 1e-9) and exact <= math.sqrt(overlap) * reshaped * (1 + 1e-9)


# Norms of the rows


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(("p", "q"), [(2, 2), (2, 1), (1, math.inf), (3, 1.5), (1.5, 3)])
def test_group_norms_against_the_matrix(name: str, p: float, q: float) -> None:
    rows = np.linalg.norm(unrolled(KINDS[name]), ord=p, axis=1)
    expected = rows.max() if math.isinf(q) else (rows**q).sum() ** (1 / q)
    assert log_group_norm(KINDS[name], p, q) == pytest.approx(math.log(expected), abs=1e-12)


@pytest.mark.parametrize("shape", [(3, 5), (40, 30)])
def test_group_norms_of_linear_layers_are_those_of_their_matrices(shape: tuple[int, int]) -> None:
    """To the last bit."""
    layer = linear(shape)
    for (p, q), value in {
        (2, 2): frobenius_norm(layer.kernel),
        (2, 1): norm_2_1(layer.kernel),
        (1, math.inf): group_norm(layer.kernel, 1, math.inf),
        (3, 1.5): group_norm(layer.kernel, 3, 1.5),
    }.items():
        assert log_group_norm(layer, p, q) == math.log(value.item())
    scaled = linear(shape, gain=True)
    assert log_group_norm(scaled, 2, 1) == pytest.approx(
        math.log(np.linalg.norm(unrolled(scaled), axis=1).sum()), abs=1e-12
    )


def test_group_norms_of_a_linear_layer_on_many_positions() -> None:
    """(4, 5) → (4, 3): each row of the matrix stands there four times."""
    kernel = torch.tensor(np.random.default_rng(0).standard_normal((3, 5)))
    layer = Layer("tokens", kernel, (4, 5), (4, 3))
    matrix = np.kron(np.eye(4), kernel.numpy())
    assert layer.places == 4 and operator_norm(layer)[0] == pytest.approx(spectral(matrix), rel=1e-9)
    for p, q in ((2, 2), (2, 1), (1, math.inf)):
        rows = np.linalg.norm(matrix, ord=p, axis=1)
        expected = rows.max() if math.isinf(q) else (rows**q).sum() ** (1 / q)
        assert log_group_norm(layer, p, q) == pytest.approx(math.log(expected), abs=1e-12)


@pytest.mark.parametrize("exponent", [-150, 150])
def test_group_norms_of_layers_survive_any_scale(exponent: int) -> None:
    for layer, (p, q) in itertools.product((KINDS["strided"], linear((4, 3))), ((2, 2), (3, 1.5), (1, math.inf))):
        scaled = log_group_norm(layer.with_kernel(layer.kernel * 10.0**exponent), p, q)
        assert scaled == pytest.approx(log_group_norm(layer, p, q) + exponent * math.log(10), abs=1e-9)


@pytest.mark.parametrize(("p", "q"), [(0.5, 1), (math.inf, 1), (2, 0.5), (2, math.nan)])
def test_exponents_out_of_range_raise(p: float, q: float) -> None:
    with pytest.raises(ValueError, match="group norm"):
        log_group_norm(KINDS["plain"], p, q)


# Differences


@pytest.mark.parametrize("name", ["strided", "grouped"])
def test_the_difference_of_two_layers_is_that_of_their_maps(name: str) -> None:
    """Each with its own gain, as where both are folded into a normalization behind them."""
    first = KINDS[name]
    other = Layer(
        "other",
        first.kernel.flip(0),
        first.inputs,
        first.outputs,
        first.window,
        torch.linspace(-1, 1, len(first.kernel), dtype=torch.float64),
    )
    matrix = unrolled(first) - unrolled(other)
    assert np.allclose(unrolled(first.difference(other)), matrix, atol=1e-12)
    assert log_group_norm(first.difference(other), 2, 1) == pytest.approx(
        math.log(np.linalg.norm(matrix, axis=1).sum()), abs=1e-12
    )
    with pytest.raises(ValueError, match="shape"):
        first.difference(linear((2, 2)))
