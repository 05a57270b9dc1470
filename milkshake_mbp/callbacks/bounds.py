"""BoundsCallback: every bound, each logged epoch, without disturbing the training."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

from milkshake_mbp.callbacks.measure import (
    Chain,
    Samples,
    check_strength,
    measure_outputs,
    test_samples,
    train_samples,
)
from milkshake_mbp.errors import UserError
from milkshake_mbp.theory.bounds import CONVENTIONS, Bound, bound_table, prune_layers, search_paper_strength
from milkshake_mbp.theory.cushions import Cushions
from milkshake_mbp.theory.flatness import Flatness, search_flatness
from milkshake_mbp.theory.layer_sketch import LayerSketch
from milkshake_mbp.theory.margins import error_rate
from milkshake_mbp.theory.measured import Coded, InitialDistances, LayerNorms
from milkshake_mbp.theory.perturbation import default_step, discretize, safe_log
from milkshake_mbp.theory.pruning import MaskDraw, StrengthSearch, keep_probability

__all__ = ["BoundsCallback", "BoundsReport"]

_CUSHION_SAMPLES = 256
_FLATNESS_SAMPLES = 2000
_SHOWN = ("margin", "bounds/paper/theorem_5_2")


@dataclass(frozen=True)
class BoundsReport:
    """The ladder of one network at one moment.

    Attributes:
        epoch: epochs trained when it was measured.
        num_samples: n, the training samples measured.
        num_classes: k.
        input_norm: B, the largest ‖x‖₂ among them.
        margin: γ, their smallest margin.
        search: the paper's search for d; the `paper` rows and `true_error` belong to its d.
        prune_d: the strength that the `leading` rows belong to.
        test_error: of the unpruned network, a probability; None if the test set was not to be touched.
        true_error: of the network pruned at the searched d, likewise.
        compressed_error: training error of the network pruned at `prune_d` and rounded, a probability.
        layers: the layers' names, in forward order.
        bounds: every row.
        seconds: wall time by part: `forward`, `bounds` and, where it was measured, `stability`.
    """

    epoch: int
    num_samples: int
    num_classes: int
    input_norm: float
    margin: float
    search: StrengthSearch
    prune_d: float
    test_error: float | None
    true_error: float | None
    compressed_error: float
    layers: tuple[str, ...]
    bounds: tuple[Bound, ...]
    seconds: Mapping[str, float]

    def metrics(self) -> dict[str, float]:
        """What is logged, by its key in every log; bounds are natural logs, errors probabilities."""
        return {
            "margin": self.margin,
            "d": self.search.d,
            "chi": keep_probability(self.search.d),
            "prune/d": self.prune_d,
            "prune/chi": keep_probability(self.prune_d),
            "compressed_error": self.compressed_error,
            **({} if self.test_error is None else {"test_error": self.test_error}),
            **({} if self.true_error is None else {"true_error": self.true_error}),
            **{f"bounds/{bound.convention}/{bound.name}": bound.log_value for bound in self.bounds},
        }


class BoundsCallback(Callback):
    """Log margin, d, χ, errors and every bound after each n-th training epoch.

    Nothing of the training is touched: forward passes run in eval mode on the module as it is, pruned networks are
    evaluated functionally, and the global random state is left alone.

    The initial weights are kept, on the CPU, for the rows that measure distances from them. Rows about stability under
    noise (Arora et al. 2018, PAC-Bayes flatness) take seconds of forward passes and are measured after the last epoch.

    Put it before PruneCallback in the list of callbacks: a Trainer that only tests lets each act in that order.

    Args:
        prune_d: the strength of the `leading` and `rigorous` rows, ≥ 0; "auto" for the paper's search.
        seed: of the masks; give PruneCallback the same one to bound the network it leaves.
        every_n_epochs: how often; the last epoch is always measured.
        failure: η, the failure probability asked of Theorem 5.2.
        keep_diagonal: whether the `leading` rows are about masks that spare entries (i, i); as PruneCallback's.
        delta: failure probability of the `rigorous` rows together.
        initial: the initial weights by parameter name; by default those that each fit finds.

    Attributes:
        initial: the initial weights, on the CPU; None before a fit.
        report: the latest `BoundsReport`; None before the first.

    Raises:
        UserError: an argument is out of range, or, while training, the network is not a chain of Linear layers or its
            weights are no longer finite.
    """

    def __init__(
        self,
        prune_d: float | Literal["auto"] = 1.0,
        seed: int = 0,
        every_n_epochs: int = 1,
        failure: float = 0.05,
        keep_diagonal: bool = True,
        delta: float = 0.05,
        initial: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.prune_d = check_strength("prune_d", prune_d)
        if every_n_epochs < 1:
            raise UserError(f"every_n_epochs must be at least 1, got {every_n_epochs}")
        self.seed = seed
        self.every_n_epochs = every_n_epochs
        self.failure = failure
        self.keep_diagonal = keep_diagonal
        self.delta = delta
        self.initial = self._given_initial = initial
        self.report: BoundsReport | None = None
        self._samples: tuple[Samples, Samples | None] | None = None
        self._table: Callable[..., list[Bound]] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str | None = None) -> None:
        """Refuse a network that cannot be bounded before any time is spent training it; a new fit starts afresh."""
        chain = Chain.of(pl_module)
        if stage == "fit":
            self.report = self._samples = None
            found = {name: weight.cpu().clone() for name, weight in chain.parameters().items()}
            self.initial = self._given_initial or found

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure and log."""
        epoch = trainer.current_epoch + 1
        if epoch % self.every_n_epochs and epoch != trainer.max_epochs and not trainer.should_stop:
            return
        last = epoch == trainer.max_epochs or trainer.should_stop
        self.report = self.measure(pl_module, trainer.datamodule, epoch, stability=last)  # type: ignore[attr-defined]
        for name, value in self.report.metrics().items():
            pl_module.log(name, value, on_step=False, on_epoch=True, prog_bar=name in _SHOWN)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure a fit that found nothing left to train."""
        self._measure_untrained(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure if no fit came before."""
        if trainer.state.fn != "fit":
            self._measure_untrained(trainer, pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure if no fit came before."""
        self._measure_untrained(trainer, pl_module)

    def _measure_untrained(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.report is None:
            self.report = self.measure(pl_module, trainer.datamodule, trainer.current_epoch)  # type: ignore[attr-defined]

    def measure(self, module: nn.Module, datamodule: Any, epoch: int = 0, *, stability: bool = True) -> BoundsReport:
        """The ladder of the module as it stands; usable from a notebook.

        Args:
            module: a Milkshake model, or any module that maps a batch to logits through a chain of Linear layers.
            datamodule: a Milkshake datamodule that is set up for fitting.
            epoch: recorded in the report.
            stability: whether to measure the rows about noise too.

        Raises:
            UserError: the network is not a chain of Linear layers, or its weights or outputs are not finite.
        """
        chain = Chain.of(module)
        if self._samples is None:
            self._samples = train_samples(datamodule), test_samples(datamodule, module)
        train, test = self._samples
        clock = _Clock()
        with clock("forward"):
            chain.check(module, train.first(16, _device(module)))
            outputs = measure_outputs(module, train)
            test_error = measure_outputs(module, test, norms=()).error if test else None

        with clock("bounds"):
            try:
                norms = LayerNorms.measure(chain.weights)
            except ValueError as error:
                raise UserError(f"after epoch {epoch}: {error}; training diverged, try a smaller lr") from error
            margin = float(outputs.margins.amin())
            if margin != margin:
                raise UserError(
                    f"after epoch {epoch}: the network's outputs are NaN; training diverged, try a smaller lr"
                )
            count = len(outputs.margins)
            draw = MaskDraw(chain.weights, self.seed)
            search = search_paper_strength(chain.weights, norms, margin, count, safe_log(outputs.input_norm), draw=draw)
            prune_d = search.d if self.prune_d == "auto" else self.prune_d
            masks = draw.masks(prune_d, self.keep_diagonal)
            compressed = [
                discretize(weight * mask, default_step(weight))
                for weight, mask in zip(chain.weights, masks, strict=True)
            ]

        with clock("forward"):
            compressed_margins = measure_outputs(module, train, chain.replaced(compressed), norms=()).margins
            true_error = test_error
            if test and search.d > 0:
                searched = draw.masks(search.d, keep_diagonal=False)
                true_error = measure_outputs(module, test, chain.masked(searched), norms=()).error

        with clock("stability"):
            cushions, flatness = self._stability(module, chain, train) if stability else (None, None)

        with clock("bounds"):
            initial = None if self.initial is None else [self.initial[name] for name in chain.parameters()]
            table = partial(
                bound_table,
                chain.weights,
                margins=outputs.margins,
                num_samples=count,
                input_norm=outputs.input_norm,
                input_norms=outputs.input_norms,
                norms=norms,
                d=prune_d,
                pruned=prune_layers(chain.weights, prune_d, draw=draw, keep_diagonal=self.keep_diagonal),
                initial=None if initial is None else InitialDistances.measure(chain.weights, initial),
                cushions=cushions,
                flatness=flatness,
                compressed_margins=compressed_margins,
                biases=chain.biases,
                failure=self.failure,
                delta=self.delta,
                violated=chain.violated,
            )
            self._table = table
            bounds = [bound for convention in CONVENTIONS for bound in table(convention=convention, search=search)]
        return BoundsReport(
            epoch=epoch,
            num_samples=count,
            num_classes=norms.shapes[-1][0],
            input_norm=outputs.input_norm,
            margin=margin,
            search=search,
            prune_d=prune_d,
            test_error=test_error,
            true_error=true_error,
            compressed_error=error_rate(compressed_margins),
            layers=tuple(chain.layers),
            bounds=tuple(bounds),
            seconds=clock.seconds,
        )

    def add_sketches(self, sketches: Sequence[LayerSketch]) -> dict[str, float]:
        """Add to the latest report the row of these sketches, if they are of the network that it has pruned.

        Returns:
            The row's natural log by its key in every log; empty if there is no such report.
        """
        return self._add("sketched", sketches=sketches)

    def add_code(self, bits: float, error: float) -> dict[str, float]:
        """Add to the latest report the row of the bytes that the network was read from.

        Args:
            bits: their length.
            error: the error on the training samples of the network that they decode to, a probability.

        Returns:
            As `add_sketches`.
        """
        return self._add("coded", coded=Coded(bits, error))

    def _add(self, name: str, **measured: Any) -> dict[str, float]:
        if self.report is None or self._table is None:
            return {}
        self._table = partial(self._table, **measured)
        rows = {bound.name: bound for bound in self._table(convention="rigorous")}
        if name not in rows:
            return {}
        kept = [bound for bound in self.report.bounds if bound.convention != "rigorous"]
        self.report = replace(self.report, bounds=(*kept, *rows.values()))
        return {f"bounds/rigorous/{name}": rows[name].log_value}

    def _stability(self, module: nn.Module, chain: Chain, train: Samples) -> tuple[Cushions | None, Flatness | None]:
        """Noise in the activations, which is defined for the paper's network alone, and noise in the weights."""
        device, few = _device(module), train.some(_FLATNESS_SAMPLES, self.seed)

        def error(weights: Sequence[Tensor]) -> float:
            return measure_outputs(module, few, chain.replaced(weights), norms=()).error

        flatness = None
        with suppress(ValueError):  # a network that tolerates no noise
            flatness = search_flatness(chain.weights, error, seed=self.seed, num_samples=len(few))
        if chain.violated:
            return None, flatness
        inputs = train.some(_CUSHION_SAMPLES, self.seed).first(_CUSHION_SAMPLES, device)
        return Cushions.measure(chain.weights, inputs.flatten(1), seed=self.seed), flatness


class _Clock:
    """Wall time by part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - started


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device
