"""The report as a user asks for it."""

import json
import sys

import pytest

from milkshake_mbp.framework.cli import run_cli

from .test_mbp import load


@pytest.fixture
def call(monkeypatch, capsys):
    script = load("report")

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["report.py", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            run_cli(script.main)
        captured = capsys.readouterr()
        return stop.value.code or 0, captured.out, captured.err

    return run


@pytest.fixture
def runs(tmp_path):
    folders = [tmp_path / "out" / name for name in ("a", "b")]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text("datamodule: digits\n")
        (folder / "result.json").write_text(json.dumps({"bounds": [], "num_classes": 10}))
    return folders


def test_one_run_gets_it_in_its_folder(call, runs):
    assert call(runs[0]) == (0, f"Report: {runs[0] / 'report.html'}\n", "")
    assert "<h1>digits" in (runs[0] / "report.html").read_text()


def test_several_get_it_where_they_lie(call, runs):
    assert call(*runs)[0] == 0
    assert "<h1>2 runs" in (runs[0].parent / "report.html").read_text()


def test_or_where_it_is_asked_for(call, runs, tmp_path):
    assert call(runs[0], "--out_dir", tmp_path / "new")[0] == 0
    assert (tmp_path / "new" / "report.html").exists()


def test_mistakes_are_told_in_one_line(call, runs, tmp_path):
    code, _, err = call(tmp_path / "none")
    assert code == 2 and err.count("\n") == 1 and "none holds no run" in err
    elsewhere = runs[1].rename(tmp_path / "b")
    code, _, err = call(runs[0], elsewhere)
    assert code == 2 and err.count("\n") == 1 and "--out_dir" in err
    assert call("--out_dir", tmp_path)[0] == 2
