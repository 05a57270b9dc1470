"""The callbacks inside upstream Milkshake's own `main`, in its own environment (Lightning 1.9.5, torch 2.2).

MILKSHAKE_REPO=checkout MILKSHAKE_PYTHON=interpreter MNIST_DIR=data python -m pytest -m slow tests/callbacks

Its environment, on Python 3.11: pip install "pytorch-lightning==1.9.5" "torch==2.2.2" "torchvision==0.17.2"
"numpy==1.26.4" "torchmetrics<1.3" "lightning-bolts==0.7.0" lightning-lite configargparse docstring-parser "pandas<2.3"
"opencv-python-headless<4.11" "scipy<1.14" scikit-learn safetensors pyyaml "rich<13.8" wandb matplotlib "setuptools<70"
"transformers==4.30"
"""

import json
import os
import subprocess
from pathlib import Path

import pytest

from milkshake_mbp.theory.bounds import ROWS

SCRIPT = """
import json, sys, types
# Packages of datasets and models that MNIST and an FFN do not need; upstream imports them all.
for name in ("wilds", "wget", "rfm"):
    sys.modules.setdefault(name, types.ModuleType(name))
import pytorch_lightning, torch
from milkshake.args import parse_args
from milkshake.datamodules.mnist import MNIST
from milkshake.main import main
from milkshake.models.ffn import FFN
from milkshake_mbp import BoundsCallback, PruneCallback

class Stored(MNIST):
    def prepare_data(self):
        pass

def fit(callbacks):
    model, _, tested = main(parse_args(), FFN, Stored, callbacks=callbacks, verbose=False)
    return model, tested[0]

plain, unpruned = fit([])
bounds, pruning = BoundsCallback(), PruneCallback(d=2.0)
model, pruned = fit([bounds, pruning])
same = all(torch.equal(pruning.weights[f"model.{n}"], w) for n, w in plain.model.state_dict().items())
json.dump({
    "lightning": pytorch_lightning.__version__,
    "torch": torch.__version__,
    "untouched": same,
    "unpruned": [1 - unpruned["test_acc"], pruning.report.unpruned_test_error, bounds.report.test_error],
    "pruned": [1 - pruned["test_acc"], pruning.report.pruned_test_error],
    "sparsity": pruning.report.sparsity,
    "n": bounds.report.num_samples,
    "bounds": {f"{b.convention}/{b.name}": b.log_value for b in bounds.report.bounds},
    "logged": sorted(bounds.report.metrics()),
}, open("report.json", "w"))
"""

CONFIG = """
accelerator: cpu
devices: 1
batch_size: 256
bias: False
data_augmentation: False
data_dir: .
datamodule: mnist
ffn_hidden_dim: 64
ffn_input_dim: 784
ffn_num_layers: 3
image_size: 28
input_channels: 1
lr: 1.0e-5
max_epochs: 2
model: ffn
num_workers: 0
val_split: 0.8
"""


@pytest.mark.slow
@pytest.mark.skipif("MILKSHAKE_REPO" not in os.environ, reason="needs a checkout and an environment of upstream")
def test_callbacks_run_inside_upstream(tmp_path):
    # torchvision keeps a dataset under the name of its class, which upstream calls MNISTDataset.
    (tmp_path / "MNISTDataset").symlink_to((Path(os.environ["MNIST_DIR"]) / "MNIST").resolve())
    (tmp_path / "run.py").write_text(SCRIPT)
    (tmp_path / "cfg.yaml").write_text(CONFIG)
    path = os.pathsep.join([os.environ["MILKSHAKE_REPO"], str(Path(__file__).parents[2])])
    subprocess.run(
        [os.environ["MILKSHAKE_PYTHON"], "run.py", "-c", "cfg.yaml"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        check=True,
    )
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["lightning"].startswith("1.9.") and report["torch"].startswith("2.2")
    assert report["untouched"]
    assert report["unpruned"] == pytest.approx([report["unpruned"][0]] * 3, abs=1e-4)
    assert report["pruned"] == pytest.approx([report["pruned"][0]] * 2, abs=1e-4)
    assert report["pruned"] != report["unpruned"][:2]
    assert report["n"] == 12_000 and 0.4 < report["sparsity"] < 0.9
    assert len(report["bounds"]) == len(ROWS) - 1 and "bounds/paper/theorem_5_2" in report["logged"]
