import hashlib
import random
import resource
import time
import tracemalloc
import zlib
from contextlib import suppress
from functools import cache
from itertools import pairwise, product

import pytest
import torch

from milkshake_mbp.codec import (
    CodedLayer,
    CodedNetwork,
    DecodeError,
    InputMap,
    Pool,
    Window,
    code_bits,
    decode,
    encode,
    from_file_bytes,
    to_file_bytes,
)
from milkshake_mbp.codec.coder import FAIR, Decoder, Encoder, Meter, elias_gamma
from milkshake_mbp.codec.format import describe
from milkshake_mbp.codec.limits import Work
from milkshake_mbp.codec.prices import Prices
from milkshake_mbp.codec.version1 import Coding, Plane, Shape, Version1, Weights, _descent
from tests.codec.networks import random_convolutional, random_network

KINDS = (random_network, random_convolutional)
# The format is frozen: these are the bytes of versions 0 and 1.
FROZEN = "142952c47c8e33c0"
FROZEN_1 = "8f0531495148c6fd3685af7c609cb60e8e293f00057e03359e0113ffae9065fd27511e28719fbd94a345fdd666"


@pytest.mark.long
@pytest.mark.parametrize("part", range(10))
@pytest.mark.parametrize("kind", KINDS)
def test_networks_come_back(kind, part):
    check_round_trips(kind, range(100 * part, 100 * part + (100 if kind is random_network else 15)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_thousand_networks_come_back(kind):
    check_round_trips(kind, range(1000))


def check_round_trips(kind, seeds):
    r = random.Random(seeds.start)
    for seed in seeds:
        network = kind(seed)
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


@pytest.mark.long
@pytest.mark.parametrize("part", range(4))
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_refused_or_unchanged(kind, part):
    check_damage(kind, range(250 * part, 250 * (part + 1)))
    check_damaged_codes(kind, range(250 * part, 250 * (part + 1)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_ten_thousand_damaged_files(kind):
    check_damage(kind, range(1000, 11000))
    coded(kind)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    read, longest = check_damaged_codes(kind, range(1000, 11000))
    # That some are read shows that they do not all stop at the first byte that is wrong.
    assert read > 100
    assert longest < 10, "seconds of processor time for one file"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024, "KiB more than before"


@cache
def coded(kind):
    """Fifty networks and their codes."""
    return [(network, encode(network)) for network in map(kind, range(50))]


def check_damage(kind, seeds):
    for seed in seeds:
        r = random.Random(seed)
        network, code = r.choice(coded(kind))
        data = to_file_bytes(code)
        damaged = mutate(r, data)
        try:
            read, _ = from_file_bytes(damaged)
        except DecodeError as error:
            assert "\n" not in str(error)
        else:
            # Junk behind a file that is whole; anything else has one chance in 2³² to pass the check sum.
            assert read == network and damaged.startswith(data)


def check_damaged_codes(kind, seeds):
    """With the check sum repaired: another network's code or none, and never longer than the work it may make.

    Returns how many were read, and the longest time that one took, in seconds of the processor.
    """
    count, longest = 0, 0.0
    for seed in seeds:
        r = random.Random(seed)
        damaged = mutate(r, r.choice(coded(kind))[1])
        started = time.process_time()
        try:
            read, length = decode(damaged)
        except DecodeError as error:
            assert "\n" not in str(error)
            continue
        finally:
            longest = max(longest, time.process_time() - started)
        count += 1
        again = [decode(damaged[:length] + junk) for junk in (b"", b"\xff" * 9, r.randbytes(20))]
        assert all(found == (read, length) for found in again)
        with pytest.raises(DecodeError):
            decode(damaged[: length - 1])
        assert read.nonzeros <= 1024 * length
        if read.inputs.pixels and kind is random_convolutional and damaged[0] >> 5 == 2:
            assert read.exact
    return count, longest


# What brought an older decoder to seconds, gigabytes, or an error of Python's own.
@pytest.mark.parametrize(
    "code",
    [
        "0080bffffffffffffc00001fffffffffffffffe000000000",
        "0080bfffffffffffffff00000001fffffffffffffffe00000000",
        "38707033fffe24f8720000000000000000000000000000a02806",
        "387048cdf2c8f5ffffffffffffff",
    ],
)
def test_crafted_codes_are_refused_at_once(code):
    reads = CountingDecoder(bytes.fromhex(code))
    with pytest.raises((ValueError, OverflowError)):
        describe(reads, None, Work(len(code) // 2))
    assert reads.bits < 2000
    with pytest.raises(DecodeError):
        decode(bytes.fromhex(code))


class CountingDecoder(Decoder):
    bits = 0

    def bit(self, bit, model):
        self.bits += 1
        return super().bit(bit, model)


def headers(*fields):
    """The start of a code of version 1 whose header says that, and then zeros."""
    encoder = Encoder()
    for value in fields:
        if value in ("0", "1"):
            encoder.bit(int(value), FAIR)
        else:
            elias_gamma(encoder, value)
    return encoder.finish() + bytes(40)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        # Version 1, 1 × 16 × 16 pixels; no bank, no crop, pool 1, stride 1, in colour, of pixels; one node more.
        ((1, 0, 15, "1", 0, 0, 0, 0, "0", "1", 0, "0", "1", 60_000), "weights, of at most"),
        ((1, 0, 15, "1", 0, 0, 0, 0, "0", "1", 1, "0", "0", 9, 0, 0, 60_000, 0, "0", "1", 9), "behind a node"),
        ((1, 0, 15, "1", 0, 0, 0, 0, "0", "1", 1, "1", "0", 60_000, 0, "0", "1", 9), "behind a node"),
        ((1, 0, 15, "1", 0, 0, 0, 0, "0", "1", 70), "70 where at most 63"),
        ((1, 0, 15, "1", 0, 9), "9 where at most"),
        ((1, 0, 70_000), "70000 where at most 65536"),
        ((9,), "version 9"),
    ],
)
def test_a_header_that_asks_for_too_much_is_refused_before_anything_is_read(fields, said):
    data = headers(*fields)
    reads = CountingDecoder(data)
    with pytest.raises(ValueError, match=said):
        describe(reads, None, Work(len(data)))
    assert reads.bits < 300


@pytest.mark.long
def test_a_large_file_is_read_within_bounds():
    # 2¹⁸ columns, the most there may be, and places that might each have a probability of their own.
    values = torch.zeros(1, 1 << 18, dtype=torch.int64)
    values[0, :: 1 << 11] = 1
    network = CodedNetwork(InputMap(1, 512, 512), (CodedLayer(values, torch.tensor([1]), None),))
    encoder, wasteful = Encoder(), Coding(2, True, False, True, 0)
    described = Version1(encoder, Work())
    with pytest.raises(ValueError, match="262,144 places in a channel with contexts of their own, of 16,384"):
        described._layer(network.layers[0], wasteful, Shape(1, None), (1, 512, 512), "layer 0")
    # Without them.
    tracemalloc.start()
    try:
        models = Weights(Plane(1, 512, 512), 29, True)
        models.code_row(Meter(), values[0].tolist())
        assert tracemalloc.get_traced_memory()[1] < 24 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_takes_little_memory(kind):
    codes = [encode(kind(seed)) for seed in range(20)]
    tracemalloc.start()
    try:
        for seed in range(200):
            r = random.Random(seed)
            with suppress(DecodeError):
                decode(mutate(r, r.choice(codes)))
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


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
    first = torch.tensor([[((7 * row + 5 * place) % 11) % 3 - 1 for place in range(108)] for row in range(2)])
    second = torch.tensor([[1, -1, 0, 2, 1, 0, -3, 0], [0, 0, -1, 0, 1, 1, 1, 0]])
    nodes = (
        CodedLayer(first, torch.tensor([-1, 3]), None, 5, Window(3, 1, 1)),
        Pool("sum", 2, 2),
        CodedLayer(second, torch.tensor([4, 2]), torch.tensor([0, 1]), -2),
    )
    assert encode(CodedNetwork(InputMap(1, 16, 16, bank=1, cell=4), nodes)).hex() == FROZEN_1


@pytest.mark.parametrize(
    ("kind", "digest"), [(random_network, "39b654989e97a60d"), (random_convolutional, "12554e1b71cae7e3")]
)
def test_codes_of_every_kind_are_frozen(kind, digest):
    """What reads back its own bytes may still be another format."""
    found = hashlib.sha256()
    for seed in range(25):
        found.update(encode(kind(seed)))
    assert found.hexdigest()[:16] == digest


def test_the_check_sum_of_a_file_is_the_crc_32_of_its_code():
    code = bytes.fromhex(FROZEN)
    assert to_file_bytes(code) == code + zlib.crc32(code).to_bytes(4, "big")


def test_contexts_are_chosen_until_no_change_of_one_is_cheaper():
    for seed in range(20):
        costs = random.Random(seed).sample(range(1000), 32)
        chosen = _descent(costs.__getitem__)
        assert all(costs[chosen] < costs[chosen ^ 1 << flag] for flag in range(5))


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


def small_convolutional():
    """Networks of version 1 with a kernel and a linear layer with values in {−1, 0, 1}, and small biases."""
    inputs = InputMap(1, 2, 2)
    for kernel in product((-1, 0, 1), repeat=2):
        for values in product((-1, 0, 1), repeat=2):
            for biases in product((0, 1), repeat=2):
                first = CodedLayer(torch.tensor(kernel)[:, None], torch.tensor(biases), None, 0, Window(1))
                pool = Pool("max", 2, 1)
                yield CodedNetwork(inputs, (first, pool, CodedLayer(torch.tensor([values]), torch.tensor([0]), None)))


def test_no_code_begins_another_and_kraft_holds():
    codes = sorted(
        encode(network)
        for networks in (
            *(small_networks(columns, rows) for columns, rows in ((1, 1), (2, 1), (1, 2), (2, 2))),
            small_convolutional(),
        )
        for network in networks
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


@pytest.mark.parametrize("kind", KINDS)
def test_prices_are_what_a_change_costs(kind):
    network = kind(5)
    prices = Prices(network)
    assert prices.bits == pytest.approx(sum(code_bits(network).values()))
    layer = network.layers[0]
    table = prices.weights(0, 3)
    assert table.shape == (*layer.values.shape, 7)
    # At any place the values are a probability's logs: they add up to less than one.
    assert float((2**-table).sum(dim=2).max()) <= 1
