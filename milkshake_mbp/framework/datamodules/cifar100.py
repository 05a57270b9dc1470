"""CIFAR-100, from its original archive."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision import datasets

from milkshake_mbp.errors import UserError
from milkshake_mbp.framework.datamodules.cifar10 import random_crop_and_flip
from milkshake_mbp.framework.datamodules.datamodule import DataModule
from milkshake_mbp.framework.datamodules.dataset import Augmentation
from milkshake_mbp.framework.datamodules.files import pixels_and_targets


class CIFAR100(DataModule):
    """50,000 training and 10,000 test images (3, 32, 32) of 100 classes, inputs in [-1, 1].

    Read from `data_dir`/cifar-100-python, where torchvision keeps it, and downloaded there if it is absent; nothing is
    unpickled. `data_augmentation` crops and flips the training images.

    Raises:
        UserError: from `prepare_data`, the data are absent and cannot be downloaded; from `setup`, they are absent or
            damaged.
    """

    def __init__(self, args: Any) -> None:
        super().__init__(args, num_classes=100)

    @property
    def folder(self) -> Path:
        """Where the files train and test are."""
        return self.data_dir / datasets.CIFAR100.base_folder

    def prepare_data(self) -> None:
        """Download the archive if one of its files is absent."""
        if all((self.folder / name).is_file() for name in ("train", "test")):
            return
        try:
            datasets.CIFAR100(self.data_dir, download=True)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"data_dir: {self.folder} lacks the data and they cannot be downloaded "
                f"({' '.join(str(error).split())}): unpack {datasets.CIFAR100.filename} in {self.data_dir}"
            ) from error

    def load(self, train: bool) -> tuple[Tensor, Tensor]:
        """Read the training or the test file; the targets are the fine classes."""
        pixels, targets = pixels_and_targets(self.folder / ("train" if train else "test"), "fine_labels")
        return torch.from_numpy(pixels), torch.from_numpy(targets)

    def augmentation(self) -> Augmentation:
        """A random crop of the image padded by 4 pixels, and a horizontal flip of half of the images."""
        return random_crop_and_flip
