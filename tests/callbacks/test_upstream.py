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


NETWORKS = {
    "cnn": "cnn_initial_width: 4\ncnn_num_layers: 3\ncnn_padding: 1\nimage_size: 28\ninput_channels: 1\nlr: 1.0e-4\n",
    "nin": "nin_width: 8\nnin_num_layers: 2\ndropout_prob: 0.2\nimage_size: 28\ninput_channels: 1\nlr: 1.0e-4\n",
    "resnet": "resnet_version: 18\nresnet_pretrained: False\nimage_size: 28\ninput_channels: 1\nlr: 1.0e-4\n",
    "bert": "bert_pretrained: False\nbert_width: 24\nbert_depth: 1\nimage_size: 28\ninput_channels: 1\nlr: 1.0e-3\n",
}

NETWORK_CONFIG = """
accelerator: cpu
devices: 1
batch_size: 50
bias: False
data_augmentation: False
data_dir: .
datamodule: mnist
max_epochs: 2
num_workers: 0
val_split: 0.5
"""

NETWORK_SCRIPT = """
import json, sys, types
for name in ("wilds", "wget", "rfm"):
    sys.modules.setdefault(name, types.ModuleType(name))
import pytorch_lightning, torch
from milkshake.args import parse_args
from milkshake.datamodules.mnist import MNIST, MNISTDataset
from milkshake.imports import valid_models_and_datamodules
from milkshake.main import main
from milkshake_mbp import BoundsCallback, PruneCallback, RewindCallback, SketchCallback

class Few(MNISTDataset):
    def load_data(self):
        super().load_data()
        self.data, self.targets = self.data[:400], self.targets[:400]

class Words(Few):
    # The brightest pixels of an image as tokens, all of them attended to: what BERT reads.
    def load_data(self):
        super().load_data()
        tokens = self.data.flatten(1).topk(12).indices
        self.data = torch.stack([tokens, torch.ones_like(tokens), torch.zeros_like(tokens)], 2)
        self.targets = self.targets % 2

class Stored(MNIST):
    def __init__(self, args, **keys):
        super().__init__(args, **keys)
        self.dataset_class = Few
        if args.model == "bert":
            self.dataset_class, self.num_classes = Words, 2
            self.train_transforms = self.val_transforms = self.test_transforms = None

    def prepare_data(self):
        pass

args = parse_args()
Model = valid_models_and_datamodules()[0][args.model]

def fit(callbacks):
    model, _, tested = main(args, Model, Stored, callbacks=callbacks, verbose=False)
    return model, tested[0]

plain, unpruned = fit([])
bounds, pruning, sketching = BoundsCallback(), PruneCallback(d=2.0), SketchCallback()
model, pruned = fit([bounds, pruning, sketching])
# Whatever is not a pruned weight is compared as it is, running statistics too.
trained = model.state_dict() | {name: weight for name, weight in pruning.weights.items()}
same = [torch.equal(trained[name], value) for name, value in plain.state_dict().items()]
# BERT's embedding of the padding is zero before, and keeps its diagonal entry.
zeros = sum(int((model.get_parameter(name)[~mask] == 0).sum()) for name, mask in pruning.masks.items())
# A first round of the lottery trains the dense network; the second rewinds.
rewind = RewindCallback(rate=0.5)
dense, _ = fit([rewind])
rewound = [torch.equal(dense.state_dict()[name], value) for name, value in plain.state_dict().items()]
start = {name: value.clone() for name, value in rewind.rewind_weights.items()}
rewind.advance(dense)
ticket = {name: start[name] * rewind.masks.get(name, 1) for name in start}
json.dump({
    "lightning": pytorch_lightning.__version__,
    "same": [sum(same), len(same)],
    "buffers": sum(1 for _ in model.model.buffers()),
    "rewound": [sum(rewound), len(rewound)],
    "ticket": all(torch.equal(value, ticket[name]) for name, value in dense.state_dict().items()),
    "errors": [1 - pruned["test_acc"], pruning.report.pruned_test_error],
    "unpruned": [1 - unpruned["test_acc"], pruning.report.unpruned_test_error, bounds.report.test_error],
    "sparsity": [pruning.report.sparsity, zeros / sum(mask.numel() for mask in pruning.masks.values())],
    "layers": len(pruning.report.layers),
    "left_alone": list(pruning.report.left_alone),
    "sketched": len(sketching.report.layers),
    "bounds": len(bounds.report.bounds),
}, open("report.json", "w"))
"""


@pytest.mark.slow
@pytest.mark.skipif("MILKSHAKE_REPO" not in os.environ, reason="needs a checkout and an environment of upstream")
@pytest.mark.parametrize("name", NETWORKS)
def test_all_callbacks_on_the_networks_of_upstream(name, tmp_path):
    (tmp_path / "Few").symlink_to((Path(os.environ["MNIST_DIR"]) / "MNIST").resolve())
    (tmp_path / "Words").symlink_to((Path(os.environ["MNIST_DIR"]) / "MNIST").resolve())
    (tmp_path / "run.py").write_text(NETWORK_SCRIPT)
    (tmp_path / "cfg.yaml").write_text(f"{NETWORK_CONFIG}model: {name}\n{NETWORKS[name]}")
    path = os.pathsep.join([os.environ["MILKSHAKE_REPO"], str(Path(__file__).parents[2])])
    subprocess.run(
        [os.environ["MILKSHAKE_PYTHON"], "run.py", "-c", "cfg.yaml"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        check=True,
    )
    report = json.loads((tmp_path / "report.json").read_text())
    print(name, report)
    assert report["lightning"].startswith("1.9.")
    # Weights and running statistics after training, bit for bit as without callbacks.
    assert report["same"][0] == report["same"][1] > 0
    assert report["rewound"][0] == report["rewound"][1] and report["ticket"]
    assert report["errors"] == pytest.approx([report["errors"][0]] * 2, abs=1e-6)
    assert report["unpruned"] == pytest.approx([report["unpruned"][0]] * 3, abs=1e-6)
    assert report["sparsity"][0] == pytest.approx(report["sparsity"][1]) and 0.4 < report["sparsity"][0] < 0.9
    assert report["sketched"] == report["layers"] > 3 - (name == "cnn") and report["bounds"] > 5
    if name in ("cnn", "resnet"):
        assert report["buffers"] > 0 and any("bias" in left for left in report["left_alone"])
