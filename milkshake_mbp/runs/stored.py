"""What a run left in its folder, read back for pages, tables and rankings."""

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

__all__ = ["ROW", "StoredRun", "read_run"]

ROW = {(row.convention, row.name): row for row in ROWS}


@dataclass(frozen=True)
class StoredRun:
    """A run as its folder describes it, finished or not.

    Attributes:
        files: its files.
        config: config.yaml; empty if it cannot be read.
        config_text: the same as it was written.
        config_problem: why it cannot be read, in one line.
        rows: epochs.csv.
        result: result.json; None if there is none that can be read.
        problem: why not, in one line.
    """

    files: RunFiles
    config: Mapping[str, Any]
    config_text: str
    config_problem: str
    rows: Sequence[Mapping[str, float]]
    result: Mapping[str, Any] | None
    problem: str

    @property
    def folder(self) -> Path:
        """Where it was when it was read."""
        return self.files.folder

    @property
    def name(self) -> str:
        """The folder's; not "." where the command is run inside of it."""
        return self.folder.resolve().name

    @property
    def facts(self) -> Mapping[str, Any]:
        """The result; empty if there is none."""
        return self.result or {}


def read_run(folder: Path) -> StoredRun:
    """What a run left in its folder.

    Raises:
        UserError: the folder holds no run.
    """
    files = RunFiles(folder)
    if not any(path.is_file() for path in (files.config, files.epochs, files.result)):
        raise UserError(f"{folder} holds no run: expected config.yaml, epochs.csv or result.json in it")
    text = files.config.read_text(encoding="utf-8", errors="replace") if files.config.is_file() else ""
    config, config_problem = _config(files, text)
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
    if result is not None and "bounds" not in result:
        result, problem = None, "result.json holds no bounds: it is from another version, and is not shown."
    if result is not None:
        known = [bound for bound in result["bounds"] if (bound["convention"], bound["name"]) in ROW]
        result = {**result, "bounds": known}
    return StoredRun(files, config, text, config_problem, rows, result, problem)


def _config(files: RunFiles, text: str) -> tuple[Mapping[str, Any], str]:
    """A configuration, or why there is none."""
    if not files.config.is_file():
        return {}, f"{files.config} is missing"
    try:
        config = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, TypeError) as error:
        return {}, f"{files.config} is damaged: {' '.join(str(error).split())}"
    if not isinstance(config, dict) or not {"datamodule", "model"} & set(config):
        return {}, f"{files.config} is not the configuration of a run"
    return config, ""


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return math.nan
