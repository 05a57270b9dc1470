"""Sweeps killed at a random moment; the slow one, `-m slow`, takes minutes."""

import csv
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from milkshake_mbp.sweep import run_sweep

from .helpers import QUIET, ROOT, TINY, dots, epochs, finished, results, states


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


@pytest.mark.long
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
