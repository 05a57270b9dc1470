"""What --help says of each script."""

import subprocess
import sys

import pytest

from milkshake_mbp.framework.cli import run_cli

from .test_mbp import ROOT, load


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)

    def run(name, *words):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *words])
        with pytest.raises(SystemExit) as stop:
            run_cli(load(name).main)
        assert not list(tmp_path.iterdir())
        return stop.value.code or 0, *capsys.readouterr()

    return run


@pytest.mark.parametrize(
    ("script", "there", "absent"),
    [
        ("mbp", ["--lr ", "--prune_d ", "--engine ", "--max_epochs "], ["--rounds "]),
        (
            "ladder",
            ["--weights FILE", "--ffn_activation ", "--input_mean ", "--input_std ", "--prune_d "],
            ["--lr ", "--max_epochs ", "--accelerator ", "--wandb ", "--batch_size ", "--rerun ", "--metrics "],
        ),
        (
            "certificate",
            ["[--verify FILE.mbp]", "--verify FILE.mbp computes", "--hidden ", "--lr ", "--max_epochs "],
            ["--ffn_hidden_dim ", "--optimizer ", "--lr_scheduler ", "--loss ", "--weights ", "--no_test "],
        ),
        ("lottery", ["--rounds ", "--lr "], ["--weights ", "--no_test ", "--eval_only ", "--resume_training "]),
        ("reproduce", ["table1|table2|figure1|figure2|d_curves", "one of table1, table2", "--quick "], ["--engine "]),
        ("phase", ["--per_lines ", "--trials "], ["--lr "]),
        ("adversarial", ["--epsilon ", "--pgd_steps ", "--lr "], ["--rounds "]),
        ("distillation", ["--cnn_epochs ", "--distillation_lr ", "--lr "], ["--rounds "]),
        ("report", ["RUN_FOLDER", "--out_dir "], ["--lr "]),
        ("rank", ["RUN", "--out_dir ", "--until_loss ", "--resamples "], ["--lr "]),
    ],
)
def test_help_has_what_the_script_reads_and_nothing_else(call, script, there, absent):
    status, out, err = call(script, "--help")
    assert (status, err) == (0, "")
    assert all(word in out for word in there)
    assert not any(word in out for word in absent)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["certificate", "--optimizer", "adam"], "optimizer on the command line: this script does not use it"),
        (["certificate", "--verify"], "--verify: name the certificate"),
        (["certificate", "--verify", "~/absent.mbp"], "absent.mbp cannot be read"),
        (["certificate", "--datamodule", "mnits"], "did you mean 'mnist'?"),
        (["lottery", "--weights", "x.pt"], "weights on the command line: this script does not use it"),
        (["lottery", "--model", "fnn"], "did you mean 'ffn'?"),
        (["reproduce"], "expected one of table1, table2, figure1, figure2, d_curves"),
        (["reproduce", "table1", "--runs", "x", "--lr", "3"], "lr on the command line: this script does not use it"),
        (["reproduce", "table1", "--runs", "absent"], "runs: absent is no folder"),
        (["phase", "--lr", "3"], 'unknown key "lr"'),
        (["report"], "the following arguments are required: RUN_FOLDER"),
        (["report", "absent"], "absent holds no run"),
        (["report", "x", "--foo"], "unrecognized arguments: --foo"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(call, words, expected):
    status, _, err = call(*words)
    assert status == 2 and len(err.splitlines()) == 1 and expected in err and "~" not in err


@pytest.mark.long
def test_help_and_refusals_do_not_load_lightning():
    """Its import takes twice as long as torch's. Those of reproduce and certificate, and the two examples, do."""
    check = """
import runpy, sys
for name in ("mbp", "ladder", "lottery", "phase", "rank", "report"):
    for words in (["--help"], ["--lerning_rate", "1"]):
        sys.argv = [f"exps/{name}.py", *words]
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as stop:
            assert stop.code == (0 if words == ["--help"] else 2)
        assert "pytorch_lightning" not in sys.modules, name
"""
    subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=True, capture_output=True)
