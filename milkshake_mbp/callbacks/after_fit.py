"""Base classes of the callbacks that act at the end of fit, and what these callbacks share with each other."""

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
    """A pruned network, as the callback that pruned it reports it.

    Attributes:
        before: `fingerprint` of the unpruned network.
        weights: the unpruned weights, by parameter name, on the CPU.
        masks: bool tensors, True = kept, by parameter name, on the CPU.
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
    """A callback that uses its state from a checkpoint only if a fit is resumed from this checkpoint.

    Lightning restores the states of callbacks in other cases too. Testing a checkpoint must not affect a later fit.
    After lr_find and the scaling of batch sizes, which precede training, Lightning restores the state from just
    before; a state must therefore be complete, so that restoring it again changes nothing.

    Attributes:
        found: this callback's state in the first checkpoint that was loaded since `setup`.
    """

    found: Mapping[str, Any] = MappingProxyType({})
    _fits = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str | None = None) -> None:
        """Forget the state that was loaded for another purpose."""
        self.found, self._fits = {}, stage == "fit"

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state from a checkpoint."""
        self.found = self.found or dict(state_dict)

    @property
    def remembered(self) -> Mapping[str, Any]:
        """The state from the checkpoint from which this fit is resumed; empty for a new fit."""
        return self.found if self._fits else {}

    def pruned(self, fingerprint: str) -> Pruned | None:
        """The pruning of the network with this fingerprint, if this callback pruned it; asked by other callbacks."""
        return None

    def add_sketches(self, sketches: Sequence[LayerSketch]) -> dict[str, float]:
        """Receive sketches of the layers from another callback.

        Returns:
            Values to log.
        """
        return {}


class AfterFit(Remembering, ABC):
    """A callback that acts on the network at the end of fit, and on any other network that is validated or tested.

    A network is identified by its weights: the callback does not act again on a network that has not changed since it
    acted; loaded, averaged or further trained weights are another network.

    Attributes:
        report: the result of the last action; None before the first.
    """

    report: Any = None
    _left = ""

    @abstractmethod
    def act(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Act on the network, set `report` and log it."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Act on the final network."""
        self._act_once(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Act, if the weights are not those at the end of a fit."""
        self._act_outside_fit(trainer, pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Act, if the weights are not those at the end of a fit."""
        self._act_outside_fit(trainer, pl_module)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Act, if the weights are not those at the end of a fit."""
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


def pruned_in(trainer: Trainer, fingerprint: str) -> Pruned | None:
    """What a callback of the Trainer pruned to leave the network with this fingerprint; None if none did."""
    return next((pruned for callback in neighbours(trainer) if (pruned := callback.pruned(fingerprint))), None)


@contextmanager
def unpruned(module: nn.Module, pruned: Pruned | None) -> Iterator[None]:
    """Inside, the module is as it was before it was pruned so."""
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
