import math

import pytest

from milkshake_mbp.reporting.tables import find_runs

from .helpers import write_run


@pytest.fixture
def mnist(tmp_path):
    """Width 784 with three seeds, 1000 with one, 1500 not finished, 500 not run."""
    runs = tmp_path / "runs"
    for seed, shift in ((2, 0.5), (1, 0.0), (3, -0.1)):
        write_run(runs, (23 + shift, 18, 12, 3.75), seed=seed, error=0.016 + 0.001 * seed)
    write_run(runs, (25, 19, math.inf, 4.0), ffn_hidden_dim=1000, max_epochs=20, margin=-1.0)
    write_run(runs, ffn_hidden_dim=1500, finished=False)
    return find_runs([str(runs)])
