"""Parent class of the classification models: one step, one optimizer, metrics once an epoch."""

import difflib
import math
from argparse import Namespace
from collections.abc import Callable, Mapping
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

from milkshake_mbp.errors import UserError
from milkshake_mbp.framework.models.metrics import METRICS, ClassificationSums, Mean

__all__ = ["Model", "image_channels"]

_STAGES = ("train", "val", "test")
_OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {"adam": Adam, "adamw": AdamW, "sgd": SGD}


def image_channels(args: Namespace) -> int:
    """The channels of the images that a model is built for.

    Raises:
        UserError: the number of channels is not known, because the data are not images.
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
        optimizer: the class of the optimizer.
        gives_scores: whether outputs are a score for each class, unlike those of a feature extractor.

    Raises:
        UserError: the number of class_weights is not that of the classes, or a metric is not known.
    """

    model: nn.Module
    gives_scores = True

    def __init__(self, args: Namespace) -> None:
        super().__init__()
        self.save_hyperparameters(vars(args))
        self.optimizer = _OPTIMIZERS[args.optimizer]
        self._sums = nn.ModuleDict()
        self._means: dict[str, dict[str, Mean]] = {}
        for stage in _STAGES:
            self._sums_of(stage)
        self._check_class_weights()
        self._check_metrics()

    def load_msg(self) -> str:
        """One line that describes the model."""
        return f"{type(self).__name__} with {sum(p.numel() for p in self.model.parameters()):,} parameters"

    def forward(self, inputs: Tensor) -> Tensor:
        """(n, k) logits of (n, …) inputs, or (n,) with a single logit, which separates class 1 from class 0."""
        return self.one_output(self.model(inputs))

    def one_output(self, logits: Any) -> Any:
        """Logits of shape (n,) rather than (n, 1) where num_classes is 1; others as they are."""
        single = self.hparams["num_classes"] == 1 and isinstance(logits, Tensor) and logits.shape[1:] == (1,)
        return logits.squeeze(-1) if single else logits

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
        """Give lazy layers their shape, and check that the model accepts such a sample.

        Statistics of batch normalization do not change, and neither do random numbers other than those of lazy layers.

        Args:
            sample: one input, without a batch dimension.

        Raises:
            UserError: the model does not accept it, or does not return a score for each class.
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
        if self.gives_scores and tuple(logits.shape) != ((1,) if classes == 1 else (1, classes)):
            raise UserError(
                f"model: {type(self).__name__} returns outputs of shape {tuple(logits.shape[1:])} for a sample of "
                f"shape {shape}, expected a score for each of {classes} classes"
            )

    def step(self, batch: tuple[Tensor, Tensor], idx: int) -> dict[str, Tensor]:
        """Predict one batch.

        A subclass may return further numbers, which are logged under their names if `metrics` contains them.

        Args:
            batch: inputs, and (n,) class numbers or (n, 2) with the group.
            idx: the batch's number.

        Returns:
            loss: mean over the batch; probs: (n, k) probabilities, or (n,) of class 1 from one output; targets: as
            given.
        """
        inputs, targets = batch
        labels = targets[:, 0] if targets.ndim == 2 else targets
        logits = self(inputs)
        if isinstance(logits, (tuple, list)):
            logits = self.one_output(logits[0])
        if self.hparams["loss"] == "mse":
            loss, probs = _squared_error(logits, labels)
        else:
            loss, probs = self._cross_entropy(logits, labels)
        return {"loss": loss, "probs": probs, "targets": targets}

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        keys = self.hparams
        smoothing = keys["label_smoothing"]
        given = keys.get("class_weights")
        weights = torch.tensor(given, dtype=logits.dtype, device=logits.device) if given else None
        if logits.ndim == 2:
            loss = F.cross_entropy(logits, labels, weight=weights, label_smoothing=smoothing)
            return loss, logits.detach().softmax(dim=1)
        wanted = labels.to(logits.dtype) * (1 - smoothing) + smoothing / 2
        if weights is not None and len(weights) == 2:
            each = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
            weight = weights[labels]
            loss = (each * weight).sum() / weight.sum()
        else:
            loss = F.binary_cross_entropy_with_logits(logits, wanted, weight=weights)
        return loss, logits.detach().sigmoid()

    def step_and_log_metrics(self, batch: tuple[Tensor, Tensor], idx: int, dataloader_idx: int, stage: str) -> Any:
        """Step, and count its results; override it if training and testing have different steps."""
        result = self.step(batch, idx)
        self.log_metrics(result, stage, dataloader_idx)
        return result

    def log_metrics(self, result: Mapping[str, Any], stage: str, dataloader_idx: int = 0) -> None:
        """Count a step's loss, predictions and other numbers towards the means that the epoch's end logs.

        Args:
            result: the result of `step`. A number in it takes precedence over one computed from its predictions.
            stage: train, val or test.
            dataloader_idx: which of the stage's loaders the batch is of.
        """
        predicted = "probs" in result and "targets" in result
        sums, means = self._sums_of(stage, dataloader_idx), self._means[f"{stage}{dataloader_idx}"]
        if predicted:
            sums.update(result["loss"], result["probs"], result["targets"])
        count = len(result["targets"]) if "targets" in result else 1
        for name in {*self.hparams["metrics"], "loss"}:
            value = result.get(name)
            if value is None or (name == "loss" and predicted) or (isinstance(value, Tensor) and value.numel() != 1):
                continue
            mean = means.setdefault(name, Mean().to(self.device))
            mean.update(torch.as_tensor(value, device=self.device).detach().reshape(()), count)

    def training_step(self, batch: tuple[Tensor, Tensor], idx: int, dataloader_idx: int = 0) -> Any:
        """Step and count."""
        return self.step_and_log_metrics(batch, idx, dataloader_idx, "train")

    def validation_step(self, batch: tuple[Tensor, Tensor], idx: int, dataloader_idx: int = 0) -> Any:
        """Step and count."""
        return self.step_and_log_metrics(batch, idx, dataloader_idx, "val")

    def test_step(self, batch: tuple[Tensor, Tensor], idx: int, dataloader_idx: int = 0) -> Any:
        """Step and count."""
        return self.step_and_log_metrics(batch, idx, dataloader_idx, "test")

    def predict_step(self, batch: Any, idx: int, dataloader_idx: int = 0) -> Tensor:
        """(n,) class numbers of a batch, with or without targets; the model's outputs, if these are not scores."""
        logits = self(batch[0] if isinstance(batch, (tuple, list)) else batch)
        if not self.gives_scores:
            return logits
        if logits.ndim == 2:
            return logits.argmax(dim=1)
        # Of one output, the class that is nearer: 1/2 as a probability, 0 between -1 and 1.
        return (logits >= 0).long()

    def on_train_epoch_start(self) -> None:
        """Forget what an epoch that was cut short had counted."""
        self._forget("train")

    def on_validation_epoch_start(self) -> None:
        """Forget what a pass that was cut short had counted."""
        self._forget("val")

    def on_test_epoch_start(self) -> None:
        """Forget what a pass that was cut short had counted."""
        self._forget("test")

    def on_train_epoch_end(self) -> None:
        """Log the epoch's means; stop a run whose loss is NaN or infinite."""
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
        if self.optimizer is SGD:
            rate["momentum"] = keys["momentum"]
        optimizer = self.optimizer(parameters, **rate)
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
                "the learning rate would never reach lr"
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
                f"lr_scheduler: {name} needs to know the length of the run, which max_time alone does not determine: "
                "give max_epochs or max_steps, or choose lr_scheduler step"
            )
        if trainer is None or steps == -1:
            return epochs
        if trainer.train_dataloader is None:
            trainer.fit_loop.setup_data()
        batches = trainer.num_training_batches
        if not math.isfinite(batches):
            if epochs == -1:
                raise UserError(
                    f"lr_scheduler: {name} needs epochs of known length, but these data are endless: choose step"
                )
            return epochs
        begun = math.ceil(steps / max(1, math.ceil(batches / trainer.accumulate_grad_batches)))
        return max(1, begun if epochs == -1 else min(begun, epochs))

    def _sums_of(self, stage: str, dataloader_idx: int = 0) -> Any:
        """The sums of one of a stage's loaders, and beside them the means of other numbers."""
        name = f"{stage}_sums" + (f"_{dataloader_idx}" if dataloader_idx else "")
        if name not in self._sums:
            keys = self.hparams
            classes, groups = max(2, keys["num_classes"]), keys.get("num_groups") or 0
            sums = ClassificationSums(classes, groups, top5=any("acc5" in metric for metric in keys["metrics"]))
            self._sums[name] = sums.to(self.device)
            self._means[f"{stage}{dataloader_idx}"] = {}
        return self._sums[name]

    def _loaders(self, stage: str) -> list[int]:
        """The numbers of the stage's loaders that have been seen."""
        return [index for index in range(len(self._sums)) if f"{stage}{index}" in self._means]

    def _forget(self, stage: str) -> None:
        for index in self._loaders(stage):
            self._sums_of(stage, index).reset()
            self._means[f"{stage}{index}"] = {}

    def _log_epoch(self, stage: str) -> float:
        """Log the means of every loader, those of the first under their plain names too; the first loader's loss."""
        read = {index: self._read(stage, index) for index in self._loaders(stage)}
        self._forget(stage)
        wanted = self.hparams["metrics"]
        for index, values in read.items():
            suffixes = [""] * (index == 0) + [f"/dataloader_idx_{index}"] * (len(read) > 1)
            for name, value in values.items():
                metric, _, number = name.rpartition("_")
                part = number.rstrip("0123456789")
                by_part = part in ("class", "group") and number != part
                if (f"{metric}_by_{part}" if by_part else name) not in wanted:
                    continue
                for suffix in suffixes:
                    shown = not (by_part or suffix)
                    self.log(f"{stage}_{name}{suffix}", value, prog_bar=shown, add_dataloader_idx=False)
        return float(read[0]["loss"])

    def _read(self, stage: str, index: int) -> dict[str, Tensor]:
        means = {name: mean.compute() for name, mean in sorted(self._means[f"{stage}{index}"].items())}
        return {**self._sums_of(stage, index).compute(), **means}

    def _check_class_weights(self) -> None:
        weights, classes = self.hparams.get("class_weights"), self.hparams["num_classes"]
        if weights and len(weights) not in ((1, 2) if classes == 1 else (classes,)):
            raise UserError(
                f"class_weights: expected a weight for each of {max(2, classes)} classes, got {len(weights)}: {weights}"
            )

    def _check_metrics(self) -> None:
        """Refuse a metric that nothing computes, where all that steps is the framework's own."""
        stepping = ("step", "step_and_log_metrics", "log_metrics", "training_step", "validation_step", "test_step")
        own = all(getattr(type(self), name).__module__.startswith(__package__ or "") for name in stepping)
        for name in self.hparams["metrics"] if own else ():
            if name not in METRICS:
                nearest = difflib.get_close_matches(name, METRICS, n=1)
                advice = f"did you mean {nearest[0]!r}? " if nearest else ""
                raise UserError(
                    f"metrics: {name!r} is unknown: {advice}expected {', '.join(METRICS)}, or the numbers that a "
                    "step of your own returns"
                )


def _squared_error(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean squared distance to the classes' unit vectors; of one output to -1 and 1, so that its sign is the class."""
    if logits.ndim == 2:
        return F.mse_loss(logits, F.one_hot(labels, logits.shape[1]).to(logits.dtype)), logits.detach().softmax(dim=1)
    return F.mse_loss(logits, 2 * labels.to(logits.dtype) - 1), (logits.detach() + 1) / 2
