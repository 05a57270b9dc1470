"""Random networks of integers, of every kind that the format knows."""

import random
from itertools import pairwise

import torch

from milkshake_mbp.codec import CodedLayer, CodedNetwork, InputMap


def random_inputs(r: random.Random) -> InputMap:
    if r.random() < 0.4:
        return InputMap(1, 1, r.randrange(1, 30), pixels=r.random() < 0.5)
    crop, pool = r.randrange(3), r.randrange(1, 4)
    side = 2 * crop + pool + r.randrange(6)
    return InputMap(r.choice((1, 3)), side, side + r.randrange(3), crop, pool, r.randrange(1, 4), r.random() < 0.5)


def random_network(seed: int) -> CodedNetwork:
    r, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    inputs = random_inputs(r)
    widths = [inputs.num_inputs, *(r.randrange(1, 12) for _ in range(r.randrange(1, 5)))]
    layers = []
    for columns, rows in pairwise(widths):
        largest = r.choice((1, 1, 2, 3, 20, 1000))
        values = torch.randint(-largest, largest + 1, (rows, columns), generator=generator)
        values *= torch.rand(rows, columns, generator=generator) < r.random() ** 2
        biases = torch.randint(-r.choice((1, 5, 3000)), r.choice((1, 5, 3000)), (rows,), generator=generator)
        scales = torch.randint(0, r.choice((1, 3, 20)), (rows,), generator=generator)
        layers.append(CodedLayer(values, biases, scales, r.randrange(-12, 12)))
    return CodedNetwork(inputs, tuple(layers))
