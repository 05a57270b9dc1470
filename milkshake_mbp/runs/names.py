"""What a run is called, and which keys make it another run."""

import hashlib
import json
import re
from argparse import Namespace
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from milkshake_mbp.files import sha256
from milkshake_mbp.framework.args import config_dict
from milkshake_mbp.framework.settings import (
    PATHS,
    SIZES,
    Data,
    Network,
    Optimization,
    Run,
    TrainerFlags,
    default_of,
    model_of,
)
from milkshake_mbp.runs.settings import Pruning, Shown, Sweep

__all__ = ["file_name", "relevant_keys", "run_name", "shown"]

# What a group of another experiment has under one of these names means the same.
_FIELDS = {
    item.name: item
    for group in (Data, Network, Optimization, Run, TrainerFlags, Pruning, Sweep, Shown)
    for item in fields(group)
}


def run_name(args: Namespace) -> str:
    """A name that is a function of every key that affects the result, so that nothing is named by hand or run twice.

    A file that a key names counts by its content, so that other weights or samples at the same place are another run.
    The keys of other models do not count; those of all models do for a class of the user's own, which may read them.
    """
    relevant = relevant_keys(args)
    contents = {key: content for key in relevant if (content := _content(key, relevant[key]))}
    digest = hashlib.sha256(json.dumps(relevant | contents, sort_keys=True).encode()).hexdigest()[:8]
    size = [str(getattr(args, SIZES[args.model]))] if args.model in SIZES else []
    return file_name("-".join([args.datamodule, args.model, *size, f"seed{args.seed}", digest]))


def file_name(name: str) -> str:
    """The name of a file or folder that is no more than a name: no path, nothing hidden, nothing unprintable."""
    return re.sub(r"[^\w.-]", ".", name).lstrip(".") or "unnamed"


def _content(key: str, value: Any) -> str:
    """The digest of the file that a key names, of code or of numbers; "" if it names none."""
    path = (
        Path(value.rpartition(":")[0] if key in ("datamodule", "model") else value) if isinstance(value, str) else None
    )
    if key not in PATHS | {"datamodule", "model"} or path is None or not path.is_file():
        return ""
    stat = path.stat()
    return _digest(path, stat.st_mtime_ns, stat.st_size)


@lru_cache
def _digest(path: Path, changed: int, size: int) -> str:
    return sha256(path)


def relevant_keys(args: Namespace) -> dict[str, Any]:
    """The keys that can affect a run's result, with their values; paths count from the root."""
    return {key: value for key, value in config_dict(args).items() if _matters(key, value, args.model)}


def _matters(key: str, value: Any, model: str) -> bool:
    """Whether this value of a key can make a run of the model another run."""
    item, owner = _FIELDS.get(key), model_of(key)
    role = item.metadata.get("role") if item else None
    # The models that there were at first have no keys of their own but ffn's.
    newer = role == "newer" or owner not in (None, "ffn")
    if role == "immaterial" or (newer and item and value == default_of(item)):
        return False
    return model not in SIZES or owner in (None, model)


def shown(value: Any) -> str:
    """A key's value, as short as it can be read back."""
    short = f"{value:g}" if isinstance(value, float) else ""
    if short and float(short) == value:
        return short
    return value if isinstance(value, str) else json.dumps(value)
