"""Limits of the format from both sides: what is within them is read, and what is one beyond is refused at once."""

import random
from contextlib import suppress

import pytest
import torch

from milkshake_mbp.codec import (
    CodedLayer,
    CodedNetwork,
    DecodeError,
    InputMap,
    Pool,
    Window,
    decode,
    encode,
    version0,
    version1,
)
from milkshake_mbp.codec import network as network_module
from milkshake_mbp.codec.banks import BANKS
from milkshake_mbp.codec.coder import FAIR, Decoder, Encoder
from milkshake_mbp.codec.format import describe
from milkshake_mbp.codec.limits import MAX_EXPONENT, MAX_NUMBER, MAX_WEIGHTS, MAX_WIDTH, WEIGHTS_A_BYTE, Work
from milkshake_mbp.codec.network import row_factor


def small(bias=0, scale=0, exponent=0, window=None):
    """Of version 0, or of version 1 with a window."""
    scales = torch.tensor([scale])
    layer = CodedLayer(torch.tensor([[1]]), torch.tensor([bias]), scales, exponent, window)
    return CodedNetwork(InputMap(1, 1, 1, pixels=False), (layer,))


def unlimited(network, monkeypatch):
    """The code of a network, written by an encoder that knows no limits."""
    with monkeypatch.context() as patch:
        for version in (version0, version1):
            patch.setattr(version, "MAX_NUMBER", 1 << 60)
            patch.setattr(version, "MAX_EXPONENT", 1 << 60)
        patch.setattr(version0.Numbers.exponent, "__defaults__", (1 << 60,))
        encoder = Encoder()
        describe(encoder, network, Work())
        return encoder.finish()


@pytest.mark.parametrize("window", [None, Window(1)])
@pytest.mark.parametrize(
    ("key", "largest", "said"),
    [("bias", MAX_NUMBER, "bias"), ("scale", MAX_EXPONENT, "scale"), ("exponent", 40, "at most 40")],
)
def test_numbers_have_limits_for_writer_and_reader(monkeypatch, window, key, largest, said):
    most = small(**{key: largest}, window=window)
    assert decode(encode(most))[0] == most
    beyond = small(**{key: largest + 1}, window=window)
    with pytest.raises(ValueError, match=said):
        encode(beyond)
    with pytest.raises(DecodeError, match=said):
        decode(unlimited(beyond, monkeypatch) + bytes(20))
    if key != "scale":
        with pytest.raises(DecodeError, match=said):
            decode(unlimited(small(**{key: -largest - 1}, window=window), monkeypatch) + bytes(20))


def test_limits_are_frozen():
    # With the format: a file that is read today is read for ever, and what is refused today is no network's code.
    assert (MAX_WEIGHTS, WEIGHTS_A_BYTE, MAX_WIDTH) == (4_194_304, 1_024, 262_144)
    assert (MAX_EXPONENT, MAX_NUMBER) == (40, 16_777_216)
    assert (version0._MAX_LAYERS, version1._MAX_SIDE, version1._MAX_NODES) == (64, 65_536, 64)
    assert [bank.max_side for bank in BANKS] == [65_536, 4_096]
    assert (version1._MAX_OUTPUTS, version1._MAX_WORK, version1._MAX_PLACES) == (262_144, 67_108_864, 16_384)


def test_work_has_limits():
    Work().add(16, MAX_WIDTH)
    Work().add(MAX_WIDTH, 16)
    for rows, columns in ((1, MAX_WIDTH + 1), (MAX_WIDTH + 1, 1)):
        with pytest.raises(DecodeError, match=f"of at most {MAX_WIDTH:,}"):
            Work().add(rows, columns)
    work = Work()
    work.add(MAX_WEIGHTS // 64, 64)
    with pytest.raises(DecodeError, match=f"weights, of at most {MAX_WEIGHTS:,}"):
        work.add(1, 1)


@pytest.mark.parametrize(("rows", "columns"), [(8, 1023), (4096, 1)])
def test_weights_and_rows_have_a_limit_for_each_byte(rows, columns):
    length = (rows * columns + rows) // WEIGHTS_A_BYTE
    Work(length).add(rows, columns)
    with pytest.raises(DecodeError, match="where a byte has 1024"):
        Work(length - 1).add(rows, columns)
    work = Work()
    work.add(rows, columns)
    work.check(length)
    with pytest.raises(DecodeError):
        work.check(length - 1)


def test_a_code_that_is_too_short_for_its_weights_is_refused_after_it_is_read():
    # Zeros take next to nothing: without the limit, 5,000 of them would be four bytes.
    zeros = torch.zeros(1, dtype=torch.int64)
    network = CodedNetwork(InputMap(1, 1, 9000), (CodedLayer(torch.zeros(1, 9000, dtype=torch.int64), zeros, zeros),))
    encoder = Encoder()
    describe(encoder, network, Work())
    code = encoder.finish()
    assert len(code) < 9
    with pytest.raises(DecodeError, match="where a byte has"):
        decode(code + bytes(100))
    with pytest.raises(ValueError, match="where a byte has"):
        encode(network)


class CountingDecoder(Decoder):
    bits = 0

    def bit(self, bit, model):
        self.bits += 1
        return super().bit(bit, model)


@pytest.mark.parametrize("version", [0, 1])
def test_files_that_lie_take_no_more_bits_than_their_bytes_allow(version):
    """Every one of a reader's steps reads a bit: they bound its time, whatever the machine."""
    for seed in range(300):
        r = random.Random(f"{version} {seed}")
        # The version, and then bits that make long numbers.
        first = {0: [0], 1: [1, 0, 0]}[version]
        encoder = Encoder()
        for bit in [*first, *(int(r.random() < r.choice((0.3, 0.7))) for _ in range(200))]:
            encoder.bit(bit, FAIR)
        data = encoder.finish()[: r.randrange(3, 26)] + r.choice((b"", b"\xff" * 9, bytes(9)))
        reads = CountingDecoder(data)
        with suppress(ValueError, OverflowError):
            describe(reads, None, Work(len(data)))
        # A weight takes a bit to be zero, or up to 2 + 16 + 65 of them, and so does a row with its bias and scale.
        assert reads.bits < 400 + 200 * WEIGHTS_A_BYTE * len(data) // 10


def test_exact_ends_at_two_to_the_53():
    def network(value, bias=0, scale=0, exponent=0):
        layer = CodedLayer(torch.tensor([[value]]), torch.tensor([bias]), torch.tensor([scale]), exponent)
        return CodedNetwork(InputMap(1, 1, 1), (layer,))

    # 255 · 2⁴⁴, times 2 for the smallest scale, is below 2⁵³; with one power of two more, or a unit of an eighth, not.
    assert network(1 << 44).exact and network(-(1 << 44)).exact
    assert not network(1 << 45).exact and not network(-(1 << 45)).exact
    assert not network(1 << 44, exponent=-1).exact
    assert network(1 << 41, exponent=-3).exact and not network(1 << 42, exponent=-3).exact
    assert network(1 << 43, scale=2).exact and not network(1 << 44, scale=2).exact
    # A bias counts: 255 · 2⁴⁴ + 2⁴⁸ is beyond 2⁵².
    assert not network(1 << 44, bias=1 << 24, exponent=24).exact
    # What is beyond is really lost: 2⁵³ + 1 is no float64.
    lost = CodedNetwork(
        InputMap(1, 1, 1), (CodedLayer(torch.tensor([[1 << 53], [1]]), torch.tensor([1, 0]), torch.tensor([0, 0])),)
    )
    assert not lost.exact and lost.logits(torch.tensor([[1]], dtype=torch.uint8))[0, 0] == 2.0**54
    assert not CodedNetwork(InputMap(1, 1, 1, pixels=False), network(1).nodes).exact


def test_pooling_counts_in_what_is_exact():
    def network(kind, value):
        first = CodedLayer(torch.tensor([[value]]), torch.tensor([0]), torch.tensor([0]), 0, Window(1))
        last = CodedLayer(torch.tensor([[1]]), torch.tensor([0]), torch.tensor([0]))
        return CodedNetwork(InputMap(1, 2, 2), (first, Pool(kind, 2, 1), last))

    # 255 · 2 · 2 · V < 2⁵³, and four of them with a sum.
    assert network("max", 1 << 43).exact and not network("max", 1 << 44).exact
    assert network("sum", 1 << 41).exact and not network("sum", 1 << 42).exact


def test_single_precision_is_taken_only_where_it_is_exact():
    for power in range(12, 40):
        value = (1 << power) + 1
        layer = CodedLayer(torch.tensor([[value], [1]]), torch.tensor([1, 0]), torch.tensor([0, 0]))
        network = CodedNetwork(InputMap(1, 1, 1), (layer,))
        pixels = torch.tensor([[251], [255]], dtype=torch.uint8)
        assert network.logits(pixels)[:, 0].tolist() == [2 * (value * pixel + 1) for pixel in (251, 255)]


def test_rows_are_looked_at_a_few_at_a_time_and_give_the_same(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    for shape in ((1, 1 << 18), (700, 400), (3, 1), (5000, 40)):
        values = torch.randint(-3, 4, shape, generator=generator)
        squares = 1 + values.square().sum(dim=1)
        for factor, square in zip(row_factor(values)[:200].tolist(), squares[:200].tolist(), strict=True):
            assert factor == max(1, factor) and (factor == 1 or factor**2 * square <= 1 << 16)
            assert (factor + 1) ** 2 * square > 1 << 16
    monkeypatch.setattr(network_module, "_FEW_NUMBERS", 40)
    seen = []
    network_module._of_rows(torch.zeros(9, 10), lambda rows: seen.append(len(rows)) or rows.sum(dim=1).double())
    assert seen == [4, 4, 1]


def test_version_1_is_exact_or_refused(monkeypatch):
    layer = CodedLayer(torch.tensor([[1 << 30]]), torch.tensor([0]), torch.tensor([40]), 0, Window(1))
    network = CodedNetwork(InputMap(1, 1, 1), (layer,))
    assert not network.exact
    with pytest.raises(ValueError, match="too large to be computed exactly"):
        encode(network)
    with monkeypatch.context() as patch:
        patch.setattr(CodedNetwork, "exact", True)
        code = encode(network)
        assert decode(code)[0] == network
    with pytest.raises(DecodeError, match="too large to be computed exactly"):
        decode(code)
