"""The slow ones: `-m slow`, several minutes; Ray's need `pip install -e '.[ray,test]'` too."""

import csv
import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from milkshake_mbp.errors import UserError
from milkshake_mbp.experiment import engines
from milkshake_mbp.experiment.board import Board
from milkshake_mbp.experiment.lock import locked
from milkshake_mbp.experiment.results import run_name
from milkshake_mbp.experiment.settings import Pruning, Sweep
from milkshake_mbp.experiment.sweep import plan_sweep, run_sweep, summary_table
from milkshake_mbp.experiment.trials import Outcome
from milkshake_mbp.framework.args import parse_args, parse_grid

ROOT = Path(__file__).parents[2]
QUIET = Console(quiet=True)
TINY = """--datamodule digits --ffn_hidden_dim 8 --ffn_num_layers 2 --bias false --val_split 0 --max_epochs 1 --lr 0.05
--batch_size 128 --accelerator cpu --enable_progress_bar false"""


@pytest.fixture
def plan(tmp_path):
    def build(words="", out="out"):
        argv = [*TINY.split(), "--out_dir", str(tmp_path / out), *words.split()]
        return plan_sweep(parse_grid(argv, Pruning, Sweep))

    return build


def results(plan):
    """Every trial's result.json, without the time that it took."""
    return {trial.name: {**trial.files.read_result(), "seconds": 0} for trial in plan.trials}


def states(summary):
    return [trial["state"] for trial in summary["trials"]]


def finished(plan):
    """What of the plan is finished: when it was written."""
    paths = [trial.files.result for trial in plan.trials]
    return {path: path.stat().st_mtime_ns for path in paths if path.exists()}


def dots(plan):
    return [path for path in plan.folder.parent.rglob(".*") if path.is_file()]


def test_a_plan(plan):
    grid = plan("--seed 1 2 --lr 0.1 0.2")
    assert [str(trial) for trial in grid.trials] == [f"seed={seed} lr={lr}" for seed in (1, 2) for lr in (0.1, 0.2)]
    assert plan("--lr 0.2 0.1 --seed 2 1").name == grid.name != plan("--seed 1 2 --lr 0.1 0.3").name
    assert grid.name.startswith("mbp-sweep-") and plan("--experiment a/b --seed 1 2").name.startswith("a-b-sweep-")
    assert not grid.single and plan().single and not plan("--seed [1]").single and not plan("--engine ray").single


def test_what_runs_a_trial_is_no_part_of_it(plan):
    (trial,) = plan("--parallel 2 --max_retries 5").trials
    assert not {"parallel", "engine", "max_retries"} & set(vars(trial.args))
    other = parse_args([*TINY.split(), "--engine", "ray", "--trial_gpus", "0.5"], Pruning, Sweep)
    assert run_name(other) == trial.name


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--out_dir a b", "out_dir: expected one value"),
        ("--parallel 1 2", "parallel: expected one value"),
        ("--seed 1 2 --wandb true false", "wandb: expected one value"),
        ("--seed 1 2 --devices 2", "devices: a sweep gives each trial 1 device"),
        ("--parallel 0", "parallel: expected at least 1"),
        ("--max_retries -1", "max_retries: expected at least 0"),
        ("--trial_gpus -1", "trial_gpus: expected a finite number"),
        ("--engine ray --parallel 2", "parallel: expected 1 with engine ray"),
        ("--ray_address auto", "ray_address: auto needs --engine ray"),
    ],
)
def test_refused_before_anything_runs(plan, words, expected):
    with pytest.raises(UserError, match=expected):
        plan(words)


def test_serial_and_parallel_agree_though_a_worker_is_killed(plan, monkeypatch):
    words = "--seed 1 2 --lr 0.05 0.1"
    serial, parallel = plan(words), plan(f"{words} --parallel 2", "parallel")
    assert states(run_sweep(serial, QUIET)) == ["finished"] * 4
    launched, start = [], engines._Worker.start

    def kill_the_first(self, *given):
        start(self, *given)
        if not launched:
            self._process.kill()
        launched.append(self._process)

    monkeypatch.setattr(engines._Worker, "start", kill_the_first)
    assert states(run_sweep(parallel, QUIET)) == ["finished"] * 4
    assert len(launched) == 5 and all(process.poll() is not None for process in launched)
    assert results(serial) == results(parallel)
    assert not dots(serial) + dots(parallel)


def test_a_trial_that_loses_every_worker_fails_and_ctrl_c_leaves_no_process(plan, monkeypatch):
    launched, start = [], engines._Worker.start

    def kill_or_interrupt(self, *given):
        start(self, *given)
        launched.append(self._process)
        if len(launched) < 3:
            self._process.kill()
        elif len(launched) == 4:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(engines._Worker, "start", kill_or_interrupt)
    grid = plan("--seed 1 2 3 4 --parallel 2 --max_retries 0")
    with pytest.raises(KeyboardInterrupt, match="the same command goes on"):
        run_sweep(grid, QUIET)
    assert len(launched) == 4 and all(process.poll() is not None for process in launched)
    summary = json.loads((grid.folder / "sweep.json").read_text())
    assert states(summary)[:2] == ["failed", "failed"] and "interrupted" in states(summary)
    assert "killed by signal 9" in summary["trials"][0]["cause"]


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
    monkeypatch.setattr("milkshake_mbp.experiment.run.main", lambda *a, **k: pytest.fail("trained again"))
    again = plan("--lr 0.05 0.1 --max_epochs 2")
    assert states(run_sweep(again, QUIET)) == ["skipped", "skipped"]
    assert finished(grid) == before


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


def test_a_damaged_result_fails_that_trial(plan):
    grid = plan("--seed 1 2")
    grid.trials[0].files.folder.mkdir(parents=True)
    grid.trials[0].files.result.write_text("{")
    summary = run_sweep(grid, QUIET)
    assert states(summary) == ["failed", "finished"] and "delete it and rerun" in summary["trials"][0]["cause"]


def test_the_board_fits_the_screen(plan):
    grid = plan(f"--seed {' '.join(map(str, range(40)))}")
    board = Board(grid.name, grid.trials, QUIET)
    console = Console(width=80, height=20, record=True, file=open(os.devnull, "w"))  # noqa: SIM115, PTH123
    board.console = console
    files = grid.trials[30].files
    files.folder.mkdir(parents=True)
    board.report(grid.trials[30], Outcome("running"))
    board._live = object()
    files.epochs.write_text("epoch,margin,bounds/paper/theorem_5_2\n0,-0.5,3.75\n")
    board.report(grid.trials[39], Outcome("failed", "diverged"))
    console.export_text()
    console.print(board.render())
    shown = console.export_text()
    assert len(shown.splitlines()) <= 20 and "more" in shown
    assert "38 waiting" in shown and "failed" in shown
    (line,) = [line for line in shown.splitlines() if "running" in line and "waiting" not in line]
    assert line.split()[:3] == ["30", "running", "1/1"] and line.split()[-2:] == ["3.75", "-0.5"]


def test_wandb_sweep_yaml_makes_configurations():
    sweep = yaml.safe_load((ROOT / "cfgs" / "wandb_sweep.yaml").read_text())
    assert (ROOT / sweep["program"]).exists() and sweep["command"][:3] == ["${env}", "${interpreter}", "${program}"]
    flags = [f"--{key}={parameter['values'][-1]}" for key, parameter in sweep["parameters"].items()]
    words = [word.replace("cfgs/", f"{ROOT}/cfgs/") for word in sweep["command"][3:-1]]
    grid = parse_grid([*words, *flags], Pruning, Sweep)
    assert not grid.axes and grid.trials[0].wandb
    assert {key: getattr(grid.trials[0], key) for key in sweep["parameters"]} == {
        key: parameter["values"][-1] for key, parameter in sweep["parameters"].items()
    }


def start(words, out):
    argv = [sys.executable, str(ROOT / "exps" / "mbp.py"), *TINY.split(), "--out_dir", str(out), *words.split()]
    with (out.parent / "output.txt").open("ab") as output:
        return subprocess.Popen(argv, stdout=output, stderr=output, start_new_session=True)


def await_training(plan, process):
    """Until an epoch has been trained; loading torch is most of a short run."""

    def trained():
        paths = [trial.files.epochs for trial in plan.trials]
        return {path: path.stat().st_mtime_ns for path in paths if path.exists()}

    before = trained()
    while process.poll() is None and trained() == before:
        time.sleep(0.05)


def initials(plan):
    """When each trial that can be resumed was begun."""
    folders = [trial.files for trial in plan.trials if (trial.files.folder / "checkpoints" / "last.ckpt").exists()]
    return {files.initial: files.initial.stat().st_mtime_ns for files in folders}


def kill_and_check(plan, process, seconds):
    """Kill the process group after a while; what is there must be whole."""
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    for trial in plan.trials:
        if trial.files.folder.exists():
            trial.files.read_result()
            if trial.files.epochs.exists():
                with trial.files.epochs.open(newline="") as file:
                    assert [int(row["epoch"]) for row in csv.DictReader(file)] == list(range(epochs(trial)))


def epochs(trial):
    return len(trial.files.epochs.read_text().splitlines()) - 1


def test_killed_at_a_random_moment_and_rerun(plan, tmp_path):
    words = "--seed 1 2 3 --max_epochs 4"
    grid, whole = plan(words), plan(words, "whole")
    process = start(words, tmp_path / "out")
    await_training(grid, process)
    kill_and_check(grid, process, random.uniform(0, 3))
    before, begun = finished(grid), initials(grid)
    assert set(states(run_sweep(grid, QUIET))) <= {"finished", "skipped"}
    assert finished(grid).items() >= before.items() and initials(grid).items() >= begun.items()
    run_sweep(whole, QUIET)
    assert results(grid) == results(whole)
    assert [epochs(trial) for trial in grid.trials] == [4] * 3
    assert not dots(grid)


@pytest.mark.slow
def test_killed_ten_times(plan, tmp_path):
    words = "--seed 1 2 3 --lr 0.05 0.1 --ffn_hidden_dim 16 32 --max_epochs 30"
    grid, whole = plan(words), plan(words, "whole")
    left = []
    for kill in range(10):
        before, begun = finished(grid), initials(grid)
        parallel = f"{words} --parallel {1 + kill % 2}"
        process = start(parallel, tmp_path / "out")
        await_training(grid, process)
        kill_and_check(grid, process, random.uniform(0, 6))
        assert finished(grid).items() >= before.items() and initials(grid).items() >= begun.items()
        left.append(len(grid.trials) - len(finished(grid)))
    before = finished(grid)
    summary = run_sweep(grid, QUIET)
    assert set(states(summary)) <= {"finished", "skipped"} and finished(grid).items() >= before.items()
    print(f"left after each kill: {left}")
    run_sweep(whole, QUIET)
    assert results(grid) == results(whole)
    assert [epochs(trial) for trial in grid.trials] == [30] * 12
    assert not dots(grid)


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="Ray is not installed")
def test_ray_loses_a_worker(plan, monkeypatch):
    words = "--seed 1 2 --lr 0.05 0.1 --max_epochs 40"
    grid, whole = plan(f"{words} --engine ray"), plan(words, "whole")
    killed = []
    report = Board.report

    def kill_one(self, trial, outcome):
        report(self, trial, outcome)
        if outcome.state == "running" and not killed:
            for folder in Path("/proc").glob("[0-9]*"):
                if (folder / "cmdline").read_bytes().startswith(b"ray::_attempt") and not killed:
                    killed.append(int(folder.name))
                    os.kill(killed[0], signal.SIGKILL)

    monkeypatch.setattr(Board, "report", kill_one)
    summary = run_sweep(grid, QUIET)
    assert killed and states(summary) == ["finished"] * 4
    run_sweep(whole, QUIET)
    assert results(grid) == results(whole)
    assert not dots(grid)
    for trial in grid.trials:
        files = {path.name for path in trial.files.folder.rglob("*") if path.is_file()}
        assert {"config.yaml", "epochs.csv", "model.safetensors", "mask.safetensors", "last.ckpt"} <= files
        assert yaml.safe_load(trial.files.config.read_text())["out_dir"] == str(grid.folder.parent)
        assert epochs(trial) == 40
    before = finished(grid)
    assert states(run_sweep(grid, QUIET)) == ["skipped"] * 4 and finished(grid) == before


def test_without_ray(plan, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'milkshake_mbp\[ray\]'"):
        run_sweep(plan("--engine ray"), QUIET)
