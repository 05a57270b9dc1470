"""PruneCallback: Algorithm 1 on the trained network, after fit."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor

from milkshake_mbp.callbacks.after_fit import AfterFit, log_once
from milkshake_mbp.callbacks.measure import (
    Chain,
    Outputs,
    check_strength,
    measure_outputs,
    test_samples,
    train_samples,
)
from milkshake_mbp.errors import UserError
from milkshake_mbp.theory.bounds import LayerNorms, search_paper_strength
from milkshake_mbp.theory.perturbation import safe_log
from milkshake_mbp.theory.pruning import MaskDraw, keep_probability

__all__ = ["LayerPruning", "PruneCallback", "PruneReport"]


@dataclass(frozen=True)
class LayerPruning:
    """What pruning left of one layer.

    Attributes:
        name: the layer's name in the LightningModule.
        shape: (out, in).
        kept: entries kept.
        sparsity: fraction of the entries pruned.
        predicted_sparsity: the same under Assumption 3.1, the diagonal exempt where it was: 1 − (χ(N−D) + D)/N.
    """

    name: str
    shape: tuple[int, int]
    kept: int
    sparsity: float
    predicted_sparsity: float


@dataclass(frozen=True)
class PruneReport:
    """What pruning did.

    Attributes:
        d: the strength.
        chi: χ(d).
        sparsity: fraction of all weights pruned.
        layers: per layer, in forward order.
        unpruned_test_error: before pruning, a probability; None if the test set was not to be touched.
        pruned_test_error: after.
    """

    d: float
    chi: float
    sparsity: float
    layers: tuple[LayerPruning, ...]
    unpruned_test_error: float | None
    pruned_test_error: float | None

    def metrics(self) -> dict[str, float]:
        """What is logged, by its key in every log."""
        logged = {"prune/d": self.d, "prune/chi": self.chi, "prune/sparsity": self.sparsity}
        logged |= {f"prune/sparsity/{layer.name}": layer.sparsity for layer in self.layers}
        if self.unpruned_test_error is not None and self.pruned_test_error is not None:
            logged["prune/unpruned_test_error"] = self.unpruned_test_error
            logged["prune/pruned_test_error"] = self.pruned_test_error
        return logged


class PruneCallback(AfterFit):
    """Prune the network by Algorithm 1 when fit ends, so that what is tested afterwards is the pruned network.

    If a Trainer only validates or tests, the network is pruned before that. The masks are drawn on the module's
    device from the seed, so every DDP rank draws the same ones.

    Args:
        d: the strength, ≥ 0; "auto" for the paper's search on the training margins.
        seed: of the draw.
        keep_diagonal: entries (i, i) are never pruned (Remark 4.1).

    Attributes:
        masks: True = kept, by parameter name, on the CPU; empty before pruning.
        weights: the unpruned weights, by parameter name, on the CPU; empty before pruning.
        report: what was done; None before pruning.

    Raises:
        UserError: an argument is out of range, or the network is not a chain of Linear layers with finite weights.
    """

    def __init__(self, d: float | Literal["auto"] = 1.0, seed: int = 0, keep_diagonal: bool = True) -> None:
        self.d = check_strength("d", d)
        self.seed = seed
        self.keep_diagonal = keep_diagonal
        self.masks: dict[str, Tensor] = {}
        self.weights: dict[str, Tensor] = {}
        self.report: PruneReport | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str | None = None) -> None:
        """As its parent; a new fit starts unpruned."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self.masks, self.weights = {}, {}

    def act(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prune and log."""
        self.report = self.prune(pl_module, trainer.datamodule)  # type: ignore[attr-defined]
        log_once(trainer, self.report.metrics())

    def prune(self, pl_module: LightningModule, datamodule: Any = None) -> PruneReport:
        """Prune the module in place, once; usable from a notebook.

        Args:
            pl_module: a Milkshake model.
            datamodule: a set-up Milkshake datamodule, for d = "auto" and for the test errors; may be left out else.

        Returns:
            What was done.
        """
        chain = Chain.of(pl_module)
        test = None if datamodule is None else test_samples(datamodule, pl_module)
        unpruned_error = measure_outputs(pl_module, test, norms=()).error if test else None
        train = measure_outputs(pl_module, train_samples(datamodule)) if self.d == "auto" else None
        try:
            d = self._search(chain, train) if train else float(self.d)
            masks = MaskDraw(chain.weights, self.seed).masks(d, self.keep_diagonal)
        except ValueError as error:
            raise UserError(f"{error}; the training diverged, try a smaller lr") from error
        layers = []
        for (name, layer), mask in zip(chain.layers.items(), masks, strict=True):
            parameter = f"{name}.weight"
            self.weights[parameter] = layer.weight.detach().cpu().clone()
            self.masks[parameter] = mask.cpu()
            layer.weight.data.masked_fill_(~mask, 0.0)
            layers.append(self._describe(name, mask, d))
        total = sum(math.prod(layer.shape) for layer in layers)
        return PruneReport(
            d=d,
            chi=keep_probability(d),
            sparsity=1 - sum(layer.kept for layer in layers) / total,
            layers=tuple(layers),
            unpruned_test_error=unpruned_error,
            pruned_test_error=measure_outputs(pl_module, test, norms=()).error if test else None,
        )

    @torch.no_grad()
    def restore(self, pl_module: LightningModule) -> None:
        """Put the unpruned weights back."""
        for name, weight in self.weights.items():
            pl_module.get_parameter(name).copy_(weight)

    def _search(self, chain: Chain, train: Outputs) -> float:
        return search_paper_strength(
            chain.weights,
            LayerNorms.measure(chain.weights),
            float(train.margins.amin()),
            len(train.margins),
            safe_log(train.input_norm),
            seed=self.seed,
        ).d

    def _describe(self, name: str, mask: Tensor, d: float) -> LayerPruning:
        exempt = min(mask.shape) if self.keep_diagonal else 0
        kept = int(mask.sum())
        expected = keep_probability(d) * (mask.numel() - exempt) + exempt
        return LayerPruning(
            name=name,
            shape=(mask.shape[0], mask.shape[1]),
            kept=kept,
            sparsity=1 - kept / mask.numel(),
            predicted_sparsity=1 - expected / mask.numel(),
        )
