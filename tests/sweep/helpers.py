"""A tiny sweep, and what it left."""

from pathlib import Path

from rich.console import Console

ROOT = Path(__file__).parents[2]
QUIET = Console(quiet=True)
TINY = """--datamodule digits --ffn_hidden_dim 8 --ffn_num_layers 2 --bias false --val_split 0 --max_epochs 1 --lr 0.05
--batch_size 128 --accelerator cpu --enable_progress_bar false --figures false"""


def results(plan):
    """Every trial's result.json, without the time that it took."""
    return {trial.name: {**trial.files.read_result(), "seconds": 0} for trial in plan.trials}


def states(summary):
    return [trial["state"] for trial in summary["trials"]]


def finished(plan):
    """What of the plan is finished, its manifest written: when its result was."""
    files = [trial.files for trial in plan.trials if trial.files.manifest.exists()]
    return {each.result: each.result.stat().st_mtime_ns for each in files}


def dots(plan):
    return [path for path in plan.folder.parent.rglob(".*") if path.is_file()]


def epochs(trial):
    return len(trial.files.epochs.read_text().splitlines()) - 1
