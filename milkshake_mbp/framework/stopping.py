"""Stop a training once its loss is low enough, so that networks are compared at one training loss."""

import math
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader

__all__ = ["UntilLoss"]

_BATCH = 256


class UntilLoss(Callback):
    """Stop after the first epoch at whose end the training loss, in eval mode, is at most `until_loss`.

    The protocol of Jiang et al. 2020 and Dziugaite et al. 2020: measures are compared between networks
    that fit their training set equally well. The loss is the mean over the whole training set, without augmentation and
    dropout, of the network as the epoch leaves it. A pass ends as soon as it is clear that the loss is higher, so that
    it costs little before the end. `max_epochs` remains the limit.

    Args:
        until_loss: the training loss to reach, in the units of the key `loss` (nats for cross_entropy), > 0.

    Attributes:
        loss: the training loss of the network that the fit left, or that is tested without one; None before.
    """

    def __init__(self, until_loss: float) -> None:
        self.until_loss = until_loss
        self.loss: float | None = None

    @property
    def reached(self) -> bool:
        """Whether the training ended at a loss no higher than that asked for."""
        return self.loss is not None and self.loss <= self.until_loss

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Train no further what was interrupted after its last epoch."""
        self.loss = None
        if trainer.current_epoch:
            self._stop_if_reached(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the loss."""
        self._stop_if_reached(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the loss of what is left."""
        self.loss = training_loss(trainer, pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the loss of weights that were loaded rather than trained."""
        if self.loss is None:
            self.loss = training_loss(trainer, pl_module)

    def _stop_if_reached(self, trainer: Trainer, pl_module: LightningModule) -> None:
        reached = training_loss(trainer, pl_module, self.until_loss) <= self.until_loss
        # Processes whose sums differ in the last bit must stop together.
        if trainer.strategy.reduce_boolean_decision(reached, all=True):
            trainer.should_stop = True


@torch.no_grad()
def training_loss(trainer: Trainer, module: Any, limit: float = math.inf) -> float:
    """Mean loss over the datamodule's training samples in eval mode; +inf as soon as it is known to exceed `limit`.

    Args:
        trainer: with a datamodule that is set up for fitting.
        module: as `Model`; its `step` gives the mean loss of a batch, which is never negative.
        limit: what the caller compares it with.
    """
    datamodule = trainer.datamodule  # type: ignore[attr-defined]
    dataset, loader = datamodule.dataset_train, datamodule.train_dataloader()
    # A generator of its own, because a loader draws from torch's global one otherwise.
    batches = DataLoader(
        dataset, max(_BATCH, loader.batch_size), collate_fn=loader.collate_fn, generator=torch.Generator()
    )
    training = [part for part in module.modules() if part.training]
    module.eval()
    total = 0.0
    try:
        for index, batch in enumerate(batches):
            inputs, targets = module.transfer_batch_to_device(batch, module.device, 0)
            total += float(module.step((inputs, targets), index)["loss"]) * len(targets)
            if not total <= limit * len(dataset):
                return math.inf
    finally:
        for part in training:
            part.training = True
    return total / len(dataset)
