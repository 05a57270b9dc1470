import pytest

from milkshake_mbp.framework.args import parse_grid
from milkshake_mbp.runs.settings import Pruning, Sweep
from milkshake_mbp.sweep import plan_sweep

from .helpers import TINY


@pytest.fixture
def plan(tmp_path):
    def build(words="", out="out"):
        argv = [*TINY.split(), "--out_dir", str(tmp_path / out), *words.split()]
        return plan_sweep(parse_grid(argv, Pruning, Sweep))

    return build
