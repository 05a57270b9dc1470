"""Parent class of the classification models: one step, one optimizer, metrics once an epoch."""

import math
from argparse import Namespace
from typing import Any

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    SequentialLR,
)
from torchmetrics import Metric

from milkshake_mbp.errors import UserError

__all__ = ["Model"]

_STAGES = ("train", "val", "test")


class ClassificationSums(Metric):
    """Loss and accuracy, overall and by class, summed on the device and read once an epoch.

    torchmetrics' own accuracy costs several times this update, which shows at small widths; its Metric still does the
    reduction across processes.
    """

    full_state_update = False

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.loss: Tensor
        self.correct: Tensor
        self.count: Tensor
        self.add_state("loss", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("correct", torch.zeros(num_classes), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(num_classes), dist_reduce_fx="sum")

    def update(self, loss: Tensor, probs: Tensor, targets: Tensor) -> None:
        """Add one batch: its mean loss, (n, k) scores and (n,) class indices."""
        right = (probs.argmax(dim=1) == targets).to(self.correct.dtype)
        self.loss += loss.detach() * len(targets)
        self.correct.index_add_(0, targets, right)
        self.count.index_add_(0, targets, torch.ones_like(right))

    def compute(self) -> dict[str, Tensor]:
        """Means over the samples seen; NaN for a class that was not."""
        total = self.count.sum()
        by_class = self.correct / self.count
        return {
            "loss": self.loss / total,
            "acc": self.correct.sum() / total,
            **{f"acc_class{index:02d}": value for index, value in enumerate(by_class)},
        }


class Model(LightningModule):
    """A classifier trained by the keys of its configuration.

    Subclasses set `self.model`.

    Args:
        args: the configuration; kept as `self.hparams`. `num_classes` must be set.

    Attributes:
        model: the network.
    """

    model: nn.Module

    def __init__(self, args: Namespace) -> None:
        super().__init__()
        self.save_hyperparameters(vars(args))
        self._sums = nn.ModuleDict({f"{stage}_sums": ClassificationSums(args.num_classes) for stage in _STAGES})

    def load_msg(self) -> str:
        """One line that describes the model."""
        return f"{type(self).__name__} with {sum(p.numel() for p in self.model.parameters()):,} parameters"

    def forward(self, inputs: Tensor) -> Tensor:
        """(n, …) inputs to (n, k) logits."""
        return self.model(inputs)

    def step(self, batch: tuple[Tensor, Tensor], idx: int) -> dict[str, Tensor]:
        """Predict one batch.

        Args:
            batch: inputs and (n,) class indices.
            idx: the batch's number.

        Returns:
            loss: mean over the batch; probs: (n, k) probabilities; targets: as given.
        """
        inputs, targets = batch
        logits = self(inputs)
        if self.hparams["loss"] == "mse":
            loss = F.mse_loss(logits, F.one_hot(targets, logits.shape[1]).to(logits.dtype))
        else:
            loss = F.cross_entropy(logits, targets, label_smoothing=self.hparams["label_smoothing"])
        return {"loss": loss, "probs": logits.detach().softmax(dim=1), "targets": targets}

    def training_step(self, batch: tuple[Tensor, Tensor], idx: int) -> Tensor:
        """Step and count."""
        return self._step_and_count(batch, idx, "train")

    def validation_step(self, batch: tuple[Tensor, Tensor], idx: int) -> None:
        """Step and count."""
        self._step_and_count(batch, idx, "val")

    def test_step(self, batch: tuple[Tensor, Tensor], idx: int) -> None:
        """Step and count."""
        self._step_and_count(batch, idx, "test")

    def on_train_epoch_end(self) -> None:
        """Log the epoch's means; stop a run whose loss is no longer a number."""
        loss = self._log_epoch("train")
        if not math.isfinite(loss):
            raise UserError(
                f"the training loss is {loss} in epoch {self.current_epoch + 1}: training diverged, "
                f"try a smaller lr (now {self.hparams['lr']:g})"
            )

    def on_validation_epoch_end(self) -> None:
        """Log the validation set's means."""
        self._log_epoch("val")

    def on_test_epoch_end(self) -> None:
        """Log the test set's means."""
        self._log_epoch("test")

    def configure_optimizers(self) -> Any:
        """The optimizer and the learning-rate schedule, stepped once an epoch."""
        keys = self.hparams
        rate = {"lr": keys["lr"], "weight_decay": keys["weight_decay"]}
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer: Optimizer
        if keys["optimizer"] == "sgd":
            optimizer = SGD(parameters, momentum=keys["momentum"], **rate)
        else:
            optimizer = {"adam": Adam, "adamw": AdamW}[keys["optimizer"]](parameters, **rate)
        return [optimizer], [self._schedule(optimizer)]

    def _schedule(self, optimizer: Optimizer) -> LRScheduler:
        keys = self.hparams
        epochs = max(1, keys["max_epochs"] or 1)
        if keys["lr_scheduler"] == "step":
            return MultiStepLR(optimizer, keys["lr_steps"], gamma=keys["lr_drop"])
        if keys["lr_scheduler"] == "linear":
            return LinearLR(optimizer, start_factor=1.0, end_factor=keys["lr_drop"], total_iters=epochs)
        if keys["lr_scheduler"] == "cosine":
            return CosineAnnealingLR(optimizer, T_max=epochs)
        warmup = max(1, keys["lr_warmup_epochs"])
        rise = LinearLR(optimizer, start_factor=1 / (warmup + 1), total_iters=warmup)
        fall = CosineAnnealingLR(optimizer, T_max=max(1, epochs - warmup))
        return SequentialLR(optimizer, [rise, fall], milestones=[warmup])

    def _step_and_count(self, batch: tuple[Tensor, Tensor], idx: int, stage: str) -> Tensor:
        result = self.step(batch, idx)
        self._sums[f"{stage}_sums"].update(result["loss"], result["probs"], result["targets"])  # type: ignore[operator]
        return result["loss"]

    def _log_epoch(self, stage: str) -> float:
        sums = self._sums[f"{stage}_sums"]
        values = sums.compute()  # type: ignore[operator]
        sums.reset()  # type: ignore[operator]
        for name, value in values.items():
            by_class = name.startswith("acc_class")
            if ("acc_by_class" if by_class else name) in self.hparams["metrics"]:
                self.log(f"{stage}_{name}", value, prog_bar=not by_class)
        return float(values["loss"])
