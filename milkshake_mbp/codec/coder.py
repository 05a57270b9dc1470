"""An adaptive binary arithmetic code in integer arithmetic, so that every machine reads the code of any other.

`Encoder` and `Decoder` have the same interface: `bit(bit, model)` returns the bit that was written or read. So a
format is described once, by a function that passes each of its numbers to a coder and continues with the returned
value, and writing and reading cannot disagree.
"""

import math
from collections import defaultdict
from typing import Protocol

__all__ = [
    "FAIR",
    "Bit",
    "Coder",
    "Decoder",
    "Encoder",
    "Fair",
    "Gamma",
    "Meter",
    "Numbers",
    "Signed",
    "Unary",
    "elias_gamma",
    "sign",
]

_WORD = 32
_TOP = 1 << _WORD
_LOW = 1 << (_WORD - 8)
_LIMIT = 1 << 16
_MOST_DIGITS = 32


class Bit:
    """The probability of a bit as its past gives it, by Krichevsky and Trofimov: (ones + ½)/(all + 1)."""

    __slots__ = ("weights",)

    def __init__(self) -> None:
        self.weights = [1, 1]

    def update(self, bit: int) -> None:
        """Count a bit."""
        self.weights[bit] += 2
        if sum(self.weights) > _LIMIT:
            self.weights = [(weight + 1) // 2 for weight in self.weights]


class Fair(Bit):
    """Probability one half, whatever was seen."""

    __slots__ = ()

    def update(self, bit: int) -> None:
        """Learn nothing."""


FAIR = Fair()


class Coder(Protocol):
    """What `Encoder`, `Decoder` and `Meter` have in common.

    Attributes:
        part: what the next bits are about; only a `Meter` looks at it.
    """

    part: str

    def bit(self, bit: int, model: Bit) -> int:
        """The next bit of the message, 0 or 1; a decoder does not look at the one it is given."""


class Meter:
    """Writes nothing, and adds up what writing would cost.

    Args:
        learns: whether the models learn what they are shown.

    Attributes:
        part: what the next bits are about.
        bits: −log₂ of the probabilities, by part.
    """

    def __init__(self, learns: bool = True) -> None:
        self.part = ""
        self._learns = learns
        self.bits: dict[str, float] = defaultdict(float)

    def bit(self, bit: int, model: Bit) -> int:
        """Count a bit, let the model learn it, and give it back."""
        self.bits[self.part] -= math.log2(model.weights[bit] / sum(model.weights))
        if self._learns:
            model.update(bit)
        return bit


class Encoder:
    """Writes bits, each at the cost of −log₂ of its probability."""

    def __init__(self) -> None:
        self.part = ""
        self._low, self._range, self._bytes = 0, _TOP, bytearray()

    def bit(self, bit: int, model: Bit) -> int:
        """Write a bit, let the model learn it, and give it back."""
        zero, one = model.weights
        split = self._range * zero // (zero + one)
        if bit:
            self._low += split
            self._range -= split
        else:
            self._range = split
        model.update(bit)
        while self._range < _LOW:
            self._emit(self._low >> (_WORD - 8))
            self._low = self._low << 8 & (_TOP - 1)
            self._range <<= 8
        return bit

    def finish(self) -> bytes:
        """All that was written, and the fewest bytes more that no other message can begin with."""
        length, value = _ending(self._low, self._range)
        for _ in range(length):
            self._emit(value >> (_WORD - 8))
            value = value << 8 & (_TOP - 1)
        return bytes(self._bytes)

    def _emit(self, byte: int) -> None:
        """Append the low eight bits; the ninth is a carry into what was written before."""
        if byte & 0x100:
            place = len(self._bytes) - 1
            while self._bytes[place] == 0xFF:
                self._bytes[place] = 0
                place -= 1
            self._bytes[place] += 1
        self._bytes.append(byte & 0xFF)


class Decoder:
    """Reads what an `Encoder` wrote; past the end of the data it reads zeros, and `consumed` tells.

    Args:
        data: the code, and anything after it.
    """

    def __init__(self, data: bytes) -> None:
        self.part = ""
        self._data, self._place = data, _WORD // 8
        self._low, self._range = 0, _TOP
        # How far the message lies above the interval's lower end.
        self._offset = int.from_bytes(data[: self._place].ljust(self._place, b"\0"), "big")

    def bit(self, bit: int, model: Bit) -> int:
        """Read a bit and let the model learn it; the argument is not looked at."""
        zero, one = model.weights
        split = self._range * zero // (zero + one)
        bit = int(self._offset >= split)
        if bit:
            self._low += split
            self._offset -= split
            self._range -= split
        else:
            self._range = split
        model.update(bit)
        while self._range < _LOW:
            self._low = self._low << 8 & (_TOP - 1)
            self._range <<= 8
            byte = self._data[self._place] if self._place < len(self._data) else 0
            self._offset = self._offset << 8 | byte
            self._place += 1
        return bit

    def consumed(self) -> int:
        """Bytes of the message, if it ends here: what `Encoder.finish` gave, whatever follows it.

        Raises:
            ValueError: no encoder ends like this, so that other bytes behind these would be read as another message.
        """
        low = self._low & (_TOP - 1)
        length, value = _ending(low, self._range)
        if (low + self._offset - value) >> (_WORD - 8 * length):
            raise ValueError("its last bytes are not those of a code")
        return self._place - _WORD // 8 + length


def _ending(low: int, size: int) -> tuple[int, int]:
    """The fewest bytes whose every continuation lies in [low, low + size), and their value in a word's upper end."""
    for length in range(_WORD // 8 + 1):
        unit = 1 << (_WORD - 8 * length)
        value = -(-low // unit) * unit
        if value + unit <= low + size:
            return length, value
    raise AssertionError("an interval of at least a byte's range holds a whole word")


class Unary:
    """Small integers ≥ 0, each step with a probability of its own; from `escape` on by Elias' gamma code."""

    def __init__(self, escape: int = 16) -> None:
        self._steps = [Bit() for _ in range(escape)]

    def code(self, coder: Coder, value: int) -> int:
        """Write or read an integer."""
        for step, model in enumerate(self._steps):
            if not coder.bit(int(value > step), model):
                return step
        return len(self._steps) + elias_gamma(coder, value - len(self._steps))


class Gamma:
    """Integers ≥ 0 of any size: Elias' gamma code, its length adaptive."""

    def __init__(self) -> None:
        self._length = Unary(escape=32)

    def code(self, coder: Coder, value: int) -> int:
        """Write or read an integer.

        Raises:
            OverflowError: what is read has more than 32 digits.
        """
        return _digits(coder, value, self._length.code(coder, (value + 1).bit_length() - 1))


def elias_gamma(coder: Coder, value: int) -> int:
    """Write or read an integer ≥ 0 in 2⌊log₂(i + 1)⌋ + 1 bits, without learning.

    Raises:
        OverflowError: what is read has more than 32 digits.
    """
    length = 0
    while length <= _MOST_DIGITS and coder.bit(int((value + 1) >> (length + 1) > 0), FAIR):
        length += 1
    return _digits(coder, value, length)


def _digits(coder: Coder, value: int, length: int) -> int:
    """The digits of value + 1 below its leading one, of which there are `length`; refused before they are read."""
    if length > _MOST_DIGITS:
        raise OverflowError(f"an integer of more than {_MOST_DIGITS} bits")
    found = 1
    for place in range(length - 1, -1, -1):
        found = found << 1 | coder.bit((value + 1) >> place & 1, FAIR)
    return found - 1


class Signed:
    """Integers of either sign: whether zero, the sign, and `Gamma`."""

    def __init__(self) -> None:
        self._nonzero, self._negative, self._size = Bit(), Bit(), Gamma()

    def code(self, coder: Coder, value: int) -> int:
        """Write or read an integer."""
        if not coder.bit(int(value != 0), self._nonzero):
            return 0
        negative = coder.bit(int(value < 0), self._negative)
        size = 1 + self._size.code(coder, abs(value) - 1)
        return -size if negative else size


class Numbers:
    """Numbers of a header, each with its limit, which learn nothing.

    Args:
        coder: that writes or reads them.
    """

    def __init__(self, coder: Coder) -> None:
        self._coder = coder

    def number(self, value: int, largest: int) -> int:
        """An integer ≥ 0, by Elias' gamma code.

        Raises:
            ValueError: it is beyond the largest.
        """
        found = elias_gamma(self._coder, value)
        if found > largest:
            raise ValueError(f"{found} where at most {largest} is possible")
        return found

    def flag(self, value: int) -> int:
        """0 or 1."""
        return self._coder.bit(int(value), FAIR)

    def exponent(self, value: int, largest: int = 40) -> int:
        """An integer of either sign: its size, and a bit for the sign, of a zero too."""
        size = self.number(abs(value), largest)
        return -size if self.flag(value < 0) else size


def sign(value: int) -> int:
    """−1, 0 or 1."""
    return (value > 0) - (value < 0)
