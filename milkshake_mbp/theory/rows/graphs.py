"""Bounds of networks of any shape: those made for convolutions, and the path norm of any ReLU graph (spec §9).

Each row is R̂_γ + complexity(γ) at the best of some of the positive training margins γ, hidden constants 1. The
complexities are those of `theory.convolutional`. The distances from the initial kernels, and the norms of the operators
that convolutions unroll to, are measured on networks that are not chains of Linear layers.
"""

import math
from collections.abc import Callable

from milkshake_mbp.theory.convolutional import (
    gonon_2024 as log_gonon,
)
from milkshake_mbp.theory.convolutional import (
    gouk_2021 as log_gouk,
)
from milkshake_mbp.theory.convolutional import (
    graf_2022 as log_graf,
)
from milkshake_mbp.theory.convolutional import (
    graf_2022_parameters as log_graf_parameters,
)
from milkshake_mbp.theory.convolutional import (
    lin_2019 as log_lin,
)
from milkshake_mbp.theory.convolutional import (
    long_2020 as log_long,
)
from milkshake_mbp.theory.measured import Measured
from milkshake_mbp.theory.rows.row import Row, Value, risk_bound

__all__ = ["ROWS"]

_MARGINS = 200  # of which the best is taken


def _best(net: Measured, log_complexity: Callable[[float], float]) -> Value:
    """R̂_γ + complexity(γ) at the best of some of the positive margins; +inf if none is positive."""
    positive = net.positive_margins
    if not positive.values.numel():
        return Value(math.inf, reason="no training margin is positive")
    step = max(1, len(positive.values) // _MARGINS)
    candidates = zip(positive.logs[::step].tolist(), positive.risks[::step].tolist(), strict=True)
    rows = [risk_bound(risk, log_complexity(log_gamma), gamma=math.exp(log_gamma)) for log_gamma, risk in candidates]
    return min(rows, key=lambda row: row.log_value)


def graf_2022(net: Measured) -> Value:
    """R̂_γ + Graf et al. 2022, Thm. 3.5, by norms of the kernels' distances from their initial values."""
    kernels = net.kernels
    assert kernels is not None
    return _best(net, lambda gamma: log_graf(kernels.log_sensitivities, kernels.distances, gamma, net.num_samples))


def graf_2022_parameters(net: Measured) -> Value:
    """R̂_γ + Graf et al. 2022, by the number of parameters."""
    kernels = net.kernels
    assert kernels is not None
    return _best(
        net, lambda gamma: log_graf_parameters(kernels.log_sensitivities, kernels.distances, gamma, net.num_samples)
    )


def lin_2019(net: Measured) -> Value:
    """R̂_γ + Lin and Zhang 2019."""
    kernels = net.kernels
    assert kernels is not None
    return _best(net, lambda gamma: log_lin(kernels.log_sensitivities, kernels.distances, gamma, net.num_samples))


def gouk_2021(net: Measured) -> Value:
    """R̂_γ + Gouk et al. 2021, Thm. 1, by ℓ1,∞ norms of the kernels and of their distances."""
    kernels = net.kernels
    assert kernels is not None
    largest = net.log_reach_of_inputs(math.inf)
    shape = (net.num_inputs, net.num_classes)
    return _best(net, lambda gamma: log_gouk(kernels.distances, largest, *shape, gamma, net.num_samples))


def long_2020(net: Measured) -> Value:
    """R̂_γ + Long and Sedghi 2020, Thm. 3.1, by distances of the operators."""
    kernels = net.kernels
    assert kernels is not None
    return _best(net, lambda gamma: log_long(kernels.distances, net.log_reach, gamma, net.num_samples))


def gonon_2024(net: Measured) -> Value:
    """R̂_γ + Gonon et al. 2024, Thm. 3.1: the ℓ1 path norm of a graph of layers, ReLUs, max pooling, sums and biases."""
    paths = net.paths
    largest = net.log_reach_of_inputs(math.inf) - net.log_lipschitz  # slopes are part of the path norm
    return _best(
        net,
        lambda gamma: log_gonon(
            paths.log_norm, paths.lengths, largest, net.num_inputs, net.num_classes, gamma, net.num_samples
        ),
    )


_WIRED = ("wired",)
_KERNELS = ("initial", "kernels")
_PLAIN = ("bias_free", "zero_preserving")

ROWS = (
    Row(
        "gonon_2024",
        "leading",
        gonon_2024,
        "Gonon 2024, path norm",
        "Gonon et al. 2024, Thm. 3.1",
        structure=_WIRED,
        assumes=("zero_preserving", "homogeneous"),
    ),
    Row(
        "graf_2022",
        "leading",
        graf_2022,
        "Graf 2022, norms",
        "Graf et al. 2022, Thm. 3.5",
        needs=_KERNELS,
        structure=_WIRED,
        assumes=_PLAIN,
    ),
    Row(
        "graf_2022_parameters",
        "leading",
        graf_2022_parameters,
        "Graf 2022, parameters",
        "Graf et al. 2022, Thm. 3.5",
        needs=_KERNELS,
        structure=_WIRED,
        assumes=_PLAIN,
    ),
    Row(
        "lin_2019",
        "leading",
        lin_2019,
        "Lin 2019",
        "Lin and Zhang 2019",
        needs=_KERNELS,
        structure=_WIRED,
        assumes=_PLAIN,
    ),
    Row(
        "gouk_2021",
        "leading",
        gouk_2021,
        "Gouk 2021",
        "Gouk et al. 2021, Thm. 1",
        needs=_KERNELS,
        structure=("wired", "sequence"),
        assumes=_PLAIN,
    ),
    Row(
        "long_2020",
        "leading",
        long_2020,
        "Long 2020",
        "Long and Sedghi 2020, Thm. 3.1",
        needs=_KERNELS,
        structure=("wired", "sequence"),
        assumes=_PLAIN,
    ),
)
