"""Many runs: the grid that lists of values span, what runs it, and the tables of what came of it."""

import hashlib
import json
import re
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from milkshake_mbp.errors import UserError
from milkshake_mbp.experiment.board import Board
from milkshake_mbp.experiment.engines import Engine, run_here, run_in_processes
from milkshake_mbp.experiment.lock import locked
from milkshake_mbp.experiment.report import write_report
from milkshake_mbp.experiment.settings import Sweep
from milkshake_mbp.experiment.trials import Outcome, Trial, shown
from milkshake_mbp.files import write_atomically, write_csv
from milkshake_mbp.framework.args import Grid
from milkshake_mbp.theory.bounds import ROWS

__all__ = ["Plan", "plan_sweep", "run_sweep", "summary_table"]

_PAPER = {f"paper/{row.name}": row.label for row in ROWS if row.convention == "paper" and not row.needs}


@dataclass(frozen=True)
class Plan:
    """A grid, and how it is to be run.

    Attributes:
        name: the sweep's, a function of its trials and the experiment's name.
        axes: the values of every key that was given several.
        trials: one for every combination, the last axis varying fastest.
        how: the keys that say what runs them.
    """

    name: str
    axes: Mapping[str, Sequence[Any]]
    trials: Sequence[Trial]
    how: Sweep

    @property
    def folder(self) -> Path:
        """Where the sweep's tables go, beside the runs' folders."""
        return Path(self.trials[0].args.out_dir) / self.name

    @property
    def single(self) -> bool:
        """Whether this is one run, to be done in this process."""
        return not self.axes and self.how.engine == "local"

    def table(self) -> Table:
        """The axes and their values."""
        size = " × ".join(str(len(values)) for values in self.axes.values()) or "1"
        total = f"{size} = {len(self.trials)}" if len(self.axes) > 1 else size
        table = Table(
            title=f"{self.name}: {total} trials",
            title_justify="left",
            title_style="bold",
            box=box.SIMPLE_HEAD,
            show_header=False,
        )
        for key, values in self.axes.items():
            table.add_row(key, Text(", ".join(map(shown, values))))
        return table


def plan_sweep(grid: Grid) -> Plan:
    """Turn a grid, read with the keys of `experiment.settings.Sweep` among others, into trials.

    Raises:
        UserError: two trials would be the same run, or a trial needs more than one process.
    """
    keys = [item.name for item in fields(Sweep)]
    trials = []
    for args in grid.trials:
        own = {key: value for key, value in vars(args).items() if key not in keys}
        trials.append(Trial(Namespace(**own), {axis: getattr(args, axis) for axis in grid.axes}))
    for axis, values in grid.axes.items():
        first = trials[0].values
        others = [trial for trial in trials if all(trial.values[key] == first[key] for key in first if key != axis)]
        if len({trial.name for trial in others}) < len(values):
            raise UserError(f"{axis}: expected one value, got {shown(values)}: it changes no result, so it is no axis")
    names = sorted(trial.name for trial in trials)
    digest = hashlib.sha256(json.dumps(names).encode()).hexdigest()[:8]
    experiment = re.sub(r"[^\w.-]+", "-", trials[0].args.experiment)
    how = Sweep(**{key: getattr(grid.trials[0], key) for key in keys})
    plan = Plan(f"{experiment}-sweep-{digest}", grid.axes, trials, how)
    if not plan.single:
        for trial in trials:
            _one_process(trial.args)
    return plan


def run_sweep(plan: Plan, console: Console) -> dict[str, Any]:
    """Run every trial that is not finished, showing how it goes, and leave sweep.json, sweep.csv and report.html.

    Args:
        plan: the trials.
        console: where to show them.

    Returns:
        The content of sweep.json.

    Raises:
        UserError: the engine cannot start.
        KeyboardInterrupt: the user interrupted; everything up to the last epoch of each trial is on disk.
    """
    console.print(plan.table())
    record = _Record(plan)
    record.write()
    board = Board(plan.name, plan.trials, console)

    def report(trial: Trial, outcome: Outcome) -> None:
        record.report(trial, outcome)
        board.report(trial, outcome)

    try:
        with board:
            todo = []
            for trial in plan.trials:
                outcome = _beforehand(trial)
                if outcome.state == "waiting":
                    todo.append(trial)
                else:
                    report(trial, outcome)
            if todo:
                _engine(plan.how)(todo, plan.how, plan.folder, report)
    except KeyboardInterrupt as interrupt:
        record.interrupt()
        raise KeyboardInterrupt(
            f"{plan.folder} lists what finished, and the same command goes on from there"
        ) from interrupt
    finally:
        record.write()
    if begun := [trial.files.folder for trial in plan.trials if trial.files.config.exists()]:
        write_report(begun, plan.folder / "report.html")
    return record.content()


def summary_table(summary: Mapping[str, Any]) -> RenderableType:
    """What came of every trial of a sweep.json: errors, margin, and natural logs of the paper's bounds."""
    table = Table(
        title=summary["sweep"],
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        padding=0,
    )
    for axis in summary["axes"]:
        table.add_column(axis, overflow="fold")
    for head in ("test error", "true error", "margin", *_PAPER.values()):
        table.add_column(head, justify="right", min_width=min(9, max(map(len, head.split()))))
    failures = []
    for trial in summary["trials"]:
        cells = [shown(value) for value in trial["values"].values()]
        if "bounds" in trial:
            cells += [
                *(f"{error:.2%}" if error is not None else "" for error in (trial["test_error"], trial["true_error"])),
                f"{trial['margin']:.3g}",
                *(f"{trial['bounds'][key]:.2f}" for key in _PAPER),
            ]
            table.add_row(*cells)
        else:
            table.add_row(*cells, Text(trial["state"], style="red" if trial["state"] == "failed" else "dim"))
        if trial["state"] == "failed":
            point = " ".join(f"{key}={shown(value)}" for key, value in trial["values"].items())
            failures.append(Text(f"failed: {point or trial['run']}: {trial['cause']}", style="red"))
    return Group(table, Text("Bounds as the paper's tables compute them, natural logs.", style="dim"), *failures)


class _Record:
    """What came of every trial, and the files that say it; rewritten whenever a trial ends."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._rows: dict[Trial, dict[str, Any]] = {}
        for trial in plan.trials:
            self._rows[trial] = _row(trial, Outcome("waiting"))

    def report(self, trial: Trial, outcome: Outcome) -> None:
        self._rows[trial] = _row(trial, outcome)
        if outcome.state in ("finished", "failed"):
            self.write()

    def interrupt(self) -> None:
        for trial, row in self._rows.items():
            if row["state"] == "running":
                self._rows[trial] = _row(trial, Outcome("interrupted"))

    def content(self) -> dict[str, Any]:
        plan = self.plan
        return {
            "sweep": plan.name,
            "experiment": plan.trials[0].args.experiment,
            "axes": {key: list(values) for key, values in plan.axes.items()},
            "trials": [self._rows[trial] for trial in plan.trials],
        }

    def write(self) -> None:
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


def _beforehand(trial: Trial) -> Outcome:
    """What is known of a trial before it runs."""
    try:
        finished = not trial.args.rerun and trial.files.read_result() is not None
    except UserError as error:
        return Outcome("failed", str(error))
    return Outcome("skipped" if finished else "waiting")


def _engine(how: Sweep) -> Engine:
    if how.engine == "ray":
        from milkshake_mbp.experiment.ray_engine import run_on_ray

        return run_on_ray
    return run_in_processes if how.parallel > 1 else run_here


def _one_process(args: Namespace) -> None:
    """Refuse what Lightning would start the script again for, and with it the whole sweep."""
    one = args.devices in (1, "1", [0]) or (isinstance(args.devices, list) and len(args.devices) == 1)
    if not one or args.num_nodes != 1:
        raise UserError(
            f"devices: a sweep gives each trial 1 device of 1 node, got {args.devices} of {args.num_nodes}: "
            "run that configuration by itself"
        )
