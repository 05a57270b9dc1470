"""What a code may say: limits that are part of every version, so that no file takes long to read or much memory."""

__all__ = ["MAX_EXPONENT", "MAX_NUMBER", "MAX_WEIGHTS", "WEIGHTS_A_BYTE", "DecodeError", "Work"]

# Weights in all; weights and rows for each byte of the code, so that a kilobyte has a million at most; inputs of a row.
MAX_WEIGHTS, WEIGHTS_A_BYTE, MAX_WIDTH = 1 << 22, 1 << 10, 1 << 18
MAX_EXPONENT, MAX_NUMBER = 40, 1 << 24


class DecodeError(ValueError):
    """The bytes are no network's code."""


class Work:
    """Weights and rows that a code has.

    Args:
        length: bytes that the code may take: all that are there for a reader, who does not know how many they are.
    """

    def __init__(self, length: int | None = None) -> None:
        self._length, self._weights, self._rows = length, 0, 0

    def add(self, rows: int, columns: int) -> None:
        """Say what comes, before it is read.

        Raises:
            DecodeError: it is too much.
        """
        self._weights += rows * columns
        self._rows += rows
        if columns > MAX_WIDTH or rows > MAX_WIDTH:
            raise DecodeError(f"{rows:,} rows of {columns:,} weights, of at most {MAX_WIDTH:,}")
        if self._weights > MAX_WEIGHTS:
            raise DecodeError(f"{self._weights:,} weights, of at most {MAX_WEIGHTS:,}")
        if self._length is not None:
            self.check(self._length)

    def check(self, length: int) -> None:
        """Compare with the length of the code.

        Raises:
            DecodeError: it is too short.
        """
        if (total := self._weights + self._rows) > WEIGHTS_A_BYTE * length:
            raise DecodeError(
                f"{total:,} weights and rows in {length} bytes, where a byte has {WEIGHTS_A_BYTE} at most"
            )
