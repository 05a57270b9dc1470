"""Finished runs as networks to be ranked: their hyperparameters, their errors, and every row of their ladders."""

import glob
import json
import math
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from milkshake_mbp.errors import UserError
from milkshake_mbp.framework.settings import keys_of
from milkshake_mbp.runs.files import RunFiles
from milkshake_mbp.runs.names import relevant_keys
from milkshake_mbp.runs.settings import Pruning
from milkshake_mbp.runs.stored import read_run
from milkshake_mbp.theory.ranking import Design

__all__ = ["TARGETS", "Key", "Network", "Networks", "find_networks"]

TARGETS = {
    "test_error": "Test error",
    "gap": "Generalization gap",
    "pruned_test_error": "Test error after pruning",
}
"""What is predicted, by its name in files."""

Key = tuple[str, str]
"""A row's convention and name."""

# Repeats of a setting, and where its weights lie.
_NO_HYPERPARAMETERS = {"seed", "prune_seed", "resume_training", "weights", "eval_only", "no_test", "metrics"}
# What is done to a network after its training, or says that another run trained it.
_AFTER_TRAINING = {"eval_only", "weights"} | keys_of(Pruning)
# It is computed from the test error that it would be asked to predict.
_TELL_THE_ANSWER = {("rigorous", "test_set")}


@dataclass(frozen=True)
class Network:
    """One finished run.

    Attributes:
        name: of the run.
        settings: its keys that affect the result, without seeds.
        training: what its training is told by: the same for networks that were pruned differently after one training.
        rows: natural log of every row of its ladder.
        targets: the errors to be predicted, by their names in `TARGETS`; None where a run does not tell.
        num_test: test samples behind them.
        stopping: the training loss it stopped at and the one asked for; None for a training of fixed length.
    """

    name: str
    settings: Mapping[str, Any]
    training: str
    rows: Mapping[Key, float]
    targets: Mapping[str, float | None]
    num_test: int
    stopping: tuple[float, float] | None

    @classmethod
    def of(cls, name: str, config: Mapping[str, Any], result: Mapping[str, Any], train_loss: float | None) -> "Network":
        """The network of a run, by the content of its config.yaml and result.json.

        Args:
            name: of the run.
            config: its configuration.
            result: its results.
            train_loss: of its last epoch, where the results do not tell one.

        Raises:
            UserError: it has no test error.
        """
        keys = relevant_keys(Namespace(**config))
        rows = {(row["convention"], row["name"]): float(row["log_value"]) for row in result["bounds"]}
        error = result["test_error"]["unpruned"]
        held_out = next(
            (row["terms"].get("test_samples") for row in result["bounds"] if row["name"] == "test_set"), None
        )
        num_test = result.get("num_test") or held_out
        if error is None or not num_test:
            raise UserError("it has no test error")
        # A run from before the training error was kept has made none, if its smallest margin is positive.
        train_error = result.get("train_error", 0.0 if result["margin"] > 0 else None)
        stopping = result.get("stopping") or {}
        loss = stopping.get("train_loss")
        loss = train_loss if loss is None else loss
        return cls(
            name=name,
            settings={key: value for key, value in keys.items() if key not in _NO_HYPERPARAMETERS},
            training=json.dumps({key: value for key, value in keys.items() if key not in _AFTER_TRAINING}),
            rows={key: value for key, value in rows.items() if key not in _TELL_THE_ANSWER and not math.isnan(value)},
            targets={
                "test_error": error,
                "gap": None if train_error is None else error - train_error,
                "pruned_test_error": result["test_error"].get("pruned"),
            },
            num_test=int(num_test),
            stopping=None if loss is None else (loss, stopping.get("until_loss", math.inf)),
        )

    def short_of(self, until_loss: float | None) -> str:
        """Why the network did not fit its training set as asked for; empty if it did, or nothing was asked."""
        loss, asked = self.stopping or (math.nan, math.inf)
        asked = asked if until_loss is None else until_loss
        if asked == math.inf or loss <= asked:
            return ""
        if math.isnan(loss):
            return f"its training loss is unknown, but must be at most {asked:g}"
        return f"its training loss is {loss:.4g}, above {asked:g}"


@dataclass(frozen=True)
class Networks:
    """The networks that are compared.

    Attributes:
        kept: those that fit their training set.
        set_aside: the names of the others, and why.
        folder: that the first run lies in.
    """

    kept: tuple[Network, ...]
    set_aside: tuple[tuple[str, str], ...]
    folder: Path = Path()

    @cached_property
    def design(self) -> Design:
        """Which of the kept differ in what."""
        keys = dict.fromkeys(key for network in self.kept for key in network.settings)
        settings = [{key: network.settings.get(key) for key in keys} for network in self.kept]
        return Design.of(settings, [network.training for network in self.kept])

    @cached_property
    def values(self) -> Mapping[str, Sequence[Any]]:
        """The values of each axis of the design."""
        return {
            axis: list({repr(v): v for v in (network.settings.get(axis) for network in self.kept)}.values())
            for axis in self.design.axes
        }

    @cached_property
    def rows(self) -> list[Key]:
        """The rows that two networks or more have, in the order of the ladder."""
        counts: dict[Key, int] = {}
        for network in self.kept:
            for key in network.rows:
                counts[key] = counts.get(key, 0) + 1
        return [key for key, count in counts.items() if count > 1]


def find_networks(paths: Sequence[str], until_loss: float | None = None) -> Networks:
    """The networks of runs, of the runs in folders, of sweeps, or of what a glob matches.

    Args:
        paths: folders of runs, folders that hold such, folders of sweeps, or patterns of any of these.
        until_loss: the training loss that a network must have reached; by default the one that its run asked for.

    Raises:
        UserError: a path matches nothing or holds no run, or fewer than 3 networks are left.
    """
    folders = dict.fromkeys(folder for path in paths for folder in _folders(path))
    kept: list[Network] = []
    aside = []
    for folder in folders:
        if not RunFiles(folder).result.exists():
            aside.append((folder.name, "it has not finished"))
            continue
        try:
            run = read_run(folder)
            if run.result is None or run.config_problem:
                raise UserError(run.problem or run.config_problem)
            losses = [row["train_loss"] for row in run.rows if "train_loss" in row]
            network = Network.of(folder.name, run.config, run.result, losses[-1] if losses else None)
        except KeyError as error:
            aside.append((folder.name, f"its result.json has no {error}"))
            continue
        except UserError as error:
            aside.append((folder.name, str(error)))
            continue
        if why := network.short_of(until_loss):
            aside.append((folder.name, why))
        else:
            kept.append(network)
    if len(kept) < 3:
        example = f"; {aside[0][0]}: {aside[0][1]}" if aside else ""
        raise UserError(f"a ranking needs 3 networks or more, got {len(kept)} of {len(folders)} runs{example}")
    return Networks(tuple(kept), tuple(aside), next(iter(folders)).parent)


def _folders(path: str) -> list[Path]:
    """The folders of runs that a path leads to."""
    matches = [Path(match) for match in sorted(glob.glob(str(Path(path).expanduser())))]  # noqa: PTH207 (of absolute paths)
    found = [folder for match in matches if match.is_dir() for folder in _inside(match)]
    if not found:
        what = "holds no run" if matches else "does not exist"
        raise UserError(f"{path} {what}: name the folder of a run, of a sweep, or one that holds runs")
    return found


def _inside(folder: Path) -> list[Path]:
    sweep = folder / "sweep.json"
    if sweep.is_file():
        try:
            runs = [trial["run"] for trial in json.loads(sweep.read_text(encoding="utf-8"))["trials"]]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{sweep} is damaged ({error}): run the sweep's command again") from error
        return [(folder.parent / run).resolve() for run in runs]
    if (folder / "config.yaml").is_file():
        return [folder.resolve()]
    return [path.parent.resolve() for path in sorted(folder.glob("*/config.yaml"))]
