"""The guarantee as such: over fresh draws of the samples, the best of many networks breaks it no more often than δ."""

from itertools import product

import torch

from milkshake_mbp.codec import CodedLayer, CodedNetwork, InputMap, encode
from milkshake_mbp.theory.occam import occam_bound

DELTA, SAMPLES, DRAWS = 0.2, 60, 500


def networks():
    zeros = torch.zeros(2, dtype=torch.int64)
    for values in product((-1, 0, 1), repeat=4):
        for biases in product((0, 1), repeat=2):
            layer = CodedLayer(torch.tensor(values).reshape(2, 2), torch.tensor(biases), zeros)
            yield CodedNetwork(InputMap(1, 1, 2), (layer,))


def test_the_best_of_many_networks_keeps_the_promise():
    # Pixels from 0 to 3 and labels by coin: every network that never ties is wrong half of the time.
    points = torch.tensor(list(product(range(4), repeat=2)), dtype=torch.uint8)
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

    generator = torch.Generator().manual_seed(0)
    broken = broken_without_code = 0
    for _ in range(DRAWS):
        drawn = torch.randint(0, len(both), (SAMPLES,), generator=generator)
        found = errors_by_point[:, drawn].mean(dim=1).tolist()
        best = min(range(len(bits)), key=lambda i: occam_bound(found[i], bits[i], SAMPLES, DELTA))
        broken += risks[best] > occam_bound(found[best], bits[best], SAMPLES, DELTA)
        luckiest = min(range(len(bits)), key=found.__getitem__)
        broken_without_code += risks[luckiest] > occam_bound(found[luckiest], 0, SAMPLES, DELTA)
    assert broken <= DELTA * DRAWS
    # So that the test can fail: whoever chooses and does not pay for it breaks the promise.
    assert broken_without_code > 1.5 * DELTA * DRAWS
