"""Distillation (Ba and Caruana 2014): train a CNN on a ResNet's logits, and another CNN on the labels.

python exps/distillation.py -c cfgs/distillation.yaml [--key value ...]
"""

import os

# Threads that spin while they wait stall one another where cores are few or shared. Read once, when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from argparse import Namespace
from copy import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from milkshake_mbp.framework.args import parse_args
from milkshake_mbp.framework.checkpoints import LAST_CHECKPOINT, load_weights
from milkshake_mbp.framework.cli import run_cli
from milkshake_mbp.framework.console import make_console
from milkshake_mbp.framework.datamodules import load_datamodule
from milkshake_mbp.framework.main import main as train
from milkshake_mbp.framework.models.cnn import CNN
from milkshake_mbp.framework.models.model import Model
from milkshake_mbp.framework.models.resnet import ResNet
from milkshake_mbp.framework.settings import require


@dataclass(frozen=True)
class Distillation:
    """Distillation: how the two convolutional networks are trained; the keys of the framework train the teacher.

    Attributes:
        cnn_epochs: Epochs of the network that learns the labels.
        cnn_lr: Its learning rate.
        distillation_epochs: Epochs of the network that learns the teacher's logits.
        distillation_lr: Its learning rate.
    """

    cnn_epochs: int = 100
    cnn_lr: float = 0.1
    distillation_epochs: int = 100
    distillation_lr: float = 0.02

    def __post_init__(self) -> None:
        require(self, "at least 1", lambda x: x >= 1, "cnn_epochs", "distillation_epochs")
        require(self, "above 0", lambda x: x > 0, "cnn_lr", "distillation_lr")


class StudentCNN(CNN):
    """A convolutional network that minimizes the mean squared distance of its logits to a teacher's."""

    def __init__(self, args: Namespace) -> None:
        super().__init__(args)
        keys = copy(args)
        keys.resnet_pretrained = False
        teacher = ResNet(keys)
        load_weights(teacher, Path(args.teacher_weights))
        # In a tuple, so that it is not a part of the student: neither trained, saved, pruned nor counted with it.
        self._teacher = (teacher.eval(),)

    def step(self, batch: tuple[Tensor, Tensor], idx: int) -> dict[str, Tensor]:
        """Predict one batch; the loss is the distance to the teacher's logits."""
        inputs, targets = batch
        logits = self(inputs)
        with torch.no_grad():
            wanted = self._teacher[0].to(inputs.device)(inputs)
        return {"loss": F.mse_loss(logits, wanted), "probs": logits.detach().softmax(dim=1), "targets": targets}


def main() -> None:
    """Train the teacher, the two networks, and show their accuracies."""
    args = parse_args(None, Distillation)
    data = load_datamodule(args.datamodule)
    table = Table("network", "test accuracy")

    def fit(name: str, model: type[Model], epochs: int | None, lr: float) -> None:
        given = copy(args)
        given.out_dir, given.max_epochs, given.lr = str(Path(args.out_dir) / name), epochs, lr
        _, _, tested = train(given, model, data)
        table.add_row(name, f"{tested[0]['test_acc']:.3f}" if tested and "test_acc" in tested[0] else "–")

    fit("teacher", ResNet, args.max_epochs, args.lr)
    args.teacher_weights = str(Path(args.out_dir) / "teacher" / LAST_CHECKPOINT)
    fit("cnn", CNN, args.cnn_epochs, args.cnn_lr)
    fit("student", StudentCNN, args.distillation_epochs, args.distillation_lr)
    make_console().print(table)


if __name__ == "__main__":
    run_cli(main)
