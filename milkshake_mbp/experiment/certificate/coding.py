"""Coding a network on the way."""

from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from torch import nn

from milkshake_mbp.callbacks.after_fit import fingerprint
from milkshake_mbp.callbacks.certificate import Certificate, CertificateCallback
from milkshake_mbp.codec import to_file_bytes
from milkshake_mbp.experiment.certificate.judge import Judge
from milkshake_mbp.files import write_atomically

__all__ = ["CodingCallback"]


class CodingCallback(CertificateCallback):
    """`CertificateCallback` of a module that knows its own code, on samples that were seen beforehand.

    Args:
        judge: of the samples.
        every_n_epochs: 0 for the end of fit only.
        path: where to write the best code.
    """

    def __init__(self, judge: Judge, every_n_epochs: int, path: Path) -> None:
        super().__init__(every_n_epochs, judge.delta, path)
        self._judge = judge

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judge again what an interrupted fit had found."""
        if code := bytes(self.remembered.get("code", [])):
            self._take(self._judge.again(code.hex()))

    def make(self, module: nn.Module, datamodule: Any) -> Certificate:
        """The certificate of the module as it is; it is kept if its bound is the smallest so far."""
        self.last = self._judge(module.coded())  # type: ignore[operator]
        self._coded_weights = fingerprint(module)
        self._take(self.last)
        return self.last

    def _take(self, made: Certificate) -> None:
        if self.best is None or made.bound < self.best.bound:
            self.best = made
            assert self.path
            write_atomically(self.path, to_file_bytes(made.code))
