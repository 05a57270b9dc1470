"""A network of integers, as the code describes it and as it is judged.

Every number is an integer, and a network on whole pixels computes with integers that float64 holds exactly: its
errors are the same on every machine, whatever the order of summation.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

__all__ = ["CodedLayer", "CodedNetwork", "InputMap", "scale_factor"]

_EXACT = 2**53
_BATCH = 8192


def scale_factor(k: Tensor) -> Tensor:
    """2, 3, 4, 6, 8, 12, …: whole numbers that grow by √2 on average.

    Args:
        k: integers ≥ 0.

    Returns:
        float64, as k.
    """
    return (2 + k % 2) * 2.0 ** (k // 2).double()


@dataclass(frozen=True)
class InputMap:
    """What the network sees of a sample: fixed before the data, part of the architecture, and coded with it.

    Attributes:
        channels: channels of an image; 1 for a vector.
        height: rows; 1 for a vector.
        width: columns; the length of a vector.
        crop: pixels left out on each side.
        pool: the side of the squares of pixels that are summed into one input.
        stride: pixels between two squares, which overlap if it is less than `pool`.
        grey: whether the channels are summed.
        pixels: whether inputs are the stored pixels, whole numbers from 0 to 255, or what the datamodule makes of them.
    """

    channels: int
    height: int
    width: int
    crop: int = 0
    pool: int = 1
    stride: int = 1
    grey: bool = False
    pixels: bool = True

    def __post_init__(self) -> None:
        if min(self.grid) < 1:
            raise ValueError(f"no input is left of {self}")

    @property
    def grid(self) -> tuple[int, int, int]:
        """Channels, rows and columns of the inputs."""
        height, width = ((side - 2 * self.crop - self.pool) // self.stride + 1 for side in (self.height, self.width))
        return 1 if self.grey else self.channels, height, width

    @property
    def num_inputs(self) -> int:
        """Inputs of the network."""
        return math.prod(self.grid)

    @property
    def largest(self) -> int:
        """The largest input that pixels can give."""
        return 255 * self.pool**2 * (self.channels if self.grey else 1)

    def __call__(self, data: Tensor) -> Tensor:
        """The inputs.

        Args:
            data: (n, ...) samples of `channels` · `height` · `width` numbers: pixels, or what `pixels` says.

        Returns:
            (n, inputs) float64; exact whole numbers if the data are.

        Raises:
            ValueError: the samples have another size.
        """
        shape = (self.channels, self.height, self.width)
        if math.prod(data.shape[1:]) != math.prod(shape):
            raise ValueError(f"the network reads samples of shape {shape}, got {tuple(data.shape[1:])}")
        images = data.reshape(-1, *shape).double()
        if self.grey:
            images = images.sum(dim=1, keepdim=True)
        inner = images[:, :, self.crop : self.height - self.crop, self.crop : self.width - self.crop]
        squares = inner.unfold(2, self.pool, self.stride).unfold(3, self.pool, self.stride)
        return squares.sum(dim=(4, 5)).flatten(1)


@dataclass(frozen=True)
class CodedLayer:
    """z = Vx + 2^e b, then s ⊙ z, with a ReLU before the scales except in the last layer.

    Attributes:
        values: V, (out, in) int64.
        biases: b, (out,) int64.
        scales: k, (out,) int64 ≥ 0; s = `scale_factor(k)`.
        bias_exponent: e, of any sign.
    """

    values: Tensor
    biases: Tensor
    scales: Tensor
    bias_exponent: int = 0

    def __post_init__(self) -> None:
        out = self.values.shape[0]
        if self.values.ndim != 2 or self.biases.shape != (out,) or self.scales.shape != (out,):
            raise ValueError(
                f"a layer of values {tuple(self.values.shape)} has biases and scales ({out},), not "
                f"{tuple(self.biases.shape)} and {tuple(self.scales.shape)}"
            )
        if any(part.is_floating_point() for part in (self.values, self.biases, self.scales)) or self.scales.min() < 0:
            raise ValueError("values, biases and scales are integers, and no scale is negative")

    @property
    def nonzeros(self) -> int:
        """Weights that are not zero."""
        return int((self.values != 0).sum())


@dataclass(frozen=True)
class CodedNetwork:
    """A multilayer perceptron with ReLUs whose every parameter is an integer.

    Attributes:
        inputs: what it sees of a sample.
        layers: in forward order.
    """

    inputs: InputMap
    layers: tuple[CodedLayer, ...]

    def __post_init__(self) -> None:
        if not self.layers:
            raise ValueError("a network has at least one layer")
        if (found := self.layers[0].values.shape[1]) != self.inputs.num_inputs:
            raise ValueError(f"the first layer takes {found} inputs, of {self.inputs.num_inputs}")
        for first, second in pairwise(self.layers):
            if first.values.shape[0] != second.values.shape[1]:
                raise ValueError(
                    f"layers do not chain: {first.values.shape[0]} outputs, then {second.values.shape[1]} inputs"
                )

    def __eq__(self, other: object) -> bool:
        """Whether every integer is the same."""
        return isinstance(other, CodedNetwork) and self.inputs == other.inputs and _same(self.layers, other.layers)

    __hash__ = None  # type: ignore[assignment]

    @property
    def widths(self) -> tuple[int, ...]:
        """Inputs, then the outputs of each layer."""
        return (self.inputs.num_inputs, *(layer.values.shape[0] for layer in self.layers))

    @property
    def nonzeros(self) -> int:
        """Weights that are not zero."""
        return sum(layer.nonzeros for layer in self.layers)

    @property
    def exact(self) -> bool:
        """Whether float64 computes every number exactly: multiples of one power of two, and in range."""
        if not self.inputs.pixels:
            return False
        unit, largest = 0, float(self.inputs.largest)
        for layer in self.layers:
            unit = min(unit, layer.bias_exponent)
            sums = layer.values.abs().double().sum(dim=1) * largest
            sums += layer.biases.abs().double() * 2.0**layer.bias_exponent
            largest = float((sums * scale_factor(layer.scales)).max())
        return largest < _EXACT * 2.0**unit

    @torch.no_grad()
    def logits(self, data: Tensor) -> Tensor:
        """(n, classes) float64 outputs for (n, ...) samples."""
        hidden = self.inputs(data)
        for index, layer in enumerate(self.layers):
            sums = hidden @ layer.values.double().T + layer.biases.double() * 2.0**layer.bias_exponent
            hidden = (sums if index == len(self.layers) - 1 else sums.relu()) * scale_factor(layer.scales)
        return hidden

    def errors(self, data: Tensor, targets: Tensor) -> int:
        """How many samples the network gets wrong; a tie and a NaN are errors.

        Args:
            data: (n, ...) samples, pixels or what `inputs.pixels` says.
            targets: (n,) class indices.
        """
        wrong = 0
        for some, labels in zip(data.split(_BATCH), targets.split(_BATCH), strict=True):
            logits = self.logits(some)
            own = logits.gather(1, labels[:, None])
            others = logits.scatter(1, labels[:, None], -math.inf)
            wrong += len(labels) - int((own > others).all(dim=1).sum())
        return wrong

    def live(self) -> "CodedNetwork":
        """The same function without dead neurons: those that no weight leads from, and those that are always zero."""
        layers = list(self.layers)
        # Back and forth, since a neuron's death can be another's, before it or behind it.
        order = range(len(layers) - 1)
        for index in (*order, *reversed(order), *order):
            first, second = layers[index : index + 2]
            keep = (second.values != 0).any(dim=0) & ((first.values != 0).any(dim=1) | (first.biases > 0))
            keep[0] |= not keep.any()
            layers[index] = replace(
                first, values=first.values[keep], biases=first.biases[keep], scales=first.scales[keep]
            )
            layers[index + 1] = replace(second, values=second.values[:, keep])
        return CodedNetwork(self.inputs, tuple(layers))


def _same(first: Sequence[CodedLayer], second: Sequence[CodedLayer]) -> bool:
    return len(first) == len(second) and all(
        a.bias_exponent == b.bias_exponent
        and all(torch.equal(x, y) for x, y in ((a.values, b.values), (a.biases, b.biases), (a.scales, b.scales)))
        for a, b in zip(first, second, strict=True)
    )
