"""The gallery's files from the command line."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
VERIFY = """
import runpy, sys
sys.argv = ["certificate.py", *{words}]
try:
    runpy.run_path({script!r}, run_name="__main__")
except SystemExit as stop:
    assert not stop.code, stop.code
heavy = {{"pytorch_lightning", "torchvision", "matplotlib", "pandas"}} & set(sys.modules)
assert not heavy, heavy
"""


@pytest.mark.long
def test_verifying_imports_nothing_that_trains():
    # Lightning takes longer to import than the file takes to verify.
    words = ["--verify", "docs/certificates/digits.mbp", "-c", "cfgs/certificate_digits.yaml", "--max_epochs", "3"]
    code = VERIFY.format(words=words, script=str(ROOT / "exps" / "certificate.py"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "216 of 1,437" in done.stdout and "below 40.55%" in done.stdout
    assert "ignored: max_epochs" in done.stdout
