"""What came of a sweep's trials: sweep.json, sweep.csv, and a table for the terminal."""

import json
from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from milkshake_mbp.files import write_atomically, write_csv
from milkshake_mbp.reporting.terminal import Fitted
from milkshake_mbp.reporting.words import show, show_log, show_percent
from milkshake_mbp.runs.lock import locked
from milkshake_mbp.runs.names import shown
from milkshake_mbp.sweep.plan import Plan
from milkshake_mbp.sweep.trials import Outcome, Trial
from milkshake_mbp.theory.bounds import ROWS

__all__ = ["Record", "summary_table"]

_PAPER = {f"paper/{row.name}": row.label for row in ROWS if row.convention == "paper" and not row.needs}


class Record:
    """What came of every trial, and the files that say it; rewritten whenever a trial ends.

    Args:
        plan: the trials.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._rows = {trial: _row(trial, Outcome("waiting")) for trial in plan.trials}

    def report(self, trial: Trial, outcome: Outcome) -> None:
        """A trial has changed its state."""
        self._rows[trial] = _row(trial, outcome)
        if outcome.state in ("finished", "failed"):
            self.write()

    def interrupt(self) -> None:
        """Whatever runs has been stopped."""
        for trial, row in self._rows.items():
            if row["state"] == "running":
                self._rows[trial] = _row(trial, Outcome("interrupted"))

    @property
    def finished(self) -> list[Trial]:
        """Trials whose results are there, or were when they ended."""
        return [trial for trial, row in self._rows.items() if row["state"] in ("finished", "skipped")]

    def content(self) -> dict[str, Any]:
        """Of sweep.json."""
        plan = self.plan
        return {
            "sweep": plan.name,
            "experiment": plan.trials[0].args.experiment,
            "axes": {key: list(values) for key, values in plan.axes.items()},
            "trials": [self._rows[trial] for trial in plan.trials],
        }

    def write(self) -> None:
        """Both files."""
        folder = self.plan.folder
        # Several processes, on several machines perhaps, may share the trials of one sweep.
        with locked(folder, patient=True):
            write_atomically(folder / "sweep.json", (json.dumps(self.content(), indent=2) + "\n").encode())
            write_csv(folder / "sweep.csv", [_flat(self._rows[trial]) for trial in self.plan.trials])


def _row(trial: Trial, outcome: Outcome) -> dict[str, Any]:
    """A trial in sweep.json."""
    row = {"run": trial.name, "values": dict(trial.values), "state": outcome.state, "cause": outcome.cause}
    result = trial.files.read_result() if outcome.state in ("finished", "skipped") else None
    if result is None:
        return row
    return row | {
        "epochs": result["epochs"],
        "seconds": result["seconds"],
        "test_error": result["test_error"]["unpruned"],
        "pruned_test_error": result["test_error"]["pruned"],
        "true_error": result["true_error"],
        "sparsity": result["prune"]["sparsity"],
        "margin": result["margin"],
        "d": result["d"],
        "bounds": {f"{bound['convention']}/{bound['name']}": bound["log_value"] for bound in result["bounds"]},
    }


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """A trial in sweep.csv: a column for each axis and bound."""
    values = {key: shown(value) for key, value in row["values"].items()}
    bounds = {f"bounds/{key}": value for key, value in row.get("bounds", {}).items()}
    facts = {key: value for key, value in row.items() if key not in ("run", "values", "bounds")}
    return {"run": row["run"], **values, **facts, **bounds}


def summary_table(summary: Mapping[str, Any]) -> RenderableType:
    """What came of every trial of a sweep.json: errors, margin, and natural logs of the paper's bounds."""
    paper = [key for key in _PAPER if any(key in trial.get("bounds", {}) for trial in summary["trials"])]
    measured = ["test error", "pruned", "true error", "margin", *(_PAPER[key] for key in paper)]
    rows: list[list[str | Text]] = []
    failures = []
    for trial in summary["trials"]:
        cells: list[str | Text] = [shown(value) for value in trial["values"].values()]
        if "bounds" in trial:
            errors = (trial["test_error"], trial["pruned_test_error"], trial["true_error"])
            cells += [
                *("" if error is None else show_percent(error) for error in errors),
                show(trial["margin"]),
                *(show_log(trial["bounds"][key]) if key in trial["bounds"] else "" for key in paper),
            ]
        else:
            cells.append(Text(trial["state"], style="red" if trial["state"] == "failed" else "dim"))
        rows.append([*cells, *[""] * (len(summary["axes"]) + len(measured) - len(cells))])
        if trial["state"] == "failed":
            point = " ".join(f"{key}={shown(value)}" for key, value in trial["values"].items())
            failures.append(Text(f"failed: {point or trial['run']}: {trial['cause']}", style="red"))
    norms = [_PAPER[key] for key in paper if not key.endswith("theorem_5_2")]
    spare = [*norms, "true error", "margin", *(_PAPER[key] for key in paper), "pruned"]
    table = Fitted(
        [*summary["axes"], *measured],
        rows,
        measured,
        spare=list(dict.fromkeys(spare)),
        title=summary["sweep"],
        elsewhere="sweep.csv",
    )
    note = [Text("Bounds as the paper's tables compute them, natural logs.", style="dim")] if paper else []
    return Group(table, *note, *failures)
