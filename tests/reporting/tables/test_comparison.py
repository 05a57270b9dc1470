import math

import pytest

from milkshake_mbp.errors import UserError
from milkshake_mbp.reporting.tables import compare, find_runs, remaining
from milkshake_mbp.reporting.tables.comparison import Entry

from .helpers import write_run


def test_median_range_and_difference(mnist, tmp_path):
    comparison = compare(mnist, "mnist", [500, 784, 1000, 1500])
    entry = comparison.entries["neyshabur_2015", 784]
    assert (entry.median, entry.low, entry.high, entry.paper) == (23.0, 22.9, 23.5, 23.56)
    assert entry.difference == pytest.approx(-0.56)
    assert comparison.entries["true_error", 784].median == pytest.approx(math.log(0.018))
    assert Entry((1.0, 2.0)).median == 1.5 and Entry(()).difference is None
    assert comparison.seeds(784) == "1, 2, 3" and not comparison.runs[1500]


def test_what_remains(mnist):
    comparisons = [compare(mnist, "mnist", [500, 784, 1000, 1500, 2000]), compare(mnist, "cifar10", [784])]
    assert remaining(mnist, comparisons) == [
        "MNIST, width 1500, seed 1: unfinished after 5 of 60 epochs",
        "MNIST, width 500, 2000: not run",
        "CIFAR-10, width 784: not run",
    ]


@pytest.mark.parametrize(("key", "value"), [("max_epochs", 300), ("precision", "bf16-mixed")])
def test_runs_of_different_recipes_are_not_mixed(tmp_path, key, value):
    write_run(tmp_path, seed=1)
    write_run(tmp_path, seed=2, **{key: value})
    runs = find_runs([str(tmp_path)])
    with pytest.raises(UserError, match=rf"width 784 on mnist differ in {key} \(.*{value}"):
        compare(runs, "mnist", [784])
    assert compare(runs, "mnist", [500]).entries["margin", 500].values == ()


def test_the_same_run_counts_once(tmp_path):
    here = write_run(tmp_path / "here", finished=False)
    there = write_run(tmp_path / "there", (20, 18, 12, 3.75))
    again = write_run(tmp_path / "again", (19, 18, 12, 3.75), prune_d=2.0)
    again.rename(again.with_name("another-name"))
    runs = find_runs([str(here), str(there), str(tmp_path / "here"), str(tmp_path / "again")])
    assert compare(runs, "mnist", [784]).entries["neyshabur_2015", 784].values == (20,)
