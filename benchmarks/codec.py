"""A certificate's code beside general-purpose compressors on the same integers: bytes, and seconds to write and read.

python benchmarks/codec.py FILE.mbp [--repeats 5]

The compressors get the network's integers as bytes in the same order, in the smallest type that holds them, one array
after another; xz and bzip2 come with Python, zstd and brotli are taken if they are installed.
"""

import argparse
import bz2
import lzma
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from milkshake_mbp.codec import CodedNetwork, decode, encode, from_file_bytes
from milkshake_mbp.experiment.certificate.show import shown


def plain(network: CodedNetwork) -> bytes:
    """The same integers without a code."""
    parts = [np.array(network.widths, dtype=np.int16)]
    for layer in network.layers:
        for part in (layer.values, layer.biases, layer.scales):
            if part is None:
                continue
            numbers = part.numpy()
            parts.append(numbers.astype(np.min_scalar_type(-int(abs(numbers).max()) - 1)))
    return b"".join(part.tobytes() for part in parts)


def timed(function: Callable[[], object], repeats: int) -> float:
    """Median seconds."""
    taken = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def compressors() -> dict[str, tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]]:
    """By name: compress and decompress, at the strongest setting."""
    raw = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}]
    found: dict[str, tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]] = {
        "xz -9e, no container": (
            lambda data: lzma.compress(data, lzma.FORMAT_RAW, filters=raw),
            lambda data: lzma.decompress(data, lzma.FORMAT_RAW, filters=raw),
        ),
        "bzip2 -9": (bz2.compress, bz2.decompress),
    }
    for name in ("compression.zstd", "zstandard", "zstd"):
        try:
            zstd = import_module(name)
        except ImportError:
            continue
        found["zstd -19"] = (lambda data: zstd.compress(data, 19), zstd.decompress)  # noqa: B023
        break
    with suppress(ImportError):
        brotli = import_module("brotli")
        found["brotli -11"] = (brotli.compress, brotli.decompress)
    return found


def main() -> None:
    """Compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("file", type=Path, help="a certificate")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    network, length = from_file_bytes(options.file.read_bytes())
    data = plain(network)
    table = Table(title=f"{network.nonzeros} weights, {shown(network)}, {len(data)} bytes plain")
    for head in ("", "bytes", "ours/theirs", "write, ms", "read, ms"):
        table.add_column(head, justify="left" if not head else "right")
    code = encode(network)
    assert len(code) == length
    write, read = (timed(f, options.repeats) for f in (lambda: encode(network), lambda: decode(code)))
    table.add_row("milkshake_mbp.codec", str(length), "", f"{1e3 * write:.1f}", f"{1e3 * read:.1f}")
    for name, (compress, decompress) in compressors().items():
        packed = compress(data)
        assert decompress(packed) == data
        write, read = (
            timed(f, options.repeats)
            for f in (lambda: compress(data), lambda: decompress(packed))  # noqa: B023
        )
        ratio = f"{length / len(packed):.2f}"
        table.add_row(name, str(len(packed)), ratio, f"{1e3 * write:.1f}", f"{1e3 * read:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
