"""Version 1 of the code: a fixed bank of filters or none, then convolutions, pooling and linear layers.

In order: what the network sees of a sample; the number of nodes; each node's kind and shape; then, layer by layer, how
it is coded and its rows. A row is its scale, unless a fixed function of the row gives it, its bias and its weights. A
weight is coded as whether it is zero, whether its sign is the one that its neighbours vote for, and its size.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import inf, prod
from typing import NamedTuple

import torch

from milkshake_mbp.codec.banks import BANKS
from milkshake_mbp.codec.coder import Bit, Coder, Meter, Numbers, Signed, Unary, sign
from milkshake_mbp.codec.limits import MAX_EXPONENT, MAX_NUMBER, Work
from milkshake_mbp.codec.network import CodedLayer, CodedNetwork, Grid, InputMap, Node, Pool, Window, grid_after

__all__ = ["Version1"]

VERSION = 1
_MAX_SIDE, _MAX_NODES = 1 << 16, 64
# Numbers behind a node, and multiplications, for one sample.
_MAX_OUTPUTS, _MAX_WORK = 1 << 18, 1 << 26
_KINDS = ("convolution", "linear", "sum", "max")
_CHOICES = 32
# Weights of a layer beyond which an encoder does not try every choice.
_MANY = 1 << 14
_PLACE, _CHANNEL, _COLUMN, _POSITION, _USE = 16, 8, 4, 2, 1
# Places of a channel up to which each may have a probability of its own.
_MAX_PLACES = 1 << 14


class Shape(NamedTuple):
    """A layer without its numbers."""

    outputs: int
    window: Window | None


@dataclass(frozen=True)
class Coding:
    """How a layer's numbers are coded, which its code says first.

    Attributes:
        contexts: sum of those used; see `Weights`.
        ternary: whether no weight is larger than 1.
        sorted: whether biases ascend, as they may where the order of a layer's channels is free.
        free_scales: whether scales are a function of the rows.
        bias_exponent: bias exponent of the layer.
    """

    contexts: int
    ternary: bool
    sorted: bool
    free_scales: bool
    bias_exponent: int


class LayerModels(NamedTuple):
    """The probabilities of one layer's numbers, as they are learned on the way."""

    scales: Unary
    biases: "Biases"
    weights: "Weights"


class Version1:
    """The description that writing and reading share: every method takes what to write, and gives what was coded.

    Args:
        coder: that writes or reads, the version done.
        work: what a reader may do for it.

    Attributes:
        models: models of each layer, as they are learned.
    """

    def __init__(self, coder: Coder, work: Work) -> None:
        self._coder, self._work = coder, work
        self._numbers = Numbers(coder)
        self.models: list[LayerModels] = []

    def network(self, given: CodedNetwork | None) -> CodedNetwork:
        """The whole network."""
        codings = [_coding(layer, grid) for layer, grid in _layers(given)] if given else []
        self._coder.part = "header"
        inputs = self._inputs(given.inputs if given else None)
        count = 1 + self._numbers.number(len(given.nodes) - 1 if given else 0, _MAX_NODES - 1)
        shapes = [self._shape(given.nodes[index] if given else None) for index in range(count)]
        grids = self._check(inputs, shapes)
        nodes: list[Node] = []
        for shape, grid in zip(shapes, grids, strict=False):
            if isinstance(shape, Pool):
                nodes.append(shape)
                continue
            index = len(self.models)
            layer, coding = (given.layers[index], codings[index]) if given else (None, None)
            nodes.append(self._layer(layer, coding, shape, grid, f"layer {index}"))
        network = CodedNetwork(inputs, tuple(nodes))
        if inputs.pixels and not network.exact:
            raise ValueError("its numbers may become too large to be computed exactly")
        return network

    def _inputs(self, given: InputMap | None) -> InputMap:
        """The size of a sample, and then a bank, or the map of version 0."""
        x = given or InputMap(1, 1, 1)
        flag = self._numbers.flag

        def number(value: int, least: int = 0) -> int:
            return least + self._numbers.number(value - least, _MAX_SIDE)

        channels, height = number(x.channels, 1), number(x.height, 1)
        width = height if flag(x.width == x.height) else number(x.width, 1)
        crop = number(x.crop)
        if bank := self._numbers.number(x.bank, len(BANKS)):
            return InputMap(channels, height, width, crop, bank=bank, cell=number(x.cell, 1))
        pool, stride = number(x.pool, 1), number(x.stride, 1)
        return InputMap(channels, height, width, crop, pool, stride, bool(flag(x.grey)), bool(flag(x.pixels)))

    def _shape(self, given: Node | None) -> Pool | Shape:
        def number(value: int, least: int = 1) -> int:
            return least + self._numbers.number(value - least, _MAX_SIDE)

        kind = self._kind(given)
        if kind in ("sum", "max"):
            pool = given if isinstance(given, Pool) else Pool("sum", 1, 1)
            return Pool(kind, number(pool.kernel), number(pool.stride))  # type: ignore[arg-type]
        layer = given if isinstance(given, CodedLayer) else None
        outputs = number(len(layer.biases) if layer else 1)
        if kind == "linear":
            return Shape(outputs, None)
        x = (layer and layer.window) or Window(1)
        return Shape(outputs, Window(number(x.kernel), number(x.stride), number(x.padding, 0), number(x.groups)))

    def _kind(self, given: Node | None) -> str:
        kind = "linear"
        if isinstance(given, Pool):
            kind = given.kind
        elif given and given.window:
            kind = "convolution"
        index = _KINDS.index(kind)
        return _KINDS[2 * self._numbers.flag(index >> 1) + self._numbers.flag(index & 1)]

    def _check(self, inputs: InputMap, shapes: Sequence[Pool | Shape]) -> list[Grid]:
        """What each node reads; refuse what would take long to read, or to compute."""
        grids, multiplications = [inputs.grid], 0
        for shape in shapes:
            grid = grids[-1]
            if isinstance(shape, Pool):
                grids.append(shape.grid_after(grid))
                each = shape.kernel**2
            else:
                grids.append(grid_after(shape.window, shape.outputs, grid))
                each = shape.window.columns(grid) if shape.window else prod(grid)
                self._work.add(shape.outputs, each)
            multiplications += prod(grids[-1]) * each
            if min(grids[-1]) < 1 or prod(grids[-1]) > _MAX_OUTPUTS or multiplications > _MAX_WORK:
                raise ValueError(f"{grids[-1]} behind a node, {multiplications} multiplications for a sample")
        return grids

    def _layer(
        self, given: CodedLayer | None, coding: Coding | None, shape: Shape, grid: Grid, name: str
    ) -> CodedLayer:
        coder = self._coder
        coding, plane = self._choices(coding), Plane.of(shape.window, grid)
        if coding.contexts & _POSITION and plane.places > _MAX_PLACES:
            raise ValueError(f"{plane.places:,} places in a channel with contexts of their own, of {_MAX_PLACES:,}")
        models = LayerModels(Unary(), Biases(coding.sorted), Weights(plane, coding.contexts, coding.ternary))
        self.models.append(models)
        columns = shape.window.columns(grid) if shape.window else prod(grid)
        values = torch.zeros(shape.outputs, columns, dtype=torch.int64)
        biases: list[int] = []
        scales: list[int] = []
        for row in range(shape.outputs):
            if not coding.free_scales:
                coder.part = f"{name} scales"
                scales.append(models.scales.code(coder, int(given.scales[row]) if given else 0))  # type: ignore[index]
                if scales[row] > MAX_EXPONENT:
                    raise ValueError(f"scale {scales[row]} is out of range")
            coder.part = f"{name} biases"
            biases.append(models.biases.code(coder, int(given.biases[row]) if given else 0))
            if abs(biases[row]) > MAX_NUMBER:
                raise ValueError(f"bias {biases[row]} is out of range")
            found = models.weights.code_row(coder, given.values[row].tolist() if given else None, name)
            values[row] = torch.tensor(found)
        coder.part = "header"
        return CodedLayer(
            values,
            torch.tensor(biases),
            None if coding.free_scales else torch.tensor(scales),
            coding.bias_exponent,
            shape.window,
        )

    def _choices(self, given: Coding | None) -> Coding:
        x = given or Coding(0, True, False, False, 0)
        flag, contexts = self._numbers.flag, 0
        for bit in reversed(range(_CHOICES.bit_length() - 1)):
            contexts = contexts << 1 | flag(x.contexts >> bit & 1)
        ternary, ascending, free_scales = (bool(flag(value)) for value in (x.ternary, x.sorted, x.free_scales))
        exponent = self._numbers.exponent(x.bias_exponent, MAX_EXPONENT)
        return Coding(contexts, ternary, ascending, free_scales, exponent)


def _layers(network: CodedNetwork) -> Iterator[tuple[CodedLayer, Grid]]:
    for node, grid in zip(network.nodes, network.grids, strict=False):
        if isinstance(node, CodedLayer):
            yield node, grid


def _coding(layer: CodedLayer, grid: Grid) -> Coding:
    """The cheapest for a layer."""
    ternary = int(layer.values.abs().max()) <= 1
    rows, plane = layer.values.tolist(), Plane.of(layer.window, grid)

    def bits(contexts: int) -> float:
        if contexts & _POSITION and plane.places > _MAX_PLACES:
            return inf
        meter, weights = Meter(), Weights(plane, contexts, ternary)
        for row in rows:
            weights.code_row(meter, row)
        return sum(meter.bits.values())

    def bias_bits(ascending: bool) -> float:
        meter, biases = Meter(), Biases(ascending)
        for bias in layer.biases.tolist():
            biases.code(meter, bias)
        return sum(meter.bits.values())

    ascending = bool((layer.biases.diff() >= 0).all())
    chosen = min(range(_CHOICES), key=bits) if layer.values.numel() <= _MANY else _descent(bits)
    return Coding(
        chosen,
        ternary,
        ascending and bias_bits(True) < bias_bits(False),
        layer.scales is None,
        layer.bias_exponent,
    )


def _descent(bits: Callable[[int], float]) -> int:
    """A choice of contexts that no change of one of them makes cheaper."""
    known = {0: bits(0)}
    best, before = 0, -1
    while best != before:
        before = best
        for flag in range(_CHOICES.bit_length() - 1):
            other = best ^ 1 << flag
            if other not in known:
                known[other] = bits(other)
            best = min(best, other, key=known.__getitem__)
    return best


class Biases:
    """A layer's biases; where they ascend, the first and then how much each is more than the last."""

    def __init__(self, ascending: bool) -> None:
        self._ascending, self._signed, self._steps = ascending, Signed(), Unary()
        self._last: int | None = None

    def code(self, coder: Coder, value: int) -> int:
        """Write or read the next."""
        if not self._ascending or self._last is None:
            self._last = self._signed.code(coder, value)
        else:
            self._last += self._steps.code(coder, value - self._last)
        return self._last


class Plane(NamedTuple):
    """Where a row's weights stand: the places of a channel, line by line, channel after channel."""

    channels: int
    height: int
    width: int

    @property
    def places(self) -> int:
        """Of a channel."""
        return self.height * self.width

    @classmethod
    def of(cls, window: Window | None, grid: Grid) -> "Plane":
        """Of a kernel, or of all that a layer reads."""
        return cls(grid[0] // window.groups, window.kernel, window.kernel) if window else cls(*grid)


class Weights:
    """The weights of a layer, row by row, in the contexts chosen.

    With 16, the neighbours left and above are looked at; with 8, the one at the same place in the channel before. How
    many of them are not zero is a context for whether a weight is zero. With 4, so is how many of the rows so far use
    this column; with 2, the place in the channel; with 1, how many of the channel's weights in the rows so far are not
    zero. The neighbours' signs, and the sign of the column's sum so far, vote for the weight's sign; how clear the vote
    is is a context for whether the weight agrees.
    """

    def __init__(self, plane: Plane, contexts: int, ternary: bool) -> None:
        self._contexts, self._ternary = contexts, ternary
        self._places, self._width, self._size = plane.places, plane.width, prod(plane)
        self._uses, self._sums = [0] * self._size, [0] * self._size
        self._channel_uses = [0] * plane.channels
        self._rows = 0
        self._nonzero: dict[tuple[int, ...], Bit] = {}
        self._against: dict[int, Bit] = {}
        self._value = Unary()

    def code_row(self, coder: Coder, given: list[int] | None, name: str = "") -> list[int]:
        """The next row's weights."""
        row = [0] * self._size
        for place in range(self._size):
            row[place] = self.code_weight(coder, row, place, given[place] if given else 0, name)
        for place, value in enumerate(row):
            if value:
                self._uses[place] += 1
                self._sums[place] += sign(value)
                self._channel_uses[place // self._places] += 1
        self._rows += 1
        return row

    def code_weight(self, coder: Coder, row: Sequence[int], place: int, value: int, name: str = "") -> int:
        """One weight, in the context of those before it in its row."""
        zeros, vote = self.contexts(row, place)
        coder.part = f"{name} positions"
        if not coder.bit(int(value != 0), self._nonzero.setdefault(zeros, Bit())):
            return 0
        coder.part = f"{name} signs"
        lead = -1 if vote < 0 else 1
        against = coder.bit(int(value * lead < 0), self._against.setdefault(abs(vote), Bit()))
        coder.part = f"{name} sizes"
        size = 1 if self._ternary else 1 + self._value.code(coder, abs(value) - 1)
        return -lead * size if against else lead * size

    def contexts(self, row: Sequence[int], place: int) -> tuple[tuple[int, ...], int]:
        """What the probability of a zero depends on, and the vote."""
        within = place % self._places
        chosen, around, vote = self._contexts, 0, 0
        zeros: tuple[int, ...] = ()
        if chosen & _PLACE:
            left = row[place - 1] if within % self._width else 0
            up = row[place - self._width] if within >= self._width else 0
            around += (left != 0) + (up != 0)
            vote += sign(left) + sign(up)
        if chosen & _CHANNEL:
            before = row[place - self._places] if place >= self._places else 0
            around += before != 0
            vote += sign(before)
        if chosen & _COLUMN:
            zeros += (_share(self._uses[place], self._rows),)
            vote += sign(self._sums[place])
        if chosen & _POSITION:
            zeros += (within,)
        if chosen & _USE:
            channel = place // self._places
            zeros += (_share(self._channel_uses[channel], self._rows * self._places),)
        return (around, *zeros), vote


def _share(uses: int, among: int) -> int:
    """None; or less than a quarter, a half, three quarters, or more."""
    return 0 if not uses else 1 + (4 * uses >= among) + (2 * uses >= among) + (4 * uses >= 3 * among)
