"""The moment at which a trained network is pruned and sketched."""

from abc import ABC, abstractmethod
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from milkshake_mbp.callbacks.measure import Chain

__all__ = ["AfterFit", "log_once"]


class AfterFit(Callback, ABC):
    """Acts once, when fit ends; if a Trainer only validates or tests, before that.

    Attributes:
        report: what was done; None before.

    Raises:
        UserError: the network is not a chain of Linear layers.
    """

    report: Any = None

    @abstractmethod
    def act(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do it, set the report and log it."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str | None = None) -> None:
        """Refuse a network that is no chain before any time is spent training it; a new fit starts afresh."""
        Chain.of(pl_module)
        if stage == "fit":
            self.report = None

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Act."""
        self.act(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Act if no fit came before."""
        self._act_unfitted(trainer, pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Act if no fit came before."""
        self._act_unfitted(trainer, pl_module)

    def _act_unfitted(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.report is None and trainer.state.fn != "fit":
            self.act(trainer, pl_module)


def log_once(trainer: Trainer, metrics: dict[str, float]) -> None:
    """Log to every logger; outside training and testing, a module cannot."""
    for logger in trainer.loggers:
        logger.log_metrics(metrics | {"epoch": trainer.current_epoch}, step=trainer.global_step)
