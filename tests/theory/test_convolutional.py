"""Each bound written a second time from its source, plainly, for a chain of two convolutions and a Linear layer."""

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from milkshake_mbp.reading import read_network
from milkshake_mbp.theory.convolutional import (
    ConvolutionalDistances,
    Patches,
    gonon_2024,
    gouk_2021,
    graf_2022,
    graf_2022_parameters,
    ledent_2021,
    lin_2019,
    log_sensitivities,
    long_2020,
)
from milkshake_mbp.theory.layers import Layer
from milkshake_mbp.theory.network import Network, Node, Through
from milkshake_mbp.theory.paths import PathLengths
from milkshake_mbp.theory.transfer import largest_logs
from tests.theory.layer_instances import convolution, linear, spectral, unrolled
from tests.theory.network_instances import RELU, residual


class Plain(NamedTuple):
    """What the sources' formulas are made of, from written-out matrices."""

    lip: np.ndarray
    initial: np.ndarray
    moved: np.ndarray
    kernels: list[np.ndarray]  # (out, in, taps)
    starts: list[np.ndarray]
    sides: np.ndarray

    @property
    def parameters(self) -> np.ndarray:
        return np.array([kernel.size for kernel in self.kernels], dtype=float)

    def distances(self, norm: str) -> np.ndarray:
        values = []
        for kernel, start in zip(self.kernels, self.starts, strict=True):
            d = kernel - start
            values.append(
                {
                    "taps": np.linalg.norm(d, axis=1).sum(),
                    "rows": np.linalg.norm(d.reshape(len(d), -1), axis=1).sum(),
                    "1inf": np.abs(d).sum(axis=(1, 2)).max(),
                    "fro": np.sqrt((d**2).sum()),
                }[norm]
            )
        return np.array(values)


def layers(seed: int, scale: float = 1.0) -> list[Layer]:
    chain = [
        convolution((2, 3), (3, 3), (6, 6), padding=1, stride=2, seed=seed),
        convolution((3, 4), (2, 2), (3, 3), seed=seed + 1),
        linear((5, 16), seed=seed + 2),
    ]
    return [layer.with_kernel(scale * layer.kernel) for layer in chain]


def network(chain: list[Layer]) -> Network:
    flatten = Through("Flatten", lambda x: x.flatten(1), entrywise=False, paths=lambda sums, p: sums.flatten(1))
    ops = [chain[0], RELU, chain[1], RELU, flatten, chain[2]]
    return Network(tuple(chain), tuple(Node(op, (index - 1,)) for index, op in enumerate(ops)))


def plain(chain: list[Layer], start: list[Layer]) -> Plain:
    def kernels(group: list[Layer]) -> list[np.ndarray]:
        sizes = [9, 4, 1]
        return [
            layer.kernel.numpy().reshape(len(layer.kernel), -1, size) for layer, size in zip(group, sizes, strict=True)
        ]

    return Plain(
        np.array([spectral(unrolled(layer)) for layer in chain]),
        np.array([spectral(unrolled(layer)) for layer in start]),
        np.array([spectral(unrolled(a) - unrolled(b)) for a, b in zip(chain, start, strict=True)]),
        kernels(chain),
        kernels(start),
        np.array([3.0, 2.0, 1.0]),
    )


GAMMA, RADIUS, N, CLASSES = 0.7, 3.0, 1000, 5
LOG_GAMMA, ONE = (torch.tensor([value], dtype=torch.float64) for value in (math.log(GAMMA), 0.0))


def case(seed: int, scale: float = 1.0) -> tuple[Plain, ConvolutionalDistances, list[float]]:
    chain, start = layers(seed, scale), layers(seed + 50, scale)
    net = network(chain)
    sensitive = log_sensitivities(net, largest_logs(net, lambda layer: spectral(unrolled(layer))), math.log(RADIUS))
    return plain(chain, start), ConvolutionalDistances.measure(chain, start), list(sensitive.values())


@pytest.mark.parametrize("seed", range(3))
def test_norms_and_sensitivities(seed: int) -> None:
    known, norms, sensitive = case(seed)
    assert norms.parameters == (54, 48, 80) and norms.places == (9, 4, 1)
    for logs, values in (
        (norms.log_operator, known.lip),
        (norms.log_initial, known.initial),
        (norms.log_distance, known.moved),
        (norms.log_frobenius, [np.linalg.norm(kernel) for kernel in known.kernels]),
        (norms.log_1_inf, [np.abs(kernel).sum(axis=(1, 2)).max() for kernel in known.kernels]),
        (norms.log_distance_taps, known.distances("taps")),
        (norms.log_distance_rows, known.distances("rows")),
        (norms.log_distance_1_inf, known.distances("1inf")),
        (norms.log_distance_frobenius, known.distances("fro")),
        (sensitive, RADIUS * known.lip.prod() / known.lip),
    ):
        assert np.exp(logs) == pytest.approx(values, rel=1e-8)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("scale", [0.02, 1.0, 30.0])
def test_graf(seed: int, scale: float) -> None:
    known, norms, sensitive = case(seed, scale)
    c = 4 / GAMMA * RADIUS * known.lip.prod() / known.lip * known.distances("taps")
    width, harmonic = math.sqrt(math.log(2 * known.parameters.max())), sum(1 / m for m in range(1, N))
    first = 4 / N + 12 * harmonic / math.sqrt(N) * width * np.ceil(c ** (2 / 3)).sum() ** 1.5
    assert graf_2022(sensitive, norms, LOG_GAMMA, N) == pytest.approx(math.log(first), abs=1e-8)
    published = 4 / N + 12 * math.log(N) / math.sqrt(N) * width * (c ** (2 / 3)).sum() ** 1.5
    assert first >= published  # without ceilings, and ln n for H
    inside = 2 * known.parameters * (np.log(1 + np.ceil(9 * c**2)) + 2.7)
    second = 12 / math.sqrt(N) * math.sqrt(inside.sum())
    assert graf_2022_parameters(sensitive, norms, LOG_GAMMA, N) == pytest.approx(math.log(second), abs=1e-8)


@pytest.mark.parametrize("seed", range(3))
def test_lin(seed: int) -> None:
    known, norms, sensitive = case(seed)
    root = 2 / GAMMA * RADIUS * known.lip.prod() * 3**2
    root *= (
        known.parameters**2 * known.sides * np.array([np.linalg.norm(kernel) for kernel in known.kernels]) / known.lip
    ).sum()
    expected = 16 * root**0.25 / math.sqrt(N)
    assert lin_2019(sensitive, norms, LOG_GAMMA, N) == pytest.approx(math.log(expected), abs=1e-8)


@pytest.mark.parametrize("seed", range(3))
def test_gouk(seed: int) -> None:
    known, norms, _ = case(seed)
    rows = np.array([np.abs(kernel).sum(axis=(1, 2)).max() for kernel in known.kernels])
    expected = 2**4 * CLASSES * rows.prod() * (known.distances("1inf") / rows).sum()
    expected *= math.sqrt(math.log(2 * 72)) * 1.3 / (GAMMA * math.sqrt(N))
    value = gouk_2021(norms, math.log(1.3), 72, CLASSES, LOG_GAMMA, N)
    assert value == pytest.approx(math.log(expected), abs=1e-8)


@pytest.mark.parametrize("seed", range(3))
def test_ledent(seed: int) -> None:
    known, norms, _ = case(seed)
    patches, last_row = [2.0, 3.5, 11.0], 6.0
    a = [*known.distances("rows")[:2], known.distances("fro")[2]]
    b, s, rows = [*patches, GAMMA], [*known.lip[:2], last_row], [3, 4, 5]
    r = []
    for layer in range(3):
        steepest = max(math.prod(s[layer + 1 : i + 1]) / b[i + 1] for i in range(layer, 3))
        r.append(patches[layer] * (known.sides[layer] if layer < 2 else 1.0) * steepest * a[layer])
    units = known.sides**2 * rows
    gamma, width = max(r * units), max(units)
    expected = 4 / N + 768 * sum(v ** (2 / 3) for v in r) ** 1.5 * math.sqrt(
        math.log2(32 * gamma * N**2 + 7 * width * N)
    ) * math.log(N) / math.sqrt(N)
    given = Patches(tuple(rows), tuple(np.log(patches)), (0.0, 0.0, 0.0), math.log(last_row))
    assert ledent_2021(norms, given, LOG_GAMMA, N) == pytest.approx(math.log(expected), abs=1e-8)
    pooled = replace(given, log_functions=(math.log(2), 0.0, 0.0))
    assert ledent_2021(norms, pooled, LOG_GAMMA, N) >= ledent_2021(norms, given, LOG_GAMMA, N)


@pytest.mark.parametrize("groups", [1, 2])
def test_patches_are_what_outputs_read(groups: int) -> None:
    """Beside the columns that unfold writes out."""
    torch.manual_seed(groups)
    module = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=groups, bias=False),
        nn.Flatten(),
        nn.LazyLinear(3, bias=False),
    ).eval()
    x = torch.randn(7, 2, 9, 9)
    with torch.no_grad():
        module(x)
        network = read_network(module, x)
        patches = Patches.measure(network, x.split(3))
        seen = [x, module[:3](x), module[:5](x)]
        first = F.unfold(seen[0], 3, padding=1).norm(dim=1).max()
        second = F.unfold(seen[1].reshape(7 * groups, -1, 4, 4), 3, padding=1, stride=2).norm(dim=1).max()
        norms = torch.stack([first, second, seen[2].norm(dim=1).max()])
        last_row = module[5].weight.norm(dim=1).max()
    assert torch.allclose(torch.tensor(patches.log_norms).exp().float(), norms, rtol=1e-5)
    assert patches.log_functions == pytest.approx((math.log(2), 0.0, 0.0)) and patches.rows == (4, 6, 3)
    assert math.exp(patches.log_last_row) == pytest.approx(float(last_row))


@pytest.mark.parametrize("scale", [1e-3, 1.0])
def test_long(scale: float) -> None:
    known, norms, _ = case(0, scale)
    beta, w = known.moved.sum(), known.parameters.sum()
    nu = max(0.0, known.initial.max() - 1)
    size = RADIUS / GAMMA * beta * (1 + nu + beta / 3) ** 3
    large = math.sqrt(w * (beta + 3 * nu + math.log(max(RADIUS / GAMMA * beta, 1e-9))) / N) if size >= 5 else math.nan
    expected = large if size >= 5 else size * math.sqrt(w / N)
    assert (size >= 5) == (scale == 1.0)
    assert long_2020(norms, math.log(RADIUS), LOG_GAMMA, N) == pytest.approx(math.log(expected), abs=1e-8)


def test_gonon() -> None:
    """The numbers of a ResNet-18 on ImageNet, as the public code has them: D = 18 + 1, K = 9, M = 1."""
    lengths = PathLengths(depth=19, maxima=1, window=9)
    inside = 19 * math.log(3) + math.log(9) + math.log((150528 + 1) * 1000)
    expected = 4 * 2.64 / math.sqrt(1e6) * math.sqrt(inside) * 7.0 / GAMMA
    value = gonon_2024(math.log(7.0), lengths, math.log(2.64), 150528, 1000, LOG_GAMMA, 10**6)
    assert value == pytest.approx(math.log(expected), abs=1e-12)


def test_pooling_and_branches_are_in_the_sensitivities() -> None:
    """Swapping one kernel alone moves the output by no more."""
    net = residual(0, bias=True)
    sensitive = log_sensitivities(net, largest_logs(net, lambda layer: spectral(unrolled(layer))), math.log(2.0))
    rng = np.random.default_rng(0)
    x = torch.tensor(rng.standard_normal((40, *net.layers[0].inputs)))
    x = 2 * x / x.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
    for layer in net.layers:
        step = 1e-4 * torch.tensor(rng.standard_normal(layer.shape))
        moved = (net(x, {layer.name: layer.kernel + step}) - net(x)).norm(dim=1).max().item()
        distance = spectral(unrolled(layer.with_kernel(step)))
        assert moved <= math.exp(sensitive[layer.name]) * distance * 1.01


def test_extreme_scales_stay_finite() -> None:
    for scale in (1e-60, 1e60):
        _, norms, sensitive = case(0, scale)
        values = [
            graf_2022(sensitive, norms, ONE, N),
            graf_2022_parameters(sensitive, norms, ONE, N),
            lin_2019(sensitive, norms, ONE, N),
            gouk_2021(norms, 0.0, 72, CLASSES, ONE, N),
            ledent_2021(norms, Patches((3, 4, 5), (0.0, 0.0, 0.0), (0.0, 0.0, 0.0), 0.0), ONE, N),
            long_2020(norms, 0.0, ONE, N),
        ]
        assert all(map(math.isfinite, values))


def test_kernels_that_never_moved() -> None:
    chain = layers(0)
    norms = ConvolutionalDistances.measure(chain, chain)
    assert graf_2022([0.0] * 3, norms, ONE, N) == pytest.approx(math.log(4 / N))
    for value in (
        graf_2022_parameters([0.0] * 3, norms, ONE, N),
        gouk_2021(norms, 0.0, 72, CLASSES, ONE, N),
        long_2020(norms, 0.0, ONE, N),
    ):
        assert value == -math.inf


def test_gains_are_part_of_the_kernels() -> None:
    chain, start = layers(0), layers(50)
    gained = replace(chain[0], gain=torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))
    folded = chain[0].with_kernel(gained.effective_kernel)
    assert ConvolutionalDistances.measure([gained, *chain[1:]], start) == ConvolutionalDistances.measure(
        [folded, *chain[1:]], start
    )
