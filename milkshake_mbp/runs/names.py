"""What a run is called, and which keys make it another run."""

import hashlib
import json
import re
from argparse import Namespace
from dataclasses import MISSING, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from milkshake_mbp.files import sha256
from milkshake_mbp.framework.args import config_dict
from milkshake_mbp.framework.settings import PATHS, SIZES, Data, Network, Optimization, Run, TrainerFlags, model_of
from milkshake_mbp.runs.settings import Pruning

__all__ = ["file_name", "relevant_keys", "run_name", "shown"]

# What can differ between two runs that compute the same thing.
_IRRELEVANT = {
    "ckpt_every_n_epochs",
    "ckpt_every_n_steps",
    "data_dir",
    "debug",
    "enable_model_summary",
    "enable_progress_bar",
    "engine",
    "experiment",
    "figures",
    "log_every_n_steps",
    "max_retries",
    "num_workers",
    "out_dir",
    "parallel",
    "persistent_workers",
    "profiler",
    "ray_address",
    "rerun",
    "resume_training",
    "tensorboard",
    "trial_cpus",
    "trial_gpus",
    "wandb",
    "wandb_dir",
    "wandb_project",
}
# Younger than the runs that have a name: they are part of one only where they are not at their defaults.
_YOUNG = {
    "balanced_sampler",
    "check_val_every_n_steps",
    "class_weights",
    "magnitude_flatness",
    "prune_exclude",
    "prune_include",
    "prune_layer_d",
    "strict",
    "train_fc_only",
    "train_samples",
    "until_loss",
}
_YOUNGER: dict[str, Any] = {
    item.name: item.default if item.default_factory is MISSING else item.default_factory()
    for item in (
        field for group in (Data, Network, Optimization, Run, TrainerFlags, Pruning) for field in fields(group)
    )
    if model_of(item.name) not in (None, "ffn") or item.name in _YOUNG
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
    if key in _IRRELEVANT or (key in _YOUNGER and value == _YOUNGER[key]):
        return False
    return model not in SIZES or model_of(key) in (None, model)


def shown(value: Any) -> str:
    """A key's value, as short as it can be read back."""
    short = f"{value:g}" if isinstance(value, float) else ""
    if short and float(short) == value:
        return short
    return value if isinstance(value, str) else json.dumps(value)
