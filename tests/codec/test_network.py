import math

import pytest
import torch
from torch.nn import functional as F

from milkshake_mbp.codec import CodedLayer, CodedNetwork, InputMap, scale_factor
from tests.codec.networks import random_network


def test_scales_grow_by_the_root_of_two():
    assert scale_factor(torch.arange(7)).tolist() == [2, 3, 4, 6, 8, 12, 16]
    k = torch.arange(40)
    assert float((scale_factor(k).log2() - 1 - k / 2).abs().max()) < 0.09


def test_pooling_is_the_sum_of_squares_of_pixels():
    images = torch.randint(0, 256, (5, 3, 12, 11), dtype=torch.uint8)
    for crop, pool, stride in ((0, 1, 1), (1, 2, 2), (2, 3, 2), (0, 4, 3)):
        inputs = InputMap(3, 12, 11, crop, pool, stride)
        inner = images.double()[:, :, crop : 12 - crop, crop : 11 - crop]
        expected = F.avg_pool2d(inner, pool, stride) * pool**2
        assert torch.equal(inputs(images), expected.round().flatten(1))
        assert inputs.num_inputs == expected[0].numel()
        grey = InputMap(3, 12, 11, crop, pool, stride, grey=True)
        assert torch.equal(grey(images), expected.sum(dim=1).round().flatten(1))


def test_logits_by_hand():
    layers = (
        CodedLayer(torch.tensor([[1, -1], [2, 0]]), torch.tensor([3, -1]), torch.tensor([0, 1]), 1),
        CodedLayer(torch.tensor([[1, 0], [-1, 1]]), torch.tensor([0, 5]), torch.tensor([2, 0]), -1),
    )
    network = CodedNetwork(InputMap(1, 1, 2), layers)
    # Sums (10 − 4 + 6, 20 − 2) = (12, 18), hidden (24, 54); then (24, 30 + 2.5), times (4, 2).
    assert network.logits(torch.tensor([[10, 4]], dtype=torch.uint8)).tolist() == [[96, 65]]


def test_exact_is_exact():
    # In another order of summation, and in Python's integers, the same.
    for seed in range(40):
        network = random_network(seed)
        if not network.exact:
            continue
        shape = (network.inputs.channels, network.inputs.height, network.inputs.width)
        data = torch.randint(0, 256, (3, *shape), dtype=torch.uint8)
        hidden = [[int(x) for x in row] for row in network.inputs(data).tolist()]
        unit = min(0, *(layer.bias_exponent for layer in network.layers))
        hidden = [[x * 2**-unit for x in row] for row in hidden]
        for index, layer in enumerate(network.layers):
            factors = [int(f) for f in scale_factor(layer.scales).tolist()]
            sums = [
                [
                    sum(v * x for v, x in zip(row, sample, strict=True)) + int(b) * 2 ** (layer.bias_exponent - unit)
                    for row, b in zip(layer.values.tolist(), layer.biases.tolist(), strict=True)
                ]
                for sample in hidden
            ]
            last = index == len(network.layers) - 1
            hidden = [[(s if last else max(0, s)) * f for s, f in zip(row, factors, strict=True)] for row in sums]
        assert (network.logits(data) * 2.0**-unit).tolist() == hidden


def test_ties_and_nan_are_errors():
    layers = (CodedLayer(torch.tensor([[1], [1], [0]]), torch.tensor([0, 0, 0]), torch.tensor([0, 0, 0])),)
    network = CodedNetwork(InputMap(1, 1, 1, pixels=False), layers)
    targets = torch.tensor([0, 2, 2, 2])
    assert network.errors(torch.tensor([[1.0], [1.0], [-1.0], [math.nan]]), targets) == 3


def test_samples_are_taken_by_what_the_widest_node_holds(monkeypatch):
    """No more than 2²² numbers at once, besides a sample's own."""
    sizes = []
    monkeypatch.setattr(CodedNetwork, "logits", lambda self, data: sizes.append(len(data)) or torch.zeros(len(data), 2))
    narrow, wide = (torch.zeros(2**16, 1), torch.zeros(2, 2**16))
    layers = tuple(
        CodedLayer(values.long(), torch.zeros(len(values)).long(), torch.zeros(len(values)).long())
        for values in (narrow, wide)
    )
    network = CodedNetwork(InputMap(1, 1, 1, pixels=False), layers)
    assert network.errors(torch.zeros(100, 1), torch.zeros(100, dtype=torch.long)) == 100
    assert sum(sizes) == 100 and 8 <= max(sizes) <= 64


def test_dead_neurons_go_and_nothing_changes():
    for seed in range(60):
        network = random_network(seed)
        alive = network.live()
        shape = (network.inputs.channels, network.inputs.height, network.inputs.width)
        data = torch.randint(0, 256, (20, *shape), dtype=torch.uint8)
        assert torch.allclose(alive.logits(data), network.logits(data), rtol=1e-12)
        assert all(a <= b for a, b in zip(alive.widths, network.widths, strict=True))
        assert alive.live() == alive or 1 in alive.widths


def test_bad_networks_are_refused():
    layer = CodedLayer(torch.tensor([[1, 0]]), torch.tensor([0]), torch.tensor([0]))
    with pytest.raises(ValueError, match="at least one layer"):
        CodedNetwork(InputMap(1, 1, 2), ())
    with pytest.raises(ValueError, match="of 3"):
        CodedNetwork(InputMap(1, 1, 3), (layer,))
    with pytest.raises(ValueError, match="do not chain"):
        CodedNetwork(InputMap(1, 1, 2), (layer, layer))
    with pytest.raises(ValueError, match="integers"):
        CodedLayer(torch.ones(1, 1), torch.tensor([0]), torch.tensor([0]))
    with pytest.raises(ValueError, match="no input is left"):
        InputMap(1, 4, 4, crop=2)
    with pytest.raises(ValueError, match="reads samples"):
        CodedNetwork(InputMap(1, 1, 2), (layer,)).logits(torch.zeros(1, 3))
