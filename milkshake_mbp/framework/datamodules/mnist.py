"""MNIST and Fashion-MNIST, from their idx files."""

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchvision import datasets
from torchvision.datasets.mnist import read_sn3_pascalvincent_tensor

from milkshake_mbp.errors import UserError
from milkshake_mbp.framework.datamodules.datamodule import DataModule


class MNIST(DataModule):
    """60,000 training and 10,000 test images (1, 28, 28) of 10 classes, inputs in [-1, 1].

    Read from `data_dir`/MNIST/raw, where torchvision keeps it, and downloaded there if it is absent.

    Raises:
        UserError: from `prepare_data`, the files are absent and cannot be downloaded; from `setup`, one is
            absent or damaged.
    """

    transforms_take_pictures = False
    source: type[datasets.MNIST] = datasets.MNIST
    num_images: ClassVar[dict[str, int]] = {"train": 60_000, "t10k": 10_000}

    def __init__(self, args: Any) -> None:
        super().__init__(args, num_classes=10)

    @property
    def folder(self) -> Path:
        """Where the four files are; upstream Milkshake's torchvision keeps them under another name."""
        name = self.source.__name__
        kept = self.data_dir / f"{name}Dataset" / "raw"
        own = self.data_dir / name / "raw"
        return kept if kept.is_dir() and not own.is_dir() else own

    def prepare_data(self) -> None:
        """Download the files if one of them is absent."""
        files = [name for part in self.num_images for name in _file_names(part)]
        if all((self.folder / name).is_file() for name in files):
            return
        try:
            self.source(self.data_dir, download=True)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"data_dir: {self.folder} lacks the data and they cannot be downloaded "
                f"({' '.join(str(error).split())}): put {', '.join(files)} there"
            ) from error

    def load(self, train: bool) -> tuple[Tensor, Tensor]:
        """Read the training or the test files."""
        part = "train" if train else "t10k"
        images, labels = _file_names(part)
        count = self.num_images[part]
        return self._read(images, (count, 28, 28)).unsqueeze(1), self._read(labels, (count,))

    def _read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        path = self.folder / name
        try:
            tensor = read_sn3_pascalvincent_tensor(str(path))
        except FileNotFoundError as error:
            raise UserError(f"data_dir: {path} is absent: put it there, or call prepare_data()") from error
        except (AssertionError, KeyError, OSError, RuntimeError, ValueError) as error:
            raise UserError(f"data_dir: {path} is truncated or damaged: delete it to download it again") from error
        if tensor.shape != shape or tensor.dtype != torch.uint8:
            raise UserError(
                f"data_dir: {path} holds {tuple(tensor.shape)} {tensor.dtype}, expected {shape} torch.uint8: "
                "delete it to download it again"
            )
        return tensor


class FashionMNIST(MNIST):
    """Fashion-MNIST, of the same sizes as MNIST, in `data_dir`/FashionMNIST/raw."""

    source = datasets.FashionMNIST


def _file_names(part: str) -> tuple[str, str]:
    return f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"
