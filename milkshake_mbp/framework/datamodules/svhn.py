"""The Street View House Numbers (Netzer et al. 2011), cropped digits, from their MATLAB files."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.io import loadmat
from torch import Tensor
from torchvision import datasets
from torchvision.datasets.utils import download_url

from milkshake_mbp.errors import UserError
from milkshake_mbp.framework.datamodules.cifar10 import random_crop_and_flip
from milkshake_mbp.framework.datamodules.datamodule import DataModule
from milkshake_mbp.framework.datamodules.dataset import Augmentation


class SVHN(DataModule):
    """73,257 training and 26,032 test images (3, 32, 32) of the digits 0 to 9, inputs in [-1, 1].

    Read from train_32x32.mat and test_32x32.mat in `data_dir`/svhn, or in `data_dir` itself, where torchvision keeps
    them, and downloaded to the former if they are absent. `data_augmentation` crops the training images at random; they
    are not flipped, since digits are not symmetric.

    Raises:
        UserError: from `prepare_data`, the data are absent and cannot be downloaded; from `setup`, they are absent or
            damaged.
    """

    transforms_take_pictures = False

    def __init__(self, args: Any) -> None:
        super().__init__(args, num_classes=10)

    def _path(self, train: bool) -> Path:
        name = datasets.SVHN.split_list["train" if train else "test"][1]
        folders = (self.data_dir / "svhn", self.data_dir)
        return next((folder / name for folder in folders if (folder / name).is_file()), folders[0] / name)

    def prepare_data(self) -> None:
        """Download the files that are absent."""
        for train in (True, False):
            path = self._path(train)
            if path.is_file():
                continue
            url, name, md5 = datasets.SVHN.split_list["train" if train else "test"]
            try:
                download_url(url, path.parent, name, md5)
            except (OSError, RuntimeError) as error:
                why = " ".join(str(error).split())
                raise UserError(f"data_dir: {path} is absent and cannot be downloaded ({why}): put it there") from error

    def load(self, train: bool) -> tuple[Tensor, Tensor]:
        """Read the training or the test file, in which the digit 0 has the label 10."""
        path = self._path(train)
        try:
            # A v5 file holds arrays; what it may name beside them is not called.
            content = loadmat(str(path), variable_names=("X", "y"))
        except FileNotFoundError as error:
            raise UserError(f"data_dir: {path} is absent: put it there, or call prepare_data()") from error
        except Exception as error:  # scipy raises many kinds for a damaged file
            raise UserError(f"data_dir: {path} is truncated or damaged: delete it to download it again") from error
        pixels, labels = content.get("X"), np.asarray(content.get("y", ())).reshape(-1)
        if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape != (32, 32, 3, len(labels)):
            raise UserError(
                f"data_dir: {path} holds X of shape {getattr(pixels, 'shape', None)} and {len(labels)} labels y, "
                "expected X of shape (32, 32, 3, n), uint8, and n labels: delete it to download it again"
            )
        images = torch.from_numpy(np.ascontiguousarray(pixels.transpose(3, 2, 0, 1)))
        return images, torch.from_numpy(labels.astype(np.int64)) % 10

    def augmentation(self) -> Augmentation:
        """A random crop of the image padded by 4 pixels."""
        return _random_crop


def _random_crop(images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    return random_crop_and_flip(images, generator, flip=False)
