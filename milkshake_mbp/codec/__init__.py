"""The network ⇄ bytes prefix code behind the certificate (spec §6)."""

from milkshake_mbp.codec.format import DecodeError, code_bits, decode, encode, from_file_bytes, to_file_bytes
from milkshake_mbp.codec.network import CodedLayer, CodedNetwork, InputMap, scale_factor

__all__ = [
    "CodedLayer",
    "CodedNetwork",
    "DecodeError",
    "InputMap",
    "code_bits",
    "decode",
    "encode",
    "from_file_bytes",
    "scale_factor",
    "to_file_bytes",
]
