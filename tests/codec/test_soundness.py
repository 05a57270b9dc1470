"""The guarantee as such: over fresh draws of the samples, the best of many networks breaks it no more often than δ."""

from functools import cache
from itertools import product

import pytest
import torch

from milkshake_mbp.codec import CodedLayer, CodedNetwork, InputMap, Pool, Window, encode
from milkshake_mbp.theory.tail import tail_bound

DELTA, SAMPLES, DRAWS = 0.2, 60, 500


def perceptrons():
    """Of version 0, on two pixels."""
    zeros = torch.zeros(2, dtype=torch.int64)
    for values in product((-1, 0, 1), repeat=4):
        for biases in product((0, 1), repeat=2):
            layer = CodedLayer(torch.tensor(values).reshape(2, 2), torch.tensor(biases), zeros)
            yield CodedNetwork(InputMap(1, 1, 2), (layer,))


def convolutional():
    """Of version 1, on 2 × 2 pixels: two kernels of one pixel, the largest, and a linear layer."""
    biases = torch.zeros(2, dtype=torch.int64)
    for kernel in ((-1, 1), (1, -1), (0, 1)):
        for values in product((-1, 0, 1), repeat=4):
            first = CodedLayer(torch.tensor(kernel)[:, None], torch.tensor([0, 1]), None, 0, Window(1))
            last = CodedLayer(torch.tensor(values).reshape(2, 2), biases, None)
            yield CodedNetwork(InputMap(1, 2, 2), (first, Pool("max", 2, 1), last))


# Samples of few pixels, and the networks that are chosen among.
KINDS = {"version 0": (2, 4, perceptrons), "version 1": (4, 3, convolutional)}


@pytest.mark.parametrize("kind", KINDS)
def test_the_best_of_many_networks_keeps_the_promise(kind):
    # Labels by coin: every network that never ties is wrong half of the time.
    pixels, levels, networks = KINDS[kind]
    points = torch.tensor(list(product(range(levels), repeat=pixels)), dtype=torch.uint8)
    both = points.repeat(2, 1)
    labels = torch.tensor([0, 1]).repeat_interleave(len(points))
    risks, wrong, bits = [], [], []
    for network in networks():
        logits = network.logits(both)
        errors = (logits.gather(1, labels[:, None]) <= logits.gather(1, 1 - labels[:, None]))[:, 0].double()
        assert int(errors.sum()) == network.errors(both, labels)
        wrong.append(errors)
        risks.append(float(errors.mean()))
        bits.append(8 * len(encode(network)))
    errors_by_point = torch.stack(wrong)

    @cache
    def bound(errors, length):
        return tail_bound(errors, length, SAMPLES, DELTA)

    generator = torch.Generator().manual_seed(0)
    broken = broken_without_code = 0
    for _ in range(DRAWS):
        drawn = torch.randint(0, len(both), (SAMPLES,), generator=generator)
        found = errors_by_point[:, drawn].sum(dim=1).int().tolist()
        best = min(range(len(bits)), key=lambda i: bound(found[i], bits[i]))
        broken += risks[best] > bound(found[best], bits[best])
        luckiest = min(range(len(bits)), key=found.__getitem__)
        broken_without_code += risks[luckiest] > bound(found[luckiest], 0)
    assert broken <= DELTA * DRAWS
    # So that the test can fail: whoever chooses and does not pay for it breaks the promise.
    assert broken_without_code > 1.5 * DELTA * DRAWS
