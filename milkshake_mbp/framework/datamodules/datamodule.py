"""Milkshake's datamodule interface on Lightning 2, for data in memory and for data read sample by sample."""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from milkshake_mbp.errors import UserError
from milkshake_mbp.framework.datamodules.dataset import (
    Augmentation,
    Coefficient,
    Dataset,
    ImageDataset,
    Indices,
    Subset,
    resized,
)
from milkshake_mbp.framework.datamodules.sampler import (
    EpochRandomSampler,
    EpochWeightedSampler,
    balancing_weights,
    drawn_split,
    seed_generator,
)
from milkshake_mbp.framework.settings import pretrained_size

T = TypeVar("T")
_NOISE_STREAM = 2
_CHUNK = 4096
_KEPT = 2**30  # bytes of images that are resized beforehand


class DataModule(pl.LightningDataModule):
    """Training, validation and test set.

    A subclass implements `load`, and `prepare_data` if its data can be downloaded; `scale` and `shift` map
    its uint8 pixels to inputs (float data are inputs already). Alternatively it has a `dataset_class`, as in Milkshake.
    `dataset_train` and `dataset_val` exist after `setup` of any stage except "test", `dataset_test` after
    `setup("test")`, all after `setup(None)`. None of them is augmented; only the batches of `train_dataloader` are.

    Each is an `ImageDataset` on the training device, unless `default_transforms` or `augmented_transforms` are
    overridden, or samples are paths or text: then samples are read and transformed one at a time, in `num_workers`
    processes.

    Args:
        args: namespace with batch_size, data_dir, seed and val_split (fraction of the training set held out,
            in [0, 1)); optionally data_augmentation, image_size (pixels a side), input_channels (1 or 3),
            label_noise (fraction of the training labels, those not held out, that are replaced by another
            class drawn uniformly), balanced_sampler, num_workers and persistent_workers.
        *described: num_classes and num_groups by position, optionally preceded by a dataset_class.
        dataset_class: class that reads the data, instead of `load`.
        num_classes: None to take it from the targets in `setup`; 1 for two classes with a single output.
        num_groups: number of groups, 0 for data without groups; with groups, targets are (n, 2), class and group.

    Raises:
        UserError: a key of `args` has an invalid value; from `setup`, the data do not fit the keys.
    """

    # A hair under 1/127.5: rounded to float32, 1/127.5 itself would carry pixel 255 beyond 1.
    scale: Coefficient = (1 - 2**-24) / 127.5
    shift: Coefficient = -1.0
    # What transforms of `load`'s pixels are given: PIL.Image, or tensors with pixels from 0 to 1.
    transforms_take_pictures = True

    dataset_train: Any
    dataset_val: Any
    dataset_test: Any

    def __init__(
        self,
        args: Any,
        *described: Any,
        dataset_class: type[Dataset] | None = None,
        num_classes: int | None = None,
        num_groups: int = 0,
    ) -> None:
        super().__init__()
        self.dataset_class = dataset_class
        if described and isinstance(described[0], type):
            self.dataset_class, described = described[0], described[1:]
        counts: list[Any] = [*described, *(num_classes, num_groups)[len(described) :]]
        self.num_classes, self.num_groups = counts
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
        self._size_of_weights = pretrained_size(args)
        self.input_channels: int | None = _require(
            "input_channels",
            getattr(args, "input_channels", None),
            lambda x: x is None or (_is_int(x) and x in (1, 3)),
            "1 (grey), 3 (colour), or null for the native channels",
        )
        self.balanced_sampler: bool | str = getattr(args, "balanced_sampler", False)
        # Of one seed, smaller sets lie within larger ones.
        self.train_samples: int | None = _require(
            "train_samples",
            getattr(args, "train_samples", None),
            lambda x: x is None or _is_positive_int(x),
            "a positive integer, or null for all",
        )
        self.data_augmentation = bool(getattr(args, "data_augmentation", False))
        self.num_workers = int(getattr(args, "num_workers", 0))
        self.persistent_workers = bool(getattr(args, "persistent_workers", False))
        self.shuffle, self.drop_last, self.pin_memory = True, False, torch.cuda.is_available()
        self.train_transforms = self.val_transforms = self.test_transforms = self.default_transforms()
        if self.data_augmentation and (augmented := self.augmented_transforms()) is not None:
            self.train_transforms = augmented
        self.train_target_transforms: Callable | None = None
        self.val_target_transforms: Callable | None = None
        self.test_target_transforms: Callable | None = None

    def load(self, train: bool) -> tuple[Tensor, Tensor]:
        """Read the training or the test set: (n, ...) uint8 pixels or float32 inputs, (n,) targets."""
        raise NotImplementedError(f"{type(self).__name__} must implement load(train)")

    def augmentation(self) -> Augmentation | None:
        """The augmentation of `data_augmentation: true`, for batches of the training set; None for none."""
        return None

    def default_transforms(self) -> Callable | None:
        """The transform of each sample, such as torchvision's; None for `scale` and `shift`, in batches."""
        return None

    def augmented_transforms(self) -> Callable | None:
        """The transform of each training sample with `data_augmentation: true`; None for `augmentation`, in batches."""
        return None

    def remap_targets(self, targets: Tensor) -> Tensor:
        """Class numbers computed from the data's targets, (n,) or (n, 2) with the group, for training and test set."""
        return targets

    def preset_split(self) -> tuple[Indices, Indices] | None:
        """Positions in `load(train=True)` of the samples for training and of those held out; None to draw them."""
        return None

    def train_preprocess(self, dataset_train: Any) -> Any:
        """Change the training set after the split; by default, add label noise."""
        if self.label_noise:
            dataset_train.targets = self._with_label_noise(torch.as_tensor(dataset_train.targets))
        return dataset_train

    def val_preprocess(self, dataset_val: Any) -> Any:
        """Change the validation set after the split; by default, nothing."""
        return dataset_val

    def test_preprocess(self, dataset_test: Any) -> Any:
        """Change the test set; by default, nothing."""
        return dataset_test

    def load_msg(self) -> str:
        """One line that describes the data set and its preparation."""
        parts = [f"batch size {self.batch_size}", f"{self.val_split:.0%} of the training set held out"]
        if hasattr(self, "dataset_train") and self._has_preset_split:
            parts[1] = "a preset validation set"
        if self.data_augmentation and (self.augmentation() or self.augmented_transforms()) is not None:
            parts.append("augmented")
        if self.image_size is not None:
            parts.append(f"{self.image_size} pixels a side")
        if self.input_channels is not None:
            parts.append(f"{self.input_channels} channels")
        if self.label_noise:
            parts.append(f"{self.label_noise:.0%} of the training labels replaced")
        if self.balanced_sampler:
            parts.append("groups drawn equally often" if self._by_group else "classes drawn equally often")
        return f"{type(self).__name__}: {', '.join(parts)}"

    def prepare_data(self) -> None:
        """Let the `dataset_class`, if any, download missing files."""
        if self.dataset_class is not None:
            for train in (True, False):
                self.dataset_class(str(self.data_dir), train=train, download=True)

    def setup(self, stage: str | None = None) -> None:
        """Load the data that `stage` needs, unless they are loaded, and move them to the trainer's device, if any."""
        if stage not in ("test", "predict") and not hasattr(self, "dataset_train"):
            self._setup_train()
        if stage in ("test", "predict", None) and not hasattr(self, "dataset_test"):
            dataset = self.test_preprocess(self._dataset(train=False))
            self.dataset_test = self._finished(dataset, self.test_transforms, self.test_target_transforms)
        if self.trainer is not None:
            for name in ("dataset_train", "dataset_val", "dataset_test"):
                if isinstance(getattr(self, name, None), ImageDataset):
                    setattr(self, name, getattr(self, name).to(self.trainer.strategy.root_device))

    def _setup_train(self) -> None:
        if self._by_group and not self.num_groups:
            raise UserError(f"balanced_sampler: {type(self).__name__} has no groups to draw equally often: give true")
        dataset = self._dataset(train=True)
        if type(self).train_preprocess is DataModule.train_preprocess:
            # A hook may have to make class numbers of the targets yet.
            self._checked_range(dataset.targets)
        train = self._split_dataset(dataset)
        classes = np.unique(_first_column(train.targets).cpu())
        if len(classes) < 2:
            raise UserError(
                f"{type(self).__name__}: expected training samples of two classes or more, got "
                f"{len(train)} of class {int(classes[0])} alone"
            )
        train, val = self.train_preprocess(train), self.val_preprocess(self._split_dataset(dataset, val=True))
        # Told from each other by which transforms of a sample they have; only `train_dataloader` augments.
        self.dataset_train = self._finished(train, self.val_transforms, self.train_target_transforms)
        self.dataset_val = self._finished(val, self.val_transforms, self.val_target_transforms)

    def _split_dataset(self, dataset: Any, val: bool = False) -> Any:
        """The part of the whole training set that is held out, or that is trained on."""
        preset = self.preset_split()
        if isinstance(dataset, Dataset) and dataset.train_indices is not None and dataset.val_indices is not None:
            preset = dataset.train_indices, dataset.val_indices
        self._has_preset_split = preset is not None
        if preset is not None:
            return Subset(dataset, self._wanted(preset[val], val))
        num_val = int(self.val_split * len(dataset))
        if isinstance(dataset, Dataset):
            # As Milkshake draws it, so that a moved experiment holds out the same samples.
            order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(self.seed))
            kept = len(dataset) - num_val
            return Subset(dataset, self._wanted(order[kept:] if val else order[:kept], val))
        return dataset.subset(
            self._wanted(drawn_split(len(dataset), self.val_split, self.seed)[val], val).sort().values
        )

    def _wanted(self, indices: Any, val: bool) -> Any:
        """Those of the training samples that `train_samples` asks for; all that are held out."""
        if val or self.train_samples is None:
            return indices
        if self.train_samples > len(indices):
            raise UserError(
                f"train_samples: {type(self).__name__} has {len(indices)} training samples that are not held out, "
                f"got {self.train_samples}"
            )
        return indices[: self.train_samples]

    def _dataset(self, train: bool) -> Any:
        if self.dataset_class is not None:
            dataset = self.dataset_class(str(self.data_dir), train=train)
            dataset.targets = self.remap_targets(dataset.targets)
            self._count_classes(torch.as_tensor(dataset.targets))
            return dataset
        data, targets = self.load(train)
        targets = self._checked_targets(targets)
        data, size = self._fitted(data)
        if data.dtype == torch.uint8:
            return ImageDataset(data, targets, self.scale, self.shift, size=size)
        return ImageDataset(data, targets, size=size)

    def _fitted(self, data: Tensor) -> tuple[Tensor, int | None]:
        """The data with `input_channels` and `image_size`, and the size that is left to be reached as they are read."""
        if self.input_channels is not None:
            data = _with_channels(data, self.input_channels)
        size = self.image_size or (self._size_of_weights if data.ndim == 4 else None)
        if size is None:
            return data, None
        if data.ndim != 4:
            raise UserError(
                f"image_size: expected null for samples of shape {tuple(data.shape[1:])}, which are not images "
                f"(channels, height, width), got {self.image_size}"
            )
        if data.shape[2:] == (size, size):
            return data, None
        if math.prod(data.shape[:2]) * size**2 * data.itemsize > max(_KEPT, data.nbytes):
            # CIFAR-10 at 224 pixels a side would be 9 GB.
            return data, size
        return torch.cat([resized(chunk, size) for chunk in data.split(_CHUNK)]), None

    def _finished(self, dataset: Any, transform: Callable | None, target_transform: Callable | None) -> Any:
        """A data set after the hooks: its targets checked; read in batches where nothing is done to single samples."""
        if target_transform is None:
            dataset.targets = self._checked_range(dataset.targets)
        one_by_one = transform is not None or target_transform is not None
        if isinstance(dataset, ImageDataset):
            if not one_by_one:
                return dataset
            return dataset.per_sample(transform or self._plain, target_transform, self.transforms_take_pictures)
        if not one_by_one and (data := _as_tensor(dataset.data)) is not None:
            data, size = self._fitted(data)
            scaled = (self.scale, self.shift) if data.dtype == torch.uint8 else (1.0, 0.0)
            return ImageDataset(data, torch.as_tensor(dataset.targets), *scaled, size=size)
        return _with_transforms(dataset, transform or self._plain, target_transform)

    def _plain(self, sample: Any) -> Any:
        """A picture of no transform of its own as other pixels: of `image_size` and `input_channels`, in [-1, 1]."""
        if not isinstance(sample, Image.Image):
            return sample
        pixels = torch.from_numpy(np.array(sample))
        images, size = self._fitted(pixels.reshape(1, *pixels.shape[:2], -1).permute(0, 3, 1, 2))
        return ImageDataset(images, torch.zeros(1), self.scale, self.shift, size=size)[0][0]

    def _checked_targets(self, targets: Tensor) -> Tensor:
        name = type(self).__name__
        if len(targets) == 0:
            raise UserError(f"{name}: expected samples, got none")
        if self.num_groups and not (targets.ndim == 2 and targets.shape[1] == 2):
            raise UserError(
                f"{name}: expected targets of shape (n, 2), class and group, for {self.num_groups} groups, got "
                f"{tuple(targets.shape)}"
            )
        if not self.num_groups and targets.ndim != 1:
            raise UserError(
                f"{name}: expected a class number for each sample, got targets of shape {tuple(targets.shape)}; "
                "class numbers of one-hot rows are targets.argmax(dim=1)"
            )
        if targets.is_complex() or (targets.is_floating_point() and not bool((targets == targets.trunc()).all())):
            raise UserError(f"{name}: expected class numbers as targets, got {targets.dtype} that is not whole")
        targets = self.remap_targets(targets.to(torch.int64)).to(torch.int64)
        self._count_classes(targets)
        return targets

    def _count_classes(self, targets: Tensor) -> None:
        if self.num_classes is None and len(targets):
            self.num_classes = int(_first_column(targets).max()) + 1

    def _checked_range(self, targets: Any) -> Tensor:
        """Targets as int64, whose classes and groups there are.

        Raises:
            UserError: there are others.
        """
        name, numbers = type(self).__name__, torch.as_tensor(targets).to(torch.int64)
        for kind, count, column in (("targets", self._told_apart, 0), ("groups", self.num_groups, 1)):
            found = numbers if numbers.ndim == 1 else numbers[:, column]
            if len(found) == 0 or (column and not self.num_groups):
                continue
            lowest, highest = int(found.min()), int(found.max())
            if lowest < 0 or highest >= count:
                raise UserError(f"{name}: expected {kind} from 0 to {count - 1}, got {lowest} to {highest}")
        return numbers

    @property
    def _told_apart(self) -> int:
        """The number of class numbers: one output tells two classes apart."""
        assert self.num_classes is not None
        return max(2, self.num_classes)

    @property
    def _by_group(self) -> bool:
        return self.balanced_sampler == "group"

    def _with_label_noise(self, targets: Tensor) -> Tensor:
        """Targets of which a share `label_noise` has another class, drawn uniformly; groups stay."""
        count = round(self.label_noise * len(targets))
        if count == 0:
            return targets
        generator = seed_generator(torch.Generator(), self.seed, _NOISE_STREAM)
        chosen = torch.randperm(len(targets), generator=generator)[:count]
        offset = torch.randint(1, self._told_apart, (count,), generator=generator).to(targets.dtype)
        noisy = targets.clone()
        labels = _first_column(noisy)  # a view
        labels[chosen] = (labels[chosen] + offset) % self._told_apart
        return noisy

    @property
    def sample_shape(self) -> torch.Size:
        """The shape of one sample, after `setup`."""
        for name in ("dataset_train", "dataset_test"):
            dataset = getattr(self, name, None)
            if dataset is not None:
                return dataset.sample_shape if isinstance(dataset, ImageDataset) else dataset[0][0].shape
        raise RuntimeError("the shape of a sample is known once setup() has loaded the data")

    @property
    def input_dim(self) -> int:
        """Number of features of one sample, after `setup`."""
        return math.prod(self.sample_shape)

    def train_dataloader(self) -> DataLoader:
        """Shuffled batches; the order and the augmentation in batches are functions of the seed and the epoch."""
        generator = torch.Generator()
        dataset = self.dataset_train
        if self.train_transforms is not self.val_transforms:
            dataset = self._one_by_one(dataset, self.train_transforms or self._plain)
        elif self.data_augmentation and isinstance(dataset, ImageDataset):
            dataset = dataset.augmented(self.augmentation(), generator)
        if self.balanced_sampler:
            weights = balancing_weights(self._numbers_to_balance())
            return self._loader(dataset, generator, EpochWeightedSampler(weights, self.seed, generator))
        if not self.shuffle:
            return self._loader(dataset, generator)
        return self._loader(dataset, generator, EpochRandomSampler(dataset, self.seed, generator))

    def val_dataloader(self) -> "DataLoader | list[DataLoader]":
        """Batches of the held-out samples in a fixed order; [] where nothing was held out."""
        return self._loader(self.dataset_val, torch.Generator()) if len(self.dataset_val) else []

    def test_dataloader(self) -> "DataLoader | list[DataLoader]":
        """Batches of the test set in a fixed order."""
        return self._loader(self.dataset_test, torch.Generator())

    def predict_dataloader(self) -> "DataLoader | list[DataLoader]":
        """Batches of the test set in a fixed order."""
        return self.test_dataloader()

    def _one_by_one(self, dataset: Any, transform: Callable) -> Dataset:
        """A data set with another transform of its samples."""
        if isinstance(dataset, ImageDataset):
            return dataset.per_sample(transform, self.train_target_transforms, self.transforms_take_pictures)
        return _with_transforms(dataset, transform, self.train_target_transforms)

    def _numbers_to_balance(self) -> Tensor:
        targets = torch.as_tensor(self.dataset_train.targets).cpu()
        return targets[:, 1] if self._by_group else _first_column(targets)

    def _data_loader(self, dataset: Any, shuffle: bool = False, sampler: "Sampler[int] | None" = None) -> DataLoader:
        """Batches of any data set, by Milkshake's name for it."""
        generator = torch.Generator()
        if shuffle and sampler is None:
            sampler = EpochRandomSampler(dataset, self.seed, generator)
        return self._loader(dataset, generator, sampler)

    def _loader(self, dataset: Any, generator: torch.Generator, sampler: "Sampler[int] | None" = None) -> DataLoader:
        # A loader without a generator of its own draws from torch's global one each time it is iterated.
        how: dict[str, Any] = {"sampler": sampler, "generator": generator, "drop_last": self.drop_last}
        if isinstance(dataset, ImageDataset):
            return DataLoader(dataset, self.batch_size, collate_fn=identity, **how)
        return DataLoader(
            dataset,
            self.batch_size,
            num_workers=self.num_workers,
            persistent_workers=self.persistent_workers and self.num_workers > 0,
            pin_memory=self.pin_memory,
            **how,
        )


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


def _map_chunks(function: Callable[[Tensor], Tensor], data: Tensor) -> Tensor:
    """`function`, which gives floats, applied a chunk at a time and rounded back to the dtype of `data`."""
    results = (function(chunk) for chunk in data.split(_CHUNK))
    if data.dtype == torch.uint8:
        results = (result.round().clamp(0, 255).to(torch.uint8) for result in results)
    return torch.cat(list(results))


def _first_column(targets: Any) -> Tensor:
    """Class numbers, of targets that may have groups beside them."""
    tensor = torch.as_tensor(targets)
    return tensor if tensor.ndim == 1 else tensor[:, 0]


def _as_tensor(data: Any) -> Tensor | None:
    """Numbers as (n, ...) uint8 or float32, images with their channels first; None of paths or text."""
    if isinstance(data, np.ndarray):
        if data.dtype.kind not in "buif":
            return None
        tensor = torch.from_numpy(data)
        if data.dtype == np.uint8 and data.ndim in (3, 4):
            tensor = tensor.reshape(*tensor.shape[:3], -1).permute(0, 3, 1, 2).contiguous()
        return tensor if data.dtype == np.uint8 else tensor.float()
    if isinstance(data, Tensor):
        return data if data.dtype == torch.uint8 else data.float()
    return None


def _with_transforms(dataset: Any, transform: Callable | None, target_transform: Callable | None) -> Any:
    view = copy.copy(dataset)
    view.transform, view.target_transform = transform, target_transform
    return view
