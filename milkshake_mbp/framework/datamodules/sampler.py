"""Shuffling that depends on the seed and the epoch alone, so that a resumed run sees the same batches."""

from collections.abc import Iterator, Sized

import numpy as np
import torch
from torch.utils.data import RandomSampler


def seed_generator(generator: torch.Generator, *entropy: int) -> torch.Generator:
    """Reseed `generator` from several non-negative integers, and return it; each tuple is its own stream."""
    (state,) = np.random.SeedSequence(entropy).generate_state(1, np.uint64)
    return generator.manual_seed(int(state))


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
