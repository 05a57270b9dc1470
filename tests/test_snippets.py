"""What README and documentation tell a reader to run: Python is run, and each command's words are read by its script."""

import argparse
import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest

from milkshake_mbp import commands
from milkshake_mbp.framework import args as framework_args

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "docs/certificates/README.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))
# What a page calls a file of the reader's, and a file that stands for it.
STAND_INS = {
    "theirs/cfgs/cifar10_resnet.yaml": "cfgs/milkshake_defaults.yaml",
    "theirs.yaml": "cfgs/milkshake_defaults.yaml",
    "out/<run>/config.yaml": "cfgs/certificate_mnist.yaml",
    "config.yaml": "cfgs/digits.yaml",
    "CONFIG": "cfgs/certificate_digits.yaml",
}
# Programs of others, whose words are not read here.
OTHERS = ("cd", "do", "done", "export", "for", "pip", "python3", "ray", "ruff", "mypy", "sbatch", "sphinx-build", "wandb")


def fences(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def named(pages):
    return [pytest.param(page, id=page.relative_to(ROOT).as_posix()) for page in pages]


@pytest.mark.parametrize("page", named(page for page in PAGES if fences(page, "python")))
def test_python_runs(page, tmp_path, monkeypatch):
    """The snippets of a page, one after another in one module."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["script.py", "-c", str(ROOT / "cfgs" / "milkshake_defaults.yaml")])
    names = {"__name__": "snippet"}
    for source in fences(page, "python"):
        exec(compile(source, page.name, "exec"), names)


def calls(page):
    """The commands on a page, in blocks and within lines, as words."""
    text = page.read_text(encoding="utf-8")
    lines = [line for block in fences(page, "bash") for line in block.replace("\\\n", " ").splitlines()]
    starts = r"`((?:\.venv/bin/)?(?:python (?:exps|benchmarks)/|mbp |exps/\w+\.py )[^`]+)`"
    lines += [line.replace("\n", " ") for line in re.findall(starts, text)]
    for line in lines:
        words = [STAND_INS.get(word, word) for word in shlex.split(line, comments=True)]
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
            del words[0]
        if words and "…" not in words and "..." not in words:
            yield [words[0].removeprefix(".venv/bin/"), *words[1:]]


def script_of(words):
    """The script that a command runs and its own words; None for a program of others."""
    program, *rest = words
    if program == "mbp":
        command = rest[0] if rest else "--help"
        assert command in {*commands.SCRIPTS, "--help"}, f"mbp has no {command}"
        return None if command == "--help" else (f"exps/{commands.SCRIPTS[command]}.py", rest[1:])
    if program == "python" and rest[0] == "-m" and rest[1] == "pytest":
        assert all((ROOT / word).exists() for word in rest[2:] if word.startswith("tests/"))
        return None
    if program == "python" and rest[0] == "-c":
        compile(rest[1], "command", "exec")
        return None
    if program == "pytest" or program in OTHERS:
        return None
    return (rest[0], rest[1:]) if program == "python" else (program, rest)


class ReadError(Exception):
    """The script's parser has read its words."""


def read_by(script, words, monkeypatch):
    """Have the script read its words, and stop it there."""
    path = ROOT / script
    assert path.is_file(), f"there is no {script}"
    module = importlib.import_module(f"{path.parent.name}.{path.stem}")

    def stopped(parse):
        def read(*given, **keys):
            parse(*given, **keys)
            raise ReadError

        return read

    for name in ("parse_args", "parse_grid", "read_settings", "make_plan", "export"):
        if hasattr(module, name) and not script.startswith("benchmarks"):
            monkeypatch.setattr(module, name, stopped(getattr(module, name)) if name != "export" else stopped(len_of))
    if not hasattr(framework_args, path.stem) and "ArgumentParser" in path.read_text(encoding="utf-8"):
        monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stopped(argparse.ArgumentParser.parse_args))
    monkeypatch.setattr(sys, "argv", [path.name, *words])
    with pytest.raises(ReadError):
        module.main()
    monkeypatch.undo()


def len_of(path, console):
    """In place of an export: there is no file."""
    assert path.suffix == ".mbp"


@pytest.mark.parametrize("page", named(page for page in PAGES if list(calls(page))))
def test_commands_are_read_by_their_scripts(page, monkeypatch):
    for words in calls(page):
        if found := script_of(words):
            monkeypatch.chdir(ROOT)
            try:
                read_by(*found, monkeypatch)
            except BaseException as error:
                raise AssertionError(f"{shlex.join(words)}: {error}") from error
