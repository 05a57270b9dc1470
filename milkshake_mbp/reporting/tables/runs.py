"""Runs as their folders tell of them."""

import math
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from milkshake_mbp.errors import UserError
from milkshake_mbp.framework.args import config_dict
from milkshake_mbp.framework.checkpoints import read_weights
from milkshake_mbp.framework.settings import SIZES
from milkshake_mbp.runs.files import RunFiles
from milkshake_mbp.runs.names import run_name
from milkshake_mbp.runs.stored import read_run
from milkshake_mbp.runs.weights import chain_from_state
from milkshake_mbp.theory.pruning import MaskDraw

__all__ = ["PaperRun", "find_runs", "log_unpruned"]


@dataclass(frozen=True)
class PaperRun:
    """One run, finished or not.

    Attributes:
        files: its files.
        config: its configuration.
        result: the content of its result.json; None if it has not finished.
    """

    files: RunFiles
    config: Mapping[str, Any]
    result: Mapping[str, Any] | None

    @classmethod
    def planned(cls, args: Namespace) -> "PaperRun":
        """What is there of the run of a configuration."""
        files = RunFiles(Path(args.out_dir) / run_name(args))
        return cls(files, config_dict(args), files.read_result())

    @classmethod
    def stored(cls, folder: Path) -> "PaperRun":
        """What is there in a run's folder.

        Raises:
            UserError: its config.yaml or its result.json is damaged.
        """
        run = read_run(folder)
        if not {"datamodule", "ffn_hidden_dim", "seed"} <= set(run.config):
            raise UserError(run.config_problem or f"{run.files.config} is not the configuration of a run")
        if run.result is None and run.files.result.exists():
            raise UserError(f"{folder}: {run.problem}")
        return cls(run.files, run.config, run.result)

    @property
    def datamodule(self) -> str:
        """The dataset's name."""
        return str(self.config["datamodule"])

    @property
    def width(self) -> int:
        """Of the hidden layers."""
        return int(self.config["ffn_hidden_dim"])

    @property
    def seed(self) -> int:
        """Of the training."""
        return int(self.config["seed"])

    @property
    def state(self) -> str:
        """How far it is, in words."""
        if self.result:
            return "finished"
        if not self.files.epochs.exists():
            return "not started"
        epochs = len(self.files.epochs.read_text(encoding="utf-8").splitlines()) - 1
        return f"unfinished after {max(epochs, 0)} of {self.config['max_epochs']} epochs"

    @cached_property
    def numbers(self) -> dict[str, float]:
        """A finished run's value of each quantity; NaN if its files do not tell."""
        assert self.result is not None
        bounds = {bound["name"]: bound for bound in self.result["bounds"] if bound["convention"] == "paper"}
        shapes = [tuple(layer["shape"]) for layer in self.result["prune"]["layers"]]
        error, d = self.result["true_error"], self.result["d"]
        return {
            **{name: bound["log_value"] for name, bound in bounds.items()},
            "true_error": math.nan if error is None else math.log(error) if error else -math.inf,
            "unpruned": log_unpruned(shapes, self.result["n"]),
            "margin": self.result["margin"],
            "d": d,
            "sparsity": _sparsity(self.files.model, self.config.get("prune_seed", 0), d),
            "epochs": self.result["epochs"],
        }


@cache
def _sparsity(weights: Path, seed: int, d: float) -> float:
    """Share of the weights that the paper's masks prune at its searched d, where they spare no diagonal."""
    if not weights.exists():
        return math.nan
    network, _ = chain_from_state(read_weights(weights))
    layers = [parameter for parameter in network.parameters() if parameter.ndim == 2]
    masks = MaskDraw(layers, seed).masks(d, keep_diagonal=False)
    return 1 - sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)


def log_unpruned(shapes: Sequence[Sequence[int]], num_samples: int) -> float:
    """Theorem 5.2's ln sqrt(Σ N_l χ ln²(p_l) / n) at d = 0, where χ = 1."""
    return 0.5 * math.log(sum(math.prod(shape) * math.log(max(shape)) ** 2 for shape in shapes) / num_samples)


def find_runs(folders: Sequence[str]) -> list[PaperRun]:
    """The runs in these folders: each is a run's own, or holds those of runs. Other models than ffn are left out.

    Raises:
        UserError: a folder does not exist or holds no run.
    """
    found: dict[str, PaperRun] = {}
    for folder in map(Path, folders):
        # Only training leaves both; so that the ladder of a file of weights is not taken for a run.
        inside = [folder, *sorted(folder.glob("*/"))]
        stored = [path for path in inside if (path / "config.yaml").exists() and (path / "epochs.csv").exists()]
        runs = {path.resolve().name: PaperRun.stored(path) for path in stored}
        runs = {name: run for name, run in runs.items() if run.config.get("model", "ffn") not in SIZES.keys() - {"ffn"}}
        if not runs:
            raise UserError(f"runs: {folder} {'holds no run of model ffn' if folder.is_dir() else 'is no folder'}")
        for name, run in runs.items():
            if name not in found or not found[name].result:
                found[name] = run
    return list(found.values())
