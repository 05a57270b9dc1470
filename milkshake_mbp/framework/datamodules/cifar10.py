"""CIFAR-10, from a folder of images or from its original archive."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torchvision import datasets

from milkshake_mbp.errors import UserError
from milkshake_mbp.framework.datamodules.datamodule import DataModule
from milkshake_mbp.framework.datamodules.dataset import Augmentation
from milkshake_mbp.framework.datamodules.pickles import read_pickled_arrays

CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)


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
        return self.data_dir / datasets.CIFAR10.base_folder

    def prepare_data(self) -> None:
        """Download the archive if neither it nor the folder of images is there."""
        files = [name for train in (True, False) for name in _batch_names(train)]
        if self.image_folder.is_dir() or all((self.archive_folder / name).is_file() for name in files):
            return
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
        if self.image_folder.is_dir():
            images, numbers = _read_images(self.image_folder / ("train" if train else "test"))
            return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), numbers
        parts = [pixels_and_targets(self.archive_folder / name, "labels") for name in _batch_names(train)]
        pixels, targets = (np.concatenate(part) for part in zip(*parts, strict=True))
        return torch.from_numpy(pixels), torch.from_numpy(targets)

    def augmentation(self) -> Augmentation:
        """A random crop of the image padded by 4 pixels, and a horizontal flip of half of the images."""
        return random_crop_and_flip


def pixels_and_targets(path: Path, labels: str) -> tuple[np.ndarray, np.ndarray]:
    """The (n, 3, 32, 32) uint8 pixels and (n,) class numbers of a file of CIFAR-10's or CIFAR-100's archive.

    Args:
        path: the file.
        labels: under which name it has the class numbers.

    Raises:
        UserError: it is absent or damaged.
    """
    content = read_pickled_arrays(path)
    pixels, numbers = content.get("data"), np.asarray(content.get(labels, ()))
    if (
        not isinstance(pixels, np.ndarray)
        or pixels.dtype != np.uint8
        or pixels.shape != (len(numbers), 3 * 32 * 32)
        or numbers.dtype.kind not in "iu"
    ):
        raise UserError(
            f"data_dir: {path} does not hold n rows of 3072 pixels, data, and n class numbers, {labels}: delete it to "
            "download it again"
        )
    return pixels.reshape(-1, 3, 32, 32), numbers.astype(np.int64)


def _batch_names(train: bool) -> list[str]:
    return [name for name, _ in (datasets.CIFAR10.train_list if train else datasets.CIFAR10.test_list)]


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


def _read_images(folder: Path) -> tuple[np.ndarray, Tensor]:
    missing = [name for name in CLASSES if not (folder / name).is_dir()]
    if missing:
        raise UserError(f"data_dir: {folder} lacks the folders {', '.join(missing)}: unpack the images again")
    files = [sorted((folder / name).glob("*.png")) for name in CLASSES]
    paths = [path for group in files for path in group]
    if not paths:
        raise UserError(f"data_dir: the folders of {folder} hold no .png files: unpack the images again")
    # Threads are slower: with images this small they mostly wait for one another's interpreter lock.
    images = np.stack([_read_image(path) for path in paths])
    targets = torch.arange(len(CLASSES)).repeat_interleave(torch.tensor([len(group) for group in files]))
    return images, targets


def _read_image(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"data_dir: {path} is not a readable image: delete or replace it") from error
    if pixels.shape != (32, 32, 3):
        height, width, _ = pixels.shape
        raise UserError(f"data_dir: {path} has {width}×{height} pixels, expected 32×32")
    return pixels
