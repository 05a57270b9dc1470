"""Quick configurations on digits, and one training for the tests of a file."""

import shutil
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

from milkshake_mbp.framework.args import parse_args
from milkshake_mbp.runs.settings import Pruning

__all__ = ["configuration", "keeper"]


def configuration(folder: Path, **keys: Any) -> Namespace:
    """Of a small perceptron; keyword arguments override its keys."""
    given = {
        "datamodule": "digits",
        "ffn_hidden_dim": 16,
        "ffn_num_layers": 3,
        "bias": False,
        "val_split": 0,
        "max_epochs": 2,
        "lr": 0.05,
        "batch_size": 128,
        "accelerator": "cpu",
        "out_dir": str(folder),
        "enable_progress_bar": False,
        "figures": False,
    } | keys
    words = [word for key, value in given.items() for word in (f"--{key}", *map(str, _listed(value)))]
    return parse_args(words, Pruning)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def keeper(folder: Path) -> Callable[[], None]:
    """What puts a folder back to what it is now, whatever a test has done to it."""
    kept = folder.with_name(f"{folder.name}-kept")
    shutil.copytree(folder, kept)

    def restore() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(kept, folder)

    return restore
