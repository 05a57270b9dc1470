"""Reads every sample of a dataset once, as (inputs, class numbers), from any common form of data."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset, default_collate

from milkshake_mbp.errors import UnreadableError, UserError

__all__ = ["Samples", "Unpack", "class_numbers", "isolated_rng"]

_EVALUATION_BATCH = 4096
_LARGEST_BATCH = 2**24  # numbers of the inputs
_SLOW_BATCH = 1024  # of a dataset that is read a sample at a time
_KEPT = 2**32  # bytes of inputs that are kept of such a dataset
_COMPARED = 64

Unpack = Callable[[Any], tuple[Tensor, Tensor]]
"""From a batch, as the dataset's loader makes it, to its inputs and targets."""


class Samples:
    """Every sample of a dataset once, in order, without using the global random state.

    A dataset that cannot return whole batches (`__getitems__`) runs Python for each sample; it is read once and kept
    in memory, up to some gigabytes. The few samples that `some` selects are kept too. Tensors are read directly.

    Args:
        dataset: a map-style or iterable dataset.
        collate: function that makes a batch of samples; by default that of a DataLoader.
        unpack: function that extracts (inputs, targets) from a batch that is not a pair.
        grouped: whether targets have two columns, class and group, as in Milkshake.
        label_noise: probability with which the dataset's labels were replaced by wrong ones.
        keep: whether to keep the samples in memory; by default if reading is slow.
    """

    def __init__(
        self,
        dataset: Any,
        collate: Callable[[Any], Any] | None = None,
        *,
        unpack: Unpack | None = None,
        grouped: bool = False,
        label_noise: float = 0.0,
        keep: bool | None = None,
    ) -> None:
        self.dataset = dataset
        self.collate = collate or default_collate
        self.unpack = unpack
        self.grouped = grouped
        self.label_noise = label_noise
        self.keep = not hasattr(dataset, "__getitems__") if keep is None else keep
        self._kept: list[tuple[Tensor, Tensor]] = []
        self._count: int | None = None

    @classmethod
    def of(cls, data: Any, **how: Any) -> "Samples":
        """Samples from a DataLoader, a Dataset, or a pair of tensors (inputs, targets).

        Args:
            data: any of the three, or Samples, which are returned as they are.
            **how: as for `Samples`.

        Raises:
            UserError: the data are of another type.
        """
        if isinstance(data, Samples):
            return data
        if isinstance(data, DataLoader):
            return cls(data.dataset, data.collate_fn, **how)
        if isinstance(data, (tuple, list)) and len(data) == 2 and all(isinstance(part, Tensor) for part in data):
            if len(data[0]) != len(data[1]):
                raise UserError(f"{len(data[0])} inputs and {len(data[1])} targets: give as many of each")
            return cls(TensorDataset(*data), **how)
        if isinstance(data, IterableDataset) or (hasattr(data, "__getitem__") and not isinstance(data, (str, bytes))):
            return cls(data, **how)
        raise UserError(f"data: expected a DataLoader, a Dataset or (inputs, targets), got {type(data).__name__}")

    def __len__(self) -> int:
        if self._count is None:
            counted = not isinstance(self.dataset, IterableDataset)
            self._count = len(self.dataset) if counted else sum(len(targets) for _, targets in self._read())
        return self._count

    def some(self, count: int, seed: int = 0) -> "Samples":
        """At most `count` random samples, always the same ones."""
        chosen = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))[:count].tolist()
        how: dict[str, Any] = {"grouped": self.grouped, "label_noise": self.label_noise, "keep": True}
        if isinstance(self.dataset, IterableDataset):
            inputs, targets = (torch.cat(parts) for parts in zip(*self._read(), strict=True))
            return Samples(TensorDataset(inputs[chosen], targets[chosen]), **how)
        return Samples(Subset(self.dataset, chosen), self.collate, unpack=self.unpack, **how)

    def first(self, count: int) -> tuple[Tensor, Tensor]:
        """Inputs and class numbers of the first samples, at most `count`, as the dataset gives them.

        Raises:
            UserError: there are none; batches or targets are not of a form that is read, see `unpack` and `grouped`.
        """
        with isolated_rng():
            batch = self._kept[0] if self._kept else self._pair(next(iter(self._loader(count)), None))
        return batch[0][:count], batch[1][:count]

    def batches(self, like: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """(inputs, class numbers) as they are; or on a tensor's device, the inputs of its type if they are floating."""
        with isolated_rng():
            for inputs, targets in self._kept or self._read():
                if like is None:
                    yield inputs, targets
                else:
                    kind = like.dtype if inputs.is_floating_point() else None
                    yield inputs.to(like.device, kind), targets.to(like.device)

    @cached_property
    def distinct(self) -> int:
        """Number of distinct samples (x, y), by a 64-bit hash of their bytes; never too large."""
        hashes = []
        with isolated_rng():
            for inputs, targets in self._kept or self._read():
                hashes.append(_hashes(inputs) * 31 + targets.cpu().long())
        return len(torch.cat(hashes).unique()) if hashes else 0

    @cached_property
    def still(self) -> bool:
        """Whether two readings of a few samples give the same inputs, which is not so under random augmentation."""
        if isinstance(self.dataset, IterableDataset):
            return True
        first = Subset(self.dataset, range(min(_COMPARED, len(self))))
        chosen = Samples(first, self.collate, unpack=self.unpack, grouped=self.grouped)
        readings = []
        for seed in (1, 2):
            with isolated_rng(seed):
                readings.append(torch.cat([inputs for inputs, _ in chosen._read()]))
        return torch.equal(*readings)

    def _read(self) -> Iterator[tuple[Tensor, Tensor]]:
        keep, kept = self.keep, []
        for batch in self._tensors or self._loader(self._batch_size):
            pair = self._pair(batch)
            if keep:
                kept.append(pair)
                keep = sum(inputs.nbytes for inputs, _ in kept) < _KEPT
            yield pair
        self._kept = kept if keep else []

    @property
    def _tensors(self) -> list[tuple[Tensor, ...]]:
        """The batches of a TensorDataset, which a DataLoader would put together sample by sample; else none."""
        if type(self.dataset) is not TensorDataset or self.collate is not default_collate or not len(self):
            return []
        return list(zip(*(tensor.split(self._batch_size) for tensor in self.dataset.tensors), strict=True))

    @cached_property
    def _batch_size(self) -> int:
        if not hasattr(self.dataset, "__getitems__"):
            return _SLOW_BATCH
        numbers = self.first(1)[0].numel()
        return max(1, min(_EVALUATION_BATCH, _LARGEST_BATCH // max(1, numbers)))

    def _loader(self, batch_size: int) -> DataLoader:
        # A generator of its own, or each iteration would draw from torch's.
        generator = torch.Generator().manual_seed(0)
        return DataLoader(self.dataset, batch_size, collate_fn=self.collate, generator=generator)

    def _pair(self, batch: Any) -> tuple[Tensor, Tensor]:
        if batch is None:
            raise UserError("there are no samples to measure on: the dataset is empty")
        if self.unpack is not None:
            batch = self.unpack(batch)
        if not (isinstance(batch, (tuple, list)) and len(batch) == 2 and all(isinstance(x, Tensor) for x in batch)):
            raise UnreadableError(
                f"a batch is {_shape(batch)}, expected inputs and targets, two tensors: give "
                "unpack=lambda batch: (inputs, targets), which takes them out"
            )
        inputs, targets = batch
        return inputs, class_numbers(targets, self.grouped)


def _shape(batch: Any) -> str:
    if isinstance(batch, dict):
        return f"a dict of {', '.join(map(str, batch))}"
    if isinstance(batch, (tuple, list)):
        return f"a {type(batch).__name__} of {len(batch)} parts ({', '.join(type(part).__name__ for part in batch)})"
    return f"a {type(batch).__name__}"


def class_numbers(targets: Tensor, grouped: bool = False) -> Tensor:
    """(n,) class numbers from targets in any common form.

    Args:
        targets: (n,) or (n, 1) integers ≥ 0 of any type; (n, k) one-hot rows, k ≥ 2.
        grouped: whether they are (n, 2), class and group.

    Returns:
        (n,) int64.

    Raises:
        UnreadableError: they have another form, such as probabilities of several classes.
    """
    if (grouped and targets.ndim == 2 and targets.shape[1] == 2) or (targets.ndim == 2 and targets.shape[1] == 1):
        targets = targets[:, 0]
    elif targets.ndim == 2 and not targets.is_complex():
        ones = (targets == 1).sum(dim=1)
        if bool(((targets == 0) | (targets == 1)).all()) and bool((ones == 1).all()):
            return targets.int().argmax(dim=1)
    if targets.ndim != 1 or targets.is_complex():
        raise UnreadableError(
            f"targets have shape {tuple(targets.shape)} and are neither class numbers nor one-hot rows: give class "
            "numbers, (n,), from 0 up; an error of soft or several labels is not defined here"
        )
    numbers = targets.long()
    if not torch.equal(numbers.to(targets.dtype), targets) or bool((numbers < 0).any()):
        raise UnreadableError("targets must be class numbers, whole and from 0 up; some are fractions, negative or NaN")
    return numbers


def _hashes(inputs: Tensor) -> Tensor:
    """(n,) int64, equal for equal samples: a random odd multiple of each 32-bit word of their bytes, summed."""
    rows = inputs.detach().cpu().contiguous().reshape(len(inputs), -1)
    words = rows.view(torch.uint8).reshape(len(rows), -1)
    words = torch.nn.functional.pad(words, (0, -words.shape[1] % 4)).view(torch.int32)
    generator = torch.Generator().manual_seed(0)
    factors = torch.randint(-(2**62), 2**62, (words.shape[1],), generator=generator) * 2 + 1
    return torch.cat([(chunk.long() * factors).sum(dim=1) for chunk in words.split(512)])


@contextmanager
def isolated_rng(seed: int | None = None) -> Iterator[None]:
    """Restore the global random states of torch, numpy and Python, on every device, at the end of the context.

    Args:
        seed: seed of all of them inside the context; by default they are not changed.
    """
    devices: Sequence[int] = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    python, numbers = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=list(devices)):
        if seed is not None:
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numbers)  # noqa: NPY002
