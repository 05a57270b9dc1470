"""Train a ResNet adversarially (projected gradient descent, Madry et al. 2018), and plainly for comparison.

python exps/adversarial.py -c cfgs/adversarial.yaml [--key value ...]
"""

import os

# Threads that spin while they wait stall one another where cores are few or shared. Read once, when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from milkshake_mbp import PruneCallback
from milkshake_mbp.framework.args import parse_args
from milkshake_mbp.framework.cli import run_cli
from milkshake_mbp.framework.console import make_console
from milkshake_mbp.framework.datamodules import load_datamodule
from milkshake_mbp.framework.main import main as train
from milkshake_mbp.framework.models.resnet import ResNet
from milkshake_mbp.framework.settings import require
from milkshake_mbp.framework.utils import compute_accuracy


@dataclass(frozen=True)
class Attack:
    """Attack: how far and how it moves an image.

    Attributes:
        epsilon: Largest change of a pixel, of a range of 1 from black to white.
        step_size: Change of a pixel in one step.
        pgd_steps: Steps of gradient ascent.
        prune_d: Strength at which both networks are pruned before they are tested; not at all if not given.
    """

    epsilon: float = 8 / 255
    step_size: float = 2 / 255
    pgd_steps: int = 7
    prune_d: float | None = None

    def __post_init__(self) -> None:
        require(self, "at least 0", lambda x: x >= 0, "epsilon", "step_size", "pgd_steps", "prune_d")


class AdversarialResNet(ResNet):
    """A residual network that is trained on attacked images if `attacked` is set, and tested on both."""

    def attack(self, images: Tensor, targets: Tensor) -> Tensor:
        """The images, with pixels in [-1, 1], moved by at most epsilon each to where the loss is larger."""
        radius, step = 2 * self.hparams["epsilon"], 2 * self.hparams["step_size"]
        # Lightning tests in inference mode, whose tensors have no gradient.
        with torch.inference_mode(False), torch.enable_grad():
            start, targets = images.clone(), targets.clone()
            moved = start + torch.empty_like(start).uniform_(-radius, radius)
            for _ in range(self.hparams["pgd_steps"]):
                moved = moved.detach().clamp(-1, 1).requires_grad_()
                (slope,) = torch.autograd.grad(F.cross_entropy(self(moved), targets), moved)
                moved = (moved + step * slope.sign()).clamp(start - radius, start + radius)
        return moved.detach().clamp(-1, 1)

    def step_and_log_metrics(self, batch: tuple[Tensor, Tensor], idx: int, dataloader_idx: int, stage: str) -> Any:
        """Train on the images as they are or as they are attacked; validate and test on both."""
        attacked = (self.attack(*batch), batch[1]) if stage != "train" or self.hparams["attacked"] else batch
        result = self.step(attacked if stage == "train" else batch, idx)
        if stage != "train":
            other = self.step(attacked, idx)
            counted = compute_accuracy(other["probs"], other["targets"], self.hparams["num_classes"], 0)
            result |= {"adv_loss": other["loss"], "adv_acc": counted["acc"]}
        self.log_metrics(result, stage, dataloader_idx)
        return result


def main() -> None:
    """Train both networks and show their accuracies."""
    args = parse_args(None, Attack)
    table = Table("training", "accuracy", "accuracy under attack")
    for attacked in (False, True):
        given = copy(args)
        given.attacked, given.out_dir = attacked, str(Path(args.out_dir) / ("adversarial" if attacked else "plain"))
        pruning = [] if args.prune_d is None else [PruneCallback(d=args.prune_d)]
        _, _, tested = train(given, AdversarialResNet, load_datamodule(args.datamodule), callbacks=pruning)
        metrics = tested[0] if tested else {}
        found = (f"{metrics[name]:.3f}" if name in metrics else "–" for name in ("test_acc", "test_adv_acc"))
        table.add_row("adversarial" if attacked else "plain", *found)
    make_console().print(table)


if __name__ == "__main__":
    run_cli(main)
