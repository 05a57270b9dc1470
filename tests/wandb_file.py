"""What an offline run has on file for `wandb sync`."""

import json
import struct

import wandb
from wandb.proto import wandb_internal_pb2

# A header of 7 bytes; then blocks of 32 KiB, of pieces with a checksum, a length and their place in a record.
_HEADER, _BLOCK, _PIECE = 7, 1 << 15, struct.Struct("<IHB")
_WHOLE, _LAST = 1, 4


class WandbFile:
    """The records of a .wandb file by kind."""

    def __init__(self, path):
        self.records = list(_records(path.read_bytes()))

    def of(self, kind):
        return [getattr(record, kind) for record in self.records if record.WhichOneof("record_type") == kind]

    @property
    def history(self):
        return [_values(record.item) for record in self.of("history")]

    @property
    def summary(self):
        return {key: value for record in self.of("summary") for key, value in _values(record.update).items()}

    @property
    def config(self):
        run = _values(self.of("run")[0].config.update)
        return run | {key: value for record in self.of("config") for key, value in _values(record.update).items()}


def offline_runs(folder):
    wandb.teardown()  # the process that writes may be behind until it ends
    return [WandbFile(path) for path in sorted(folder.rglob("*.wandb"))]


def _records(content):
    assert content[:4] == b":W&B"
    at, record = _HEADER, b""
    while at < len(content):
        if (left := _BLOCK - at % _BLOCK) < _PIECE.size:
            at += left
            continue
        _, length, place = _PIECE.unpack_from(content, at)
        at += _PIECE.size
        record += content[at : at + length]
        at += length
        if place in (_WHOLE, _LAST):
            yield wandb_internal_pb2.Record.FromString(record)
            record = b""


def _values(items):
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}
