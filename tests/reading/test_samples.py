"""Data as users have it: what is read, what is refused, and what is left alone."""

import random

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from milkshake_mbp.errors import UnreadableError, UserError
from milkshake_mbp.reading.samples import Samples, class_numbers


def pair(count=10):
    return torch.arange(3.0 * count).reshape(count, 3), torch.arange(count) % 4


class PerSample(Dataset):
    """One sample at a time, as most datasets give them, and how often."""

    def __init__(self, inputs, targets, noise=lambda: 0.0):
        self.inputs, self.targets, self.noise, self.read = inputs, targets, noise, 0

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        self.read += 1
        return self.inputs[index] + self.noise(), int(self.targets[index])


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(*pair(), strict=True))


def collected(samples):
    inputs, targets = zip(*samples.batches(), strict=True)
    return torch.cat(inputs), torch.cat(targets)


@pytest.mark.parametrize(
    "data",
    [
        pair(),
        list(pair()),
        TensorDataset(*pair()),
        DataLoader(TensorDataset(*pair()), batch_size=3, shuffle=True),
        PerSample(*pair()),
        Stream(),
        DataLoader(Stream(), batch_size=4),
    ],
    ids=["tuple", "list", "dataset", "loader", "per sample", "stream", "streaming loader"],
)
def test_any_form_is_read_once_in_order(data):
    samples = Samples.of(data)
    inputs, targets = collected(samples)
    assert torch.equal(inputs, pair()[0]) and torch.equal(targets, pair()[1])
    assert len(samples) == 10 and samples.distinct == 10
    few = samples.some(4)
    assert len(few) == 4 and set(map(tuple, collected(few)[0].tolist())) <= set(map(tuple, pair()[0].tolist()))


@pytest.mark.parametrize("data", [3, "mnist", None, pair()[0].numpy().tolist, (pair()[0], pair()[1][:-1])])
def test_what_is_no_data_is_refused(data):
    with pytest.raises(UserError, match=r"expected a DataLoader|as many of each"):
        Samples.of(data)


@pytest.mark.parametrize(
    ("batch", "word"),
    [
        (lambda x, y: (x, y, torch.arange(len(x))), "3 parts"),
        (lambda x, y: {"image": x, "label": y}, "dict of image, label"),
        (lambda x, y: x, "Tensor"),
        (lambda x, y: (x, {"label": y}), "2 parts"),
    ],
)
def test_other_batches_need_to_be_unpacked(batch, word):
    def collate(rows):
        return batch(torch.stack([row[0] for row in rows]), torch.stack([row[1] for row in rows]))

    with pytest.raises(UnreadableError, match=word):
        Samples(TensorDataset(*pair()), collate).first(2)


def test_a_given_function_unpacks():
    dataset = TensorDataset(*pair(), torch.arange(10))
    samples = Samples.of(dataset, unpack=lambda batch: (batch[0], batch[1]))
    assert torch.equal(collected(samples)[1], pair()[1])
    assert len(samples.some(3)) == 3 and samples.some(3).first(2)[0].shape == (2, 3)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64, torch.float32, torch.float64, torch.bfloat16])
def test_class_numbers_of_any_type(dtype):
    wanted = torch.tensor([0, 3, 1])
    for given in (wanted, wanted.unsqueeze(1), F.one_hot(wanted, 4)):
        assert torch.equal(class_numbers(given.to(dtype)), wanted)


def test_bools_are_two_classes():
    assert class_numbers(torch.tensor([True, False])).tolist() == [1, 0]
    assert class_numbers(F.one_hot(torch.tensor([1, 0, 1])).bool()).tolist() == [1, 0, 1]


def test_pairs_of_class_and_group_only_where_they_are_said_to_be():
    pairs = torch.tensor([[0, 1], [1, 1], [1, 0], [0, 0]])
    assert class_numbers(pairs, grouped=True).tolist() == [0, 1, 1, 0]
    with pytest.raises(UserError, match="neither class numbers nor one-hot"):
        class_numbers(pairs)
    one_hot = torch.tensor([[0, 1], [1, 0]])
    assert class_numbers(one_hot).tolist() == [1, 0]


@pytest.mark.parametrize(
    "targets",
    [
        torch.tensor([[0.9, 0.1], [0.2, 0.8]]),
        torch.tensor([[1, 1, 0], [0, 1, 0]]),
        torch.zeros(2, 3),
        torch.tensor([0.5, 1.0]),
        torch.tensor([-1, 0]),
        torch.tensor([float("nan"), 0.0]),
        torch.zeros(2, 2, 2),
        torch.tensor(1),
        torch.tensor([1 + 1j, 0]),
    ],
)
def test_what_names_no_class_is_refused(targets):
    with pytest.raises(UserError, match=r"class numbers"):
        class_numbers(targets)


def test_repeats_are_counted_and_near_repeats_are_not():
    inputs, targets = pair()
    assert Samples.of((inputs.repeat(5, 1), targets.repeat(5))).distinct == 10
    assert Samples.of((inputs.repeat(2, 1), torch.cat([targets, (targets + 1) % 4]))).distinct == 20
    near = torch.ones(6, 5, dtype=torch.float64)
    near[1, 2] = torch.nextafter(near[1, 2], torch.tensor(2.0))
    near[2, 4], near[3] = 2, -1
    assert Samples.of((near, torch.zeros(6))).distinct == 4
    assert Samples.of((torch.arange(300).reshape(300, 1).to(torch.uint8), torch.zeros(300))).distinct == 256


@pytest.mark.parametrize("draw", [random.random, np.random.rand, lambda: torch.rand(())])
def test_augmentation_is_noticed_and_random_states_are_left_alone(draw):
    moving = Samples.of(PerSample(*pair(), noise=draw))
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    assert not moving.still and Samples.of(PerSample(*pair())).still
    collected(moving)
    assert before[0] == random.getstate() and before[1] == np.random.get_state()[1].tolist()  # noqa: NPY002
    assert torch.equal(before[2], torch.get_rng_state())


def test_a_slow_dataset_is_read_once():
    dataset = PerSample(*pair())
    samples = Samples.of(dataset)
    for _ in range(3):
        collected(samples)
    assert dataset.read == 10


def test_no_samples():
    with pytest.raises(UserError, match="empty"):
        Samples.of(TensorDataset(torch.zeros(0, 3), torch.zeros(0))).first(4)


def test_a_few_samples_are_read_once_and_are_the_same_each_time():
    inputs, targets = pair()
    dataset = PerSample(inputs, targets, noise=lambda: torch.rand(()))
    few = Samples.of(Subset(dataset, range(10))).some(4)
    first, read = collected(few), dataset.read
    assert all(torch.equal(*both) for both in zip(first, collected(few), strict=True)) and dataset.read == read
