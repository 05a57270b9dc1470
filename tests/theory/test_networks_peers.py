"""A Network-in-Network against what robust-generalization-measures computes of it (docs/networks_peers.md)."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from milkshake_mbp.theory.layers import Layer, Window
from milkshake_mbp.theory.network import Network, Node, Op, Through
from milkshake_mbp.theory.norms import frobenius_norm, log_group_norm, operator_norm, reshaped_norm
from milkshake_mbp.theory.paths import log_graph_path_norm
from milkshake_mbp.theory.transfer import largest_logs, log_lipschitz
from tests.theory.layer_instances import spectral, unrolled
from tests.theory.network_instances import RELU

HANDED = next(
    (p / "shared/cases" for p in Path(__file__).parents if (p / "shared/cases/nin_handed.npz").exists()), None
)
EPSILON = 1e-5  # of BatchNorm2d


def network_in_network(parameters: Mapping[str, Tensor], side: int) -> Network:
    """Blocks of a 3 × 3 convolution at stride 2 and two of 1 × 1, one of 1 × 1 to the classes, and the mean; each with
    its normalization and ReLU."""
    blocks = 1 + max(int(name.split(".")[1]) for name in parameters if name.startswith("blocks"))
    names = [(f"blocks.{b}.conv{i}", f"blocks.{b}.bn{i}") for b in range(blocks) for i in (1, 2, 3)] + [("conv", "bn")]
    layers = []
    for conv, bn in names:
        weight = parameters[f"{conv}.weight"]
        gain = parameters[f"{bn}.weight"] / (parameters[f"{bn}.running_var"] + EPSILON).sqrt()
        bias = parameters[f"{bn}.bias"] + gain * (parameters[f"{conv}.bias"] - parameters[f"{bn}.running_mean"])
        size = weight.shape[2]
        stride = 2 if size == 3 else 1
        inputs, side = (weight.shape[1], side, side), (side - 1) // stride + 1
        window = Window((size,) * 2, (stride,) * 2, (size // 2,) * 2, (1, 1))
        layers.append(Layer(conv, weight.flatten(1), inputs, (len(weight), side, side), window, gain, bias))
    mean = Through(
        "mean",
        lambda x: x.mean(dim=(2, 3)),
        lipschitz=1 / side,
        entrywise=False,
        paths=lambda sums, p: sums.mean(dim=(2, 3)),  # the peers do not square its weights
    )
    ops: list[Op] = [op for layer in layers for op in (layer, RELU)] + [mean]
    return Network(tuple(layers), tuple(Node(op, (index - 1,)) for index, op in enumerate(ops)))


def measures(
    network: Network, initial: Network, margin: float, num_samples: int, sigma: float = 0.05
) -> dict[str, float]:
    """What has the same meaning here, under the peers' names: squares, and logs of squares."""
    moved = [a.difference(b) for a, b in zip(network.layers, initial.layers, strict=True)]

    def squares(norm: Callable[[Layer], Tensor], layers: list[Layer]) -> np.ndarray:
        return np.array([norm(layer).item() ** 2 for layer in layers])

    def frobenius(layer: Layer) -> Tensor:
        return frobenius_norm(layer.effective_kernel)

    layers = list(network.layers)
    spec, fro = squares(reshaped_norm, layers), squares(frobenius, layers)
    dist_spec, dist_fro = squares(reshaped_norm, moved), squares(frobenius, moved)
    depth, over = len(layers), -2 * math.log(margin)
    weights = torch.cat([layer.effective_kernel.flatten() for layer in layers])
    steps = torch.cat([layer.kernel.flatten() for layer in moved])
    log_spec, log_fro = np.log(spec).sum(), np.log(fro).sum()
    path = log_graph_path_norm(network, 2).mul(2).exp().sum().item()

    def magnitude_aware(square: float) -> float:
        ratio = (1e-6 + (sigma**2 + 1) * square / len(weights)) / (1e-6 + sigma**2 * steps**2)
        return ratio.log().sum().item() / 4 + math.log(num_samples / sigma) + 10

    return {
        "L2": math.sqrt(fro.sum()),
        "L2_DIST": math.sqrt(dist_fro.sum()),
        "PARAMS": float(len(weights)),
        "INVERSE_MARGIN": margin**-2,
        "LOG_PROD_OF_SPEC": log_spec,
        "LOG_PROD_OF_SPEC_OVER_MARGIN": log_spec + over,
        "LOG_SPEC_INIT_MAIN": log_spec + over + math.log((dist_fro / spec).sum()),
        "FRO_OVER_SPEC": (fro / spec).sum(),
        "LOG_SPEC_ORIG_MAIN": log_spec + over + math.log((fro / spec).sum()),
        "LOG_SUM_OF_SPEC": math.log(depth) + log_spec / depth,
        "LOG_SUM_OF_SPEC_OVER_MARGIN": math.log(depth) + (log_spec + over) / depth,
        "LOG_PROD_OF_FRO": log_fro,
        "LOG_PROD_OF_FRO_OVER_MARGIN": log_fro + over,
        "LOG_SUM_OF_FRO": math.log(depth) + log_fro / depth,
        "LOG_SUM_OF_FRO_OVER_MARGIN": math.log(depth) + (log_fro + over) / depth,
        "FRO_DIST": dist_fro.sum(),
        "DIST_SPEC_INIT": dist_spec.sum(),
        "PARAM_NORM": fro.sum(),
        "PATH_NORM": path,
        "PATH_NORM_OVER_MARGIN": path / margin**2,
        "PACBAYES_INIT": dist_fro.sum() / (4 * sigma**2) + math.log(num_samples / sigma) + 10,
        "PACBAYES_ORIG": fro.sum() / (4 * sigma**2) + math.log(num_samples / sigma) + 10,
        "PACBAYES_FLATNESS": sigma**-2,
        "PACBAYES_MAG_INIT": magnitude_aware(dist_fro.sum()),
        "PACBAYES_MAG_ORIG": magnitude_aware(fro.sum()),
        "PACBAYES_MAG_FLATNESS": sigma**-2,
    }


def log_fourier_squares(network: Network, side: int) -> float:
    """LOG_PROD_OF_SPEC_FFT: the symbol on the input's grid for every layer, strides ignored."""
    total = 0.0
    for layer in network.layers:
        assert layer.window is not None
        kernel = layer.effective_kernel.reshape(len(layer.kernel), -1, *layer.window.size).numpy()
        symbol = np.fft.fft2(kernel.transpose(2, 3, 0, 1), (side, side), axes=(0, 1))
        total += 2 * math.log(np.linalg.svd(symbol, compute_uv=False).max())
    return total


@pytest.mark.skipif(HANDED is None, reason="the peers' values are not at hand")
def test_values_that_mean_the_same_agree() -> None:
    assert HANDED is not None
    data = np.load(HANDED / "nin_handed.npz")
    values = json.loads((HANDED / "nin_handed.json").read_text())["values_before_division_by_n"]
    trained, initial = (
        network_in_network(
            {name.split("/")[1]: torch.tensor(data[name]).double() for name in data if name.startswith(group)}, 32
        )
        for group in ("w/", "init/")
    )
    logits = torch.tensor(data["logits"]).double()
    x = torch.tensor(data["X"][:50]).double() / 255 * 2 - 1
    assert torch.allclose(trained(x), logits[:50], atol=1e-5)
    targets = torch.tensor(data["Y"])[:, None]
    margins = logits.gather(1, targets)[:, 0] - logits.scatter(1, targets, -math.inf).amax(dim=1)
    margin = margins.kthvalue(len(margins) // 10).values.item()
    assert margin < 0  # the peers take its absolute value
    for name, value in measures(trained, initial, abs(margin), len(margins)).items():
        assert value == pytest.approx(values[name], rel=1e-4), name
    assert log_fourier_squares(trained, 32) == pytest.approx(values["LOG_PROD_OF_SPEC_FFT"], rel=1e-4)
    intervals = [operator_norm(layer) for layer in trained.layers]
    low, high = (2 * sum(math.log(interval[end]) for interval in intervals) for end in (0, 1))
    assert values["LOG_PROD_OF_SPEC"] < low <= high < values["LOG_PROD_OF_SPEC_FFT"]
    assert high - low < 0.05


def tiny() -> tuple[Network, Network]:
    rng = np.random.default_rng(5)

    def parameters() -> dict[str, Tensor]:
        shapes = {
            "blocks.0.conv1": (4, 2, 3, 3),
            "blocks.0.conv2": (4, 4, 1, 1),
            "blocks.0.conv3": (4, 4, 1, 1),
            "conv": (3, 4, 1, 1),
        }
        drawn: dict[str, Tensor] = {}
        for conv, shape in shapes.items():
            bn = conv.replace("conv", "bn")
            for name, size in {
                f"{conv}.weight": shape,
                f"{conv}.bias": shape[:1],
                f"{bn}.weight": shape[:1],
                f"{bn}.bias": shape[:1],
                f"{bn}.running_mean": shape[:1],
            }.items():
                drawn[name] = torch.tensor(np.round(rng.standard_normal(size), 2))
            drawn[f"{bn}.running_var"] = torch.tensor(np.round(rng.random(shape[0]) + 0.5, 2))
        return drawn

    return network_in_network(parameters(), 6), network_in_network(parameters(), 6)


GOLDEN = {
    "L2": 11.9401074,
    "L2_DIST": 16.800793,
    "PARAMS": 116.0,
    "INVERSE_MARGIN": 4.0,
    "LOG_PROD_OF_SPEC": 11.9880156,
    "LOG_PROD_OF_SPEC_OVER_MARGIN": 13.3743099,
    "LOG_SPEC_INIT_MAIN": 15.7199245,
    "FRO_OVER_SPEC": 4.80071579,
    "LOG_SPEC_ORIG_MAIN": 14.943075,
    "LOG_SUM_OF_SPEC_OVER_MARGIN": 4.72987185,
    "LOG_SUM_OF_SPEC": 4.38329826,
    "LOG_PROD_OF_FRO": 12.6704488,
    "LOG_PROD_OF_FRO_OVER_MARGIN": 14.0567431,
    "LOG_SUM_OF_FRO_OVER_MARGIN": 4.90048014,
    "LOG_SUM_OF_FRO": 4.55390655,
    "FRO_DIST": 282.266647,
    "DIST_SPEC_INIT": 183.497801,
    "PARAM_NORM": 142.566164,
    "PATH_NORM": 2656.98409,
    "PATH_NORM_OVER_MARGIN": 10627.9363,
    "PACBAYES_INIT": 28244.2656,
    "PACBAYES_ORIG": 14274.2173,
    "PACBAYES_FLATNESS": 400.0,
    "PACBAYES_MAG_INIT": 249.300494,
    "PACBAYES_MAG_ORIG": 229.492172,
    "PACBAYES_MAG_FLATNESS": 400.0,
}
GOLDEN_FOURIER = 12.9488004


def test_golden_numbers_of_a_tiny_network() -> None:
    """Computed once by the public code, with margin 0.5, n = 100, σ = 0.05 and without its division by n."""
    network, initial = tiny()
    values = measures(network, initial, 0.5, 100)
    assert values.keys() == GOLDEN.keys()
    for name, expected in GOLDEN.items():
        # Their path norm divides by √(1 + 1e-5) at each of four normalizations, which they have folded already.
        assert values[name] == pytest.approx(expected, rel=3e-5 if name.startswith("PATH") else 1e-6), name
    assert log_fourier_squares(network, 6) == pytest.approx(GOLDEN_FOURIER, rel=1e-6)


def test_norms_of_a_tiny_network_in_order() -> None:
    """Reshaped ≤ exact ≤ rows' root sum of squares; the Lipschitz constant is the product over the mean's 1/side."""
    network, _ = tiny()
    for layer in network.layers:
        exact = spectral(unrolled(layer))
        low, high = operator_norm(layer)
        assert reshaped_norm(layer).item() <= exact * (1 + 1e-9)
        assert low <= exact * (1 + 1e-12) and exact <= high <= exact * (1 + 1e-9)
        assert math.log(high) <= log_group_norm(layer, 2, 2) + 1e-9
    logs = largest_logs(network, lambda layer: operator_norm(layer)[1])
    assert log_lipschitz(network, logs) == pytest.approx(sum(logs.values()) - math.log(3), abs=1e-12)
