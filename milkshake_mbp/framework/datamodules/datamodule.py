"""Milkshake's datamodule interface on Lightning 2, for data that fits in memory."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Sampler

from milkshake_mbp.errors import UserError
from milkshake_mbp.framework.datamodules.dataset import Augmentation, Coefficient, ImageDataset
from milkshake_mbp.framework.datamodules.sampler import EpochRandomSampler, seed_generator

T = TypeVar("T")
_SPLIT_STREAM, _NOISE_STREAM = 1, 2
_CHUNK = 4096


class DataModule(pl.LightningDataModule):
    """Training, validation and test set, each an `ImageDataset` on the device that trains.

    A subclass implements `load`, and `prepare_data` if its data can be downloaded; `scale` and `shift` turn
    its uint8 pixels into inputs (float data are inputs already). `dataset_train` and `dataset_val` exist
    after `setup` of any stage but "test", `dataset_test` after `setup("test")`, all after `setup(None)`; none of
    them is augmented, only what `train_dataloader` gives is.

    Args:
        args: namespace with batch_size, data_dir, seed and val_split (fraction of the training set held out,
            in [0, 1)); optionally data_augmentation, image_size (pixels a side), input_channels (1 or 3) and
            label_noise (fraction of the training labels, those not held out, that are replaced by another
            class drawn uniformly).
        num_classes: None to take it from the targets in `setup`.
        num_groups: number of groups, 0 where the data have none.

    Raises:
        UserError: a key of `args` has an impossible value; from `setup`, the data do not fit the keys.
    """

    # A hair under 1/127.5: rounded to float32, 1/127.5 itself would carry pixel 255 beyond 1.
    scale: Coefficient = (1 - 2**-24) / 127.5
    shift: Coefficient = -1.0

    dataset_train: ImageDataset
    dataset_val: ImageDataset
    dataset_test: ImageDataset

    def __init__(self, args: Any, num_classes: int | None = None, num_groups: int = 0) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_groups = num_groups
        self.data_dir = Path(args.data_dir).expanduser()
        self.batch_size: int = _require("batch_size", args.batch_size, _is_positive_int, "a positive integer")
        self.seed: int = _require("seed", args.seed, lambda x: _is_int(x) and x >= 0, "an integer from 0 up")
        self.val_split: float = _require(
            "val_split", args.val_split, lambda x: _is_number(x) and 0 <= x < 1, "a fraction in [0, 1)"
        )
        self.label_noise: float = _require(
            "label_noise",
            getattr(args, "label_noise", None) or 0.0,
            lambda x: _is_number(x) and 0 <= x <= 1,
            "a fraction in [0, 1]",
        )
        self.image_size: int | None = _require(
            "image_size",
            getattr(args, "image_size", None),
            lambda x: x is None or _is_positive_int(x),
            "a positive integer, or null for the native size",
        )
        self.input_channels: int | None = _require(
            "input_channels",
            getattr(args, "input_channels", None),
            lambda x: x is None or (_is_int(x) and x in (1, 3)),
            "1 (grey), 3 (colour), or null for the native channels",
        )
        # Of one seed, smaller sets lie within larger ones.
        self.train_samples: int | None = _require(
            "train_samples",
            getattr(args, "train_samples", None),
            lambda x: x is None or _is_positive_int(x),
            "a positive integer, or null for all",
        )
        self.data_augmentation = bool(getattr(args, "data_augmentation", False))

    def load(self, train: bool) -> tuple[Tensor, Tensor]:
        """Read the training or the test set: (n, ...) uint8 pixels or float32 inputs, (n,) targets."""
        raise NotImplementedError(f"{type(self).__name__} must implement load(train)")

    def augmentation(self) -> Augmentation | None:
        """What `data_augmentation: true` does to the training set; None where it does nothing."""
        return None

    def load_msg(self) -> str:
        """One line that describes the data set and what is done to it."""
        parts = [f"batch size {self.batch_size}", f"{self.val_split:.0%} of the training set held out"]
        if self.data_augmentation and self.augmentation() is not None:
            parts.append("augmented")
        if self.image_size is not None:
            parts.append(f"{self.image_size} pixels a side")
        if self.input_channels is not None:
            parts.append(f"{self.input_channels} channels")
        if self.label_noise:
            parts.append(f"{self.label_noise:.0%} of the training labels replaced")
        return f"{type(self).__name__}: {', '.join(parts)}"

    def setup(self, stage: str | None = None) -> None:
        """Load what `stage` needs and is not loaded yet, and move it to the device of the trainer, if any."""
        if stage != "test" and not hasattr(self, "dataset_train"):
            self._setup_train()
        if stage in ("test", None) and not hasattr(self, "dataset_test"):
            self.dataset_test = self._dataset(train=False)
        if self.trainer is not None:
            for name in ("dataset_train", "dataset_val", "dataset_test"):
                if hasattr(self, name):
                    setattr(self, name, getattr(self, name).to(self.trainer.strategy.root_device))

    def _setup_train(self) -> None:
        dataset = self._dataset(train=True)
        order = torch.randperm(len(dataset), generator=seed_generator(torch.Generator(), self.seed, _SPLIT_STREAM))
        num_val = int(self.val_split * len(dataset))
        self.dataset_val = dataset.subset(order[:num_val].sort().values)
        rest = order[num_val:]
        if self.train_samples is not None and self.train_samples > len(rest):
            raise UserError(
                f"train_samples: {type(self).__name__} has {len(rest)} training samples that are not held out, "
                f"got {self.train_samples}"
            )
        self.dataset_train = dataset.subset(rest[: self.train_samples].sort().values)
        classes = self.dataset_train.targets.unique()
        if len(classes) < 2:
            raise UserError(
                f"{type(self).__name__}: expected training samples of two classes or more, got "
                f"{len(self.dataset_train)} of class {int(classes[0])} alone"
            )
        self.dataset_train.targets = self._with_label_noise(self.dataset_train.targets)

    def _dataset(self, train: bool) -> ImageDataset:
        data, targets = self.load(train)
        targets = self._checked_targets(targets)
        if self.input_channels is not None:
            data = _with_channels(data, self.input_channels)
        if self.image_size is not None:
            data = _resized(data, self.image_size)
        if data.dtype == torch.uint8:
            return ImageDataset(data, targets, self.scale, self.shift)
        return ImageDataset(data, targets)

    def _checked_targets(self, targets: Tensor) -> Tensor:
        name = type(self).__name__
        if len(targets) == 0:
            raise UserError(f"{name}: expected samples, got none")
        if targets.ndim != 1:
            raise UserError(
                f"{name}: expected a class number for each sample, got targets of shape {tuple(targets.shape)}; "
                "class numbers of one-hot rows are targets.argmax(dim=1)"
            )
        if targets.is_complex() or (targets.is_floating_point() and not bool((targets == targets.trunc()).all())):
            raise UserError(f"{name}: expected class numbers as targets, got {targets.dtype} that is not whole")
        targets = targets.to(torch.int64)
        lowest, highest = int(targets.min()), int(targets.max())
        if self.num_classes is None:
            self.num_classes = highest + 1
        if lowest < 0 or highest >= self.num_classes:
            raise UserError(f"{name}: expected targets from 0 to {self.num_classes - 1}, got {lowest} to {highest}")
        return targets

    def _with_label_noise(self, targets: Tensor) -> Tensor:
        assert self.num_classes is not None  # and at least 2
        count = round(self.label_noise * len(targets))
        if count == 0:
            return targets
        generator = seed_generator(torch.Generator(), self.seed, _NOISE_STREAM)
        chosen = torch.randperm(len(targets), generator=generator)[:count]
        offset = torch.randint(1, self.num_classes, (count,), generator=generator)
        noisy = targets.clone()
        noisy[chosen] = (targets[chosen] + offset) % self.num_classes
        return noisy

    @property
    def sample_shape(self) -> torch.Size:
        """The shape of one sample, after `setup`."""
        for name in ("dataset_train", "dataset_test"):
            if hasattr(self, name):
                return getattr(self, name).data.shape[1:]
        raise RuntimeError("the shape of a sample is known once setup() has loaded the data")

    @property
    def input_dim(self) -> int:
        """Number of features of one sample, after `setup`."""
        return math.prod(self.sample_shape)

    def train_dataloader(self) -> DataLoader:
        """Shuffled batches; the order and the augmentation are functions of the seed and the epoch."""
        generator = torch.Generator()
        dataset = self.dataset_train
        if self.data_augmentation:
            dataset = dataset.augmented(self.augmentation(), generator)
        return self._loader(dataset, generator, EpochRandomSampler(dataset, self.seed, generator))

    def val_dataloader(self) -> "DataLoader | list[DataLoader]":
        """Batches of the held-out samples in a fixed order; [] where nothing was held out."""
        return self._loader(self.dataset_val, torch.Generator()) if len(self.dataset_val) else []

    def test_dataloader(self) -> DataLoader:
        """Batches of the test set in a fixed order."""
        return self._loader(self.dataset_test, torch.Generator())

    def _loader(
        self, dataset: ImageDataset, generator: torch.Generator, sampler: "Sampler[int] | None" = None
    ) -> DataLoader:
        # A loader without a generator of its own draws from torch's global one each time it is iterated.
        return DataLoader(dataset, self.batch_size, sampler=sampler, collate_fn=identity, generator=generator)


def identity(batch: T) -> T:
    """Collate nothing: `ImageDataset` gives whole batches."""
    return batch


def _require(key: str, value: Any, valid: Callable[[Any], bool], expected: str) -> Any:
    if not valid(value):
        raise UserError(f"{key}: expected {expected}, got {value!r}")
    return value


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_positive_int(value: Any) -> bool:
    return _is_int(value) and value > 0


def _is_number(value: Any) -> bool:
    return _is_int(value) or isinstance(value, float)


def _with_channels(data: Tensor, channels: int) -> Tensor:
    native = data.shape[1] if data.ndim == 4 else None
    if native == channels:
        return data
    if native == 1:
        return data.expand(-1, 3, -1, -1)
    if native == 3:
        # ITU-R 601 luma, as in every image library's greyscale.
        weights = torch.tensor([0.299, 0.587, 0.114]).reshape(1, 3, 1, 1)
        return _map_chunks(lambda pixels: (pixels * weights).sum(1, keepdim=True), data)
    raise UserError(
        f"input_channels: expected null for samples of shape {tuple(data.shape[1:])}, which are not images "
        f"of 1 or 3 channels, got {channels}"
    )


def _resized(data: Tensor, size: int) -> Tensor:
    if data.ndim != 4:
        raise UserError(
            f"image_size: expected null for samples of shape {tuple(data.shape[1:])}, which are not images "
            f"(channels, height, width), got {size}"
        )
    if data.shape[2:] == (size, size):
        return data
    return _map_chunks(
        lambda pixels: functional.interpolate(pixels.float(), size=(size, size), mode="bilinear", antialias=True),
        data,
    )


def _map_chunks(function: Callable[[Tensor], Tensor], data: Tensor) -> Tensor:
    """`function`, which gives floats, applied a chunk at a time and rounded back to the dtype of `data`."""
    results = (function(chunk) for chunk in data.split(_CHUNK))
    if data.dtype == torch.uint8:
        results = (result.round().clamp(0, 255).to(torch.uint8) for result in results)
    return torch.cat(list(results))
