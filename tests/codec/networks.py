"""Random networks of integers, of every kind that the format knows."""

import random
from itertools import pairwise

import torch

from milkshake_mbp.codec import CodedLayer, CodedNetwork, InputMap, Node, Pool, Window
from milkshake_mbp.codec.banks import BANKS


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


def random_convolutional(seed: int) -> CodedNetwork:
    """Of version 1: any nodes, with a bank or without."""
    r, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    if r.random() < 0.5:
        crop, cell = r.randrange(2), r.randrange(1, 4)
        bank = 1 if cell % 2 else r.choice((1, 2))
        side = 2 * crop + cell * r.randrange(2, 5)
        inputs = InputMap(BANKS[bank - 1].channels, side, side + r.randrange(2), crop, bank=bank, cell=cell)
    else:
        inputs = random_inputs(r)
    nodes: list[Node] = []
    grid = inputs.grid
    for _ in range(r.randrange(3)):
        side = r.randrange(1, min(4, *(length + 1 for length in grid[1:])))
        if r.random() < 0.4:
            nodes.append(Pool(r.choice(("sum", "max")), side, r.randrange(1, 4)))
        else:
            groups = r.choice([n for n in (1, 2, 3) if grid[0] % n == 0])
            window = Window(side, r.randrange(1, 3), r.randrange(3), groups)
            nodes.append(random_layer(r, generator, groups * r.randrange(1, 4), window.columns(grid), window))
        grid = nodes[-1].grid_after(grid)
    widths = [grid[0] * grid[1] * grid[2], *(r.randrange(1, 9) for _ in range(r.randrange(1, 3)))]
    nodes += [random_layer(r, generator, rows, columns, None) for columns, rows in pairwise(widths)]
    return CodedNetwork(inputs, tuple(nodes))


def random_layer(
    r: random.Random, generator: torch.Generator, rows: int, columns: int, window: Window | None
) -> CodedLayer:
    largest = r.choice((1, 1, 2, 9))
    values = torch.randint(-largest, largest + 1, (rows, columns), generator=generator)
    values *= torch.rand(rows, columns, generator=generator) < r.random()
    biases = torch.randint(-r.choice((1, 5, 40)), r.choice((1, 5, 40)), (rows,), generator=generator)
    if r.random() < 0.5:
        biases = biases.sort().values
    scales = None if r.random() < 0.6 else torch.randint(0, 4, (rows,), generator=generator)
    return CodedLayer(values, biases, scales, r.randrange(-4, 6), window)
