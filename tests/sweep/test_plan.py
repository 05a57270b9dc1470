import pytest

from milkshake_mbp.errors import UserError
from milkshake_mbp.framework.args import parse_args
from milkshake_mbp.runs.names import run_name
from milkshake_mbp.runs.settings import Pruning, Sweep

from .helpers import TINY


def test_a_plan(plan):
    grid = plan("--seed 1 2 --lr 0.1 0.2")
    assert [str(trial) for trial in grid.trials] == [f"seed={seed} lr={lr}" for seed in (1, 2) for lr in (0.1, 0.2)]
    assert plan("--lr 0.2 0.1 --seed 2 1").name == grid.name != plan("--seed 1 2 --lr 0.1 0.3").name
    assert grid.name.startswith("mbp-sweep-") and plan("--experiment a/b --seed 1 2").name.startswith("a.b-sweep-")
    assert not grid.single and plan().single and not plan("--seed [1]").single and not plan("--engine ray").single


def test_what_runs_a_trial_is_no_part_of_it(plan):
    (trial,) = plan("--parallel 2 --max_retries 5").trials
    assert not {"parallel", "engine", "max_retries"} & set(vars(trial.args))
    other = parse_args([*TINY.split(), "--engine", "ray", "--trial_gpus", "0.5"], Pruning, Sweep)
    assert run_name(other) == trial.name


@pytest.mark.parametrize(
    ("words", "expected"),
    [("", 1), ("--devices 2", 2), ("--devices [1]", 1), ("--devices 0,1,", 2), ("--devices auto", None)],
)
def test_processes_of_a_trial(plan, words, expected):
    assert plan(words).trials[0].processes == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--out_dir a b", "out_dir: expected one value"),
        ("--parallel 1 2", "parallel: expected one value"),
        ("--seed 1 2 --wandb true false", "wandb: expected one value"),
        ("--seed 1 2 --num_nodes 2", "num_nodes: a sweep gives each trial 1 node"),
        ("--engine ray --devices 2", "devices: engine ray gives each trial 1 device"),
        ("--parallel 0", "parallel: expected at least 1"),
        ("--max_retries -1", "max_retries: expected at least 0"),
        ("--trial_gpus -1", "trial_gpus: expected a finite number"),
        ("--engine ray --parallel 2", "parallel: expected 1 with engine ray"),
        ("--ray_address auto", "ray_address: auto needs --engine ray"),
    ],
)
def test_refused_before_anything_runs(plan, words, expected):
    with pytest.raises(UserError, match=expected):
        plan(words)
