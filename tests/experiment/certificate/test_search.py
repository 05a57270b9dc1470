from itertools import pairwise

import pytest
import torch

from milkshake_mbp.codec import CodedLayer, CodedNetwork, InputMap, code_bits
from milkshake_mbp.experiment.certificate.search import Search
from milkshake_mbp.theory.occam import occam_bound

INPUTS = InputMap(1, 12, 12, pool=3, stride=3)


def start(widths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    layers = []
    for columns, rows in pairwise(widths):
        values = torch.randint(-2, 3, (rows, columns), generator=generator)
        values *= torch.rand(rows, columns, generator=generator) < 0.3
        biases = torch.randint(-5, 5, (rows,), generator=generator)
        layers.append(CodedLayer(values, biases, torch.randint(0, 4, (rows,), generator=generator), 5))
    return CodedNetwork(INPUTS, tuple(layers))


def samples(count=600, seed=1):
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, 4, (count,), generator=generator)
    data = torch.randint(0, 60, (count, 1, 12, 12), generator=generator)
    for corner in range(4):
        top, left = 6 * (corner // 2), 6 * (corner % 2)
        data[targets == corner, :, top : top + 6, left : left + 6] += 60
    return data.to(torch.uint8), targets


@pytest.mark.parametrize("widths", [(16, 4), (16, 6, 4), (16, 6, 5, 4), (16, 5, 5, 5, 4)])
@pytest.mark.parametrize("heat", [0.0, 0.01])
def test_what_is_counted_on_the_way_is_what_the_network_does(widths, heat):
    data, targets = samples()
    search = Search(start(widths), data, targets, 0.05, [2] * (len(widths) - 1))
    kept = []
    measure = search._measure

    def compare():
        kept.append((search._errors, search._own.clone(), search._logits.clone()))
        measure()
        kept[-1] += (search._own.clone(), search._logits.clone())

    search._measure = compare
    for found in search.rounds(300, heat, count=2):
        assert found.errors == found.network.errors(data, targets)
        assert found.bits == pytest.approx(sum(code_bits(found.network).values()))
    assert len(kept) == 2
    for errors, own, logits, own_again, logits_again in kept:
        assert errors == int((own_again <= 0).sum())
        assert torch.equal(own, own_again) and torch.equal(logits, logits_again)


def test_without_heat_the_bound_only_falls_but_for_the_estimate_of_the_bits():
    data, targets = samples()
    network = start((16, 6, 4))
    bounds = [occam_bound(network.errors(data, targets) / 600, sum(code_bits(network).values()), 600, 0.05)]
    for found in Search(network, data, targets, 0.05, [2, 2]).rounds(400, 0.0, count=5):
        bounds.append(occam_bound(found.errors / 600, found.bits, 600, 0.05))
    assert bounds[-1] < bounds[0] - 0.1
    assert all(after < before + 0.01 for before, after in pairwise(bounds))


def test_a_round_can_be_done_again():
    data, targets = samples()
    network = start((16, 6, 4))
    whole = list(Search(network, data, targets, 0.05, [2, 2], seed=3).rounds(100, 0.001, count=4))
    again = Search(whole[1].network, data, targets, 0.05, [2, 2], seed=3)
    rest = list(again.rounds(100, 0.001, first=2, count=4))
    assert [found.network for found in rest] == [found.network for found in whole[2:]]


def test_weights_stay_within_their_levels():
    data, targets = samples()
    network = start((16, 6, 4))
    *_, found = Search(network, data, targets, 0.05, [2, 3]).rounds(500, 0.01, count=2)
    assert [int(layer.values.abs().max()) for layer in found.network.layers] <= [2, 3]
    assert all(int(layer.scales.min()) >= 0 for layer in found.network.layers)
