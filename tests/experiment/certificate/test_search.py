from itertools import pairwise

import pytest
import torch

from milkshake_mbp.codec import CodedLayer, CodedNetwork, InputMap, Pool, Window, code_bits
from milkshake_mbp.experiment.certificate.search import Search
from milkshake_mbp.theory.tail import tail_bound

INPUTS = InputMap(1, 12, 12, pool=3, stride=3)
DENSE = [(None, 6), (None, 5)]
CONVOLUTIONS = [(Window(2, 1, 1), 4), Pool("max", 2, 1), (Window(3, 2, 1, 2), 4), Pool("sum", 2, 1)]


def start(nodes, seed=0, free=False):
    generator = torch.Generator().manual_seed(seed)
    made, grid = [], INPUTS.grid
    for node in [*nodes, (None, 4)]:
        if not isinstance(node, Pool):
            window, rows = node
            columns = window.columns(grid) if window else grid[0] * grid[1] * grid[2]
            values = torch.randint(-2, 3, (rows, columns), generator=generator)
            values *= torch.rand(rows, columns, generator=generator) < 0.6
            biases = torch.randint(-5, 5, (rows,), generator=generator)
            scales = None if free else torch.randint(0, 4, (rows,), generator=generator)
            node = CodedLayer(values, biases, scales, 5, window)
        made.append(node)
        grid = node.grid_after(grid)
    return CodedNetwork(INPUTS, tuple(made))


def samples(count=600, seed=1):
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, 4, (count,), generator=generator)
    data = torch.randint(0, 60, (count, 1, 12, 12), generator=generator)
    for corner in range(4):
        top, left = 6 * (corner // 2), 6 * (corner % 2)
        data[targets == corner, :, top : top + 6, left : left + 6] += 60
    return INPUTS(data), targets


@pytest.mark.parametrize("nodes", [[], DENSE[:1], DENSE, CONVOLUTIONS, [*CONVOLUTIONS, (None, 3)]])
@pytest.mark.parametrize(("heat", "free"), [(0.0, False), (0.01, True)])
def test_what_is_counted_on_the_way_is_what_the_network_does(nodes, heat, free):
    seen, targets = samples()
    network = start(nodes, free=free)
    search = Search(network, seen, targets, 0.05, [2] * len(network.layers))
    kept = []
    begin = search._start

    def compare(network):
        kept.append((search._errors, search._own.clone(), [layer.gives.clone() for layer in search._layers]))
        begin(network)
        kept[-1] += (search._errors, search._own.clone(), [layer.gives.clone() for layer in search._layers])

    search._start = compare
    moved = []
    for found in search.rounds(300, heat, count=2):
        assert found.errors == found.network.errors(seen, targets, seen=True)
        assert found.bits == pytest.approx(sum(code_bits(found.network).values()))
        moved.append(found.network != network)
    assert len(kept) == 2 and all(moved)
    for errors, own, gives, errors_again, own_again, gives_again in kept:
        assert errors == errors_again and torch.equal(own, own_again)
        assert all(torch.equal(a, b) for a, b in zip(gives, gives_again, strict=True))


def test_looking_at_the_nearest_samples_finds_what_looking_at_all_does():
    seen, targets = samples(4000)
    # A pixel of each corner but the last: what a training that ended early may have found.
    values = torch.zeros(4, 16, dtype=torch.int64)
    values[range(3), [0, 2, 8]] = 1
    layer = CodedLayer(values, torch.zeros(4, dtype=torch.int64), None, 5)
    network = CodedNetwork(INPUTS, (layer,))
    *_, found = Search(network, seen, targets, 0.05, [2], near=1000).rounds(200, 0.0, count=3)
    assert found.errors == found.network.errors(seen, targets, seen=True)
    assert found.errors < 0.5 * network.errors(seen, targets, seen=True)


def test_without_heat_the_bound_only_falls_but_for_the_estimate_of_the_bits():
    seen, targets = samples()
    network = start(DENSE[:1])
    bounds = [tail_bound(network.errors(seen, targets, seen=True), sum(code_bits(network).values()), 600, 0.05)]
    for found in Search(network, seen, targets, 0.05, [2, 2]).rounds(400, 0.0, count=5):
        bounds.append(tail_bound(found.errors, found.bits, 600, 0.05))
    assert bounds[-1] < bounds[0] - 0.1
    assert all(after < before + 0.01 for before, after in pairwise(bounds))


def test_a_round_can_be_done_again():
    seen, targets = samples()
    network = start(DENSE[:1])
    whole = list(Search(network, seen, targets, 0.05, [2, 2], seed=3).rounds(100, 0.001, count=4))
    again = Search(whole[1].network, seen, targets, 0.05, [2, 2], seed=3)
    rest = list(again.rounds(100, 0.001, first=2, count=4))
    assert [found.network for found in rest] == [found.network for found in whole[2:]]


def test_weights_stay_within_their_levels():
    seen, targets = samples()
    network = start(DENSE[:1])
    *_, found = Search(network, seen, targets, 0.05, [2, 3]).rounds(500, 0.01, count=2)
    assert [int(layer.values.abs().max()) for layer in found.network.layers] <= [2, 3]
    assert all(int(layer.scales.min()) >= 0 for layer in found.network.layers)
