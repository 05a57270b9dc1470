"""Bounds of networks of any shape: those made for convolutions, and the path norm of any ReLU graph (spec §9).

Each row is R̂_γ + complexity(γ) at the best positive training margin γ, hidden constants 1. The complexities are those
of `theory.convolutional`. The distances from the initial kernels, and the norms of the operators that convolutions
unroll to, are measured on networks that are not chains of Linear layers.
"""

import math
from collections.abc import Callable

from torch import Tensor

from milkshake_mbp.theory import convolutional
from milkshake_mbp.theory.convolutional import ConvolutionalDistances
from milkshake_mbp.theory.measured import Measured
from milkshake_mbp.theory.rows.row import SEQUENCE, Row, Value, minimize_over_margins

__all__ = ["ROWS"]


def gonon_2024(net: Measured) -> Value:
    """R̂_γ + Gonon et al. 2024, Thm. 3.1: the ℓ1 path norm of a graph of layers, ReLUs, max pooling, sums and biases."""
    paths = net.paths
    if paths is None:
        return Value(math.inf, reason="a function between layers has no path norm")
    largest = net.log_input_norm_of(math.inf)  # slopes are part of the path norm
    sizes = (net.num_inputs, net.num_classes)
    return minimize_over_margins(
        net,
        lambda gamma: convolutional.gonon_2024(paths.log_norm, paths.lengths, largest, *sizes, gamma, net.num_samples),
    )


def graf_2022(net: Measured) -> Value:
    """R̂_γ + Graf et al. 2022, Thm. 3.5, by norms of the kernels' distances from their initial values."""
    return _by_sensitivity(net, convolutional.graf_2022)


def graf_2022_parameters(net: Measured) -> Value:
    """R̂_γ + Graf et al. 2022, by the number of parameters."""
    return _by_sensitivity(net, convolutional.graf_2022_parameters)


def lin_2019(net: Measured) -> Value:
    """R̂_γ + Lin and Zhang 2019."""
    return _by_sensitivity(net, convolutional.lin_2019)


def _by_sensitivity(
    net: Measured,
    log_complexity: Callable[[tuple[float, ...], ConvolutionalDistances, Tensor, int], Tensor],
) -> Value:
    kernels = net.kernels
    assert kernels is not None
    return minimize_over_margins(
        net, lambda gamma: log_complexity(kernels.log_sensitivities, kernels.distances, gamma, net.num_samples)
    )


def gouk_2021(net: Measured) -> Value:
    """R̂_γ + Gouk et al. 2021, Thm. 1, by ℓ1,∞ norms of the kernels and of their distances."""
    kernels = net.kernels
    assert kernels is not None
    largest = net.log_input_norm_of(math.inf) + net.log_lipschitz
    sizes = (net.num_inputs, net.num_classes)
    return minimize_over_margins(
        net, lambda gamma: convolutional.gouk_2021(kernels.distances, largest, *sizes, gamma, net.num_samples)
    )


def long_2020(net: Measured) -> Value:
    """R̂_γ + Long and Sedghi 2020, Thm. 3.1, by distances of the operators."""
    kernels = net.kernels
    assert kernels is not None
    return minimize_over_margins(
        net, lambda gamma: convolutional.long_2020(kernels.distances, net.log_reach, gamma, net.num_samples)
    )


def ledent_2021(net: Measured) -> Value:
    """R̂_γ + Ledent et al. 2021, Thm. 11, by the norms of the patches that convolutions read."""
    kernels, patches = net.kernels, net.patches
    assert kernels is not None and patches is not None
    return minimize_over_margins(
        net, lambda gamma: convolutional.ledent_2021(kernels.distances, patches, gamma, net.num_samples)
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
        structure=SEQUENCE,
        assumes=_PLAIN,
    ),
    Row(
        "ledent_2021",
        "leading",
        ledent_2021,
        "Ledent 2021",
        "Ledent et al. 2021, Thm. 11",
        needs=(*_KERNELS, "patches"),
        structure=SEQUENCE,
        assumes=_PLAIN,
    ),
    Row(
        "long_2020",
        "leading",
        long_2020,
        "Long 2020",
        "Long and Sedghi 2020, Thm. 3.1",
        needs=_KERNELS,
        structure=SEQUENCE,
        assumes=_PLAIN,
    ),
)
