"""A labelled data set in one tensor, read and normalized a batch at a time."""

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

Augmentation = Callable[[Tensor, torch.Generator | None], Tensor]
Coefficient = float | Sequence[float]


class ImageDataset(Dataset[tuple[Tensor, Tensor]]):
    """Samples (input, target) with input = shift + scale · pixel, computed when a batch is read.

    A batch costs one gather of the stored pixels and one kernel that converts and normalizes them, on the
    device where the pixels are; no work is done per sample.

    Args:
        data: (n, channels, height, width) or (n, ...) tensor, uint8 or float32.
        targets: (n,) int64 tensor.
        scale: factor of the pixels, one number or one for each channel.
        shift: input of a zero pixel, one number or one for each channel, as `scale`.
        augment: maps a batch of stored pixels and `generator` to a batch of the same shape and dtype.
        generator: CPU generator that `augment` draws from; None is torch's global one.

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

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """One sample: a float32 input, and a 0-dimensional int64 target."""
        inputs, targets = self.__getitems__([range(len(self))[index]])
        return inputs[0], targets[0]

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """One batch: float32 inputs (len(indices), ...) and int64 targets (len(indices),)."""
        index = torch.tensor(indices, dtype=torch.int64, device=self.data.device)
        pixels = self.data.index_select(0, index)
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

    def subset(self, indices: Tensor | Sequence[int]) -> "ImageDataset":
        """A copy of the samples at `indices`, in that order."""
        index = torch.as_tensor(indices, dtype=torch.int64, device=self.data.device)
        part = copy.copy(self)
        part.data, part.targets = self.data[index], self.targets[index]
        return part


def _per_channel(coefficient: Coefficient, data: Tensor) -> float | Tensor:
    if not isinstance(coefficient, Sequence):
        return float(coefficient)
    if data.ndim != 4 or len(coefficient) != data.shape[1]:
        raise ValueError(f"{len(coefficient)} coefficients for data of shape {tuple(data.shape)}")
    return torch.tensor(coefficient, dtype=torch.float32, device=data.device).reshape(-1, 1, 1)
