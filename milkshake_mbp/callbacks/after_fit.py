"""The moment at which a trained network is read, pruned and sketched; how it is recognised; what callbacks share."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from milkshake_mbp.theory.layer_sketch import LayerSketch

__all__ = [
    "AfterFit",
    "Pruned",
    "Remembering",
    "fingerprint",
    "log_once",
    "neighbours",
    "on_training_device",
    "pruned_in",
    "unpruned",
]


@dataclass(frozen=True)
class Pruned:
    """What a callback has made of a network by pruning it.

    Attributes:
        before: `fingerprint` of the network as it was.
        weights: its unpruned weights, by parameter name, on the CPU.
        masks: True = kept, likewise.
    """

    before: str
    weights: Mapping[str, Tensor]
    masks: Mapping[str, Tensor]

    @torch.no_grad()
    def undo(self, module: nn.Module) -> None:
        """Put the unpruned weights back."""
        for name, weight in self.weights.items():
            module.get_parameter(name).copy_(weight)

    @torch.no_grad()
    def redo(self, module: nn.Module) -> None:
        """Prune again."""
        for name, mask in self.masks.items():
            parameter = module.get_parameter(name)
            parameter.masked_fill_(~mask.to(parameter.device), 0.0)


class Remembering(Callback):
    """Takes up what a checkpoint held of it only where a fit goes on from that checkpoint.

    Lightning restores callbacks for other reasons too. A test of some checkpoint is none of a fit's business. After
    lr_find and the scaling of batch sizes, which come before training, it puts back what the callback held a moment
    before; so a state says all of what it means, and taking it up again changes nothing.

    Attributes:
        found: what the first checkpoint loaded since `setup` held.
    """

    found: Mapping[str, Any] = MappingProxyType({})
    _fits = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str | None = None) -> None:
        """Forget what was loaded for something else."""
        self.found, self._fits = {}, stage == "fit"

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep what a checkpoint held."""
        self.found = self.found or dict(state_dict)

    @property
    def remembered(self) -> Mapping[str, Any]:
        """What the checkpoint held that this fit goes on from; empty if it begins anew."""
        return self.found if self._fits else {}

    def pruned(self, fingerprint: str) -> Pruned | None:
        """What this callback did if it has pruned a network and left it with that fingerprint; asked by the others."""
        return None

    def add_sketches(self, sketches: Sequence[LayerSketch]) -> dict[str, float]:
        """Take notice of sketches of the layers that another callback has made.

        Returns:
            What is to be logged of it.
        """
        return {}


class AfterFit(Remembering, ABC):
    """Acts on the network that a fit leaves, whoever ended it, and on any other that is validated or tested.

    A network is recognised by its weights: one that this callback has acted on, and nobody has changed since, is left
    as it is; weights that were loaded, averaged or trained on are another network.

    Attributes:
        report: what was done; None before.
    """

    report: Any = None
    _left = ""

    @abstractmethod
    def act(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do it, set the report and log it."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Act on the final network."""
        self._act_once(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Act, if these are other weights than a fit has left."""
        self._act_outside_fit(trainer, pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Act, if these are other weights than a fit has left."""
        self._act_outside_fit(trainer, pl_module)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Act, if these are other weights than a fit has left."""
        self._act_outside_fit(trainer, pl_module)

    def _act_outside_fit(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit":
            self._act_once(trainer, pl_module)

    def _act_once(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.report is None or fingerprint(pl_module) != self._left:
            with on_training_device(trainer, pl_module):
                self.act(trainer, pl_module)
            self._left = fingerprint(pl_module)


def neighbours(trainer: Trainer) -> list[Remembering]:
    """The callbacks of the Trainer that can be asked and told as `Remembering` can."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in callbacks if isinstance(callback, Remembering)]


def pruned_in(trainer: Trainer, module: nn.Module) -> Pruned | None:
    """What a callback of the Trainer did to make the module what it is; None if none has pruned it."""
    found = fingerprint(module)
    return next((pruned for callback in neighbours(trainer) if (pruned := callback.pruned(found))), None)


@contextmanager
def unpruned(trainer: Trainer, module: nn.Module) -> Iterator[None]:
    """Inside, the module is as it was before a callback of the Trainer pruned it."""
    pruned = pruned_in(trainer, module)
    if pruned is None:
        yield
        return
    pruned.undo(module)
    try:
        yield
    finally:
        pruned.redo(module)


def fingerprint(module: nn.Module) -> str:
    """A hash of all that a module's state dict holds: its weights, wherever they came from."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in module.state_dict().items():
        digest.update(name.encode())
        if isinstance(value, torch.Tensor) and not is_lazy(value):
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextmanager
def on_training_device(trainer: Trainer, module: LightningModule) -> Iterator[None]:
    """Inside, the module is where it was trained: when a fit ends, Lightning has moved it to the CPU already."""
    device, trained_on = module.device, trainer.strategy.root_device
    if device == trained_on:
        yield
        return
    module.to(trained_on)
    try:
        yield
    finally:
        module.to(device)


def log_once(trainer: Trainer, metrics: dict[str, float]) -> None:
    """Log to every logger; outside training and testing, a module cannot."""
    for logger in trainer.loggers:
        logger.log_metrics(metrics | {"epoch": trainer.current_epoch}, step=trainer.global_step)
