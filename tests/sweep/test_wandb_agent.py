"""`cfgs/wandb_sweep.yaml` under wandb's own agent; the slow one, `-m slow`, stands in for the server only."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from wandb.sdk.launch.sweeps import utils

from milkshake_mbp.framework.args import parse_grid
from milkshake_mbp.runs.settings import Pruning, Sweep
from tests.wandb_file import offline_runs

from .helpers import ROOT

SWEEP = yaml.safe_load((ROOT / "cfgs" / "wandb_sweep.yaml").read_text())
# What the server hands out: the YAML, a run for each point, the first of them twice, and then the end.
AGENT = """
import sys
from pathlib import Path
from unittest import mock

from wandb import wandb_agent

points = [
    {"ffn_hidden_dim": 8, "lr": 0.02, "seed": 1, "max_epochs": 1},
    {"ffn_hidden_dim": 12, "lr": 0.05, "seed": 2, "max_epochs": 1},
    {"ffn_hidden_dim": 8, "lr": 0.02, "seed": 1, "max_epochs": 1},
]
commands = [
    {"type": "run", "run_id": f"run{number}", "program": "exps/mbp.py",
     "args": {key: {"value": value} for key, value in point.items()}}
    for number, point in enumerate(points, 1)
] + [{"type": "exit"}]
running = []

def heartbeat(api, agent, metrics, states):
    return [] if states else [commands.pop(0)]

server = "wandb.apis.public.sweeps"
config = Path("cfgs/wandb_sweep.yaml").read_text()
wandb_agent.Agent.POLL_INTERVAL = 0.2
with (
    mock.patch("wandb.Api"),
    mock.patch(f"{server}._sweep_with_runs", lambda *given: {"config": config}),
    mock.patch(f"{server}._register_agent", lambda *given, **options: {"id": "agent"}),
    mock.patch(f"{server}._agent_heartbeat", heartbeat),
):
    wandb_agent.run_agent("few", entity="someone", project="milkshake_mbp")
"""


def command(values):
    """The words that wandb's agent starts for a point, as it makes them."""
    words = utils.create_sweep_command(SWEEP["command"])
    made = utils.create_sweep_command_args({"args": {key: {"value": value} for key, value in values.items()}})
    made |= {"env": ["/usr/bin/env"], "interpreter": ["python"], "program": [SWEEP["program"]]}
    return [part for word in words for part in (made[word[2:-1]] if word.startswith("${") else [word])]


def test_each_point_is_one_configuration(monkeypatch):
    monkeypatch.chdir(ROOT)
    values = {key: parameter["values"][-1] for key, parameter in SWEEP["parameters"].items()}
    env, interpreter, program, *words = command(values)
    assert (env, interpreter) == ("/usr/bin/env", "python") and Path(program).exists()
    grid = parse_grid(words, Pruning, Sweep)
    assert not grid.axes and grid.trials[0].wandb and grid.trials[0].datamodule == "digits"
    assert {key: getattr(grid.trials[0], key) for key in values} == values
    assert SWEEP["metric"]["name"] == "true_error"


@pytest.mark.slow
def test_the_agent(tmp_path):
    for folder in ("cfgs", "exps"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    own = {f"WANDB_{name}_DIR": str(tmp_path / "own") for name in ("DATA", "CACHE", "CONFIG")}
    environment = {**os.environ, **own, "PATH": path, "WANDB_MODE": "offline"}
    done = subprocess.run(
        [sys.executable, "-c", AGENT],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    runs = {file.of("run")[0].run_id: file for file in offline_runs(tmp_path / "wandb")}
    assert set(runs) == {"run1", "run2", "run3"}
    for run_id, width, lr, seed in (("run1", 8, 0.02, 1), ("run2", 12, 0.05, 2), ("run3", 8, 0.02, 1)):
        config = runs[run_id].config
        assert (config["ffn_hidden_dim"], config["lr"], config["seed"]) == (width, lr, seed)
        assert runs[run_id].of("run")[0].sweep_id == "few" and runs[run_id].of("run")[0].run_group == "digits"
        assert 0 <= runs[run_id].summary["true_error"] <= 1
    assert runs["run1"].summary["true_error"] == runs["run3"].summary["true_error"]
    assert len(list((tmp_path / "out").glob("digits-*"))) == 2
