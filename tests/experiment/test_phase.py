import io

import numpy as np
import pytest
from rich.console import Console

import milkshake_mbp.experiment.phase as phase
from milkshake_mbp.errors import UserError
from milkshake_mbp.experiment.phase import draw_phase, measure_phase, random_distributed_sparse

QUIET = {"trials": 3, "degree": 5, "seed": 0}


def measure(table, **keys):
    given = {"size": 50, "per_lines": [2], "ratios": [1.5, 10.0], "table": table, **QUIET, **keys}
    return measure_phase(**given, console=Console(file=io.StringIO()))


def test_matrices_are_as_sparse_as_they_should_be():
    for per_line in (1, 2, 7):
        matrix = random_distributed_sparse(30, per_line, np.random.default_rng(0))
        there = matrix != 0
        assert bool(there.diagonal().all())
        assert max(int(there.sum(dim=0).max()), int(there.sum(dim=1).max())) <= per_line


def test_little_recovers_below_the_transition_and_all_above(tmp_path):
    below, above = measure(tmp_path / "phase.csv")
    assert below.recovered == below.certified == 0
    assert above.recovered == above.certified == above.trials == 3
    assert above.sketch_dim == 32 and above.theorem_ratio > 10


def test_a_rerun_measures_only_what_is_missing(tmp_path, monkeypatch):
    table = tmp_path / "phase.csv"
    whole = measure(tmp_path / "whole.csv")
    seen, real = [], phase._measure

    def interrupted(*key, seed):
        if seen:
            raise KeyboardInterrupt
        seen.append(key)
        return real(*key, seed=seed)

    monkeypatch.setattr(phase, "_measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measure(table)
    monkeypatch.setattr(phase, "_measure", lambda *key, seed: seen.append(key) or real(*key, seed=seed))
    assert measure(table) == whole
    assert len(seen) == 2


def test_a_damaged_table_is_one_line(tmp_path):
    table = tmp_path / "phase.csv"
    table.write_text("size,per_line\n50,many\n")
    with pytest.raises(UserError, match="not a table of recoveries"):
        measure(table)


def test_the_figure_is_drawn(tmp_path):
    files = draw_phase(measure(tmp_path / "phase.csv"), tmp_path)
    assert [path.name for path in files] == ["phase.pdf", "phase.png"] and all(path.stat().st_size for path in files)
