import itertools
import math
import random

from hypothesis import given
from hypothesis import strategies as st

from milkshake_mbp.codec.coder import FAIR, Bit, Decoder, Encoder, Gamma, Meter, Unary, elias_gamma


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 2)), max_size=300), st.binary(max_size=9))
def test_bits_come_back_whatever_follows(message, junk):
    models, encoder = [Bit(), FAIR, Bit()], Encoder()
    for bit, model in message:
        encoder.bit(int(bit), models[model])
    code = encoder.finish()
    models, decoder = [Bit(), FAIR, Bit()], Decoder(code + junk)
    assert [decoder.bit(0, models[model]) for _, model in message] == [int(bit) for bit, _ in message]
    assert decoder.consumed() == len(code)


def test_carries_run_through_many_bytes():
    # Nearly certain ones put the message just below a power of two, where a carry changes every byte before it.
    for zeros in range(40):
        models, encoder = [Bit() for _ in range(50)], Encoder()
        message = [1] * 2000 + [0] * zeros + [1] * 100
        for place, bit in enumerate(message):
            encoder.bit(bit, models[place % 50 if place > 2000 else 0])
        models, decoder = [Bit() for _ in range(50)], Decoder(encoder.finish())
        assert [decoder.bit(0, models[place % 50 if place > 2000 else 0]) for place in range(len(message))] == message


def test_the_length_is_the_ideal_one_and_less_than_two_bytes_more():
    for seed in range(200):
        r = random.Random(seed)
        models, encoder, meter = [Bit(), Bit()], Encoder(), Meter()
        metered = [Bit(), Bit()]
        for _ in range(r.randrange(2000)):
            which, bit = r.randrange(2), int(r.random() < 0.1)
            encoder.bit(bit, models[which])
            meter.bit(bit, metered[which])
        assert 0 <= 8 * len(encoder.finish()) - sum(meter.bits.values()) + 0.01 < 16


def test_krichevsky_and_trofimov():
    # KT's probability of a sequence is Γ(a + ½)Γ(b + ½)/(π Γ(a + b + 1)), whatever its order.
    for bits in itertools.product((0, 1), repeat=6):
        meter, model, ones = Meter(), Bit(), sum(bits)
        for bit in bits:
            meter.bit(bit, model)
        log = math.lgamma(ones + 0.5) + math.lgamma(6 - ones + 0.5) - math.log(math.pi) - math.lgamma(7)
        assert math.isclose(meter.bits[""], -log / math.log(2))


@given(st.lists(st.integers(0, 10**6), max_size=50))
def test_integers_come_back(numbers):
    encoder, gamma, unary = Encoder(), Gamma(), Unary(3)
    for number in numbers:
        assert gamma.code(encoder, number) == unary.code(encoder, number) == elias_gamma(encoder, number) == number
    decoder, gamma, unary = Decoder(encoder.finish()), Gamma(), Unary(3)
    for number in numbers:
        assert gamma.code(decoder, 0) == unary.code(decoder, 0) == elias_gamma(decoder, 0) == number


def test_elias_gamma_has_its_length():
    for number in (0, 1, 2, 3, 100, 12345):
        meter = Meter()
        elias_gamma(meter, number)
        assert meter.bits[""] == 2 * (number + 1).bit_length() - 1


def test_both_sides_renew_their_interval_at_the_same_moment():
    # Eight fair bits leave a range of 2²⁴, of which 5/6 is no whole number; zeros keep the code at its lower end.
    for first in range(256):
        message = [(first >> place & 1, FAIR) for place in range(8)]
        models = [Bit(), Bit()]
        for model in models:
            model.weights = [5, 1]
        encoder, rest = Encoder(), [(0, FAIR)] * 40
        for bit, model in [*message, (1, models[0]), *rest]:
            encoder.bit(bit, model)
        code = encoder.finish()
        decoder = Decoder(code + b"\xff" * 5)
        found = [decoder.bit(0, model) for _, model in [*message, (1, models[1]), *rest]]
        assert found == [bit for bit, _ in message] + [1] + [0] * 40
        assert decoder.consumed() == len(code)
