"""Prefix codes that map networks to bytes and back, on which certificates are based (spec §6)."""

from milkshake_mbp.codec.format import DecodeError, code_bits, decode, encode, from_file_bytes, to_file_bytes
from milkshake_mbp.codec.module import CertifiedNetwork, export_certificate, load_certificate
from milkshake_mbp.codec.network import CodedLayer, CodedNetwork, InputMap, Node, Pool, Window, row_factor, scale_factor

__all__ = [
    "CertifiedNetwork",
    "CodedLayer",
    "CodedNetwork",
    "DecodeError",
    "InputMap",
    "Node",
    "Pool",
    "Window",
    "code_bits",
    "decode",
    "encode",
    "export_certificate",
    "from_file_bytes",
    "load_certificate",
    "row_factor",
    "scale_factor",
    "to_file_bytes",
]
