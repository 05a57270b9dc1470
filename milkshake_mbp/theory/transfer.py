"""Composition rules folded over a network's graph: the norm of its output, and how far changed kernels move it."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from milkshake_mbp.theory.layers import Layer
from milkshake_mbp.theory.network import Concat, Network, Op, Through
from milkshake_mbp.theory.perturbation import logsumexp, safe_log

__all__ = ["Transfer", "largest_logs", "log_lipschitz", "transfer"]


@dataclass(frozen=True)
class Transfer:
    """What is known of each node's value, as natural logs in the order of the nodes.

    Attributes:
        log_norms: ln of a bound on ‖x‖₂.
        log_distances: ln of a bound on ‖x̂ − x‖₂, x̂ the value of the changed network or of another input.
    """

    log_norms: tuple[float, ...]
    log_distances: tuple[float, ...]

    @property
    def log_norm(self) -> float:
        """Of the network's output."""
        return self.log_norms[-1]

    @property
    def log_distance(self) -> float:
        """Of the network's output."""
        return self.log_distances[-1]


def transfer(
    network: Network,
    log_input_norm: float,
    log_norms: Mapping[str, float],
    *,
    log_differences: Mapping[str, float] | None = None,
    log_perturbed: Mapping[str, float] | None = None,
    log_input_distance: float = -math.inf,
) -> Transfer:
    """Bounds N on ‖x‖₂ and M on ‖x̂ − x‖₂, from the input to the output (spec §9).

    A layer: N ← ‖A‖N + ‖b‖√places and M ← ‖Â‖M + ‖Â − A‖N; a function of constant L: N ← LN + ‖φ(0)‖ and M ← LM; a sum
    adds, and a concatenation takes the root of the sum of squares. On a bias-free chain M is the telescoping bound,
    `log_telescoping_perturbation`; biases, pooling and residual sums leave it valid. Biases do not change.

    Args:
        network: wired.
        log_input_norm: ln of a bound on the input's ‖x‖₂.
        log_norms: ln of an upper bound on ‖A‖₂, by layer's name (`largest_logs` where a kernel is used twice).
        log_differences: ln ‖Â − A‖₂ of the layers that change; those missing do not.
        log_perturbed: ln ‖Â‖₂, or of upper bounds on it; by default ‖A‖₂ + ‖Â − A‖₂.
        log_input_distance: ln of a bound on how far the input moves.

    Raises:
        ValueError: the network is not wired.
    """
    if not network.nodes:
        raise ValueError(f"nothing can be carried through the network: {network.broken.get('wired', 'no nodes')}")
    changed, moved = log_differences or {}, log_perturbed or {}
    norms: list[float] = []
    distances: list[float] = []
    for node in network.nodes:
        given = [log_input_norm if index < 0 else norms[index] for index in node.inputs]
        apart = [log_input_distance if index < 0 else distances[index] for index in node.inputs]
        op = node.op
        if isinstance(op, Layer):
            norm, difference = log_norms[op.name], changed.get(op.name, -math.inf)
            perturbed = moved.get(op.name, norm if difference == -math.inf else logsumexp([norm, difference]))
            norms.append(logsumexp([_times(norm, given[0]), _log_bias(op)]))
            distances.append(logsumexp([_times(perturbed, apart[0]), _times(difference, given[0])]))
        elif isinstance(op, Through):
            steepness = safe_log(op.lipschitz)
            norms.append(logsumexp([_times(steepness, given[0]), safe_log(op.at_zero)]))
            distances.append(_times(steepness, apart[0]))
        else:
            norms.append(_joined(op, given))
            distances.append(_joined(op, apart))
    return Transfer(tuple(norms), tuple(distances))


def log_lipschitz(network: Network, log_norms: Mapping[str, float]) -> float:
    """Ln of a Lipschitz constant in ℓ2 of the network: how far its output moves if its input moves by 1.

    Args:
        network: wired.
        log_norms: ln of an upper bound on ‖A‖₂, by layer's name.

    Raises:
        ValueError: the network is not wired.
    """
    return transfer(network, 0.0, log_norms, log_input_distance=0.0).log_distance


def largest_logs(network: Network, norm: Callable[[Layer], float]) -> dict[str, float]:
    """Ln of a norm by layer's name, the largest of a kernel's uses, whose sizes and gains may differ."""
    layers = [node.op for node in network.nodes if isinstance(node.op, Layer)] or network.layers
    logs: dict[str, float] = {}
    for layer in dict.fromkeys(layers):
        logs[layer.name] = max(logs.get(layer.name, -math.inf), safe_log(norm(layer)))
    return logs


def _times(log_factor: float, log_value: float) -> float:
    """Ln of a product, which is 0 where a factor is 0 and the other infinite."""
    return -math.inf if -math.inf in (log_factor, log_value) else log_factor + log_value


def _joined(op: Op, logs: Sequence[float]) -> float:
    if isinstance(op, Concat):
        return logsumexp([2 * value for value in logs]) / 2
    return logsumexp(logs)


def _log_bias(layer: Layer) -> float:
    if layer.bias is None:
        return -math.inf
    norm = float(torch.linalg.vector_norm(layer.bias.detach().double()))
    return safe_log(norm) + math.log(max(layer.places, 1)) / 2
