"""Small configurations and runs that several tests share."""

import os
import shutil
import signal
import subprocess
from functools import partial

# Two torch threads on two cores that also run other tests wait for each other more than they work.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.quick import configuration

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
    return partial(configuration, tmp_path / "out")


@pytest.fixture
def small_disk(tmp_path):
    """Mounts a file system of so many KiB, or changes its size."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")

    def size(kilobytes):
        options = f"{'remount,' * place.is_mount()}size={kilobytes}k"
        words = [str(mount), "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        if mount is None or subprocess.run(words, capture_output=True, check=False).returncode:
            pytest.skip("only root mounts a file system")
        return place

    yield size
    if place.is_mount():
        subprocess.run(["umount", str(place)], check=True)


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
