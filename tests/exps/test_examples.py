"""Adversarial training and distillation, on a few digits."""

import sys
from argparse import Namespace

import pytest
import torch
from torch.nn import functional as F

from milkshake_mbp.framework.args import parse_args

from .test_mbp import ROOT, load

SHORT = {
    "accelerator": "cpu",
    "datamodule": "digits",
    "data_augmentation": False,
    "max_epochs": 1,
    "limit_train_batches": 2,
    "limit_val_batches": 1,
    "limit_test_batches": 1,
    "check_val_every_n_epoch": 1,
    "batch_size": 16,
    "resnet_version": 18,
    "enable_progress_bar": False,
}


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    def run(name, **keys):
        given = SHORT | keys | {"out_dir": str(tmp_path / "out")}
        words = [word for key, value in given.items() for word in (f"--{key}", str(value))]
        monkeypatch.setattr(sys, "argv", [f"{name}.py", "-c", str(ROOT / "cfgs" / f"{name}.yaml"), *words])
        load(name).main()
        return capsys.readouterr().out

    return run


def test_both_are_short():
    for name in ("adversarial", "distillation"):
        assert len((ROOT / "exps" / f"{name}.py").read_text().splitlines()) < 100


@pytest.mark.slow
def test_adversarial(call, tmp_path):
    shown = call("adversarial", pgd_steps=2, prune_d=1.0)
    rows = [line.split() for line in shown.splitlines() if "plain" in line or "│ adversarial" in line]
    assert len(rows) == 2 and all(0 <= float(number) <= 1 for row in rows for number in (row[3], row[5]))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"plain", "adversarial"}


@pytest.mark.slow
def test_distillation(call):
    shown = call("distillation", cnn_num_layers=2, cnn_epochs=1, distillation_epochs=1)
    assert all(f"│ {name} " in shown for name in ("teacher", "cnn", "student"))


def test_an_attack_raises_the_loss_within_its_radius():
    args = parse_args(["--model", "resnet", "--resnet_pretrained", "false", "--resnet_small_input", "true"])
    args = Namespace(
        **vars(args), num_classes=10, num_groups=0, attacked=True, epsilon=0.1, step_size=0.02, pgd_steps=5
    )
    args.input_channels, args.metrics = 1, ["loss"]
    torch.manual_seed(0)
    model = load("adversarial").AdversarialResNet(args).eval()
    images, targets = torch.rand(8, 1, 8, 8) * 2 - 1, torch.arange(8)
    with torch.inference_mode():
        moved = model.attack(images, targets)
        assert float((moved - images).abs().max()) <= 0.2 + 1e-6 and float(moved.abs().max()) <= 1
        assert float(F.cross_entropy(model(moved), targets)) > float(F.cross_entropy(model(images), targets)) + 0.01
