"""Parent class of the classification models: one step, one optimizer, metrics once an epoch."""

import math
from argparse import Namespace
from typing import Any

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parameter import is_lazy
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

__all__ = ["Model", "image_channels"]

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
        # Whole numbers, which a module in half precision leaves as they are: as floats they would stop counting.
        self.add_state("correct", torch.zeros(num_classes, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, loss: Tensor, probs: Tensor, targets: Tensor) -> None:
        """Add one batch: its mean loss, (n, k) scores and (n,) class indices."""
        right = (probs.argmax(dim=1) == targets).to(self.correct.dtype)
        mean = loss.detach().to(torch.promote_types(loss.dtype, torch.float32))
        # Nothing is changed in place: after `Trainer.validate` the sums are tensors of its inference mode.
        self.loss = self.loss.double() + mean * len(targets)
        self.correct = self.correct.index_add(0, targets, right)
        self.count = self.count.index_add(0, targets, torch.ones_like(right))

    def compute(self) -> dict[str, Tensor]:
        """Means over the samples seen; NaN for a class that was not."""
        total = self.count.sum()
        by_class = self.correct / self.count
        return {
            "loss": self.loss / total,
            "acc": self.correct.sum() / total,
            **{f"acc_class{index:02d}": value for index, value in enumerate(by_class)},
        }


def image_channels(args: Namespace) -> int:
    """The channels of the images that a model is built for.

    Raises:
        UserError: the configuration does not tell, because the data are no images.
    """
    if args.input_channels is None:
        raise UserError(
            f"model: {args.model} takes images, but these samples are not of shape (channels, height, width): give "
            "them that shape, or choose model ffn"
        )
    return int(args.input_channels)


class Model(LightningModule):
    """A classifier trained by the keys of its configuration.

    Subclasses set `self.model`. Lazy layers in it take their shape from the first sample of the datamodule.

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

    def train_only(self, last: nn.Module) -> None:
        """With the key `train_fc_only`, freeze all parameters but those of the last layer."""
        if self.hparams.get("train_fc_only"):
            kept = set(last.parameters())
            for parameter in self.model.parameters():
                # Set rather than called, which a lazy parameter does not allow.
                parameter.requires_grad = parameter in kept

    def has_uninitialized_params(self) -> bool:
        """Whether a lazy layer has not seen a sample yet."""
        return any(map(is_lazy, self.parameters()))

    def setup(self, stage: str) -> None:
        """Give lazy layers their shape, where `main` has not."""
        if self.has_uninitialized_params():
            datamodule: Any = self.trainer.datamodule  # type: ignore[attr-defined]
            dataset = datamodule.dataset_test if stage == "test" else datamodule.dataset_train
            self.fit_to(dataset[0][0].to(self.device))

    @torch.no_grad()
    def fit_to(self, sample: Tensor) -> None:
        """Give lazy layers their shape, and see that the model takes such a sample.

        Statistics of batch normalization stay as they were, and so do random numbers but those of lazy layers.

        Args:
            sample: one input, without a dimension for the batch.

        Raises:
            UserError: the model does not take it, or does not give a score for each class.
        """
        shape, classes = tuple(sample.shape), self.hparams["num_classes"]
        training = [module for module in self.modules() if module.training]
        self.eval()
        try:
            with torch.random.fork_rng(devices=[], enabled=not self.has_uninitialized_params()):
                logits = self(sample.unsqueeze(0))
        except (AssertionError, RuntimeError, ValueError) as error:
            raise UserError(
                f"model: {type(self).__name__} does not take samples of shape {shape}: "
                f"{' '.join(str(error).split())}; change its keys, or image_size"
            ) from error
        finally:
            for module in training:
                module.training = True
        if tuple(logits.shape) != (1, classes):
            raise UserError(
                f"model: {type(self).__name__} makes outputs of shape {tuple(logits.shape[1:])} of a sample of shape "
                f"{shape}, expected a score for each of {classes} classes"
            )

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

    def predict_step(self, batch: Any, idx: int) -> Tensor:
        """(n, k) logits of a batch, with targets or without."""
        return self(batch[0] if isinstance(batch, (tuple, list)) else batch)

    def on_train_epoch_start(self) -> None:
        """Forget what an epoch that was cut short had counted."""
        self._sums["train_sums"].reset()  # type: ignore[operator]

    def on_validation_epoch_start(self) -> None:
        """Forget what a pass that was cut short had counted."""
        self._sums["val_sums"].reset()  # type: ignore[operator]

    def on_test_epoch_start(self) -> None:
        """Forget what a pass that was cut short had counted."""
        self._sums["test_sums"].reset()  # type: ignore[operator]

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
        if keys["lr_scheduler"] == "step":
            return MultiStepLR(optimizer, keys["lr_steps"], gamma=keys["lr_drop"])
        epochs = self._length()
        if keys["lr_scheduler"] == "linear":
            return LinearLR(optimizer, start_factor=1.0, end_factor=keys["lr_drop"], total_iters=epochs)
        if keys["lr_scheduler"] == "cosine":
            return CosineAnnealingLR(optimizer, T_max=epochs)
        warmup = max(1, keys["lr_warmup_epochs"])
        if keys["lr_warmup_epochs"] >= epochs and not self._is_trial_run():
            raise UserError(
                f"lr_warmup_epochs: expected fewer than the {epochs} epochs of this run, got {warmup}: "
                "it would never reach lr"
            )
        rise = LinearLR(optimizer, start_factor=1 / (warmup + 1), total_iters=warmup)
        fall = CosineAnnealingLR(optimizer, T_max=max(1, epochs - warmup))
        return SequentialLR(optimizer, [rise, fall], milestones=[warmup])

    def _is_trial_run(self) -> bool:
        return bool(getattr(self._trainer, "fast_dev_run", False))

    def _length(self) -> int:
        """Epochs that the run begins; those of the configuration where there is no trainer.

        Raises:
            UserError: neither epochs nor steps limit the run, or the number of steps in an epoch is unknown.
        """
        trainer = self._trainer
        if trainer is None:
            epochs, steps = self.hparams["max_epochs"] or -1, -1
        else:
            epochs, steps = trainer.max_epochs or -1, trainer.max_steps
        name = self.hparams["lr_scheduler"]
        if epochs == steps == -1:
            raise UserError(
                f"lr_scheduler: {name} needs a run whose length is known beforehand, which max_time alone does not "
                "tell: give max_epochs or max_steps, or choose lr_scheduler step"
            )
        if trainer is None or steps == -1:
            return epochs
        if trainer.train_dataloader is None:
            trainer.fit_loop.setup_data()
        batches = trainer.num_training_batches
        if not math.isfinite(batches):
            if epochs == -1:
                raise UserError(
                    f"lr_scheduler: {name} falls from epoch to epoch, and these data have no end: choose step"
                )
            return epochs
        begun = math.ceil(steps / max(1, math.ceil(batches / trainer.accumulate_grad_batches)))
        return max(1, begun if epochs == -1 else min(begun, epochs))

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
