"""RewindCallback: rounds of pruning and rewinding, each of which gives a lottery ticket."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from milkshake_mbp.callbacks.after_fit import Remembering
from milkshake_mbp.callbacks.data import source_of, train_samples
from milkshake_mbp.callbacks.prune import kernels_of
from milkshake_mbp.errors import UserError
from milkshake_mbp.reading.network import Kernel, registered_kernels
from milkshake_mbp.reading.rule import PruneRule
from milkshake_mbp.reading.samples import Unpack
from milkshake_mbp.theory.lottery import magnitude_masks, random_magnitude_masks
from milkshake_mbp.theory.sketching import distributed_sparsity

__all__ = ["LayerTicket", "RewindCallback", "TicketReport", "training_state"]


@dataclass(frozen=True)
class LayerTicket:
    """The mask of one layer in one round.

    Attributes:
        name: the layer's name in the LightningModule.
        shape: (out, in).
        kept: number of entries kept.
        column_max: j_r, the largest number of them in a column.
        row_max: j_c, the largest number of them in a row.
        diagonal_full: whether every entry (i, i) is kept.
    """

    name: str
    shape: tuple[int, int]
    kept: int
    column_max: int
    row_max: int
    diagonal_full: bool


@dataclass(frozen=True)
class TicketReport:
    """The masks of a network in one round.

    Attributes:
        round: number of the round; 0 for the dense network.
        kept: fraction of all weights that is kept.
        layers: masks of the layers, in forward order.
    """

    round: int
    kept: float
    layers: tuple[LayerTicket, ...]

    def metrics(self) -> dict[str, float]:
        """The logged values, by key."""
        logged = {"ticket/round": float(self.round), "ticket/kept": self.kept}
        for layer in self.layers:
            logged[f"ticket/{layer.name}/kept"] = layer.kept / (layer.shape[0] * layer.shape[1])
            logged[f"ticket/{layer.name}/column_max"] = float(layer.column_max)
            logged[f"ticket/{layer.name}/row_max"] = float(layer.row_max)
        return logged


class RewindCallback(Remembering):
    """Iterative pruning with rewinding (Frankle and Carbin 2019; Frankle et al. 2020); each fit is a round.

    The first fit trains the dense network. Each later fit of the same module first prunes the network that the
    previous fit trained, then rewinds the remaining weights to those of the dense network at initialization, or after
    `rewind_steps` steps. Biases and the gains, shifts and running statistics of normalizations are rewound too. Each
    fit has a new optimizer, so no optimizer state is kept. Pruned weights are set to zero after every step; for an
    optimizer that updates each entry independently, this is the same as training the ticket alone.

    Masks, rewind weights and the round are in every checkpoint, so a resumed fit continues in the middle of a round.

    Args:
        rate: share of the remaining weights that a round prunes, strictly between 0 and 1.
        output_rate: this share for the output layer; `rate` if None. Its usual value is half the rate.
        scope: "global" for one threshold for all layers with the same rate; "layer" for one threshold per layer.
        pruner: "magnitude" prunes the smallest weights; "algorithm_1" prunes at random by Algorithm 1 of the paper.
        rewind_steps: training step to whose weights the remaining weights are rewound.
        seed: seed of Algorithm 1's draws, combined with the round.
        keep_diagonal: whether Algorithm 1 never prunes entries (i, i).
        unpack: function that extracts (inputs, targets) from a batch that is not a pair.
        rule: which kernels are pruned; by default all. It must not give strengths, since rounds prune at a rate.

    Attributes:
        masks: True = kept, by parameter name, on the module's device; empty before the first fit.
        rewind_weights: parameters and buffers by name, on the CPU; empty until `rewind_steps` is reached.
        round: the round of the masks.
        strengths: Algorithm 1's d in the last pruning, by parameter name; empty for the other pruner.

    Raises:
        UserError: an argument is out of range, the module has no layer that can be pruned, the rule names a layer that
            does not exist, the weights are not finite, or `rewind_steps` was never reached.
    """

    def __init__(
        self,
        rate: float = 0.2,
        output_rate: float | None = None,
        scope: Literal["global", "layer"] = "global",
        pruner: Literal["magnitude", "algorithm_1"] = "magnitude",
        rewind_steps: int = 0,
        seed: int = 0,
        keep_diagonal: bool = False,
        unpack: Unpack | None = None,
        rule: PruneRule | None = None,
    ) -> None:
        for name, value in (("rate", rate), ("output_rate", rate if output_rate is None else output_rate)):
            if not 0 < value < 1:
                raise UserError(f"{name} must lie strictly between 0 and 1, got {value}")
        if scope not in ("global", "layer"):
            raise UserError(f'scope must be "global" or "layer", got {scope!r}')
        if pruner not in ("magnitude", "algorithm_1"):
            raise UserError(f'pruner must be "magnitude" or "algorithm_1", got {pruner!r}')
        if rewind_steps < 0:
            raise UserError(f"rewind_steps must be at least 0, got {rewind_steps}")
        self.rule = rule or PruneRule()
        if self.rule.strengths:
            raise UserError("rule: expected no strengths, since rounds prune at a rate; leave them out")
        self.rate = rate
        self.output_rate = rate if output_rate is None else output_rate
        self.scope = scope
        self.pruner = pruner
        self.rewind_steps = rewind_steps
        self.seed = seed
        self.keep_diagonal = keep_diagonal
        self.unpack = unpack
        self.masks: dict[str, Tensor] = {}
        self.rewind_weights: dict[str, Tensor] = {}
        self.round = 0
        self.strengths: dict[str, float] = {}
        # Whether the module holds a trained round, to be pruned; and one that is already set for training.
        self._trained = self._ready = self._training = False
        self._kernels: list[Kernel] | None = None
        # What steps and epochs need, looked up once a fit.
        self._pruned: list[tuple[Tensor, Tensor]] = []
        self._logged: dict[str, float] = {}

    def begin(self, module: nn.Module, round: int, masks: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
        """Make the next fit this round instead of the following one; for rounds read from files, and for controls.

        Args:
            module: whose weights are set to the masked ones.
            round: its number.
            masks: (out, in) bools by parameter name.
            weights: to start from, biases and buffers too, by name; a buffer that is missing stays as it is. Where
                `rewind_weights` is empty and the round is not 0, what later rounds are set back to as well.
        """
        self.round = round
        self.masks = {name: mask.bool() for name, mask in masks.items()}
        if round and not self.rewind_weights:
            self.rewind_weights = {name: weight.detach().cpu().clone() for name, weight in weights.items()}
        self._set(module, weights)
        self._trained, self._ready = False, True

    def advance(self, module: nn.Module) -> TicketReport:
        """Prune the trained module and rewind it for the next round, as the next fit would do.

        Raises:
            UserError: the weights are not finite, or there are no weights to rewind to.
        """
        if not self.rewind_weights:
            raise UserError(
                f"rewind_steps: the dense network was trained for fewer than {self.rewind_steps} steps; train it longer"
            )
        self.prune(module)
        self._set(module, self.rewind_weights)
        self._trained, self._ready = False, True
        return self.report(module)

    def prune(self, module: nn.Module) -> None:
        """Compute the next round's masks from the module's weights, without changing these."""
        weights = self._weights(module)
        found = self.masks or {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}
        kernels = self._kernels_of(module)
        masks = [kernel.to_matrix(found[kernel.parameter]).to(weights[kernel.parameter].device) for kernel in kernels]
        rates = [self.rate] * (len(weights) - 1) + [self.output_rate]
        values, self.strengths = [kernel.matrix(module) for kernel in kernels], {}
        try:
            if self.pruner == "magnitude":
                masks = magnitude_masks(values, masks, rates, self.scope)
            else:
                # Every round its own draw.
                masks, strengths = random_magnitude_masks(
                    values,
                    masks,
                    rates,
                    self.scope,
                    seed=self.seed + 1_000_003 * self.round,
                    keep_diagonal=self.keep_diagonal,
                )
                self.strengths = dict(zip(weights, strengths, strict=True))
        except ValueError as error:
            raise UserError(f"round {self.round}: {error}; training diverged, try a smaller lr") from error
        parts = zip(kernels, masks, strict=True)
        self.masks = {kernel.parameter: kernel.to_parameter(mask, module) for kernel, mask in parts}
        self.round += 1

    def report(self, module: nn.Module) -> TicketReport:
        """The masks of the module's layers, as a report."""
        layers = []
        for kernel in self._kernels_of(module):
            kept = self.masks.get(kernel.parameter)
            if kept is None:
                kept = torch.ones_like(module.get_parameter(kernel.parameter), dtype=torch.bool)
            mask = kernel.to_matrix(kept)
            spread = distributed_sparsity(mask)
            layers.append(
                LayerTicket(
                    name=kernel.layer,
                    shape=(mask.shape[0], mask.shape[1]),
                    kept=int(mask.sum()),
                    column_max=spread.column_max,
                    row_max=spread.row_max,
                    diagonal_full=spread.diagonal_full,
                )
            )
        total = sum(layer.shape[0] * layer.shape[1] for layer in layers)
        return TicketReport(self.round, sum(layer.kept for layer in layers) / total, tuple(layers))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the round if the fit is resumed from a checkpoint."""
        self._training = False
        if self.remembered:
            self._resume()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a round, or continue that of a checkpoint; not called if the fit has nothing to train."""
        self._kernels = self._chosen(kernels_of(pl_module, train_samples(source_of(trainer), self.unpack)))
        if self._trained:
            self.advance(pl_module)
        elif not self._ready:
            self.round = 0
            self.masks = {
                name: torch.ones_like(weight, dtype=torch.bool) for name, weight in self._weights(pl_module).items()
            }
            self.rewind_weights = {}
            if self.rewind_steps == 0:
                self._keep(pl_module)
        self._ready = self._training = True
        self.masks = {name: mask.to(pl_module.device) for name, mask in self.masks.items()}
        self._logged = self.report(pl_module).metrics()
        # The dense network has nothing to zero.
        self._pruned = [
            (pl_module.get_parameter(name), mask) for name, mask in self.masks.items() if not bool(mask.all())
        ]

    @torch.no_grad()
    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """If gradients are clipped, set those of pruned weights to zero, so that the norm is that of the ticket."""
        if trainer.gradient_clip_val:
            for parameter, mask in self._pruned:
                if parameter.grad is not None:
                    parameter.grad.mul_(mask)

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Set pruned weights to zero; store the dense network's weights at step `rewind_steps`."""
        for parameter, mask in self._pruned:
            # A third of what masked_fill_ costs on a CPU.
            parameter.mul_(mask)
        if self.round == 0 and not self.rewind_weights and trainer.global_step >= self.rewind_steps:
            self._keep(pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the sparsity of the round's ticket."""
        for name, value in self._logged.items():
            pl_module.log(name, value, on_step=False, on_epoch=True)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that the module is the trained network of this round, if the fit has trained."""
        self._pruned = []
        # A checkpoint from which nothing was left to train is that of a trained round, too.
        if self._training or (self.remembered and self._ready):
            self._trained, self._ready, self._training = True, False, False

    def state_dict(self) -> dict[str, Any]:
        """Masks, rewind weights and round, for a checkpoint."""
        return {
            "round": self.round,
            "trained": self._trained,
            "ready": self._ready,
            "masks": {name: mask.cpu() for name, mask in self.masks.items()},
            "rewind_weights": dict(self.rewind_weights),
        }

    def _resume(self) -> None:
        """Continue where the checkpoint was written: in the middle of a round, a fit neither prunes nor rewinds."""
        self.round = int(self.remembered["round"])
        self.masks = dict(self.remembered["masks"])
        self.rewind_weights = {name: weight.cpu() for name, weight in self.remembered["rewind_weights"].items()}
        self._trained, self._ready = bool(self.remembered["trained"]), bool(self.remembered["ready"])

    def _kernels_of(self, module: nn.Module) -> list[Kernel]:
        """The kernels, in forward order once a fit has read the module; before, in order of registration."""
        return self._chosen(registered_kernels(module)) if self._kernels is None else self._kernels

    def _chosen(self, kernels: list[Kernel]) -> list[Kernel]:
        return [kernel for kernel, d in zip(kernels, self.rule.of(kernels, 0.0), strict=True) if d is not None]

    def _weights(self, module: nn.Module) -> dict[str, Tensor]:
        names = [kernel.parameter for kernel in self._kernels_of(module)]
        return {name: module.get_parameter(name).detach() for name in names}

    def _keep(self, module: nn.Module) -> None:
        self.rewind_weights = {name: value.cpu().clone() for name, value in training_state(module).items()}

    @torch.no_grad()
    def _set(self, module: nn.Module, weights: Mapping[str, Tensor]) -> None:
        state = training_state(module)
        for name in dict(module.named_parameters()):
            if name in state and name not in weights:
                raise UserError(f"the initial weights do not contain {name}, which the module has")
        for name, own in state.items():
            if name in weights:
                own.copy_(weights[name])
        # Of tied parameters one has the mask.
        for name, mask in self.masks.items():
            state[name].masked_fill_(~mask.to(state[name].device), 0.0)


def training_state(module: nn.Module) -> dict[str, Tensor]:
    """All that training changes in a module, by name, detached: parameters, and buffers that a checkpoint holds."""
    state = module.state_dict()
    return {name: v.detach() for name, v in state.items() if isinstance(v, Tensor) and not is_lazy(v)}
