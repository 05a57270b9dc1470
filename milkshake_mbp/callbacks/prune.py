"""PruneCallback: prune the trained network by Algorithm 1 of the paper, at the end of fit."""

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.utilities.rank_zero import rank_zero_info
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from milkshake_mbp.callbacks.after_fit import AfterFit, Pruned, fingerprint, log_once
from milkshake_mbp.callbacks.data import source_of, test_samples, train_samples
from milkshake_mbp.errors import UnreadableError, UserError
from milkshake_mbp.reading.measure import read_samples, search_on
from milkshake_mbp.reading.network import Kernel, registered_kernels
from milkshake_mbp.reading.outputs import measure_outputs
from milkshake_mbp.reading.rule import PruneRule, check_strength
from milkshake_mbp.reading.samples import Samples, Unpack
from milkshake_mbp.theory.pruning import MaskDraw, keep_probability

__all__ = ["LayerPruning", "PruneCallback", "PruneReport", "kernels_of", "left_alone_line"]


@dataclass(frozen=True)
class LayerPruning:
    """How one layer was pruned.

    Attributes:
        name: the layer's name in the LightningModule.
        shape: (out, in) of its kernel.
        kept: entries kept.
        sparsity: fraction of the entries pruned.
        predicted_sparsity: the fraction predicted by Assumption 3.1, 1 − (χ(N−D) + D)/N if the diagonal is exempt.
        d: strength at which it was pruned.
    """

    name: str
    shape: tuple[int, int]
    kept: int
    sparsity: float
    predicted_sparsity: float
    d: float


@dataclass(frozen=True)
class PruneReport:
    """How a network was pruned.

    Attributes:
        d: strength of all layers without a strength of their own.
        chi: χ(d), the probability that a normally distributed weight is kept.
        sparsity: fraction of the entries of all kernels that was pruned, counting kernels that the rule excludes.
        layers: the pruned layers, in forward order.
        kernels_left_alone: names of the layers that the rule excludes.
        left_alone: names of the parameters that are not kernels, such as biases and those of normalizations.
        numbers_left_alone: number of entries of both.
        unpruned_test_error: test error before pruning, a probability; None if no test set may be used.
        pruned_test_error: test error after pruning, a probability; None if no test set may be used.
    """

    d: float
    chi: float
    sparsity: float
    layers: tuple[LayerPruning, ...]
    kernels_left_alone: tuple[str, ...]
    left_alone: tuple[str, ...]
    numbers_left_alone: int
    unpruned_test_error: float | None
    pruned_test_error: float | None

    def metrics(self) -> dict[str, float]:
        """The logged values, by key."""
        logged = {"prune/d": self.d, "prune/chi": self.chi, "prune/sparsity": self.sparsity}
        logged |= {f"prune/sparsity/{layer.name}": layer.sparsity for layer in self.layers}
        if self.unpruned_test_error is not None and self.pruned_test_error is not None:
            logged["prune/unpruned_test_error"] = self.unpruned_test_error
            logged["prune/pruned_test_error"] = self.pruned_test_error
        return logged


class PruneCallback(AfterFit):
    """Prune a network by Algorithm 1 of the paper at the end of fit, so that later tests are of the pruned network.

    Any module can be pruned. All kernels are pruned except those that the rule excludes (see `PruneRule`).

    If other weights are validated, tested or used for prediction outside a fit, such as those of another checkpoint,
    they are pruned first. The masks are drawn from the seed, on the device on which the network was trained, so all
    DDP ranks draw the same masks. Every checkpoint contains them.

    Args:
        d: pruning strength, ≥ 0; a larger d prunes more; "auto" for the paper's search on the training margins.
        seed: seed of the masks.
        keep_diagonal: whether entries (i, i) are never pruned (Remark 4.1).
        refit: how a fit of a pruned network treats pruned weights: "keep" holds them at zero; "dense" trains all
            weights, and prunes the result.
        unpack: function that extracts (inputs, targets) from a batch that is not a pair.
        rule: which kernels are pruned, and at which strengths; by default all kernels, at d.

    Attributes:
        masks: bool tensors by parameter name, True = kept, on the CPU; empty before pruning.
        weights: the unpruned weights, by parameter name, on the CPU; empty before pruning.
        report: the latest `PruneReport`; None before pruning.

    Raises:
        UserError: an argument is out of range, the module has no layer that can be pruned, the rule names a layer that
            does not exist, or the weights are not finite.
    """

    def __init__(
        self,
        d: float | Literal["auto"] = 1.0,
        seed: int = 0,
        keep_diagonal: bool = True,
        refit: Literal["keep", "dense"] = "keep",
        unpack: Unpack | None = None,
        rule: PruneRule | None = None,
    ) -> None:
        if refit not in ("keep", "dense"):
            raise UserError(f'refit must be "keep" or "dense", got {refit!r}')
        self.d = check_strength("d", d)
        self.seed = seed
        self.keep_diagonal = keep_diagonal
        self.refit = refit
        self.unpack = unpack
        self.rule = rule or PruneRule()
        self.masks: dict[str, Tensor] = {}
        self.weights: dict[str, Tensor] = {}
        self.report: PruneReport | None = None
        self._before = ""
        self._held: list[tuple[Tensor, Tensor]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse what cannot be pruned before any time is spent training it; hold what is pruned already."""
        kernels = kernels_of(pl_module, _samples(source_of(trainer), self.unpack))
        chosen = [strength is not None for strength in self.rule.of(kernels, 0.0)]
        if self.d == "auto":
            search_on(pl_module, train_samples(source_of(trainer), self.unpack), self.seed, self.rule)
        rank_zero_info(f"PruneCallback: {left_alone_line(pl_module, kernels, chosen)}")
        self.masks = dict(self.remembered.get("masks", self.masks))
        self.report, self._left = None, ""
        pruned = self._is_pruned(pl_module) and not all(bool(mask.all()) for mask in self.masks.values())
        if not pruned or self.refit == "dense":
            if pruned:
                rank_zero_info("PruneCallback: this fit trains all weights again, including those that were pruned")
            self.masks, self.weights = {}, {}
        else:
            zeros = sum(int((~mask).sum()) for mask in self.masks.values())
            rank_zero_info(
                f"PruneCallback: this fit holds {zeros:,} pruned weights at zero (refit='dense' trains them again)"
            )
        owners = {kernel.parameter: pl_module.get_parameter(kernel.parameter) for kernel in kernels}
        self._held = [
            (owners[name], mask.to(owners[name].device)) for name, mask in self.masks.items() if name in owners
        ]

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """What was pruned before this fit stays zero, whatever the optimizer did."""
        for parameter, mask in self._held:
            parameter.mul_(mask)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prune."""
        self._held = []
        super().on_fit_end(trainer, pl_module)

    def act(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prune and log."""
        if not self.masks:
            self.masks = dict(self.found.get("masks", {}))
        self.report = self.prune(pl_module, source_of(trainer))
        log_once(trainer, self.report.metrics())

    def prune(self, module: nn.Module, data: Any = None) -> PruneReport:
        """Prune a module in place; needs no Trainer.

        A module that is zero everywhere that this callback's masks prune counts as pruned and is not changed.

        Args:
            module: any module with Linear, convolution, embedding, attention or recurrent layers, or with bare
                parameters by which it multiplies.
            data: needed for d = "auto", for test errors, and to know the order of the layers: a datamodule that is set
                up, or training samples as a DataLoader, a Dataset or (inputs, targets).

        Returns:
            A report of the pruning.
        """
        kernels = kernels_of(module, _samples(data, self.unpack))
        unpruned_error = self._test_error(module, data)
        already = self._is_pruned(module)
        before = fingerprint(module)
        d = self.report.d if already and self.report is not None else self._strength(module, data)
        strengths = self.rule.of(kernels, d)
        masks = self._held_masks(kernels) if already else self._draw(module, kernels, strengths)
        self.weights, self.masks, layers = {}, {}, []
        for kernel, mask, strength in zip(kernels, masks, strengths, strict=True):
            if mask is None:
                continue
            parameter = module.get_parameter(kernel.parameter)
            shaped = kernel.to_parameter(mask, module)
            self.weights[kernel.parameter] = parameter.detach().cpu().clone()
            self.masks[kernel.parameter] = shaped.cpu()
            parameter.data.masked_fill_(~shaped.to(parameter.device), 0.0)
            layers.append(self._describe(kernel.layer, mask, d if strength is None else strength))
        self._before = before
        sizes = _sizes(module)
        total = sum(sizes[kernel.parameter] for kernel in kernels)
        names = {kernel.parameter for kernel in kernels}
        return PruneReport(
            d=d,
            chi=keep_probability(d),
            sparsity=sum(math.prod(layer.shape) - layer.kept for layer in layers) / total,
            layers=tuple(layers),
            kernels_left_alone=tuple(kernel.layer for kernel in kernels if kernel.parameter not in self.masks),
            left_alone=tuple(name for name in sizes if name not in names),
            numbers_left_alone=sum(sizes.values()) - sum(math.prod(layer.shape) for layer in layers),
            unpruned_test_error=unpruned_error,
            pruned_test_error=self._test_error(module, data),
        )

    def restore(self, module: nn.Module) -> None:
        """Put the unpruned weights back."""
        self._done.undo(module)

    def pruned(self, fingerprint: str) -> Pruned | None:
        """The masks and unpruned weights of the network with this fingerprint, if this callback pruned it."""
        return self._done if self._done.before and self._left == fingerprint else None

    @property
    def _done(self) -> Pruned:
        return Pruned(self._before, self.weights, self.masks)

    def state_dict(self) -> dict[str, Any]:
        """The masks, for a checkpoint."""
        return {"masks": dict(self.masks)} if self.masks else {}

    def _is_pruned(self, module: nn.Module) -> bool:
        """Whether there are masks for this module, and it is zero wherever they prune."""
        parameters = dict(module.named_parameters())
        return bool(self.masks) and all(
            name in parameters
            and parameters[name].shape == mask.shape
            and not bool(parameters[name].detach()[~mask.to(parameters[name].device)].any())
            for name, mask in self.masks.items()
        )

    def _strength(self, module: nn.Module, data: Any) -> float:
        if self.d != "auto":
            return float(self.d)
        return search_on(module, train_samples(data, self.unpack), self.seed, self.rule)

    def _draw(
        self, module: nn.Module, kernels: Sequence[Kernel], strengths: Sequence[float | None]
    ) -> list[Tensor | None]:
        """A mask for each kernel that is pruned, in the kernel's shape; a kernel's draw does not depend on the rule."""
        try:
            draw = MaskDraw([kernel.matrix(module) for kernel in kernels], self.seed)
        except ValueError as error:
            raise UserError(f"{error}; the training diverged, try a smaller lr") from error
        masks = draw.masks([strength or 0.0 for strength in strengths], self.keep_diagonal)
        return [None if strength is None else mask for mask, strength in zip(masks, strengths, strict=True)]

    def _held_masks(self, kernels: Sequence[Kernel]) -> list[Tensor | None]:
        held = [self.masks.get(kernel.parameter) for kernel in kernels]
        parts = zip(kernels, held, strict=True)
        return [None if mask is None else kernel.to_matrix(mask) for kernel, mask in parts]

    def _test_error(self, module: nn.Module, data: Any) -> float | None:
        with suppress(UnreadableError):
            if (test := test_samples(data, module, self.unpack)) is not None:
                return measure_outputs(module, test, norms=()).error
        return None

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
            d=d,
        )


def kernels_of(module: nn.Module, samples: Samples | None) -> list[Kernel]:
    """A module's kernels, in forward order if a pass can be run, else in order of registration.

    Raises:
        UserError: there is no kernel, or one is computed in each pass.
    """
    with suppress(UnreadableError):
        if samples is not None:
            return list(read_samples(module, samples).kernels)
    return registered_kernels(module)


def left_alone_line(module: nn.Module, kernels: Sequence[Kernel], chosen: Sequence[bool]) -> str:
    """The kernels that are pruned and the parameters that are not, in one line.

    Args:
        module: that the kernels are of.
        kernels: all of them.
        chosen: which of them are pruned.
    """
    sizes = _sizes(module)
    pruned = [kernel for kernel, prunes in zip(kernels, chosen, strict=True) if prunes]
    spared = [kernel for kernel, prunes in zip(kernels, chosen, strict=True) if not prunes]
    rest = [name for name in sizes if name not in {kernel.parameter for kernel in kernels}]
    line = f"prunes {len(pruned)} kernels of {sum(sizes[kernel.parameter] for kernel in pruned):,} weights"
    if spared:
        numbers = sum(sizes[kernel.parameter] for kernel in spared)
        line += f"; the rule excludes {_some([kernel.layer for kernel in spared])} with {numbers:,} weights"
    if rest:
        line += f"; does not prune {sum(map(sizes.__getitem__, rest)):,} numbers outside kernels: {_some(rest)}"
    return line


def _sizes(module: nn.Module) -> dict[str, int]:
    """How many numbers each floating parameter holds, by name; a lazy one that no pass has used is none yet."""
    parameters = dict(module.named_parameters())
    return {
        name: value.numel() for name, value in parameters.items() if not is_lazy(value) and value.is_floating_point()
    }


def _some(names: Sequence[str], count: int = 3) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more


def _samples(data: Any, unpack: Unpack | None) -> Samples | None:
    return None if data is None else train_samples(data, unpack)
