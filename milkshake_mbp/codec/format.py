"""Network ⇄ bytes: a prefix code, frozen as version 0.

The code of a network is a string of bytes that no code of another network begins with, so Σ 2^{−8·bytes} ≤ 1 over all
networks (Kraft): that is all a bound needs of it. A file is a code and then its CRC-32, which tells damage from
another network; being no part of the code, it is not counted.

In order: the version, the input map, the number of layers and their widths; then for each layer the exponent of its
biases, which contexts its weights are coded in, and row by row the scale, the bias and the weights. A weight is coded
as whether it is zero, its sign, and its size, each with the adaptive probability of the context it stands in.
"""

import zlib
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise, product
from typing import NamedTuple

import torch

from milkshake_mbp.codec.coder import FAIR, Bit, Coder, Decoder, Encoder, Gamma, Meter, Unary, elias_gamma
from milkshake_mbp.codec.network import CodedLayer, CodedNetwork, InputMap

__all__ = ["MAX_WEIGHTS", "DecodeError", "code_bits", "decode", "encode", "from_file_bytes", "to_file_bytes"]

MAX_WEIGHTS = 1 << 22
_MAX_LAYERS, _MAX_EXPONENT, _MAX_NUMBER = 64, 40, 1 << 24
_CHOICES = 4
_VERSION = 0
# In the order of `InputMap`, and the least of each.
_INPUT_NUMBERS = (("channels", 1), ("height", 1), ("width", 1), ("crop", 0), ("pool", 1), ("stride", 1))
_CHECK_BYTES = 4


class DecodeError(ValueError):
    """The bytes are no network's code."""


def encode(network: CodedNetwork) -> bytes:
    """The shortest code of a network over all choices of contexts.

    Args:
        network: any, within the limits of the format.

    Returns:
        A whole number of bytes, that `decode` reads back to the same network.

    Raises:
        ValueError: a number is beyond the limits of the format.
    """
    encoder = Encoder()
    try:
        _check_size(network.widths)
        Format(encoder).network(network, best_contexts(network))
    except DecodeError as error:
        raise ValueError(f"this network cannot be coded: {error}") from error
    return encoder.finish()


def decode(data: bytes) -> tuple[CodedNetwork, int]:
    """Read the network whose code the data begin with.

    Args:
        data: a code, and anything after it.

    Returns:
        The network, and the number of bytes of its code.

    Raises:
        DecodeError: the data end too early, or say something that no network has.
    """
    decoder = Decoder(data)
    try:
        network = Format(decoder).network(None)
    except (OverflowError, ValueError) as error:
        raise DecodeError(f"these bytes are no network's code: {error}") from error
    if (length := decoder.consumed()) > len(data):
        raise DecodeError(f"the code is cut short: it has {length} bytes or more, and {len(data)} are there")
    return network, length


def to_file_bytes(code: bytes) -> bytes:
    """A code and its check sum."""
    return code + zlib.crc32(code).to_bytes(_CHECK_BYTES, "big")


def from_file_bytes(data: bytes) -> tuple[CodedNetwork, int]:
    """`decode`, and the check sum after the code.

    Raises:
        DecodeError: as `decode`, and where the check sum is another.
    """
    network, length = decode(data)
    if data[length : length + _CHECK_BYTES] != to_file_bytes(data[:length])[length:]:
        raise DecodeError("the check sum does not fit: the file is damaged or cut short")
    return network, length


def code_bits(network: CodedNetwork) -> dict[str, float]:
    """What each part takes of the code, in bits: header, and positions, signs, sizes, biases and scales by layer.

    The code's length is less than two bytes above their sum.
    """
    meter = Meter()
    Format(meter).network(network, best_contexts(network))
    return dict(meter.bits)


def _check_size(widths: Sequence[int]) -> None:
    """Refuse what would take long to read, before reading it."""
    if (total := sum(a * b for a, b in pairwise(widths))) > MAX_WEIGHTS:
        raise DecodeError(f"{total:,} weights, of at most {MAX_WEIGHTS:,}")


def best_contexts(network: CodedNetwork) -> list[int]:
    """The cheapest choice for each layer."""
    grids = _grids(network.inputs, network.widths)
    return [
        min(range(_CHOICES), key=lambda choice: _bits(layer, grid, choice))
        for layer, grid in zip(network.layers, grids, strict=True)
    ]


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
    biases: "Signed"
    weights: "Matrix"


class Format:
    """The description that writing and reading share: every method takes what to write, and gives what was coded."""

    def __init__(self, coder: Coder) -> None:
        self._coder = coder
        self.models: list[LayerModels] = []

    def network(self, given: CodedNetwork | None, contexts: Sequence[int] = ()) -> CodedNetwork:
        """The whole network; contexts are the layers' choices, for a writer."""
        self._coder.part = "header"
        if (version := elias_gamma(self._coder, _VERSION)) != _VERSION:
            raise DecodeError(f"version {version} of the format, where {_VERSION} is known")
        inputs = self._inputs(given.inputs if given else None)
        count = 1 + self._number(len(given.layers) - 1 if given else 0, _MAX_LAYERS)
        widths = [inputs.num_inputs]
        for index in range(count):
            widths.append(1 + self._number(given.widths[index + 1] - 1 if given else 0))
        _check_size(widths)
        layers = []
        for index, (grid, rows) in enumerate(zip(_grids(inputs, widths), widths[1:], strict=True)):
            layer, choice = (given.layers[index], contexts[index]) if given else (None, 0)
            layers.append(self._layer(layer, rows, grid, choice, f"layer {index}"))
        return CodedNetwork(inputs, tuple(layers))

    def _inputs(self, given: InputMap | None) -> InputMap:
        numbers = [least + self._number(getattr(given, name) - least if given else 0) for name, least in _INPUT_NUMBERS]
        flags = [bool(self._flag(getattr(given, name, False))) for name in ("grey", "pixels")]
        return InputMap(*numbers, *flags)  # type: ignore[arg-type]

    def _layer(
        self, given: CodedLayer | None, rows: int, grid: tuple[int, int, int], choice: int, name: str
    ) -> CodedLayer:
        size = self._number(abs(given.bias_exponent) if given else 0, _MAX_EXPONENT)
        exponent = -size if self._flag(given is not None and given.bias_exponent < 0) else size
        choice = self._flag(choice >> 1) << 1 | self._flag(choice & 1)
        models = LayerModels(Unary(), Signed(), Matrix(grid, choice))
        self.models.append(models)
        values: list[list[int]] = []
        biases: list[int] = []
        scales: list[int] = []
        for row in range(rows):
            self._coder.part = f"{name} scales"
            scales.append(models.scales.code(self._coder, int(given.scales[row]) if given else 0))
            self._coder.part = f"{name} biases"
            biases.append(models.biases.code(self._coder, int(given.biases[row]) if given else 0))
            if scales[row] > _MAX_EXPONENT or abs(biases[row]) > _MAX_NUMBER:
                raise DecodeError(f"scale {scales[row]} or bias {biases[row]} is out of range")
            values.append(models.weights.code_row(self._coder, given.values[row].tolist() if given else None, name))
        self._coder.part = "header"
        return CodedLayer(torch.tensor(values), torch.tensor(biases), torch.tensor(scales), exponent)

    def _number(self, value: int, largest: int = _MAX_NUMBER) -> int:
        found = elias_gamma(self._coder, value)
        if found > largest:
            raise DecodeError(f"{found} where at most {largest} is possible")
        return found

    def _flag(self, value: int) -> int:
        return self._coder.bit(int(value), FAIR)


class Signed:
    """Integers of either sign."""

    def __init__(self) -> None:
        self._nonzero, self._negative, self._size = Bit(), Bit(), Gamma()

    def code(self, coder: Coder, value: int) -> int:
        if not coder.bit(int(value != 0), self._nonzero):
            return 0
        negative = coder.bit(int(value < 0), self._negative)
        size = 1 + self._size.code(coder, abs(value) - 1)
        return -size if negative else size


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
        # A neighbour that is not there is the row's last entry, which stays zero.
        none = self._size
        self._around = [
            (
                place - 1 if column else none,
                place - width if line else none,
                place - width - 1 if line and column else none,
                place - width + 1 if line and column < width - 1 else none,
            )
            for place, (_, line, column) in enumerate(product(range(channels), range(height), range(width)))
        ]
        self._nonzero: dict[tuple[int, ...], Bit] = defaultdict(Bit)
        self._negative: dict[tuple[int, ...], Bit] = defaultdict(Bit)
        self._value = Unary()

    def code_row(self, coder: Coder, given: list[int] | None, name: str = "") -> list[int]:
        """The next neuron's weights."""
        row = [0] * (self._size + 1)
        for place in range(self._size):
            row[place] = self.code_weight(coder, row, place, given[place] if given else 0, name)
            if row[place]:
                self._uses[place] += 1
                self._sums[place] += _sign(row[place])
        self._rows += 1
        return row[: self._size]

    def code_weight(self, coder: Coder, row: Sequence[int], place: int, value: int, name: str = "") -> int:
        """One weight, in the context of those before it in its row, which ends with a zero more."""
        zeros, signs = self.contexts(row, place)
        coder.part = f"{name} positions"
        if not coder.bit(int(value != 0), self._nonzero[zeros]):
            return 0
        coder.part = f"{name} signs"
        sign = 1 - 2 * coder.bit(int(value < 0), self._negative[signs])
        coder.part = f"{name} sizes"
        return sign * (1 + self._value.code(coder, abs(value) - 1))

    def contexts(self, row: Sequence[int], place: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What the probabilities of a zero and of a sign depend on."""
        left, up, across, beyond = (row[neighbour] for neighbour in self._around[place])
        zeros: tuple[int, ...] = ()
        signs: tuple[int, ...] = ()
        if self._neighbours:
            zeros += ((left != 0) + (up != 0), (across != 0) + (beyond != 0))
            signs += (_sign(left), _sign(up))
        if self._columns:
            zeros += (_share(self._uses[place], self._rows),)
            signs += (_sign(self._sums[place]),)
        return zeros, signs


def _sign(value: int) -> int:
    return (value > 0) - (value < 0)


def _share(uses: int, rows: int) -> int:
    """None, less than an eighth, a quarter, a half, or more of the rows."""
    return 0 if not uses else 1 + (8 * uses >= rows) + (4 * uses >= rows) + (2 * uses >= rows)
