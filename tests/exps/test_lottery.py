"""What a user of exps/lottery.py sees."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from milkshake_mbp.framework.checkpoints import read_weights
from milkshake_mbp.framework.cli import run_cli

ROOT = Path(__file__).parents[2]
KEYS = {
    "max_epochs": 2,
    "ffn_hidden_dim": 8,
    "ffn_num_layers": 2,
    "bias": "false",
    "accelerator": "cpu",
    "rounds": 1,
    "sketch_rounds": "false",
}
QUICK = [word for key, value in KEYS.items() for word in (f"--{key}", str(value))]


def call(monkeypatch, capsys, *words):
    spec = importlib.util.spec_from_file_location("lottery", ROOT / "exps" / "lottery.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(sys, "argv", ["lottery.py", *words])
    with pytest.raises(SystemExit) as stop:
        run_cli(script.main)
    captured = capsys.readouterr()
    return stop.value.code or 0, captured.out, captured.err


@pytest.mark.long
def test_rounds_are_told_and_read_again(monkeypatch, capsys, tmp_path):
    words = [*QUICK, "--out_dir", str(tmp_path), "--controls", "[reinit]"]
    status, out, err = call(monkeypatch, capsys, *words)
    assert (status, err) == (0, "")
    assert "seed 1, ticket, round 1: 80.07% of the weights" in out
    assert "Test error in %" in out
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")}
    assert len(times) == 3
    assert {path.name for path in tmp_path.rglob("*.png")} == {"accuracy.png", "bounds.png", "memory.png", "pixels.png"}
    assert call(monkeypatch, capsys, *words)[0] == 0
    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")}


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--control_rounds", "[7]"], "error: control_rounds: expected rounds from 1 to 1, got [7]"),
        (["--pruner", "best"], "error: pruner on the command line: expected"),
        (["--strong", "--rounds", "0", "--bias", "true"], "error: bias, ffn_activation: Theorem 6.1's target"),
    ],
)
def test_errors_are_one_line(monkeypatch, capsys, tmp_path, words, line):
    status, _, err = call(monkeypatch, capsys, *QUICK, "--out_dir", str(tmp_path), *words)
    assert status == 2
    assert err.startswith(line)
    assert err.count("\n") == 1


@pytest.mark.slow
def test_a_killed_process_goes_on(tmp_path):
    """SIGKILL in mid-round; the same command then leaves the files that an uninterrupted one leaves."""
    keys = KEYS | {"max_epochs": 8, "ffn_hidden_dim": 64, "rounds": 2, "controls": "[]"}
    words = [word for key, value in keys.items() for word in (f"--{key}", str(value))]

    def start(folder):
        command = [sys.executable, str(ROOT / "exps" / "lottery.py"), *words, "--out_dir", str(folder)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"})

    assert start(tmp_path / "whole").wait() == 0
    process = start(tmp_path / "torn")
    deadline = time.monotonic() + 120
    while not list((tmp_path / "torn").rglob("ticket-01/checkpoints/last.ckpt")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list((tmp_path / "torn").rglob("ticket-01/result.json"))
    assert start(tmp_path / "torn").wait() == 0
    found = sorted((tmp_path / "whole").rglob("*.safetensors"))
    assert len(found) == 7
    for path in found:
        other = read_weights(tmp_path / "torn" / path.relative_to(tmp_path / "whole"))
        assert all(torch.equal(value, other[name]) for name, value in read_weights(path).items())
