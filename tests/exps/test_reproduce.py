"""The paper's tables and figures, as a user calls them."""

import csv
import sys

import pytest

from milkshake_mbp.errors import UserError
from milkshake_mbp.framework.cli import run_cli

from ..reporting.tables.helpers import write_run
from .test_mbp import load

TINY = ["--ffn_hidden_dim", "[8,9]", "--ffn_num_layers", "2", "--max_epochs", "1", "--enable_progress_bar", "false"]
TINY += ["--figures", "false"]


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """Runs the script in this process; gives its status, output and errors."""
    script = load("reproduce")

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["reproduce.py", *words, "--out_dir", str(tmp_path / "out")])
        with pytest.raises(SystemExit) as stop:
            run_cli(script.main)
        captured = capsys.readouterr()
        return stop.value.code or 0, captured.out, captured.err

    run.script = script
    return run


def counts(folder):
    """How many runs stand behind each width of table 1."""
    with (folder / "out" / "table1-quick" / "table1.csv").open(newline="") as file:
        return {int(row["width"]): int(row["runs"]) for row in csv.DictReader(file)}


@pytest.mark.long
def test_every_target_in_small(call, tmp_path):
    status, out, _ = call("table1", "--quick", *TINY)
    assert status == 0 and "quick version on scikit-learn's digits, not comparable" in out
    assert "width 8 | width 9 |" in out and "| paper" not in out
    assert counts(tmp_path) == {8: 1, 9: 1}
    out_dir = tmp_path / "out"
    assert {path.name for path in (out_dir / "table1-quick").iterdir()} == {"table1.md", "table1.tex", "table1.csv"}
    for name, width in (("figure1", "[8,9]"), ("figure2", "8"), ("d_curves", "8"), ("table2", "8")):
        status, out, err = call(name, "--quick", *TINY, "--ffn_hidden_dim", width)
        # Trained once: these are the networks of table 1.
        assert (status, err) == (0, "") and "results go to" not in out
        assert any(path.stem == name for path in (out_dir / f"{name}-quick").iterdir())


@pytest.mark.long
def test_an_interrupt_keeps_what_is_finished(call, monkeypatch, tmp_path):
    train = call.script.run

    def interrupted(args, *rest):
        if args.ffn_hidden_dim == 9:
            raise KeyboardInterrupt
        return train(args, *rest)

    monkeypatch.setattr(call.script, "run", interrupted)
    status, out, err = call("table1", "--quick", *TINY)
    assert status == 130 and err.splitlines()[-1] == "interrupted"
    assert "still to do: scikit-learn's digits, width 9, seed 1: not started" in out
    assert counts(tmp_path) == {8: 1, 9: 0}
    assert "width 9, seed 1: not started" in (tmp_path / "out" / "table1-quick" / "table1.md").read_text()
    trained = []
    monkeypatch.setattr(
        call.script, "run", lambda args, *rest: trained.append(args.ffn_hidden_dim) or train(args, *rest)
    )
    assert call("table1", "--quick", *TINY)[0] == 0
    assert trained == [9] and counts(tmp_path) == {8: 1, 9: 1}


def test_a_failure_is_told_and_the_rest_goes_on(call, monkeypatch, tmp_path):
    train = call.script.run

    def failing(width):
        def run(args, *rest):
            if args.ffn_hidden_dim == width:
                raise UserError("training diverged, try a smaller lr")
            return train(args, *rest)

        return run

    monkeypatch.setattr(call.script, "run", failing(8))
    status, _, err = call("table1", "--quick", *TINY)
    assert status == 2 and err == "error: training diverged, try a smaller lr\n"
    monkeypatch.setattr(call.script, "run", failing(9))
    status, out, _ = call("table1", "--quick", *TINY)
    assert status == 1 and "error: training diverged" in out and "width 9, seed 1: not started" in out
    assert counts(tmp_path) == {8: 1, 9: 0}


def test_from_finished_runs(call, monkeypatch, tmp_path):
    for width in (8, 9):
        write_run(tmp_path / "runs", datamodule="digits", ffn_hidden_dim=width)
    monkeypatch.setattr(call.script, "run", lambda *_: pytest.fail("trained"))
    status, out, _ = call("table1", "--quick", "--runs", str(tmp_path / "runs"), "--ffn_hidden_dim", "[8,9,10]")
    assert status == 0 and "still to do: scikit-learn's digits, width 10: not run" in out
    assert counts(tmp_path) == {8: 1, 9: 1, 10: 0}
    # What is not MNIST is not in the paper's table.
    status, out, _ = call("table1", "--runs", str(tmp_path / "runs"))
    assert status == 0 and "width 500, 784, 1000, 1500, 2000, 2500: not run" in out and "23.56" in out
    assert call("figure2", "--runs", str(tmp_path / "runs"))[1].endswith(
        "There is nothing to draw, because no run has finished\n"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["table3"], "expected one of table1, table2, figure1, figure2, d_curves"),
        ([], "got --out_dir"),
        (["table1", "--runs", "absent"], "runs: absent is no folder"),
        (["d_curves", "--seed", "[1,2]"], "d_curves: expected one network"),
    ],
)
def test_one_clear_line(call, words, message):
    status, _, err = call(*words)
    assert status == 2 and err.count("\n") == 1 and message in err
