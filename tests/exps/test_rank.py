"""The ranking as a user asks for it."""

import sys

import pytest

from milkshake_mbp.framework.cli import run_cli

from ..experiment.ranking.helpers import write_grid, write_run
from .test_mbp import load


@pytest.fixture
def call(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "120")

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["rank.py", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            run_cli(load("rank").main)
        captured = capsys.readouterr()
        return stop.value.code or 0, captured.out, captured.err

    return run


def test_one_command_ranks_and_leaves_its_files_beside_the_runs(call, tmp_path):
    write_grid(tmp_path / "out")
    write_run(tmp_path / "out" / "slow", error=0.4, measure=0.1, train_loss=0.2)
    status, out, err = call(tmp_path / "out", "--resamples", 20, "--figures", "false")
    assert (status, err) == (0, "")
    assert "16 networks of 8 trainings over 4 hyperparameters" in out
    assert "slow: its training loss is 0.2, above 0.01" in out
    assert "Test error after pruning" in out and "1.00 [1.00, 1.00]" in out
    assert all(len(line) <= 120 for line in out.splitlines() if "│" in line or "─" in line)
    folder = tmp_path / "out" / "ranking"
    assert sorted(path.name for path in folder.iterdir()) == ["ranking.csv", "ranking.md", "ranking.tex", "report.html"]
    # Its own folder is no run when it is asked again.
    assert call(tmp_path / "out", "--resamples", 20, "--figures", "false")[0] == 0


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "the following arguments are required: RUN"),
        (["absent"], "absent does not exist: name the folder of a run"),
        (["absent", "--resamples", "-1"], "expected a whole number from 0 up, got -1"),
        (["absent", "--until_loss", "0"], "expected a number above 0, got 0"),
    ],
)
def test_a_mistake_is_one_line(call, tmp_path, monkeypatch, words, expected):
    monkeypatch.chdir(tmp_path)
    status, out, err = call(*words)
    assert status == 2 and out == "" and expected in err and err.count("\n") == 1
