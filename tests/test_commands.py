"""The command `mbp` in a checkout: what it runs, and what -c finds."""

import subprocess
import sys
from pathlib import Path

import pytest

from milkshake_mbp import commands
from milkshake_mbp.errors import UserError
from milkshake_mbp.framework.args import parse_args
from milkshake_mbp.runs.settings import Pruning

ROOT = Path(__file__).parents[1]


def call(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["mbp", *words])
    with pytest.raises(SystemExit) as stop:
        commands.main()
    return stop.value.code, *capsys.readouterr()


def test_every_script_is_a_subcommand_and_no_other():
    assert set(commands.SCRIPTS.values()) == {path.stem for path in (ROOT / "exps").glob("[!_]*.py")}


def test_help_names_commands_and_configurations(monkeypatch, capsys):
    status, out, err = call(monkeypatch, capsys)
    assert (status, err) == (0, "") and out == call(monkeypatch, capsys, "--help")[1]
    assert "train         The main job: train a network" in out and "certificate_digits" in out
    assert all(f"\n  {name} " in out for name in commands.SCRIPTS)


@pytest.mark.parametrize(
    ("word", "expected"),
    [("certficate", 'did you mean "certificate"?'), ("sing", "expected one of train, ladder"), ("-c", "expected one")],
)
def test_an_unknown_command_is_one_line(monkeypatch, capsys, word, expected):
    status, out, err = call(monkeypatch, capsys, word, "-c", "digits")
    assert (status, out, len(err.splitlines())) == (2, "", 1) and expected in err


def test_a_command_is_its_script(monkeypatch, capsys):
    """The script's own answer to its own words, from the main module as Lightning's launchers find it."""
    status, out, err = call(monkeypatch, capsys, "report", "absent")
    assert (status, out) == (2, "") and "absent holds no run" in err
    assert sys.argv == [str(ROOT / "exps" / "report.py"), "absent"]


def test_the_command_does_not_load_torch():
    check = "import sys; sys.argv = ['mbp']\nfrom milkshake_mbp.commands import main\ntry: main()\nexcept SystemExit: "
    check += "assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True, stdout=subprocess.DEVNULL, timeout=60)


def test_a_configuration_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = parse_args(["-c", "digits"], Pruning)
    assert vars(args) == vars(parse_args(["-c", str(ROOT / "cfgs" / "digits.yaml")], Pruning))
    assert vars(args) != vars(parse_args([], Pruning))
    assert vars(args) == vars(parse_args(["-c", "digits.yaml"], Pruning))
    (tmp_path / "digits").mkdir()  # of results, say
    assert vars(args) == vars(parse_args(["-c", "digits"], Pruning))


def test_a_file_goes_before_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits.yaml").write_text("lr: 0.5\n")
    assert parse_args(["-c", "digits.yaml"], Pruning).lr == 0.5
    assert parse_args(["-c", "digits"], Pruning).lr != 0.5


@pytest.mark.parametrize("given", ["cfgs/digits.yaml", "digts", "there/digits.yml"])
def test_a_file_that_is_not_there_suggests_a_name(tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"{given}: No such file or directory; did you mean -c digits, which comes"):
        parse_args(["-c", given])
