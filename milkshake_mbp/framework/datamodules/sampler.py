"""Shuffling that depends on the seed and the epoch alone, so that a resumed run sees the same batches."""

from collections.abc import Iterator, Sized

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import RandomSampler, Sampler

_SPLIT_STREAM = 1


def seed_generator(generator: torch.Generator, *entropy: int) -> torch.Generator:
    """Reseed `generator` from several non-negative integers, and return it; each tuple is its own stream."""
    (state,) = np.random.SeedSequence(entropy).generate_state(1, np.uint64)
    return generator.manual_seed(int(state))


def drawn_split(count: int, val_split: float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of the samples that are trained on and of those that are held out, a share of them, in random order."""
    order = torch.randperm(count, generator=seed_generator(torch.Generator(), seed, _SPLIT_STREAM))
    held_out = int(val_split * count)
    return order[held_out:], order[:held_out]


class EpochRandomSampler(RandomSampler):
    """Every index once, in an order that is a function of (seed, epoch).

    Lightning calls `set_epoch` at the start of each epoch. Being a `RandomSampler`, it is replaced by a
    `DistributedSampler` when several devices share the data.

    Args:
        data_source: what is sampled, of length n > 0.
        seed: a non-negative integer.
        generator: reseeded at the start of each pass, then drawn from for the order; whatever draws from it
            during the pass (data augmentation) is thereby a function of (seed, epoch) too.
    """

    def __init__(self, data_source: Sized, seed: int, generator: torch.Generator | None = None) -> None:
        self._generator = generator or torch.Generator()
        super().__init__(data_source, generator=self._generator)
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        seed_generator(self._generator, self.seed, self.epoch)
        return iter(torch.randperm(self.num_samples, generator=self._generator).tolist())


class EpochWeightedSampler(Sampler[int]):
    """As many indices as there are weights, drawn with replacement and by them; a function of (seed, epoch).

    Args:
        weights: (n,) how often each index is drawn, relative to the others.
        seed: a non-negative integer.
        generator: as for `EpochRandomSampler`.
    """

    def __init__(self, weights: Tensor, seed: int, generator: torch.Generator | None = None) -> None:
        self.weights = weights.double().cpu()
        self.seed = seed
        self.epoch = 0
        self._generator = generator or torch.Generator()

    def set_epoch(self, epoch: int) -> None:
        """Choose the draws of the next pass."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.weights)

    def __iter__(self) -> Iterator[int]:
        seed_generator(self._generator, self.seed, self.epoch)
        # By the inverse of the distribution function, since torch.multinomial takes no more than 2**24 weights.
        ends = self.weights.cumsum(0)
        draws = torch.rand(len(self), generator=self._generator, dtype=torch.float64) * ends[-1]
        return iter(torch.searchsorted(ends, draws, right=True).clamp_(max=len(self) - 1).tolist())


def balancing_weights(numbers: Tensor) -> Tensor:
    """(n,) weights under which each of the class or group numbers, (n,), is drawn equally often."""
    return 1 / numbers.bincount().double()[numbers]
