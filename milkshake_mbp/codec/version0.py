"""Version 0 of the code, frozen: perceptrons.

In order: the version, the input map, the number of layers and their widths; then for each layer the exponent of its
biases, which contexts its weights are coded in, and row by row the scale, the bias and the weights. A weight is coded
as whether it is zero, its sign, and its size, each with the adaptive probability of the context it stands in.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from math import prod
from typing import NamedTuple

import torch

from milkshake_mbp.codec.coder import Bit, Coder, Meter, Numbers, Signed, Unary, sign
from milkshake_mbp.codec.limits import MAX_EXPONENT, MAX_NUMBER, Work
from milkshake_mbp.codec.network import CodedLayer, CodedNetwork, InputMap

__all__ = ["Version0"]

VERSION = 0
_MAX_LAYERS, _CHOICES = 64, 4
# In the order of `InputMap`, and the least of each.
_INPUT_NUMBERS = (("channels", 1), ("height", 1), ("width", 1), ("crop", 0), ("pool", 1), ("stride", 1))


def best_contexts(network: CodedNetwork) -> Iterator[int]:
    """The cheapest choice for each layer."""
    for layer, grid in zip(network.layers, _grids(network.inputs, network.widths), strict=True):
        yield min(range(_CHOICES), key=lambda choice: _bits(layer, grid, choice))


def _bits(layer: CodedLayer, grid: tuple[int, int, int], choice: int) -> float:
    meter, weights = Meter(), Matrix(grid, choice)
    for row in layer.values.tolist():
        weights.code_row(meter, row)
    return sum(meter.bits.values())


def _grids(inputs: InputMap, widths: Sequence[int]) -> list[tuple[int, int, int]]:
    """What each layer reads, as channels, rows and columns: neurons have no place but in a line."""
    return [inputs.grid, *((1, 1, width) for width in widths[1:-1])]


class LayerModels(NamedTuple):
    """The probabilities of one layer's numbers, as they are learned on the way."""

    scales: Unary
    biases: Signed
    weights: "Matrix"


class Version0:
    """The description that writing and reading share: every method takes what to write, and gives what was coded.

    Args:
        coder: that writes or reads, the version done.
        work: what a reader may do for it.

    Attributes:
        models: models of each layer, as they are learned.
    """

    def __init__(self, coder: Coder, work: Work) -> None:
        self._numbers, self._work = Numbers(coder), work
        self._coder = coder
        self.models: list[LayerModels] = []

    def network(self, given: CodedNetwork | None) -> CodedNetwork:
        """The whole network."""
        number = self._numbers.number
        self._coder.part = "header"
        inputs = self._inputs(given.inputs if given else None)
        count = 1 + number(len(given.layers) - 1 if given else 0, _MAX_LAYERS)
        widths = [inputs.num_inputs]
        for index in range(count):
            widths.append(1 + number(given.widths[index + 1] - 1 if given else 0, MAX_NUMBER))
            self._work.add(widths[-1], widths[-2])
        contexts = list(best_contexts(given)) if given else []
        layers = []
        for index, (grid, rows) in enumerate(zip(_grids(inputs, widths), widths[1:], strict=True)):
            layer, choice = (given.layers[index], contexts[index]) if given else (None, 0)
            layers.append(self._layer(layer, rows, grid, choice, f"layer {index}"))
        return CodedNetwork(inputs, tuple(layers))

    def _inputs(self, given: InputMap | None) -> InputMap:
        numbers = [
            least + self._numbers.number(getattr(given, name) - least if given else 0, MAX_NUMBER)
            for name, least in _INPUT_NUMBERS
        ]
        flags = [self._numbers.flag(getattr(given, name, False)) for name in ("grey", "pixels")]
        return InputMap(*numbers, *flags)  # type: ignore[arg-type]

    def _layer(
        self, given: CodedLayer | None, rows: int, grid: tuple[int, int, int], choice: int, name: str
    ) -> CodedLayer:
        coder, flag = self._coder, self._numbers.flag
        exponent = self._numbers.exponent(given.bias_exponent if given else 0)
        choice = flag(choice >> 1) << 1 | flag(choice & 1)
        models = LayerModels(Unary(), Signed(), Matrix(grid, choice))
        self.models.append(models)
        values = torch.zeros(rows, prod(grid), dtype=torch.int64)
        biases: list[int] = []
        scales: list[int] = []
        for row in range(rows):
            coder.part = f"{name} scales"
            scales.append(models.scales.code(coder, int(given.scales[row]) if given else 0))  # type: ignore[index]
            coder.part = f"{name} biases"
            biases.append(models.biases.code(coder, int(given.biases[row]) if given else 0))
            if scales[row] > MAX_EXPONENT or abs(biases[row]) > MAX_NUMBER:
                raise ValueError(f"scale {scales[row]} or bias {biases[row]} is out of range")
            found = models.weights.code_row(coder, given.values[row].tolist() if given else None, name)
            values[row] = torch.tensor(found)
        coder.part = "header"
        return CodedLayer(values, torch.tensor(biases), torch.tensor(scales), exponent)


class Matrix:
    """The weights of a layer, row by row, in the contexts chosen: 2 stands for neighbours, 1 for columns.

    With neighbours, whether a weight is zero depends on how many of the four before it on the image are not, two beside
    and two across; and its sign on the signs of the two beside. With columns, on how often the rows so far have used
    this input, and on the sign they gave it.
    """

    def __init__(self, grid: tuple[int, int, int], choice: int) -> None:
        channels, height, width = grid
        self._neighbours, self._columns = bool(choice & 2), bool(choice & 1)
        self._size = channels * height * width
        self._uses, self._sums = [0] * self._size, [0] * self._size
        self._rows = 0
        self._plane, self._width = height * width, width
        self._nonzero: dict[tuple[int, ...], Bit] = defaultdict(Bit)
        self._negative: dict[tuple[int, ...], Bit] = defaultdict(Bit)
        self._value = Unary()

    def code_row(self, coder: Coder, given: list[int] | None, name: str = "") -> list[int]:
        """The next neuron's weights."""
        row = [0] * self._size
        for place in range(self._size):
            row[place] = self.code_weight(coder, row, place, given[place] if given else 0, name)
            if row[place]:
                self._uses[place] += 1
                self._sums[place] += sign(row[place])
        self._rows += 1
        return row

    def code_weight(self, coder: Coder, row: Sequence[int], place: int, value: int, name: str = "") -> int:
        """One weight, in the context of those before it in its row."""
        zeros, signs = self.contexts(row, place)
        coder.part = f"{name} positions"
        if not coder.bit(int(value != 0), self._nonzero[zeros]):
            return 0
        coder.part = f"{name} signs"
        negative = coder.bit(int(value < 0), self._negative[signs])
        coder.part = f"{name} sizes"
        return (1 - 2 * negative) * (1 + self._value.code(coder, abs(value) - 1))

    def contexts(self, row: Sequence[int], place: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What the probabilities of a zero and of a sign depend on."""
        zeros: tuple[int, ...] = ()
        signs: tuple[int, ...] = ()
        if self._neighbours:
            width, column = self._width, place % self._width
            inside = place % self._plane >= width
            left = row[place - 1] if column else 0
            up = row[place - width] if inside else 0
            across = row[place - width - 1] if inside and column else 0
            beyond = row[place - width + 1] if inside and column < width - 1 else 0
            zeros += ((left != 0) + (up != 0), (across != 0) + (beyond != 0))
            signs += (sign(left), sign(up))
        if self._columns:
            zeros += (_share(self._uses[place], self._rows),)
            signs += (sign(self._sums[place]),)
        return zeros, signs


def _share(uses: int, rows: int) -> int:
    """None, less than an eighth, a quarter, a half, or more of the rows."""
    return 0 if not uses else 1 + (8 * uses >= rows) + (4 * uses >= rows) + (2 * uses >= rows)
