"""Pickled arrays, read by a reader that knows arrays and nothing else."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from milkshake_mbp.errors import UserError

__all__ = ["read_pickled_arrays"]


def read_pickled_arrays(path: Path, key: str = "data_dir") -> dict[str, Any]:
    """The dictionary of arrays, lists, numbers and text in a pickle such as those of CIFAR-10 and CIFAR-100.

    A pickle runs what it names. Here every name stands for a function of this module, which makes an array of bytes,
    and any other name is refused; nothing is imported or called for the file.

    Args:
        path: the file, of Python 2 or 3.
        key: the configuration's key that says where it is, for the message.

    Raises:
        UserError: it is absent, damaged, holds something else, or names something else.
    """
    try:
        with path.open("rb") as file:
            content = _arrays_in(_Reader(file, encoding="bytes").load())
    except FileNotFoundError as error:
        raise UserError(f"{key}: {path} is absent: put it there, or call prepare_data()") from error
    except _RefusedError as error:
        raise UserError(
            f"{key}: {path} refers to {error}, which a file of arrays does not need: it was not read"
        ) from error
    except Exception as error:  # whatever the instructions of a damaged file lead to
        raise UserError(f"{key}: {path} is truncated or damaged: delete it to download it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{key}: {path} holds a {type(content).__name__}, expected a dictionary of arrays")
    return {_text(name): value for name, value in content.items()}


class _RefusedError(Exception):
    """The name of what a pickle would have imported."""


class _Type:
    """In place of a dtype: its name and byte order."""

    def __init__(self, name: Any, *_: Any) -> None:
        self.name: str = _text(name)
        self.order: Any = ""

    def __setstate__(self, state: Any) -> None:
        self.order = _text(state[1])

    def dtype(self) -> np.dtype:
        dtype = np.dtype(self.name)
        if dtype.kind not in "biuf":
            raise ValueError(f"an array of {self.name}")
        if self.order == "<" or self.order == ">":
            return dtype.newbyteorder(self.order)
        return dtype


class _Array:
    """In place of an array: the bytes and the shape that it is made of."""

    def __init__(self, *_: Any) -> None:
        self.parts: tuple[Any, ...] = ()

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, by_columns, content = state
        self.parts = content, kind, shape, by_columns

    def array(self) -> np.ndarray:
        content, kind, shape, by_columns = self.parts
        order: Any = "F" if by_columns in (True, "F", b"F") else "C"
        return np.frombuffer(bytes(content), kind.dtype()).reshape(shape, order=order)


def _from_buffer(*parts: Any) -> _Array:
    made = _Array()
    made.parts = parts
    return made


def _scalar(kind: _Type, content: bytes) -> Any:
    return np.frombuffer(content, kind.dtype())[0].item()


def _encoded(text: str, encoding: Any = "latin1") -> bytes:
    return text.encode("latin1")


# numpy moved these between its versions; Python 3 writes bytes as text and how to encode it.
_KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _Array for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): _encoded,
}


class _Reader(pickle.Unpickler):
    def __init__(self, file: BinaryIO, encoding: str) -> None:
        super().__init__(file, encoding=encoding)

    def find_class(self, module: str, name: str) -> Any:
        """A function of this module in place of the one that is named."""
        try:
            return _KNOWN[module, name]
        except KeyError:
            raise _RefusedError(f"{module}.{name}") from None


def _arrays_in(value: Any) -> Any:
    """The value, with arrays in place of what they are made of."""
    if isinstance(value, _Array):
        return value.array()
    if isinstance(value, dict):
        return {name: _arrays_in(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_arrays_in(item) for item in value]
    return value


def _text(value: Any) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)
