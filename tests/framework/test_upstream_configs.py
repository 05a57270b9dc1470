"""Upstream Milkshake's own YAML files, run by `exps/mbp.py`: parsed, trained for a few steps, tested, pruned, bounded.

MILKSHAKE_REPO=checkout python -m pytest -m slow tests/framework/test_upstream_configs.py

The files are read from the checkout and given as they are; only accelerator, strategy and lengths are set beside them,
and data and published weights are made up, in the files in which the real ones come.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.framework import upstream_data

ROOT = Path(__file__).parents[2]
CONFIGS = {
    "mnist": ("mnist", ()),
    "binary_mnist": ("mnist", ()),
    "cifar10_cnn": ("cifar10", ()),
    "cifar10_resnet": ("cifar10", ("resnet18",)),
    "cifar10_resnet_simple": ("cifar10", ("resnet18",)),
    "cifar10_vit": ("cifar10", ("vit",)),
    "cifar100": ("cifar100", ("resnet18",)),
    "svhn": ("svhn", ("resnet18",)),
}
SHORT = {
    "accelerator": "cpu",
    "strategy": "auto",
    "max_epochs": 1,
    "limit_train_batches": 2,
    "limit_val_batches": 1,
    "limit_test_batches": 1,
}
# Bounds are measured on all training samples, hundreds of times where the noise that weights tolerate is searched for.
FEW = {"train_samples": 32}
MORE = {
    # Upstream's warm-up is five epochs long.
    "cifar10_resnet": {"max_epochs": 6, "limit_train_batches": 1, "bounds_every_n_epochs": 6},
    "cifar10_vit": {"train_samples": 3, "batch_size": 1},
}
# Of a network that takes seconds for an image.
STORED = {"cifar10_vit": {"each": 4}}


@pytest.mark.slow
@pytest.mark.skipif("MILKSHAKE_REPO" not in os.environ, reason="needs a checkout of upstream")
@pytest.mark.parametrize("name", CONFIGS)
def test_upstreams_configuration_runs(tmp_path, name):
    data, weights = CONFIGS[name]
    getattr(upstream_data, f"write_{data}")(tmp_path / "data", **STORED.get(name, {}))
    upstream_data.write_pretrained(tmp_path / "torch", *weights)
    given = Path(os.environ["MILKSHAKE_REPO"]) / "cfgs" / f"{name}.yaml"
    short = SHORT | FEW | MORE.get(name, {})
    words = [word for key, value in short.items() for word in (f"--{key}", str(value))]
    ran = subprocess.run(
        [sys.executable, str(ROOT / "exps" / "mbp.py"), "-c", str(given), *words, "--enable_progress_bar", "false"],
        cwd=tmp_path,
        env={**os.environ, "TORCH_HOME": str(tmp_path / "torch")},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "ignored" not in ran.stdout
    (result,) = (json.loads(path.read_text()) for path in tmp_path.glob("out/*/result.json"))
    assert 0 < result["prune"]["sparsity"] < 1
    assert 0 <= result["test_error"]["unpruned"] <= 1 and 0 <= result["test_error"]["pruned"] <= 1
    assert {"leading", "rigorous"} <= {bound["convention"] for bound in result["bounds"]}
