"""A user's own data, from one .npz file."""

import math
import zipfile
import zlib
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from milkshake_mbp.errors import UserError
from milkshake_mbp.framework.datamodules.datamodule import DataModule

# Bytes that an array may have however small it is in the file; and how many times as many as there, beyond them.
_ALWAYS, _MOST_INFLATED = 1 << 26, 100
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class Arrays(DataModule):
    """The arrays x_train, y_train, x_test and y_test of the file `arrays_path`, as `numpy.savez` writes it.

    x is (n, ...): uint8 values are taken as pixels and scaled to [-1, 1]; other values are kept, as float32.
    y is (n,) or (n, 1): class numbers from 0, of any integer or float type; the number of classes is the largest number
    in y_train and y_test plus 1. An array may take 64 MiB, or 100 times its bytes in a compressed file.

    Raises:
        UserError: no `arrays_path`; from `setup`, the file or an array is absent, pickled, or not as above.
    """

    def __init__(self, args: Any) -> None:
        super().__init__(args, num_classes=None)
        if not getattr(args, "arrays_path", None):
            raise UserError("arrays_path: expected the path of an .npz file for the arrays datamodule, got none")
        self.path = Path(args.arrays_path).expanduser()

    def setup(self, stage: str | None = None) -> None:
        """As `DataModule.setup`, with the number of classes taken from both parts."""
        if self.num_classes is None:
            self.num_classes = 1 + max(int(y.max()) for _, y in self._parts.values())
            count = sum(len(y) for _, y in self._parts.values())
            if self.num_classes > count:
                raise UserError(
                    f"arrays_path: {self.path}: class numbers go up to {self.num_classes - 1} in {count} samples: "
                    "number the classes from 0 up, without gaps"
                )
        super().setup(stage)

    def load(self, train: bool) -> tuple[Tensor, Tensor]:
        """The training or the test arrays."""
        x, y = self._parts["train" if train else "test"]
        return torch.from_numpy(x), torch.from_numpy(y)

    @cached_property
    def _parts(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        if not self.path.is_file():
            raise UserError(f"arrays_path: {self.path} is not a file")
        if not zipfile.is_zipfile(self.path):
            raise UserError(f"arrays_path: {self.path} is not an .npz file: write it with numpy.savez")
        with np.load(self.path, allow_pickle=False) as archive:
            parts = {part: (self._inputs(archive, part), self._targets(archive, part)) for part in ("train", "test")}
        for part, (x, y) in parts.items():
            if len(x) != len(y) or len(y) == 0:
                raise UserError(
                    f"arrays_path: {self.path}: x_{part} has {len(x)} samples and y_{part} has {len(y)}, "
                    "expected as many of each, and some"
                )
        train, test = parts["train"][0], parts["test"][0]
        if train.shape[1:] != test.shape[1:] or train.dtype != test.dtype:
            raise UserError(
                f"arrays_path: {self.path}: samples are {train.shape[1:]} {train.dtype} in x_train and "
                f"{test.shape[1:]} {test.dtype} in x_test, expected the same"
            )
        return parts

    def _inputs(self, archive: Any, part: str) -> np.ndarray:
        x = self._array(archive, f"x_{part}", kinds="buif", expected="numbers")
        if x.ndim < 2:
            raise UserError(f"arrays_path: {self.path}: x_{part} has shape {x.shape}, expected (n, ...)")
        if x.dtype == np.uint8:
            return x
        x = x.astype(np.float32)
        if not np.isfinite(x).all():
            raise UserError(f"arrays_path: {self.path}: x_{part} has values that are NaN or infinite in float32")
        return x

    def _targets(self, archive: Any, part: str) -> np.ndarray:
        y = self._array(archive, f"y_{part}", kinds="buif", expected="class numbers")
        if y.ndim == 2 and y.shape[1] == 1:
            y = y[:, 0]
        where = f"arrays_path: {self.path}: y_{part}"
        if y.ndim != 1:
            advice = "; class numbers of one-hot rows are y.argmax(axis=1)" if y.ndim == 2 else ""
            raise UserError(f"{where} has shape {y.shape}, expected (n,), a class number for each sample{advice}")
        if not (np.isfinite(y) & (y == np.trunc(y)) & (np.abs(y) < 2.0**53)).all():
            raise UserError(f"{where} has values that are not whole numbers, expected class numbers from 0 up")
        return y.astype(np.int64)

    def _array(self, archive: Any, key: str, kinds: str, expected: str) -> np.ndarray:
        if key not in archive:
            raise UserError(
                f"arrays_path: {self.path} has no array {key}, expected x_train, y_train, x_test and y_test"
            )
        try:
            self._check_size(archive.zip, key)
            array = archive[key]
        except UserError:
            raise
        except ValueError as error:
            raise UserError(
                f"arrays_path: {self.path}: {key} is not a plain array (pickled arrays are refused): "
                "save plain numeric arrays with numpy.savez"
            ) from error
        except (EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
            raise UserError(f"arrays_path: {self.path}: {key} is damaged: write the file again") from error
        if array.dtype.kind not in kinds:
            raise UserError(f"arrays_path: {self.path}: {key} is {array.dtype}, expected {expected}")
        return array

    def _check_size(self, archive: zipfile.ZipFile, key: str) -> None:
        """Refuse, before it is read, what would take much more memory than the file has bytes.

        Raises:
            UserError: it inflates too much, or claims a shape that its bytes do not fill.
            ValueError: it is not an array.
        """
        found = archive.getinfo(f"{key}.npy" if f"{key}.npy" in archive.namelist() else key)
        if found.file_size > max(_ALWAYS, _MOST_INFLATED * found.compress_size):
            raise UserError(
                f"arrays_path: {self.path}: {key} inflates from {found.compress_size:,} to {found.file_size:,} bytes, "
                f"of at most {_MOST_INFLATED} times: write it with numpy.savez"
            )
        with archive.open(found) as member:
            read = _HEADERS.get(np.lib.format.read_magic(member))
            if read is None:
                raise ValueError("a header of another version")
            shape, _, dtype = read(member)
        if math.prod(shape) * dtype.itemsize > found.file_size:
            raise UserError(f"arrays_path: {self.path}: {key} is damaged: write the file again")
