"""A sequence of layers as the chain of matrices that they unroll to, for bounds of fully connected networks (spec §9).

No matrix is written out: the norms of a convolution's rows come from applying it with |K|^p to ones (`log_group_norm`),
its spectral norm from `operator_norm`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from milkshake_mbp.theory.layers import Layer
from milkshake_mbp.theory.measured import InitialDistances, LayerNorms, Unrolled
from milkshake_mbp.theory.network import Network, Node, Through
from milkshake_mbp.theory.norms import log_group_norm
from milkshake_mbp.theory.paths import log_graph_path_norm
from milkshake_mbp.theory.perturbation import safe_log

__all__ = ["is_fixed_linear", "log_factor", "unroll"]

_POWERS = (2.0, 1.5, math.inf)


def unroll(
    network: Network,
    inputs: Sequence[int],
    norm: Callable[[Layer], float],
    starts: Mapping[str, Layer] | None = None,
    moved: Mapping[str, Layer] | None = None,
) -> Unrolled:
    """The chain of matrices that a network without branches is; a layer that is used twice is two of them.

    Args:
        network: wired, nothing branching.
        inputs: shape of an input.
        norm: from a layer to an upper bound on ‖A‖₂; called once for a layer that it has seen.
        starts: each of the network's layers with its initial kernel and gain, by name; None if they are not known.
        moved: what each differs by from those (`Layer.difference`), likewise.

    Raises:
        ValueError: a kernel holds NaN or infinity, or the size of an image is not known.
    """
    layers, factors, last = list[Layer](), dict.fromkeys(_POWERS, 0.0), 0
    shapes, seen = list[tuple[int, int]](), torch.ones(1, *inputs, dtype=torch.float64)
    for index, node in enumerate(network.nodes):
        if isinstance(node.op, Layer):
            layers.append(node.op)
            last = index
            after = torch.ones(1, *node.op.outputs, dtype=torch.float64)
            shapes.append((after.numel(), seen.numel()))
            seen = after
        elif isinstance(node.op, Through):
            factors = {p: factors[p] + log_factor(node.op, seen, p) for p in _POWERS}
            seen = torch.ones_like(node.op.function(seen.to(layers[0].kernel if layers else seen)), dtype=torch.float64)
    throughs = [node.op for node in network.nodes if isinstance(node.op, Through)]
    behind = [node.op for node in network.nodes[last + 1 :]]
    paths = [math.inf, math.inf]
    if not {"homogeneous", "zero_preserving"} & set(network.broken):
        plain = _without_biases(network)
        paths = [float(log_graph_path_norm(plain, p, inputs).amax()) for p in (1, 2)]
    return Unrolled(
        norms=_norms(layers, tuple(shapes), norm),
        initial=None if starts is None or moved is None else _distances(network, layers, starts, moved, norm),
        log_factors=factors,
        log_path_l1=paths[0],
        log_path_l2=paths[1],
        trailing=any(isinstance(op, Through) and op.entrywise for op in behind),
        averages=sum(is_fixed_linear(op) and op.name != "Flatten" for op in throughs),
    )


def is_fixed_linear(function: Through) -> bool:
    """Whether it is a linear map that training does not change: average pooling, padding, another shape."""
    return function.paths is not None and function.maximum_of == 1 and function.name != "BatchNorm"


def log_factor(function: Through, like: Tensor, p: float) -> float:
    """Ln of what a function between layers multiplies ‖·‖_p by at most.

    A function of one entry: its Lipschitz constant. A nonnegative linear map with row sums ≤ r and column sums ≤ c:
    c^{1/p} r^{1−1/p} (Riesz and Thorin), or its own ℓ2 constant for p = 2. Max pooling: the number of windows that an
    entry is in, which is its squared ℓ2 constant, to the power 1/p.

    Args:
        function: between layers.
        like: (1, *inputs), ones in float64.
        p: 1 ≤ p ≤ ∞.
    """
    constant = safe_log(function.lipschitz)
    if p == 2 or function.entrywise or function.paths is None:
        return constant
    if not is_fixed_linear(function):
        return 2 * constant / p
    with torch.enable_grad():
        x = like.clone().requires_grad_()
        rows = function.paths(x, 1)
        (columns,) = torch.autograd.grad(rows.sum(), x)
    return safe_log(float(columns.amax())) / p + safe_log(float(rows.detach().amax())) * (1 - 1 / p)


def _norms(layers: Sequence[Layer], shapes: tuple[tuple[int, int], ...], norm: Callable[[Layer], float]) -> LayerNorms:
    return LayerNorms(
        shapes=shapes,
        log_spectral=tuple(safe_log(norm(layer)) for layer in layers),
        log_frobenius=_logs(layers, 2, 2),
        log_2_1=_logs(layers, 2, 1),
        log_l1_max=_logs(layers, 1, math.inf),
        log_l3_l1p5=_logs(layers, 3, 1.5),
        log_largest=tuple(safe_log(float(layer.effective_kernel.abs().amax())) for layer in layers),
    )


def _distances(
    network: Network,
    layers: Sequence[Layer],
    starts: Mapping[str, Layer],
    moved: Mapping[str, Layer],
    norm: Callable[[Layer], float],
) -> InitialDistances:
    initial, differences = [], []
    for layer in layers:
        again = layer not in network.layers
        start = starts[layer.name]
        initial.append(replace(layer, kernel=start.kernel, gain=start.gain) if again else start)
        differences.append(layer.difference(initial[-1]) if again else moved[layer.name])
    log_initial = tuple(safe_log(norm(start)) for start in initial)
    return InitialDistances(
        log_spectral=tuple(safe_log(norm(layer)) for layer in differences),
        log_frobenius=_logs(differences, 2, 2),
        log_2_1=_logs(differences, 2, 1),
        log_first_initial=log_initial[0],
        log_l1_max=_logs(differences, 1, math.inf),
        log_initial=log_initial,
    )


def _logs(layers: Sequence[Layer], p: float, q: float) -> tuple[float, ...]:
    return tuple(log_group_norm(layer, p, q) for layer in layers)


def _without_biases(network: Network) -> Network:
    nodes = [
        Node(replace(node.op, bias=None), node.inputs) if isinstance(node.op, Layer) else node for node in network.nodes
    ]
    return replace(network, nodes=tuple(nodes))
