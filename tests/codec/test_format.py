import random
from itertools import pairwise, product

import pytest
import torch

from milkshake_mbp.codec import (
    CodedLayer,
    CodedNetwork,
    DecodeError,
    InputMap,
    code_bits,
    decode,
    encode,
    from_file_bytes,
    to_file_bytes,
)
from milkshake_mbp.codec.prices import Prices
from tests.codec.networks import random_network

# The format is frozen: these are the bytes of version 0.
FROZEN = "142952c47c8e33c0"


@pytest.mark.parametrize("part", range(10))
def test_thousand_networks_come_back(part):
    r = random.Random(part)
    for seed in range(100 * part, 100 * (part + 1)):
        network = random_network(seed)
        code = encode(network)
        junk = r.randbytes(r.randrange(12))
        read, length = decode(code + junk)
        assert read == network and length == len(code)
        assert encode(read) == code
        assert from_file_bytes(to_file_bytes(code) + junk)[0] == network
        assert 0 <= 8 * len(code) - sum(code_bits(network).values()) + 0.01 < 16


def mutate(r: random.Random, data: bytes) -> bytes:
    kind = r.randrange(4)
    if kind == 0:
        return data[: r.randrange(len(data))]
    place = r.randrange(len(data))
    if kind == 1:
        return data[:place] + bytes([data[place] ^ 1 << r.randrange(8)]) + data[place + 1 :]
    if kind == 2:
        return data[:place] + r.randbytes(r.randrange(1, 9)) + data[place + r.randrange(9) :]
    return r.randbytes(r.randrange(60))


@pytest.mark.parametrize("part", range(4))
def test_damaged_files_are_refused_or_unchanged(part):
    check_damage(range(250 * part, 250 * (part + 1)))


@pytest.mark.slow
def test_ten_thousand_damaged_files():
    check_damage(range(1000, 11000))


def check_damage(seeds):
    files = [(network, to_file_bytes(encode(network))) for network in map(random_network, range(50))]
    for seed in seeds:
        r = random.Random(seed)
        network, data = r.choice(files)
        damaged = mutate(r, data)
        try:
            read, _ = from_file_bytes(damaged)
        except DecodeError as error:
            assert "\n" not in str(error)
        else:
            # Junk behind a file that is whole; anything else has one chance in 2³² to pass the check sum.
            assert read == network and damaged.startswith(data)


def test_every_prefix_is_too_short():
    data = to_file_bytes(encode(random_network(3)))
    for length in range(len(data)):
        with pytest.raises(DecodeError):
            from_file_bytes(data[:length])


def test_a_network_that_is_too_large_is_refused_at_once():
    wide = InputMap(1, 1, 3000)
    zeros = torch.zeros(2000, dtype=torch.int64)
    with pytest.raises(ValueError, match="6,000,000 weights"):
        encode(CodedNetwork(wide, (CodedLayer(torch.zeros(2000, 3000, dtype=torch.int64), zeros, zeros),)))


def test_frozen():
    layers = (CodedLayer(torch.tensor([[1, 0, -2], [0, 0, 3]]), torch.tensor([4, -1]), torch.tensor([0, 1]), 2),)
    assert encode(CodedNetwork(InputMap(1, 1, 3), layers)).hex() == FROZEN


def small_networks(columns, rows):
    """All networks of one layer with values in {−1, 0, 1}, and biases and scales in {0, 1}."""
    inputs = InputMap(1, 1, columns)
    for values in product((-1, 0, 1), repeat=columns * rows):
        for biases in product((0, 1), repeat=rows):
            for scales in product((0, 1), repeat=rows):
                yield CodedNetwork(
                    inputs,
                    (
                        CodedLayer(
                            torch.tensor(values).reshape(rows, columns), torch.tensor(biases), torch.tensor(scales)
                        ),
                    ),
                )


def test_no_code_begins_another_and_kraft_holds():
    codes = sorted(
        encode(network)
        for columns, rows in ((1, 1), (2, 1), (1, 2), (2, 2))
        for network in small_networks(columns, rows)
    )
    # In order, a code that begins another stands right before one that it begins.
    assert not any(second.startswith(first) for first, second in pairwise(codes))
    assert sum(256.0 ** -len(code) for code in codes) <= 1


def test_neighbours_make_regions_cheaper():
    values = torch.zeros(20, 12, 12, dtype=torch.int64)
    generator = torch.Generator().manual_seed(0)
    for row in values:
        top, left = torch.randint(0, 8, (2,), generator=generator).tolist()
        row[top : top + 4, left : left + 4] = 1 - 2 * int(torch.randint(0, 2, (), generator=generator))
    zeros = torch.zeros(20, dtype=torch.int64)

    def bits(image):
        layer = CodedLayer(image.reshape(20, 144), zeros, zeros)
        return sum(code_bits(CodedNetwork(InputMap(1, 12, 12), (layer,))).values())

    shuffled = values.flatten(1)[:, torch.randperm(144, generator=generator)].reshape(20, 12, 12)
    assert bits(values) < 0.6 * bits(shuffled)


def test_prices_are_what_a_change_costs():
    network = random_network(5)
    prices = Prices(network)
    assert prices.bits == pytest.approx(sum(code_bits(network).values()))
    layer = network.layers[0]
    table = prices.weights(0, 3)
    assert table.shape == (*layer.values.shape, 7)
    # At any place the values are a probability's logs: they add up to less than one.
    assert float((2**-table).sum(dim=2).max()) <= 1
