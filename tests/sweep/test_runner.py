import csv
import json
import os
import shutil

import pytest
from rich.console import Console

from milkshake_mbp.errors import UserError
from milkshake_mbp.runs.lock import locked
from milkshake_mbp.sweep import run_sweep, summary_table
from milkshake_mbp.sweep.board import Board

from .helpers import QUIET, dots, finished, states


def test_a_failed_trial_does_not_stop_the_others_and_nothing_is_redone(plan, monkeypatch):
    grid = plan("--lr 1e12 0.05 0.1 --max_epochs 2")
    summary = run_sweep(grid, QUIET)
    assert states(summary) == ["failed", "finished", "finished"]
    assert "training diverged" in summary["trials"][0]["cause"]
    assert json.loads((grid.folder / "sweep.json").read_text()) == summary
    with (grid.folder / "sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["lr"] for row in rows] == ["1e+12", "0.05", "0.1"]
    result = grid.trials[1].files.read_result()
    (bound,) = [b for b in result["bounds"] if (b["convention"], b["name"]) == ("paper", "theorem_5_2")]
    assert float(rows[1]["bounds/paper/theorem_5_2"]) == bound["log_value"]

    console = Console(width=80, record=True, quiet=False, file=open(os.devnull, "w"))  # noqa: SIM115, PTH123
    console.print(summary_table(summary))
    shown = console.export_text()
    assert max(map(len, shown.splitlines())) <= 80
    assert f"{bound['log_value']:.2f}" in shown and "failed: lr=1e+12: after epoch 1" in shown

    before = finished(grid)
    monkeypatch.setattr("milkshake_mbp.experiment.train.train_and_bound", lambda *a, **k: pytest.fail("trained again"))
    again = plan("--lr 0.05 0.1 --max_epochs 2")
    assert states(run_sweep(again, QUIET)) == ["skipped", "skipped"]
    assert finished(grid) == before

    def robbed(begun, path):
        shutil.rmtree(again.trials[0].files.folder)

    monkeypatch.setattr("milkshake_mbp.reporting.report.write_report", robbed)
    with pytest.raises(UserError, match=f"{again.trials[0].name} was removed during the run"):
        run_sweep(again, QUIET)


def fill(plan, disk, parallel):
    """A sweep on a disk on which no run has room, and is stopped."""
    grid = plan(f"--seed 1 2 3 --figures false --parallel {parallel}", disk.name)
    with pytest.raises(UserError, match=r"^disk full: free space.* and rerun; what was already written is kept$"):
        run_sweep(grid, QUIET)
    assert not dots(grid) and not finished(grid)
    return grid


def test_a_full_disk_stops_the_sweep_and_no_trial_has_failed(plan, small_disk):
    grid = fill(plan, small_disk(20), 1)
    assert states(json.loads((grid.folder / "sweep.json").read_text())) == ["interrupted", "waiting", "waiting"]


@pytest.mark.long
@pytest.mark.parametrize("parallel", [1, 2])
def test_a_sweep_goes_on_when_there_is_room(plan, small_disk, parallel):
    grid = fill(plan, small_disk(20), parallel)
    small_disk(16_384)
    assert states(run_sweep(grid, QUIET)) == ["finished"] * 3


def test_a_trial_that_another_process_has_comes_last(plan, monkeypatch):
    grid = plan("--seed 1 2")
    first = locked(grid.trials[0].files.folder)
    first.__enter__()
    order = []
    report = Board.report

    def follow(self, trial, outcome):
        order.append((trial.args.seed, outcome.state))
        if (trial.args.seed, outcome.state) == (2, "finished"):
            first.__exit__(None, None, None)
        report(self, trial, outcome)

    monkeypatch.setattr(Board, "report", follow)
    assert states(run_sweep(grid, QUIET)) == ["finished", "finished"]
    assert order[:4] == [(1, "running"), (1, "waiting"), (2, "running"), (2, "finished")]


def test_a_damaged_result_is_made_again(plan):
    grid = plan("--seed 1 2")
    grid.trials[0].files.folder.mkdir(parents=True)
    grid.trials[0].files.result.write_text("{")
    summary = run_sweep(grid, QUIET)
    assert states(summary) == ["finished", "finished"]
