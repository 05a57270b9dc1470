import json
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest

from milkshake_mbp.experiment.run import script_experiment
from milkshake_mbp.framework.args import parse_grid
from milkshake_mbp.runs.settings import Pruning, Sweep
from milkshake_mbp.sweep import local_engine, plan_sweep, run_sweep
from milkshake_mbp.sweep.board import Board
from tests.one_device import assert_agrees_with_one_device

from .helpers import QUIET, TINY, dots, results, states


@pytest.mark.long
def test_serial_and_parallel_agree_though_a_worker_is_killed(plan, monkeypatch):
    words = "--seed 1 2 --lr 0.05 0.1"
    serial, parallel = plan(words), plan(f"{words} --parallel 2", "parallel")
    assert states(run_sweep(serial, QUIET)) == ["finished"] * 4
    launched, start = [], local_engine._Worker.start

    def kill_the_first(self, *given):
        start(self, *given)
        if not launched:
            self._process.kill()
        launched.append(self._process)

    monkeypatch.setattr(local_engine._Worker, "start", kill_the_first)
    assert states(run_sweep(parallel, QUIET)) == ["finished"] * 4
    assert len(launched) == 5 and all(process.poll() is not None for process in launched)
    assert results(serial) == results(parallel)
    assert not dots(serial) + dots(parallel)


def test_a_trial_that_loses_every_worker_fails_and_ctrl_c_leaves_no_process(plan, monkeypatch):
    launched, start = [], local_engine._Worker.start

    def kill_or_interrupt(self, *given):
        start(self, *given)
        launched.append(self._process)
        if len(launched) < 3:
            self._process.kill()
        elif len(launched) == 4:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(local_engine._Worker, "start", kill_or_interrupt)
    grid = plan("--seed 1 2 3 4 --parallel 2 --max_retries 0")
    with pytest.raises(KeyboardInterrupt, match="the same command continues"):
        run_sweep(grid, QUIET)
    assert len(launched) == 4 and all(process.poll() is not None for process in launched)
    summary = json.loads((grid.folder / "sweep.json").read_text())
    assert states(summary)[:2] == ["failed", "failed"] and "interrupted" in states(summary)
    assert "killed by signal 9" in summary["trials"][0]["cause"]


OWN = """
from dataclasses import replace
from pathlib import Path
from pytorch_lightning import Callback
from exps.mbp import experiment as usual


class Mark(Callback):
    def on_fit_end(self, trainer, module):
        (Path(trainer.default_root_dir) / "mark").write_text(str(module.hparams["seed"]))


def marked(args):
    return replace(usual(args), others=(Mark(),))


if __name__ == "__main__":
    raise SystemExit("run in a worker")
"""


@pytest.mark.long
@pytest.mark.parametrize("parallel", [1, 2])
def test_an_experiment_of_ones_own_is_swept(tmp_path, parallel):
    script = tmp_path / "own.py"
    script.write_text(OWN)
    argv = [*TINY.split(), "--out_dir", str(tmp_path / "out"), "--seed", "1", "2", "--parallel", str(parallel)]
    plan = plan_sweep(parse_grid(argv, Pruning, Sweep), script_experiment(script, "marked"))
    assert states(run_sweep(plan, QUIET)) == ["finished", "finished"]
    assert [(trial.files.folder / "mark").read_text() for trial in plan.trials] == ["1", "2"]


@pytest.mark.long
def test_trials_on_two_devices_two_at_once(plan):
    """Each is a run of its own, which Lightning starts twice."""
    grid = plan("--seed 1 2 --devices 2 --strategy ddp --max_epochs 2 --parallel 2")
    assert states(run_sweep(grid, QUIET)) == ["finished", "finished"]
    for trial in grid.trials:
        assert_agrees_with_one_device(trial.files)
    assert not dots(grid)


def groups_alive():
    """Process groups; not of zombies, which a container may keep for ever."""
    groups = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            state, _, group = path.read_text().rpartition(")")[2].split()[:3]
            groups |= {int(group)} if state not in "ZX" else set()
    return groups


@pytest.mark.slow
def test_a_trial_on_two_devices_loses_its_first_process(plan, monkeypatch):
    first, start = [], local_engine._Worker.start

    def follow(self, *given):
        start(self, *given)
        first.append(self._process.pid)

    def kill(self, trial, outcome):
        report(self, trial, outcome)
        if outcome.state == "running" and len(first) == 1:
            while not trial.files.epochs.exists():
                time.sleep(0.05)
            os.kill(first[0], signal.SIGKILL)

    report = Board.report
    monkeypatch.setattr(local_engine._Worker, "start", follow)
    monkeypatch.setattr(Board, "report", kill)
    words = "--seed [1] --devices 2 --strategy ddp --max_epochs 40"
    grid, whole = plan(words), plan(words, "whole")
    assert states(run_sweep(grid, QUIET)) == ["finished"] and len(first) == 2
    run_sweep(whole, QUIET)
    assert not groups_alive() & set(first)
    assert results(grid) == results(whole)
    assert_agrees_with_one_device(grid.trials[0].files)
