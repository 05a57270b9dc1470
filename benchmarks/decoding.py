"""Damaged and crafted certificates: how long the slowest takes to be read or refused, and how much memory.

python benchmarks/decoding.py --version 0|1 [--mutated 10000] [--crafted 1000] [--largest 3000]

A crafted file is written by the format's own description, with an encoder behind it that says whatever it likes: sizes
that are too large, numbers beyond their limits, matrices of one value. Where the description refuses, the file ends
with junk, zeros or ones, so that each drives a reader as far as its encoder came. A mutated one is a small file that
can be read, with bits flipped, bytes exchanged, or its end cut off. Of each file the code is read as it is, as if its
check sum had been repaired. What is accepted must be the same network whatever follows its bytes, and none with a byte
less.
"""

import argparse
import random
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress

from milkshake_mbp.codec import DecodeError, decode
from milkshake_mbp.codec.coder import Bit, Encoder, elias_gamma
from milkshake_mbp.codec.format import describe
from milkshake_mbp.codec.limits import Work

# What took an older reader seconds, gigabytes or an error of Python's own.
KNOWN = (
    "0080bffffffffffffc00001fffffffffffffffe000000000",
    "0080bfffffffffffffff00000001fffffffffffffffe00000000",
    "38707033fffe24f8720000000000000000000000000000a02806",
    "387048cdf2c8f5ffffffffffffff",
)


class Liar:
    """A coder that writes bits of its own choosing, and gives them back as if it had been told them.

    Args:
        r: that chooses.
        fields: numbers and flags that it begins with, the version first.
        ones: probability of a one: in the header, where it makes numbers long, and behind it, where weights are.
    """

    def __init__(self, r: random.Random, fields: Iterable[int | bool], ones: tuple[float, float]) -> None:
        self.part, self._r, self._header, self._body = "", r, *ones
        self._encoder, self._first = Encoder(), list[int]()
        for field in fields:
            if isinstance(field, bool):
                self._first.append(int(field))
            else:
                elias_gamma(Recorder(self._first), field)

    def bit(self, bit: int, model: Bit) -> int:
        """A bit that nobody asked for."""
        if self._first:
            bit = self._first.pop(0)
        else:
            bit = int(self._r.random() < (self._header if self.part == "header" else self._body))
        return self._encoder.bit(bit, model)

    def finish(self) -> bytes:
        """What was written."""
        return self._encoder.finish()


class Recorder:
    """Keeps the bits that it is told."""

    def __init__(self, bits: list[int]) -> None:
        self.part, self._bits = "", bits

    def bit(self, bit: int, model: Bit) -> int:
        """Keep it."""
        self._bits.append(bit)
        return bit


def crafted(version: int, seed: int, largest: int) -> bytes:
    """A file of at most about that many bytes."""
    r = random.Random(f"{version} {seed}")
    ones = (r.choice((0.1, 0.3, 0.45, 0.6, 0.8)), r.choice((0.0, 0.01, 0.2, 0.5, 0.9, 1.0)))
    room = r.choices((4, 10, 30, 100, largest), (40, 30, 20, 8, 2))[0]
    liar = Liar(r, [version] if r.random() < 0.5 else [version, *sizes(version, r, room)], ones)
    with suppress(ValueError, OverflowError):
        describe(liar, None, Work(room))
    code = liar.finish()[: 2 * largest]
    ending = r.choice((b"", bytes(room), b"\xff" * room, r.randbytes(room)))
    return code + ending


def sizes(version: int, r: random.Random, room: int) -> list[int | bool]:
    """A header of about as many weights as a code of `room` bytes may have, or twice as many."""
    weights = 1024 * room * r.choice((0.1, 0.5, 0.95, 2.0))
    height, width = (int(2 ** r.uniform(0, 7)) for _ in range(2))
    layers = r.choice((1, 1, 2, 5, 60))
    rows = max(1, int(weights / layers / (height * width)))
    # One channel, no crop, squares of one pixel; of pixels. Version 1 says where a side is the other, and has no bank.
    if version == 0:
        return [0, height - 1, width - 1, 0, 0, 0, False, True, layers - 1, *[rows - 1] * layers]
    head: list[int | bool] = [0, height - 1, height == width, *([] if height == width else [width - 1]), 0, 0, 0, 0]
    return [*head, False, True, layers - 1, *[False, True, rows - 1] * layers]


def mutated(version: int, seed: int, sound: list[bytes]) -> bytes:
    """One of the sound ones, changed."""
    r = random.Random(f"mutated {version} {seed}")
    data = bytearray(r.choice(sound))
    for _ in range(r.choice((1, 1, 2, 5))):
        kind, place = r.randrange(4), r.randrange(max(1, len(data)))
        if kind == 0:
            del data[place:]
        elif kind == 1 and data:
            data[place] ^= 1 << r.randrange(8)
        else:
            data[place : place + r.randrange(9)] = r.randbytes(r.randrange(1, 9))
    return bytes(data)


def peak() -> float:
    """MiB that the process has had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def try_all(files: Iterator[bytes]) -> tuple[Counter[str], list[str]]:
    """What came of the files, and what was slow or wrong."""
    fates: Counter[str] = Counter()
    slowest, notes, before = {"refused": 0.0, "accepted": 0.0}, dict[str, str](), peak()
    wrong = []
    for data in files:
        started = time.process_time()
        try:
            network, length = decode(data)
            fate = "accepted"
        except DecodeError as error:
            fate = "refused"
            if "\n" in str(error):
                wrong.append(f"{data.hex()}: more than a line")
        except Exception as error:
            fate = "wrong"
            wrong.append(f"{data.hex()}: {type(error).__name__}")
        seconds = time.process_time() - started
        if fate != "wrong" and seconds > slowest[fate]:
            slowest[fate] = seconds
            notes[fate] = f"slowest {fate}: {1000 * seconds:.1f} ms of processor time, {len(data):,} bytes"
        fates[fate] += 1
        if fate == "accepted":
            if decode(data[:length] + b"\x5a" * 9) != (network, length):
                wrong.append(f"{data.hex()}: what follows matters")
            with suppress(DecodeError):
                decode(data[: length - 1])
                wrong.append(f"{data.hex()}: a byte less will do")
    return fates, [*notes.values(), f"peak memory {peak() - before:.0f} MiB above {before:.0f}", *wrong]


def main() -> int:
    """Read them all; 1 if one is not treated as it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", type=int, required=True)
    parser.add_argument("--mutated", type=int, default=10_000)
    parser.add_argument("--crafted", type=int, default=1_000)
    parser.add_argument("--largest", type=int, default=1_000, help="bytes of a crafted file")
    args = parser.parse_args()
    sound: list[bytes] = []
    seed = -1
    while len(sound) < 100:
        data = crafted(args.version, seed, 60)
        try:
            _, length = decode(data)
            sound.append(data[:length])
        except DecodeError:
            pass
        seed -= 1
    good = True
    kinds = {
        "known": map(bytes.fromhex, KNOWN),
        "crafted": (crafted(args.version, seed, args.largest) for seed in range(args.crafted)),
        "mutated": (mutated(args.version, seed, sound) for seed in range(args.mutated)),
    }
    for kind, files in kinds.items():
        fates, notes = try_all(files)
        print(f"version {args.version}, {kind}: {dict(fates)}; {'; '.join(notes[:8])}", flush=True)
        good = good and len(notes) <= 3
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
