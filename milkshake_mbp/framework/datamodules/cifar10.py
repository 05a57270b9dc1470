"""CIFAR-10, from a folder of images or from its original archive."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from milkshake_mbp.errors import UserError
from milkshake_mbp.framework.datamodules.datamodule import DataModule
from milkshake_mbp.framework.datamodules.dataset import Augmentation
from milkshake_mbp.framework.datamodules.files import CIFAR10_ARCHIVE, cifar10_batches, read_cifar10
from milkshake_mbp.framework.datamodules.files import CIFAR10_CLASSES as CLASSES


class CIFAR10(DataModule):
    """50,000 training and 10,000 test images (3, 32, 32) of 10 classes, inputs in [-1, 1].

    Read from `data_dir`/cifar10/{train,test}/<class>/*.png if `data_dir`/cifar10 exists; otherwise from
    `data_dir`/cifar-10-batches-py, where torchvision keeps it, and downloaded there if it is absent; nothing is
    unpickled. The classes have the same numbers either way. `data_augmentation` crops and flips the training images.

    Raises:
        UserError: from `prepare_data`, the data are absent and cannot be downloaded; from `setup`, they are
            absent, incomplete or damaged.
    """

    def __init__(self, args: Any) -> None:
        super().__init__(args, num_classes=len(CLASSES))

    @property
    def image_folder(self) -> Path:
        """Where the images are looked for first."""
        return self.data_dir / "cifar10"

    @property
    def archive_folder(self) -> Path:
        """Where the archive's files are looked for otherwise."""
        return self.data_dir / CIFAR10_ARCHIVE

    def prepare_data(self) -> None:
        """Download the archive if neither it nor the folder of images is there."""
        files = [name for train in (True, False) for name in cifar10_batches(train)]
        if self.image_folder.is_dir() or all((self.archive_folder / name).is_file() for name in files):
            return
        from torchvision import datasets

        try:
            datasets.CIFAR10(self.data_dir, download=True)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"data_dir: expected {self.image_folder} or {self.archive_folder} ({' '.join(str(error).split())}): "
                f"put cifar10/{{train,test}}/<class>/*.png in {self.data_dir}, or unpack "
                f"{datasets.CIFAR10.filename} there"
            ) from error

    def load(self, train: bool) -> tuple[Tensor, Tensor]:
        """Read the training or the test images."""
        return read_cifar10(self.data_dir, train)

    def augmentation(self) -> Augmentation:
        """A random crop of the image padded by 4 pixels, and a horizontal flip of half of the images."""
        return random_crop_and_flip


def random_crop_and_flip(
    images: Tensor, generator: torch.Generator | None = None, padding: int = 4, flip: bool = True
) -> Tensor:
    """Crop each image, padded with zeros, to its own size at a random place, and flip half of the images.

    Args:
        images: (n, channels, height, width) tensor.
        generator: CPU generator; None is torch's global one.
        padding: width of the border, in pixels.
        flip: whether any are flipped.

    Returns:
        A tensor of the shape, dtype and device of `images`.
    """
    n, channels, height, width = images.shape
    device = images.device
    top, left = torch.randint(0, 2 * padding + 1, (2, n, 1), generator=generator).to(device)
    flipped = torch.randint(0, 2 if flip else 1, (n, 1), generator=generator).bool().to(device)
    across = torch.arange(width, device=device)
    rows = top + torch.arange(height, device=device)
    columns = left + torch.where(flipped, across.flip(0), across)
    padded = functional.pad(images, (padding,) * 4)
    return padded[
        torch.arange(n, device=device)[:, None, None, None],
        torch.arange(channels, device=device)[:, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]
