"""Labelled data: in one tensor, read and normalized a batch at a time; or read and transformed one sample at a time."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torch.utils import data as torch_data

Augmentation = Callable[[Tensor, torch.Generator | None], Tensor]
Coefficient = float | Sequence[float]
Indices = Tensor | np.ndarray | Sequence[int]


class ImageDataset(torch_data.Dataset[tuple[Tensor, Tensor]]):
    """Samples (input, target) with input = shift + scale · pixel, computed when a batch is read.

    A batch costs one gather of the stored pixels and one kernel that converts and normalizes them, on the
    device where the pixels are; no work is done per sample.

    Args:
        data: (n, channels, height, width) or (n, ...) tensor, uint8 or float32.
        targets: (n,) int64 tensor of class numbers, or (n, 2) of class and group.
        scale: factor of the pixels, one number or one for each channel.
        shift: input of a zero pixel, one number or one for each channel, as `scale`.
        augment: maps a batch of stored pixels and `generator` to a batch of the same shape and dtype.
        generator: CPU generator that `augment` draws from; None is torch's global one.
        size: height and width that images are resized to when they are read; None leaves them.

    Raises:
        ValueError: lengths differ, or `scale` and `shift` are not both one number or both one a channel.
    """

    def __init__(
        self,
        data: Tensor,
        targets: Tensor,
        scale: Coefficient = 1.0,
        shift: Coefficient = 0.0,
        augment: Augmentation | None = None,
        generator: torch.Generator | None = None,
        size: int | None = None,
    ) -> None:
        if len(data) != len(targets):
            raise ValueError(f"data has {len(data)} samples and targets has {len(targets)}")
        self.data = data
        self.targets = targets
        self.scale = _per_channel(scale, data)
        self.shift = _per_channel(shift, data)
        if isinstance(self.scale, Tensor) != isinstance(self.shift, Tensor):
            raise ValueError(f"scale {scale} and shift {shift} must both be numbers or both be per channel")
        self.augment = augment
        self.generator = generator
        self.size = size

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """One sample: a float32 input, and a 0-dimensional int64 target, or (2,) with the group."""
        inputs, targets = self.__getitems__([range(len(self))[index]])
        return inputs[0], targets[0]

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """One batch: float32 inputs (len(indices), ...) and int64 targets (len(indices),) or (len(indices), 2)."""
        index = torch.tensor(indices, dtype=torch.int64, device=self.data.device)
        pixels = self.data.index_select(0, index)
        if self.size is not None:
            pixels = resized(pixels, self.size)
        if self.augment is not None:
            pixels = self.augment(pixels, self.generator)
        return self._normalize(pixels), self.targets.index_select(0, index)

    def _normalize(self, pixels: Tensor) -> Tensor:
        if isinstance(self.scale, float) and isinstance(self.shift, float):
            # rsub (shift − alpha · pixels) is the one fused form that takes Python numbers: with a tensor of
            # no dimensions for `shift`, add and addcmul are some twenty times slower on the CPU.
            return torch.rsub(pixels, self.shift, alpha=-self.scale)
        assert isinstance(self.scale, Tensor) and isinstance(self.shift, Tensor)
        return torch.addcmul(self.shift, pixels, self.scale)

    @property
    def sample_shape(self) -> torch.Size:
        """The shape of one input."""
        stored = self.data.shape[1:]
        return stored if self.size is None else torch.Size([stored[0], self.size, self.size])

    @property
    def groups(self) -> list[np.ndarray] | None:
        """The positions of the samples of each group, up to the highest that there is; None without groups."""
        return positions_of_groups(self.targets)

    @property
    def train_indices(self) -> np.ndarray:
        """All positions, since what is held out has been taken away already; for code written for Milkshake."""
        return np.arange(len(self))

    val_indices = test_indices = train_indices

    def to(self, device: torch.device | str) -> "ImageDataset":
        """The same samples on `device`; nothing is copied if they are there already."""
        moved = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(moved, name, value.to(device))
        return moved

    def augmented(self, augment: Augmentation | None, generator: torch.Generator) -> "ImageDataset":
        """The same samples, in the same storage, augmented by draws from `generator`."""
        view = copy.copy(self)
        view.augment, view.generator = augment, generator
        return view

    def subset(self, indices: Indices) -> "ImageDataset":
        """A copy of the samples at `indices`, in that order."""
        index = torch.as_tensor(indices, dtype=torch.int64, device=self.data.device)
        part = copy.copy(self)
        part.data, part.targets = self.data[index], self.targets[index]
        return part

    def per_sample(self, transform: Callable | None, target_transform: Callable | None, pictures: bool) -> "Dataset":
        """The same samples one at a time, each through transforms of its own.

        Args:
            transform: of a picture or a tensor.
            target_transform: of a target.
            pictures: whether `transform` takes a `PIL.Image`, rather than a float tensor with pixels from 0 to 1.
        """
        data: Any = self.data.cpu()
        if pictures and data.dtype == torch.uint8 and data.ndim == 4 and data.shape[1] in (1, 3):
            data = data.permute(0, 2, 3, 1).numpy()
            data = data[..., 0] if data.shape[3] == 1 else data
        return _Arrays(data, self.targets.cpu(), transform, target_transform)


class Dataset(torch_data.Dataset[tuple[Any, Any]]):
    """Milkshake's data set, whose samples are read and transformed one at a time.

    A subclass implements `load_data`, and `download` if its data can be downloaded. `load_data` sets `data` and
    `targets`, of training and held-out samples if `train`, and optionally the other attributes:

    Attributes:
        data: array of images, (n, height, width, channels) or (n, height, width), uint8; tensor; or array of the paths
            of images. A path is opened as an RGB image when its sample is read; other text is given as it is.
        targets: (n,) class numbers, or (n, 2) of class and group, as an array or a tensor.
        train_indices, val_indices: positions of the samples for training and of those held out; None to draw them.
        test_indices: positions of the samples that are kept if not `train`; None for all.
        groups: for each group, the positions of its samples.

    Args:
        root: folder of the data.
        train: whether to read the training set, rather than the test set.
        transform: transform of a sample, which is a `PIL.Image` if `data` are images or paths; uint8 pixels of a tensor
            become floats from 0 to 1.
        target_transform: transform of a target.
        download: whether to call `download` first.
    """

    def __init__(
        self,
        root: str | Path,
        train: bool = True,
        transform: Callable | None = None,
        target_transform: Callable | None = None,
        download: bool = False,
    ) -> None:
        self.root = str(root)
        self.train = train
        self.transform = transform
        self.target_transform = target_transform
        self.data: Any = None
        self.targets: Any = None
        self.train_indices: Indices | None = None
        self.val_indices: Indices | None = None
        self.test_indices: Indices | None = None
        self.groups: list[np.ndarray] | None = None
        if download:
            self.download()
        self.load_data()
        if self.test_indices is not None and not train:
            kept = np.asarray(self.test_indices)
            self.data, self.targets = self.data[kept], self.targets[kept]
            self.groups = _groups_within(self.groups, kept)
            self.train_indices = self.val_indices = None
            self.test_indices = np.arange(len(kept))

    def download(self) -> Any:
        """Download missing data; does nothing unless overridden."""

    def load_data(self) -> Any:
        """Set `data` and `targets`, and optionally indices and groups."""
        raise NotImplementedError(f"{type(self).__name__} must implement load_data()")

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        sample, target = _opened(self.data[index]), self.targets[index]
        if self.transform is not None:
            sample = self.transform(sample)
        if self.target_transform is not None:
            target = self.target_transform(target)
        return sample, target


class Subset(Dataset):
    """The samples of a data set at `indices`, in that order, with its transforms; groups and indices are renumbered.

    Of an `ImageDataset` it is the `ImageDataset` of those samples.

    Args:
        dataset: the data set.
        indices: positions of the samples.
    """

    # Without arguments when it is copied or unpickled.
    def __new__(cls, dataset: Any = None, indices: Indices = ()) -> Any:
        """The fast kind of an `ImageDataset`."""
        return dataset.subset(indices) if isinstance(dataset, ImageDataset) else super().__new__(cls)

    def __init__(self, dataset: Dataset, indices: Indices) -> None:
        self.indices = np.asarray(indices)
        self.root, self.train = dataset.root, dataset.train
        self.transform, self.target_transform = dataset.transform, dataset.target_transform
        self.data, self.targets = dataset.data[self.indices], dataset.targets[self.indices]
        self.groups = _groups_within(dataset.groups, self.indices)
        for name in ("train_indices", "val_indices", "test_indices"):
            chosen = getattr(dataset, name)
            everything = np.arange(len(self.indices))
            setattr(self, name, everything if chosen is None else _within(chosen, self.indices))


class _Arrays(Dataset):
    """Samples that are in memory."""

    def __init__(self, data: Any, targets: Any, transform: Callable | None, target_transform: Callable | None) -> None:
        self._given = data, targets
        super().__init__("", transform=transform, target_transform=target_transform)

    def load_data(self) -> None:
        """Take what was given."""
        self.data, self.targets = self._given
        self.groups = positions_of_groups(self.targets)


def positions_of_groups(targets: Any) -> list[np.ndarray] | None:
    """The positions of the samples of each group, given (n, 2) targets of class and group; None of (n,) targets."""
    if targets.ndim != 2 or targets.shape[1] != 2:
        return None
    group = np.asarray(targets.cpu() if isinstance(targets, Tensor) else targets)[:, 1]
    return [np.flatnonzero(group == number) for number in range(int(group.max(initial=-1)) + 1)]


def resized(images: Tensor, size: int) -> Tensor:
    """(n, channels, height, width) images at `size` × `size` pixels, by antialiased bilinear interpolation."""
    result = functional.interpolate(images.float(), size=(size, size), mode="bilinear", antialias=True)
    return result.round().clamp(0, 255).to(torch.uint8) if images.dtype == torch.uint8 else result


def _within(chosen: Indices, indices: np.ndarray) -> np.ndarray:
    """The positions in `indices` of those that are chosen."""
    return np.flatnonzero(np.isin(indices, np.asarray(chosen)))


def _groups_within(groups: list[np.ndarray] | None, indices: np.ndarray) -> list[np.ndarray] | None:
    return None if groups is None else [_within(group, indices) for group in groups]


def _opened(sample: Any) -> Any:
    if isinstance(sample, np.ndarray) and sample.dtype == np.uint8 and sample.ndim in (2, 3):
        return Image.fromarray(sample[..., 0] if sample.shape[2:] == (1,) else sample)
    if isinstance(sample, str) and Path(sample).is_file():
        # Within `with`, or a worker that reads many images runs out of open files.
        with Image.open(sample) as image:
            return image.convert("RGB")
    if isinstance(sample, Tensor) and sample.dtype == torch.uint8:
        return sample.float() / 255
    return sample


def _per_channel(coefficient: Coefficient, data: Tensor) -> float | Tensor:
    if not isinstance(coefficient, Sequence):
        return float(coefficient)
    if data.ndim != 4 or len(coefficient) != data.shape[1]:
        raise ValueError(f"{len(coefficient)} coefficients for data of shape {tuple(data.shape)}")
    return torch.tensor(coefficient, dtype=torch.float32, device=data.device).reshape(-1, 1, 1)
