"""SketchCallback: sketch every layer, and prove that the sketch determines it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from torch import nn

from milkshake_mbp.callbacks.after_fit import AfterFit, fingerprint, log_once, neighbours, pruned_in
from milkshake_mbp.callbacks.data import source_of, train_samples
from milkshake_mbp.callbacks.prune import kernels_of
from milkshake_mbp.errors import UserError
from milkshake_mbp.reading.network import Kernel
from milkshake_mbp.reading.rule import PruneRule, check_strength
from milkshake_mbp.reading.samples import Unpack
from milkshake_mbp.theory.layer_sketch import LayerSketch, sketch_layer
from milkshake_mbp.theory.perturbation import default_step
from milkshake_mbp.theory.pruning import MaskDraw

__all__ = ["SketchCallback", "SketchReport"]


@dataclass(frozen=True)
class SketchReport:
    """The sketches of one network's layers.

    Attributes:
        layers: the sketches by layer name, in forward order.
    """

    layers: dict[str, LayerSketch]

    def metrics(self) -> dict[str, float]:
        """The logged values, by key; the bits of a layer without a certified sketch are infinite."""
        layers = self.layers.values()
        logged: dict[str, float] = {
            "sketch/certified_layers": sum(layer.certified for layer in layers),
            "sketch/bits": sum(layer.sketch_bits for layer in layers),
            "sketch/naive_bits": sum(layer.naive_bits for layer in layers),
            "sketch/dense_bits": sum(layer.dense_bits for layer in layers),
        }
        for name, layer in self.layers.items():
            logged |= {
                f"sketch/{name}/column_max": layer.column_max,
                f"sketch/{name}/row_max": layer.row_max,
                f"sketch/{name}/predicted_spread": layer.predicted_spread,
                f"sketch/{name}/numbers": layer.numbers or 0,
                f"sketch/{name}/certified": layer.certified,
                f"sketch/{name}/bits_over_naive": layer.sketch_bits / layer.naive_bits,
            }
        return {key: float(value) for key, value in logged.items()}


class SketchCallback(AfterFit):
    """Measure the distributed sparsity of every layer at the end of fit, sketch the layer, and recover it.

    Put it after PruneCallback in the list of callbacks, since both act at the end of fit, in that order. Any sparse
    network can be sketched, including lottery tickets. If a BoundsCallback has measured the same pruned network, its
    ladder gets the `sketched` row.

    Args:
        seed: seed of the random ensembles.
        every_n_epochs: also sketch the network, temporarily pruned at `d`, after every n-th epoch; None for never.
        d: pruning strength of these sketches, ≥ 0.
        mask_seed: seed of the masks of these sketches; the seed of PruneCallback gives the masks that it would draw.
        keep_diagonal: whether these masks keep entries (i, i).
        unpack: function that extracts (inputs, targets) from a batch that is not a pair.
        rule: which kernels these masks prune, and at which strengths; as in PruneCallback.

    Attributes:
        report: the latest `SketchReport`; None before the first sketch.

    Raises:
        UserError: an argument is out of range, the module has no layer that can be sketched, or its weights are not
            finite.
    """

    def __init__(
        self,
        seed: int = 0,
        every_n_epochs: int | None = None,
        d: float = 1.0,
        mask_seed: int = 0,
        keep_diagonal: bool = True,
        unpack: Unpack | None = None,
        rule: PruneRule | None = None,
    ) -> None:
        if every_n_epochs is not None and every_n_epochs < 1:
            raise UserError(f"every_n_epochs must be at least 1, got {every_n_epochs}")
        if check_strength("d", d) == "auto":
            raise UserError("d must be a number ≥ 0: sketches during training have no margins to search with")
        self.seed = seed
        self.every_n_epochs = every_n_epochs
        self.d = d
        self.mask_seed = mask_seed
        self.keep_diagonal = keep_diagonal
        self.unpack = unpack
        self.rule = rule or PruneRule()
        # Of the fit at hand.
        self._kernels: list[Kernel] = []
        self.report: SketchReport | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse what cannot be sketched before any time is spent training it."""
        self._kernels = kernels_of(pl_module, train_samples(source_of(trainer), self.unpack))
        self.report, self._left = None, ""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sketch what the network would be if it were pruned now."""
        if self.every_n_epochs is None or (trainer.current_epoch + 1) % self.every_n_epochs:
            return
        for name, value in self.measure(pl_module, self.d).metrics().items():
            pl_module.log(name, value, on_step=False, on_epoch=True)

    def measure(
        self,
        module: nn.Module,
        d: float | None = None,
        steps: Sequence[float] | None = None,
        data: Any = None,
    ) -> SketchReport:
        """Sketch the module's layers; usable from a notebook.

        Args:
            module: any module with Linear, convolution, embedding, attention or recurrent layers.
            d: the strength to prune them at first; None for the weights as they are.
            steps: ρ_l; by default `default_step` of the module's weights.
            data: for the order of the layers, as for `PruneCallback.prune`; that of registration without.

        Raises:
            UserError: there is no layer that can be sketched, or its weights are not finite.
        """
        kernels = self._kernels or kernels_of(module, None if data is None else train_samples(data, self.unpack))
        weights = [kernel.matrix(module) for kernel in kernels]
        try:
            steps = [default_step(weight) for weight in weights] if steps is None else steps
            if d is not None:
                strengths = [strength or 0.0 for strength in self.rule.of(kernels, d)]
                masks = MaskDraw(weights, self.mask_seed).masks(strengths, self.keep_diagonal)
                weights = [weight * mask for weight, mask in zip(weights, masks, strict=True)]
            layers = {
                kernel.layer: sketch_layer(weight, step, seed=self.seed, layer=index)
                for index, (kernel, weight, step) in enumerate(zip(kernels, weights, steps, strict=True))
            }
        except ValueError as error:
            raise UserError(f"{error}; the training diverged, try a smaller lr") from error
        return SketchReport(layers)

    def act(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sketch the network as it is left, and log."""
        # The grid of the unpruned layers, as the bounds round them, even if Algorithm 1 took a largest weight.
        pruned = pruned_in(trainer, fingerprint(pl_module))
        source = source_of(trainer)
        self._kernels = kernels_of(pl_module, None if source is None else train_samples(source, self.unpack))
        steps = None
        if pruned:
            found = [pruned.weights.get(kernel.parameter, kernel.matrix(pl_module)) for kernel in self._kernels]
            steps = [default_step(weight) for weight in found]
        self.report = self.measure(pl_module, steps=steps)
        self._kernels = []
        logged = self.report.metrics()
        for callback in neighbours(trainer):
            logged |= callback.add_sketches(list(self.report.layers.values()))
        log_once(trainer, logged)
