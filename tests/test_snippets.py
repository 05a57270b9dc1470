"""What README and documentation tell a reader to run: Python is run, and a command's words are read by its script."""

import argparse
import importlib
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

from milkshake_mbp import commands

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
OTHERS = (
    "cd",
    "do",
    "done",
    "for",
    "mypy",
    "pip",
    "pytest",
    "python3",
    "ray",
    "ruff",
    "sbatch",
    "sphinx-build",
    "wandb",
)


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


def commands_of(block):
    """The lines of a shell block, those that go on put together."""
    line = ""
    for part in block.replace("\\\n", " ").splitlines():
        line += part + "\n"
        try:
            shlex.split(line, comments=True)
        except ValueError:  # within quotes
            continue
        yield line
        line = ""
    assert not line, f"unfinished: {line}"


def calls(page):
    """The commands on a page, in blocks and within lines, as words."""
    lines = [line for block in fences(page, "bash") for line in commands_of(block)]
    starts = r"`((?:\.venv/bin/)?(?:python (?:exps|benchmarks)/|mbp |exps/\w+\.py )[^`]+)`"
    lines += re.findall(starts, page.read_text(encoding="utf-8"))
    for line in lines:
        words = [STAND_INS.get(word, word) for word in shlex.split(line.replace("$seed", "1"), comments=True)]
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
    if program in OTHERS:
        return None
    return (rest[0], rest[1:]) if program == "python" else (program, rest)


class ReadError(Exception):
    """The script has read its words."""


def stopped(parse):
    """A function that reads words, after which the script goes no further."""

    def read(*given, **keys):
        parse(*given, **keys)
        raise ReadError

    return read


def check_export(path, console):
    """In place of an export, since there is no such file."""
    assert path.suffix == ".mbp"


def read_by(script, words, monkeypatch):
    """Have a script read its words, with its own parser and its own checks."""
    path = ROOT / script
    assert path.is_file(), f"there is no {script}"
    monkeypatch.setattr(sys, "argv", [path.name, *words])
    if re.search("ArgumentParser|script_parser", path.read_text(encoding="utf-8")):
        monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stopped(argparse.ArgumentParser.parse_args))
    if path.parent.name == "benchmarks":
        runpy.run_path(str(path), run_name="__main__")
    module = importlib.import_module(f"exps.{path.stem}")
    for name in {"parse_args", "parse_grid", "read_settings", "make_plan"} & vars(module).keys():
        monkeypatch.setattr(module, name, stopped(getattr(module, name)))
    if hasattr(module, "export"):
        monkeypatch.setattr(module, "export", stopped(check_export))
    module.main()


@pytest.mark.parametrize("page", named(page for page in PAGES if list(calls(page))))
def test_commands_are_read_by_their_scripts(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    for words in calls(page):
        if found := script_of(words):
            with monkeypatch.context() as patched:
                try:
                    read_by(*found, patched)
                except ReadError:
                    continue
                except (Exception, SystemExit) as error:
                    pytest.fail(f"{shlex.join(words)}: {error}")
            pytest.fail(f"{shlex.join(words)}: the script has no parser")
