"""The wheel, installed and used from an empty folder.

python -m pytest -m slow tests/test_wheel.py
"""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OWN_MODULE = """
import torch
from torch import nn
from torch.utils.data import TensorDataset
from milkshake_mbp import BoundsCallback

module = nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 3))
data = TensorDataset(torch.randn(300, 20), torch.randint(0, 3, (300,)))
for bound in BoundsCallback().measure(module, data).bounds:
    print(bound.convention, bound.name, bound.log_value)
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder that the wheel was installed into: packages, and `mbp` in bin."""
    pytest.importorskip("setuptools")
    source, site = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for name in ("milkshake_mbp", "exps", "cfgs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    (source / "docs").mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "docs/errata.md"):
        shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", ".", "."], cwd=source, check=True)
    (wheel,) = source.glob("*.whl")
    assert {f"milkshake_mbp/{name}" for name in ("reporting/report/page.html", "docs/errata.md")} <= set(
        zipfile.ZipFile(wheel).namelist()
    )
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", str(site), str(wheel)], check=True)
    return site


@pytest.fixture
def call(site, tmp_path):
    def run(*words, status=0):
        ran = subprocess.run(
            list(map(str, words)),
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(site), "PATH": f"{site / 'bin'}{os.pathsep}{os.environ['PATH']}"},
            capture_output=True,
            text=True,
        )
        assert ran.returncode == status, ran.stdout + ran.stderr
        return ran.stdout + ran.stderr

    return run


@pytest.mark.slow
def test_what_is_tested_is_the_wheel(call, site):
    shown = call(sys.executable, "-c", "import milkshake_mbp, milkshake_mbp.exps.mbp as m; print(m.__file__, m.main)")
    assert shown.startswith(str(site / "milkshake_mbp" / "exps" / "mbp.py"))


@pytest.mark.slow
def test_help_speaks_of_mbp(call):
    assert "usage: mbp train [-c FILE.yaml]" in call("mbp", "train", "--help")
    shown = call("mbp", "rank", "--help")
    assert "usage: mbp rank " in shown and "mbp rank out/RUN" in shown
    assert "reproduce" in call("mbp", "--help")


@pytest.mark.slow
def test_a_run_a_ladder_and_a_report(call, tmp_path):
    short = ("--max_epochs", 2, "--ffn_hidden_dim", 16, "--enable_progress_bar", "false")
    shown = call("mbp", "train", "-c", "digits", *short)
    assert "mbp certificate -c certificate_digits" in " ".join(shown.split())
    (run,) = (path.parent for path in tmp_path.glob("out/*/result.json"))
    assert json.loads((run / "result.json").read_text())["bounds"]
    assert "mbp train -c" in (run / "report.html").read_text()
    assert call("mbp", "train", "-c", run / "config.yaml")
    assert "Theorem 5.2" in call("mbp", "ladder", "-c", "digits", "--weights", run / "model.safetensors", *short[2:4])
    assert "Report: " in call("mbp", "report", run)
    assert "expected one of table1" in call("mbp", "reproduce", status=2)


@pytest.mark.slow
def test_a_sweep_in_two_processes(call, tmp_path):
    """Each loads what a run is made of from the script in the wheel."""
    short = ("--max_epochs", 1, "--ffn_hidden_dim", 16, "--figures", "false")
    call("mbp", "train", "-c", "digits", *short, "--seed", 1, 2, "--parallel", 2)
    assert len(list(tmp_path.glob("out/*/manifest.json"))) == 2


@pytest.mark.slow
def test_the_papers_tables_find_their_configurations(call, tmp_path):
    words = ("--quick", "--ffn_hidden_dim", "[16]", "--max_epochs", 1, "--enable_progress_bar", "false")
    assert "Neyshabur" in call("mbp", "reproduce", "table1", *words)


@pytest.mark.slow
def test_a_bound_of_ones_own_module(call):
    assert "rigorous dense" in call(sys.executable, "-c", OWN_MODULE)
