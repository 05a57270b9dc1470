"""Prefix codes that map networks to bytes and back; each version is frozen.

The code of a network is a string of bytes that is not the beginning of another network's code, so Σ 2^{−8·bytes} ≤ 1
over all networks (Kraft's inequality), which is all that a bound needs. A file is a code followed by its CRC-32, which
detects damage; it is not part of the code, and not counted. Every code begins with its version.
"""

import zlib
from typing import Any

from milkshake_mbp.codec.coder import Coder, Decoder, Encoder, Meter, elias_gamma
from milkshake_mbp.codec.limits import DecodeError, Work
from milkshake_mbp.codec.network import CodedLayer, CodedNetwork
from milkshake_mbp.codec.version0 import Version0
from milkshake_mbp.codec.version1 import Version1

__all__ = ["DecodeError", "code_bits", "decode", "describe", "encode", "from_file_bytes", "to_file_bytes", "version_of"]

_VERSIONS: tuple[Any, ...] = (Version0, Version1)
_CHECK_BYTES = 4


def version_of(network: CodedNetwork) -> int:
    """The oldest version that can represent the network."""
    plain = all(isinstance(node, CodedLayer) and not node.window and node.scales is not None for node in network.nodes)
    return 0 if plain and not network.inputs.bank else 1


def describe(coder: Coder, network: CodedNetwork | None, work: Work | None = None) -> tuple[CodedNetwork, Any]:
    """Write a network, or read one.

    Args:
        coder: the encoder or decoder.
        network: the network to write; None for a decoder.
        work: limit on the work of a decoder.

    Returns:
        The network, and the version's description with its adapted `models`.
    """
    coder.part = "header"
    version = elias_gamma(coder, version_of(network) if network else 0)
    if version >= len(_VERSIONS):
        raise DecodeError(f"version {version} of the format, where {len(_VERSIONS) - 1} is the newest known")
    described = _VERSIONS[version](coder, work or Work())
    return described.network(network), described


def encode(network: CodedNetwork) -> bytes:
    """The shortest code of a network over all choices of contexts.

    Args:
        network: any network within the limits of the format.

    Returns:
        The bytes, which `decode` reads back to the same network.

    Raises:
        ValueError: a number is beyond the limits of the format.
    """
    encoder, work = Encoder(), Work()
    try:
        describe(encoder, network, work)
        code = encoder.finish()
        work.check(len(code))
    except (OverflowError, ValueError) as error:
        raise ValueError(f"this network cannot be coded: {error}") from error
    return code


def decode(data: bytes) -> tuple[CodedNetwork, int]:
    """Read the network whose code is the beginning of the data.

    Args:
        data: a code, followed by any bytes.

    Returns:
        The network, and the number of bytes of its code, which do not depend on the bytes that follow.

    Raises:
        DecodeError: the data end too early, or are not the code of a network.
    """
    decoder, work = Decoder(data), Work(len(data))
    try:
        network, _ = describe(decoder, None, work)
        length = decoder.consumed()
        work.check(length)
    except (OverflowError, ValueError) as error:
        raise DecodeError(f"these bytes are no network's code: {error}") from error
    if length > len(data):
        raise DecodeError(f"the code is cut short: it has {length} bytes or more, and {len(data)} are there")
    return network, length


def to_file_bytes(code: bytes) -> bytes:
    """A code and its check sum."""
    return code + zlib.crc32(code).to_bytes(_CHECK_BYTES, "big")


def from_file_bytes(data: bytes) -> tuple[CodedNetwork, int]:
    """As `decode`, and check the check sum after the code.

    Raises:
        DecodeError: as `decode`, or the check sum is wrong.
    """
    network, length = decode(data)
    if data[length : length + _CHECK_BYTES] != to_file_bytes(data[:length])[length:]:
        raise DecodeError("the check sum does not fit: the file is damaged or cut short")
    return network, length


def code_bits(network: CodedNetwork) -> dict[str, float]:
    """Bits of each part of the code: the header, and positions, signs, sizes, biases and scales by layer.

    The code's length exceeds their sum by less than two bytes.
    """
    meter = Meter()
    describe(meter, network)
    return dict(meter.bits)
