"""The first 20 losses of upstream Milkshake's own mnist.yaml, there and here: one seed, one network, one order of data.

MILKSHAKE_REPO=checkout MILKSHAKE_PYTHON=interpreter python -m pytest -m slow tests/framework/test_upstream_losses.py

The interpreter's environment is upstream's (pytorch-lightning 1.9.5, torch 2.2, numpy 1.26; see
tests/callbacks/test_upstream.py). Momentum is 0, since upstream's has no effect, pixels are scaled as upstream scales
them, and neither shuffles: the seed's split into training and validation samples puts them in order. MNIST_DIR may name
a folder with the real MNIST; the images are made up otherwise. In double precision the file's learning rate of 0.1 is
kept; in single precision, two versions of torch whose sums are ordered otherwise part by 1e-3 in 20 such steps, so that
it is 0.001 there.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.framework import upstream_data

SCRIPT = """
import json, sys, types
{imports}
from pytorch_lightning import Callback

class Losses(Callback):
    seen = []
    def on_train_batch_end(self, trainer, model, outputs, batch, index, *rest):
        self.seen.append(float(outputs["loss"]))
        if index == 0:
            self.first = [float(batch[0].double().mean()), batch[1].tolist()]

class InOrder({parent}):
    def __init__(self, args):
        super().__init__(args{described})
        self.shuffle = False
    {body}

def keep(model):
    if {ours}:
        model.to(torch.float32)
        torch.save({{"state_dict": model.state_dict()}}, "initial.ckpt")

losses = Losses()
args = parse_args()
main(args, CNN, InOrder, callbacks=[losses], model_hooks=[keep], verbose=False)
json.dump({{"losses": losses.seen, "first": losses.first}}, open(args.out_dir + ".json", "w"))
"""
UPSTREAM = {
    "imports": """
# Packages of data sets and models that MNIST and a CNN do not need; upstream imports them all.
for name in ("wilds", "wget", "rfm"):
    sys.modules.setdefault(name, types.ModuleType(name))
import torch
from milkshake.args import parse_args
from milkshake.datamodules.mnist import MNIST
from milkshake.main import main
from milkshake.models.cnn import CNN
""",
    "parent": "MNIST",
    "described": "",
    "body": "def prepare_data(self): pass",
    "ours": False,
}
OURS = {
    "imports": """
import torch
from torchvision.datasets import MNIST as Stored
from milkshake_mbp.framework.args import parse_args
from milkshake_mbp.framework.datamodules import DataModule, Dataset
from milkshake_mbp.framework.main import main
from milkshake_mbp.framework.models.cnn import CNN

class Digits(Dataset):
    def load_data(self):
        stored = Stored(self.root, train=self.train)
        self.data, self.targets = stored.data[:, None], stored.targets
""",
    "parent": "DataModule",
    "described": ", Digits, 10, 0",
    "body": "scale, shift = 2.0, -1.0",
    "ours": True,
}


def run(folder, name, python, path, parts, keys):
    script, out = folder / f"{name}.py", folder / name
    script.write_text(SCRIPT.format(**parts))
    config = Path(os.environ["MILKSHAKE_REPO"]) / "cfgs" / "mnist.yaml"
    words = [word for key, value in (keys | {"out_dir": name}).items() for word in (f"--{key}", str(value))]
    subprocess.run(
        [python, str(script), "-c", str(config), *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"},
        check=True,
    )
    return json.loads(Path(f"{out}.json").read_text())


@pytest.mark.slow
@pytest.mark.skipif("MILKSHAKE_PYTHON" not in os.environ, reason="needs a checkout and an environment of upstream")
@pytest.mark.parametrize("given", [{"precision": 64}, {"lr": 1e-3}], ids=["double", "single"])
def test_the_first_losses_are_upstreams(tmp_path, given):
    if "MNIST_DIR" in os.environ:
        (tmp_path / "MNIST").symlink_to((Path(os.environ["MNIST_DIR"]) / "MNIST").resolve())
    else:
        upstream_data.write_mnist(tmp_path)
    # torchvision keeps a dataset under the name of its class, which upstream calls MNISTDataset.
    (tmp_path / "MNISTDataset").symlink_to(tmp_path / "MNIST")
    keys = {"accelerator": "cpu", "momentum": 0, "data_dir": ".", "num_workers": 0, "max_epochs": 1, "no_test": True}
    keys |= given | {"limit_train_batches": 20, "limit_val_batches": 1, "num_sanity_val_steps": 0}
    ours = run(tmp_path, "ours", sys.executable, str(Path(__file__).parents[2]), OURS, keys)
    theirs = run(
        tmp_path,
        "theirs",
        os.environ["MILKSHAKE_PYTHON"],
        os.environ["MILKSHAKE_REPO"],
        UPSTREAM,
        keys | {"weights": "initial.ckpt"},
    )
    print(max(abs(a - b) for a, b in zip(ours["losses"], theirs["losses"], strict=True)), ours["losses"])
    assert ours["first"][1] == theirs["first"][1]
    assert ours["first"][0] == pytest.approx(theirs["first"][0], rel=1e-6)
    assert len(ours["losses"]) == 20 and ours["losses"][0] - min(ours["losses"]) > 0.2
    assert ours["losses"] == pytest.approx(theirs["losses"], abs=1e-5)
