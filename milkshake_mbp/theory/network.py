"""A network as a graph of its layers and the operations between them (spec §9)."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from milkshake_mbp.theory.layers import Layer
from milkshake_mbp.theory.occam import elias_gamma_length

__all__ = ["Concat", "Network", "Node", "Op", "Sum", "Through", "Trait"]

Trait = Literal[
    "wired",
    "sequence",
    "chain",
    "linear",
    "unnormalized",
    "bias_free",
    "zero_preserving",
    "homogeneous",
    "entrywise",
    "coded",
]
"""What a row may assume of a network.

- wired: everything between input and output is known, as a graph.
- sequence: each operation takes what the one before gives, so that nothing branches.
- chain: each layer takes what the one before puts out, through entrywise functions alone.
- linear: every layer is Linear, none a convolution.
- unnormalized: no layer has a gain, as of a normalization.
- bias_free: nothing is added on the way.
- zero_preserving: every function between layers is known, with φ(0) = 0.
- homogeneous: φ(cx) = cφ(x) for c ≥ 0, for all of them.
- entrywise: what stands between layers works on one entry at a time, or is linear and fixed, as average pooling is.
- coded: whatever affects the output is a known operation or a number that a code of the network pays for.
"""


@dataclass(frozen=True, eq=False)
class Through:
    """A function between two layers.

    Attributes:
        name: its usual name, for messages.
        function: (n, *inputs) to (n, *outputs).
        lipschitz: a Lipschitz constant in ℓ2; infinity if none is known.
        zero_preserving: whether φ(0) = 0.
        homogeneous: whether φ(cx) = cφ(x) for c ≥ 0.
        entrywise: whether each output is a function of one input, the same for all.
        at_zero: ‖φ(0)‖₂.
        paths: (Σ_paths Π|w|^p into each input, p) to the same of each output, (1, *inputs) to (1, *outputs): the sum
            over the window of max pooling, Σ|w|^p of a linear map; None for what follows from the rest (an entrywise
            homogeneous function) or is not known.
        maximum_of: entries whose maximum each output is, as the window of max pooling; 1 for other functions.
        numbers: parameters that a code must contain besides the name, such as a slope that is not the usual one.
    """

    name: str
    function: Callable[[Tensor], Tensor]
    lipschitz: float = 1.0
    zero_preserving: bool = True
    homogeneous: bool = True
    entrywise: bool = True
    at_zero: float = 0.0
    paths: Callable[[Tensor, float], Tensor] | None = None
    maximum_of: int = 1
    numbers: tuple[float, ...] = ()


@dataclass(frozen=True)
class Sum:
    """The sum of its inputs, all of one shape, as of a residual connection."""


@dataclass(frozen=True)
class Concat:
    """Its inputs one after another, along a dimension of the batch (the channels: 1)."""

    dim: int = 1


Op = Layer | Through | Sum | Concat


@dataclass(frozen=True, eq=False)
class Node:
    """One operation of the graph.

    Attributes:
        op: the operation.
        inputs: indices of the nodes that are its inputs, −1 for the network's input.
    """

    op: Op
    inputs: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Network:
    """Layers and the operations between them.

    Attributes:
        layers: every kernel once, in the order in which a forward pass first uses them.
        nodes: the operations in topological order; the last is the output. Empty if the graph is not known.
        plain: number of values outside the kernels that a code of the network must contain.
        broken: for each trait that does not hold, the reason.
    """

    layers: tuple[Layer, ...]
    nodes: tuple[Node, ...] = ()
    plain: int = 0
    broken: Mapping[Trait, str] = field(default_factory=dict)

    @classmethod
    def chain(cls, weights: Sequence[Tensor]) -> "Network":
        """The paper's own: f(x) = A_L φ(A_{L−1} φ(… φ(A_1 x))), φ the ReLU, without biases.

        Args:
            weights: (out, in) tensors in forward order.

        Raises:
            ValueError: the weights are not matrices that chain.
        """
        for layer, (before, after) in enumerate(pairwise(weights)):
            if before.shape[0] != after.shape[1]:
                raise ValueError(
                    f"layer {layer} has {before.shape[0]} outputs but layer {layer + 1} takes {after.shape[1]} inputs"
                )
        layers = tuple(
            Layer(str(index), weight, (weight.shape[1],), (weight.shape[0],)) for index, weight in enumerate(weights)
        )
        relu = Through("ReLU", torch.relu)
        ops: Sequence[Op] = [op for layer in layers for op in (layer, relu)]
        return cls(layers, tuple(Node(op, (index - 1,)) for index, op in enumerate(ops[:-1])))

    def structure_length(self) -> float:
        """Nats that tell a code's reader the graph: each node's kind, what it reads, and its whole and other numbers.

        A prefix code: the number of nodes by Elias' gamma code; 6 bits for a kind, which says too whether a layer has
        gains and biases; how many inputs and how far back each stands, how many numbers; sides, windows and other whole
        numbers by the same code, and 64 bits for any other number, each after one bit.
        """
        bits = elias_gamma_length([len(self.nodes)]) / math.log(2)
        for index, node in enumerate(self.nodes):
            numbers = [len(_numbers(node.op)), len(node.inputs), *(index - place - 1 for place in node.inputs)]
            whole = [number for number in _numbers(node.op) if number >= 0 and number == int(number)]
            others = len(_numbers(node.op)) - len(whole)
            whole_length = elias_gamma_length([*numbers, *map(int, whole)]) / math.log(2)
            bits += 6 + whole_length + len(whole) + 65 * others
        return bits * math.log(2)

    @torch.no_grad()
    def __call__(self, x: Tensor, kernels: Mapping[str, Tensor] | None = None) -> Tensor:
        """The network computed from its graph.

        Args:
            x: (n, *inputs).
            kernels: to use in place of a layer's own, by the layer's name.

        Raises:
            ValueError: the network is not wired.
        """
        *_, (_, _, value) = self.steps(x, kernels)
        return value

    def steps(
        self, x: Tensor, kernels: Mapping[str, Tensor] | None = None
    ) -> Iterator[tuple[Node, list[Tensor], Tensor]]:
        """Each node, what it is given and what it makes of that; arguments and errors as for calling the network."""
        if not self.nodes:
            raise ValueError(f"the network cannot be computed from its graph: {self.broken.get('wired', 'no nodes')}")
        values: list[Tensor] = []
        for node in self.nodes:
            given = [x if index < 0 else values[index] for index in node.inputs]
            values.append(_compute(node.op, given, kernels or {}))
            yield node, given, values[-1]


def _numbers(op: Op) -> Sequence[float]:
    if isinstance(op, Layer):
        window = op.window
        sizes = () if window is None else (*window.size, *window.stride, *window.padding, *window.dilation)
        return (*op.shape, *sizes, *(() if window is None else (window.groups,)))
    if isinstance(op, Through):
        return op.numbers
    return (op.dim,) if isinstance(op, Concat) else ()


def _compute(op: Op, given: Sequence[Tensor], kernels: Mapping[str, Tensor]) -> Tensor:
    if isinstance(op, Layer):
        return op(given[0], kernels.get(op.name))
    if isinstance(op, Through):
        return op.function(given[0])
    if isinstance(op, Concat):
        return torch.cat(list(given), dim=op.dim)
    return torch.stack(torch.broadcast_tensors(*given)).sum(dim=0) if len(given) > 2 else given[0] + given[1]
