"""Small configurations and runs that several tests share."""

import os
import signal

# Two torch threads on two cores that also run other tests wait for each other more than they work.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import HealthCheck, settings

from milkshake_mbp.framework.args import parse_args
from milkshake_mbp.runs.settings import Pruning

torch.set_num_threads(1)

# A shell's background ignores Ctrl-C, and so would the processes that tests interrupt.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples everywhere, however slow or busy the machine.
settings.register_profile(
    "suite", derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("suite")


@pytest.fixture
def configure(tmp_path):
    """Builds a quick configuration on digits; keyword arguments override its keys."""

    def build(**keys):
        given = {
            "datamodule": "digits",
            "ffn_hidden_dim": 16,
            "ffn_num_layers": 3,
            "bias": False,
            "val_split": 0,
            "max_epochs": 2,
            "lr": 0.05,
            "batch_size": 128,
            "accelerator": "cpu",
            "out_dir": str(tmp_path / "out"),
            "enable_progress_bar": False,
        } | keys
        words = [word for key, value in given.items() for word in (f"--{key}", *map(str, _listed(value)))]
        return parse_args(words, Pruning)

    return build


@pytest.fixture
def offline_wandb(monkeypatch, tmp_path):
    """Wandb, writing into the test's folder alone and asking nobody."""
    import wandb

    for variable in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / "wandb-own"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    yield wandb
    wandb.teardown()


def _listed(value):
    return value if isinstance(value, list) else [value]
