import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from milkshake_mbp.theory.constants import (
    ACTIVATIONS,
    adaptive_windows,
    average_pool_lipschitz,
    average_pool_matrix,
    max_pool_lipschitz,
    mean_lipschitz,
    overlap,
    padding_lipschitz,
    pool_windows,
)

# Activations

MODULES: list[tuple[nn.Module, tuple[float | str, ...]]] = [
    (nn.CELU(0.3), (0.3,)),
    (nn.ELU(), ()),
    (nn.ELU(2.5), (2.5,)),
    (nn.GELU(), ()),
    (nn.GELU("tanh"), ("tanh",)),
    (nn.Hardsigmoid(), ()),
    (nn.Hardswish(), ()),
    (nn.Hardtanh(), ()),
    (nn.Hardtanh(0.5, 3.0), (0.5, 3.0)),
    (nn.Identity(), ()),
    (nn.LeakyReLU(), ()),
    (nn.LeakyReLU(-3.0), (-3.0,)),
    (nn.LogSigmoid(), ()),
    (nn.Mish(), ()),
    (nn.PReLU(init=1.75), (1.75,)),
    (nn.ReLU(), ()),
    (nn.ReLU6(), ()),
    (nn.SELU(), ()),
    (nn.SiLU(), ()),
    (nn.Sigmoid(), ()),
    (nn.Softplus(), ()),
    (nn.Softplus(3.0), (3.0,)),
    (nn.Softshrink(), ()),
    (nn.Softshrink(0.0), (0.0,)),
    (nn.Softsign(), ()),
    (nn.Tanh(), ()),
    (nn.Tanhshrink(), ()),
    (nn.Threshold(1.0, 1.0), (1.0, 1.0)),
    (nn.Threshold(0.0, 0.0), (0.0, 0.0)),
    (nn.Threshold(-1.0, -1.0), (-1.0, -1.0)),
]


@pytest.mark.parametrize(("module", "numbers"), MODULES, ids=lambda value: str(value))
@torch.no_grad()
def test_activations_against_their_slopes(module: nn.Module, numbers: tuple[float | str, ...]) -> None:
    known = ACTIVATIONS[type(module).__name__](*numbers)
    x = torch.linspace(-15, 15, 300_001, dtype=torch.float64)
    y = module.double()(x)
    steepest = ((y[1:] - y[:-1]) / (x[1:] - x[:-1])).abs().max().item()
    assert steepest <= known.lipschitz * (1 + 1e-8)
    assert steepest >= known.lipschitz * (1 - 1e-3)
    assert module(torch.zeros(1, dtype=torch.float64)).item() == pytest.approx(known.at_zero, abs=1e-12)
    scaled = all(torch.allclose(module(c * x), c * y, atol=1e-12) for c in (0.0, 0.5, 7.0))
    assert scaled == known.homogeneous


def test_every_activation_is_tried() -> None:
    assert set(ACTIVATIONS) == {type(module).__name__ for module, _ in MODULES} | {"Hardshrink"}


@pytest.mark.parametrize("module", [nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.Mish()], ids=str)
def test_suprema_are_rounded_up(module: nn.Module) -> None:
    """A maximum of φ′ between grid points h apart exceeds the largest value there by at most h²/8·sup|φ‴|."""
    numbers = (module.approximate,) if isinstance(module, nn.GELU) else ()
    constant = ACTIVATIONS[type(module).__name__](*numbers).lipschitz

    def derivatives(x: torch.Tensor, order: int) -> torch.Tensor:
        x = x.requires_grad_()
        y = module(x)
        for _ in range(order):
            (y,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        return y.detach()

    coarse = torch.linspace(-20, 20, 40_001, dtype=torch.float64)
    third = derivatives(coarse, 3).abs().max().item()
    slopes = derivatives(coarse, 1).abs()
    peak = coarse[slopes.argmax()].item()
    assert slopes[(coarse - peak).abs() > 1].max() < constant - 0.01  # nowhere else
    fine = torch.linspace(peak - 1, peak + 1, 200_001, dtype=torch.float64)
    largest = derivatives(fine, 1).abs().max().item() + 1e-10 / 8 * 1.1 * third
    assert largest <= constant <= largest + 2e-8


def test_jumps_have_no_lipschitz_constant() -> None:
    assert ACTIVATIONS["Hardshrink"](0.5).lipschitz == math.inf and ACTIVATIONS["Hardshrink"](0.0).lipschitz == 1
    assert ACTIVATIONS["Threshold"](0.0, 1.0).lipschitz == math.inf
    assert ACTIVATIONS["PReLU"](0.2, -4.0).lipschitz == 4.0


# Pooling


def matrix(function: object, shape: tuple[int, ...]) -> np.ndarray:
    """The linear map of a pooling or padding, written out."""
    unit = torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, 1, *shape)
    return function(unit).flatten(1).numpy().T  # type: ignore[operator]


def spectral(written: np.ndarray) -> float:
    return float(np.linalg.svd(written, compute_uv=False)[0])


POOLS = [
    (k, s, p, ceil, include)
    for k, s, p, ceil, include in itertools.product((1, 2, 3, 4), (1, 2, 3), (0, 1, 2), (False, True), (True, False))
    if p <= k / 2
]


@pytest.mark.parametrize(("k", "s", "p", "ceil", "include"), POOLS)
def test_average_pooling_against_the_matrix(k: int, s: int, p: int, ceil: bool, include: bool) -> None:
    for shape in ((4, 7), (5, 6)):
        if min(shape) + 2 * p < k:
            continue
        pool = nn.AvgPool2d(k, s, p, ceil, include)
        dense = matrix(pool, shape)
        factors = [
            average_pool_matrix(size, pool_windows(size, k, s, p, ceil), padding=p, count_include_pad=include)
            for size in shape
        ]
        assert np.allclose(torch.kron(*factors).numpy(), dense, atol=1e-15)
        exact = spectral(dense)
        assert exact <= average_pool_lipschitz(factors) <= exact * (1 + 1e-7)
        if not ceil and (include or p == 0):
            assert exact <= overlap(k, s) / k * (1 + 1e-12)


def test_average_pooling_by_formula() -> None:
    """⌈k/s⌉/k is approached on large images, and is 1/k where windows are disjoint."""
    for k, s in ((3, 1), (3, 2), (4, 2), (2, 2), (2, 3)):
        factor = average_pool_matrix(400, pool_windows(400, k, s))
        value = average_pool_lipschitz([factor, factor])
        bound = overlap(k, s) / k
        assert value <= bound * (1 + 1e-7)
        if k % s == 0 or s > k:
            assert value >= 0.999 * bound


def test_a_divisor_of_ones_own() -> None:
    pool = nn.AvgPool2d((2, 3), (1, 2), divisor_override=5)
    rows = average_pool_matrix(5, pool_windows(5, 2, 1), divisor=5)
    columns = average_pool_matrix(6, pool_windows(6, 3, 2), divisor=1)
    assert np.allclose(torch.kron(rows, columns).numpy(), matrix(pool, (5, 6)))


@pytest.mark.parametrize("outputs", [(1, 1), (2, 3), (3, 5), (7, 4), (5, 7)])
def test_adaptive_pooling_against_the_matrix(outputs: tuple[int, int]) -> None:
    shape = (5, 7)
    factors = [
        average_pool_matrix(size, adaptive_windows(size, count)) for size, count in zip(shape, outputs, strict=True)
    ]
    dense = matrix(nn.AdaptiveAvgPool2d(outputs), shape)
    assert np.allclose(torch.kron(*factors).numpy(), dense, atol=1e-15)
    assert spectral(dense) <= average_pool_lipschitz(factors) <= spectral(dense) * (1 + 1e-7)
    if outputs == (1, 1):
        assert mean_lipschitz(35) == pytest.approx(spectral(dense), rel=1e-12)


@pytest.mark.parametrize(
    ("k", "s", "p", "d", "ceil"),
    [
        (k, s, p, d, ceil)
        for k, s, p, d, ceil in itertools.product((1, 2, 3, 5), (1, 2, 3, 4), (0, 1), (1, 2, 3), (False, True))
        if p <= k // 2
    ],
)
def test_max_pooling_is_bounded_and_the_bound_is_attained(k: int, s: int, p: int, d: int, ceil: bool) -> None:
    """From a zero image, one entry raised in every set of windows that share it: as many outputs move as windows."""
    size = 36
    pool = nn.MaxPool2d(k, s, p, d, ceil_mode=ceil)
    constant = max_pool_lipschitz((k, k), (s, s), (d, d))
    spikes = torch.eye(size * size, dtype=torch.float64).reshape(-1, 1, size, size)[size * size // 2 - 90 :][:180]
    moved = (pool(spikes) - pool(torch.zeros_like(spikes))).flatten(1).norm(dim=1)
    assert moved.max().item() == pytest.approx(constant, rel=1e-12)
    rng = np.random.default_rng(0)
    x, y = (torch.tensor(rng.standard_normal((5, 1, size, size))) for _ in range(2))
    y = torch.cat([y, x + 0.01 * y])
    x = torch.cat([x, x])
    ratios = (pool(x) - pool(y)).flatten(1).norm(dim=1) / (x - y).flatten(1).norm(dim=1)
    assert ratios.max().item() <= constant * (1 + 1e-12)


def test_max_pooling_on_an_image_of_few_windows() -> None:
    assert max_pool_lipschitz((3, 3), (1, 1), within=(1, 2)) == pytest.approx(math.sqrt(2))
    assert max_pool_lipschitz((3, 3), (2, 2)) == 2.0 and max_pool_lipschitz((2, 2), (2, 2)) == 1.0


# Padding


@pytest.mark.parametrize("mode", ["constant", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("pads", [((0, 0), (1, 2)), ((2, 1), (2, 3)), ((3, 3), (0, 3)), ((-1, 2), (0, -2))], ids=str)
def test_padding_against_the_matrix(mode: str, pads: tuple[tuple[int, int], tuple[int, int]]) -> None:
    shape = (4, 5)
    flat = (*pads[1], *pads[0])

    def pad(x: torch.Tensor) -> torch.Tensor:
        return F.pad(x, flat, mode=mode)

    if mode == "reflect" and min(flat) < 0:
        pytest.skip("torch crops a reflection in other ways from version to version")
    exact = spectral(matrix(pad, shape))
    assert padding_lipschitz(mode, shape, pads) == pytest.approx(exact, rel=1e-12)  # type: ignore[arg-type]
