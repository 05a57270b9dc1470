"""Quick configurations on digits, and one training for the tests of a file."""

import shutil
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from exps.mbp import experiment
from milkshake_mbp.experiment.run import run as run_experiment
from milkshake_mbp.framework.args import parse_args
from milkshake_mbp.runs.files import RunFiles
from milkshake_mbp.runs.settings import Pruning

__all__ = ["configuration", "keeper", "run"]


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


def run(args: Namespace, console: Console | None = None) -> tuple[RunFiles, dict[str, Any]]:
    """The main job."""
    return run_experiment(args, experiment, console)


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
