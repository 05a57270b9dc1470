"""Path norms of any graph of layers, ReLU-like functions, pooling, sums and concatenations (Gonon et al. 2024)."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from milkshake_mbp.theory.layers import Layer
from milkshake_mbp.theory.network import Concat, Network, Op, Through
from milkshake_mbp.theory.norms import log_path_sums

__all__ = ["PathLengths", "log_graph_path_norm", "log_squared_network", "path_lengths"]


def log_graph_path_norm(network: Network, p: float, inputs: Sequence[int] = ()) -> Tensor:
    """Ln φ_p of each output unit: φ_p = (Σ_paths Π|w|^p)^{1/p} over the paths to it from an input or a bias.

    One forward pass of ones with |gain·K|^p and |b|^p, in logs. A homogeneous function of one number counts as its
    steepest slope, a maximum as the sum over its window: every path through it is one. On a chain of Linear layers it
    is `log_path_norm`.

    Args:
        network: wired; homogeneous.
        p: 1 ≤ p < ∞.
        inputs: shape of the network's input; by default that of the first layer that takes it.

    Returns:
        Float64, of the shape of one output; −inf where no path leads.

    Raises:
        ValueError: p is out of range, the network is not wired, the shape of its input is not known, a function
            between layers has no path norm, or a kernel holds NaN or infinity.

    References:
        Neyshabur, Tomioka and Srebro, Norm-Based Capacity Control in Neural Networks, COLT 2015.
        Gonon, Brisebarre, Riccietti and Gribonval, A path-norm toolkit for modern networks, ICLR 2024.
    """
    if not 1 <= p < math.inf:
        raise ValueError(f"a path norm needs 1 ≤ p < ∞, got p = {p}")
    return _forward(network, p, inputs, _through_function)


def log_squared_network(network: Network, inputs: Sequence[int] = ()) -> Tensor:
    """Ln f_{w²}(1) of each output unit: the network with every weight, gain and bias squared, on an input of ones.

    Unlike φ_2² of `log_graph_path_norm`, average pooling enters with its weights themselves, max pooling takes the
    largest, and a slope on the negative side does not matter. On a chain of Linear layers it is φ_2².

    Args:
        network: wired; homogeneous.
        inputs: shape of the network's input; by default that of the first layer that takes it.

    Returns:
        Float64, of the shape of one output; −inf where no path leads.

    Raises:
        ValueError: as `log_graph_path_norm`.

    Reference:
        Jiang, Neyshabur, Mobahi, Krishnan and Bengio, Fantastic Generalization Measures and Where to Find Them, ICLR
        2020, eq. 44.
    """
    return 2 * _forward(network, 2, inputs, _as_it_is)


def _forward(
    network: Network, p: float, inputs: Sequence[int], through: Callable[[Through, Tensor, float], Tensor]
) -> Tensor:
    """Ln of the p-th root of the outputs, the p-th powers of kernels and biases being carried from ones."""
    if not network.nodes:
        raise ValueError(f"the network has no paths: {network.broken.get('wired', 'no nodes')}")
    first = [node.op for node in network.nodes if -1 in node.inputs and isinstance(node.op, Layer)]
    shape = tuple(inputs) or (first[0].inputs if first else ())
    if not shape:
        raise ValueError("the path norm needs the shape of the network's input, which no layer takes as it comes")
    device = network.layers[0].kernel.device
    ones = torch.zeros(1, *shape, dtype=torch.float64, device=device)
    values: list[Tensor] = []
    for node in network.nodes:
        values.append(_paths(node.op, [ones if index < 0 else values[index] for index in node.inputs], p, through))
    return values[-1][0]


class PathLengths(NamedTuple):
    """What stands between the input and the output: the most layers and maxima on a path, the most maxima, the largest.

    Attributes:
        depth: D, layers and maxima.
        maxima: M.
        window: K, entries of the largest maximum; 1 if there is none.
    """

    depth: int
    maxima: int
    window: int


def path_lengths(network: Network) -> PathLengths:
    """The longest paths of a wired network, for `gonon_2024`."""
    lengths: list[PathLengths] = []
    for node in network.nodes:
        depths, maxima, windows = zip(
            *(PathLengths(0, 0, 1) if index < 0 else lengths[index] for index in node.inputs), strict=True
        )
        window = node.op.maximum_of if isinstance(node.op, Through) else 1
        step = isinstance(node.op, Layer) or window > 1
        lengths.append(PathLengths(max(depths) + step, max(maxima) + (window > 1), max(*windows, window)))
    return lengths[-1]


def _paths(op: Op, given: Sequence[Tensor], p: float, through: Callable[[Through, Tensor, float], Tensor]) -> Tensor:
    """Ln φ_p of a node's values from those of its inputs, (1, *outputs)."""
    if isinstance(op, Layer):
        return _through_layer(op, given[0], p)
    if isinstance(op, Through):
        return through(op, given[0], p)
    if isinstance(op, Concat):
        return torch.cat(list(given), dim=op.dim)
    return torch.logsumexp(p * torch.stack(list(given)), dim=0) / p


def _through_layer(layer: Layer, logs: Tensor, p: float) -> Tensor:
    kernel = layer.kernel if layer.gain is None else layer.effective_kernel
    if layer.window is None and logs.ndim == 2:
        after = log_path_sums(kernel, logs[0], p)[None]
    else:
        after = _shared_rows(layer, logs, p)
    if layer.bias is None:
        return after
    spatial = 0 if layer.window is None else len(layer.window.size)
    bias = layer.bias.detach().double().abs().log().reshape(-1, *[1] * spatial)
    return torch.logaddexp(p * after, p * bias) / p


def _shared_rows(layer: Layer, logs: Tensor, p: float) -> Tensor:
    """A layer whose rows stand at many places; channel by channel rescaled, so that no power vanishes."""
    channels = 1 if layer.window is not None else logs.ndim - 1
    others = [axis for axis in range(1, logs.ndim) if axis != channels]
    scales = logs.amax(dim=others, keepdim=True).clamp_min(torch.finfo(torch.float64).min)
    largest = scales.amax()
    columns = (scales - largest).flatten()
    kernel = layer.effective_kernel.abs().log()
    if layer.window is not None:
        groups, taps = layer.window.groups, math.prod(layer.window.size)
        by_group = columns.reshape(groups, 1, -1, 1).expand(-1, len(kernel) // groups, -1, taps)
        kernel = kernel + by_group.reshape(kernel.shape)
    else:
        kernel = kernel + columns
    peaks = kernel.amax(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).min)
    sums = layer.apply((p * (kernel - peaks)).exp(), (p * (logs - scales)).exp())
    rows = peaks.reshape(-1, *[1] * (logs.ndim - 2)) if layer.window is not None else peaks[:, 0]
    return largest + rows + sums.log() / p


def _as_it_is(function: Through, logs: Tensor, p: float) -> Tensor:
    """A homogeneous function of the p-th powers themselves."""
    largest = logs.amax().clamp_min(torch.finfo(torch.float64).min)
    return largest + function.function((p * (logs - largest)).exp()).log() / p


def _through_function(function: Through, logs: Tensor, p: float) -> Tensor:
    if function.paths is not None:
        largest = logs.amax().clamp_min(torch.finfo(torch.float64).min)
        return largest + function.paths((p * (logs - largest)).exp(), p).log() / p
    if function.entrywise and function.homogeneous and math.isfinite(function.lipschitz):
        return logs + (math.log(function.lipschitz) if function.lipschitz > 0 else -math.inf)
    raise ValueError(f"no path norm is known of {function.name}")
