"""What a report knows of a run."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from milkshake_mbp.errors import UserError
from milkshake_mbp.runs.files import RunFiles
from milkshake_mbp.theory.bounds import ROWS

__all__ = ["ROW", "Run", "read_run"]

ROW = {(row.convention, row.name): row for row in ROWS}


@dataclass(frozen=True)
class Run:
    """What is known of a run, finished or not.

    Attributes:
        name: of its folder.
        folder: where it was when it was read.
        config: config.yaml; empty if there is none.
        config_text: the same as it was written.
        rows: epochs.csv.
        result: result.json; None if the run has none that can be read.
        problem: why not, in one line.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    config_text: str
    rows: Sequence[Mapping[str, float]]
    result: Mapping[str, Any] | None
    problem: str

    @property
    def facts(self) -> Mapping[str, Any]:
        """The result; empty if there is none."""
        return self.result or {}


def read_run(folder: Path) -> Run:
    """What a run left in its folder.

    Raises:
        UserError: the folder holds no run.
    """
    files = RunFiles(folder)
    if not any(path.is_file() for path in (files.config, files.epochs, files.result)):
        raise UserError(f"{folder} holds no run: expected config.yaml, epochs.csv or result.json in it")
    text = files.config.read_text(encoding="utf-8", errors="replace") if files.config.is_file() else ""
    try:
        config = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, TypeError):  # damaged
        config = None
    rows: list[dict[str, float]] = []
    if files.epochs.is_file():
        with files.epochs.open(newline="", encoding="utf-8", errors="replace") as file:
            rows = [{key: _number(cell) for key, cell in row.items() if key and cell} for row in csv.DictReader(file)]
    rows = [row for row in rows if math.isfinite(row.get("epoch", math.nan))]
    result, problem = None, ""
    try:
        result = files.read_result()
    except UserError as error:
        problem = str(error)
    if result is None and not problem:
        done = f"{len(rows)} epoch{'s' * (len(rows) != 1)} so far" if rows else "no epoch yet"
        problem = f"Unfinished: there is no result.json ({done}). The command that started the run continues it."
    if result is not None and not {"bounds", "num_classes"} <= set(result):
        result, problem = None, "result.json holds no bounds: it is from another version, and is not shown."
    if result is not None:
        known = [bound for bound in result["bounds"] if (bound["convention"], bound["name"]) in ROW]
        result = {**result, "bounds": known}
    # Not by "." but by its name, where the command is run inside of the folder.
    return Run(folder.resolve().name, folder, config if isinstance(config, dict) else {}, text, rows, result, problem)


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return math.nan
