"""The slow one: `-m slow`, after `pip install -e '.[ray,test]'`."""

import importlib.util
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from unittest.mock import Mock

import pytest
import yaml

from milkshake_mbp.errors import UserError
from milkshake_mbp.runs.settings import Sweep
from milkshake_mbp.sweep import run_sweep
from milkshake_mbp.sweep.board import Board
from milkshake_mbp.sweep.ray_engine import _check_reachable, _connect, _remove_remains

from .helpers import QUIET, dots, epochs, finished, results, states


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


def test_a_cluster_that_does_not_answer():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(UserError, match=f"nothing answers at 127.0.0.1:{port}"):
        _check_reachable(f"127.0.0.1:{port}")
    _check_reachable("auto")


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        (None, r"^engine: Ray does not start on this machine \(The current node timed out\): .* use --engine local$"),
        ("auto", r"^ray_address: no Ray cluster at auto \(The current node timed out\): start one"),
    ],
)
def test_a_node_that_does_not_start(plan, monkeypatch, address, expected):
    """Ray's own words for it are a bare Exception."""
    ray = ModuleType("ray")
    ray.is_initialized = lambda: False
    ray.init = Mock(side_effect=Exception("The current node timed out\nat length"))
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    grid = plan("--seed 1 2 --engine ray" + f" --ray_address {address}" * bool(address))
    with pytest.raises(UserError, match=expected):
        run_sweep(grid, QUIET)


def test_signals_are_the_scripts_not_rays():
    """Ray's handlers end the process."""
    ray, before = Mock(), signal.getsignal(signal.SIGTERM)
    ray.init = lambda **options: signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ray.cluster_resources = lambda: {"CPU": 8}
    try:
        _connect(ray, Sweep(engine="ray", ray_address="local"), debug=False)
        assert signal.getsignal(signal.SIGTERM) == before
    finally:
        signal.signal(signal.SIGTERM, before)


def test_what_killed_workers_left_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    process = subprocess.Popen(["true"])
    process.wait()
    for owner in (process.pid, os.getpid(), "notes"):
        (tmp_path / f"mbp-trial-{owner}-x").mkdir()
    _remove_remains()
    assert {path.name for path in tmp_path.iterdir()} == {f"mbp-trial-{os.getpid()}-x", "mbp-trial-notes-x"}


def test_without_ray(plan, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'milkshake_mbp\[ray\]'"):
        run_sweep(plan("--engine ray"), QUIET)
