"""BoundsCallback: evaluate every bound in each measured epoch, without changing the training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from pytorch_lightning import LightningModule, Trainer
from torch import Tensor, nn

from milkshake_mbp.callbacks.after_fit import (
    Remembering,
    fingerprint,
    log_once,
    on_training_device,
    pruned_in,
    unpruned,
)
from milkshake_mbp.callbacks.data import source_of, test_samples, train_samples
from milkshake_mbp.errors import UserError
from milkshake_mbp.reading.measure import Clock, check_search, measure, measure_stability, read_samples
from milkshake_mbp.reading.rule import PruneRule, check_strength
from milkshake_mbp.reading.samples import Samples, Unpack
from milkshake_mbp.theory.bounds import Bound, Coded, evaluate
from milkshake_mbp.theory.layer_sketch import LayerSketch
from milkshake_mbp.theory.measured import Measured
from milkshake_mbp.theory.pruning import StrengthSearch, keep_probability

__all__ = ["BoundsCallback", "BoundsReport"]

_SHOWN = ("margin", "bounds/paper/theorem_5_2")


@dataclass(frozen=True)
class BoundsReport:
    """The ladder of one network.

    Attributes:
        epoch: epochs trained when it was measured.
        measured: what was measured; it stays true after the module has changed.
        seconds: wall time by part: `forward`, `bounds` and, where it was measured, `stability`.
    """

    epoch: int
    measured: Measured
    seconds: Mapping[str, float] = field(default_factory=dict)

    @cached_property
    def bounds(self) -> tuple[Bound, ...]:
        """The evaluated rows of the ladder."""
        return tuple(evaluate(self.measured))

    @property
    def num_samples(self) -> int:
        """n, the number of training samples."""
        return self.measured.num_samples

    @property
    def num_classes(self) -> int:
        """k, the number of classes."""
        return self.measured.num_classes

    @property
    def input_norm(self) -> float:
        """B, the largest ‖x‖₂ among the training samples."""
        return self.measured.input_norm

    @property
    def margin(self) -> float:
        """γ, the smallest training margin."""
        return self.measured.margin

    @property
    def search(self) -> StrengthSearch | None:
        """Result of the paper's search for d; None if it is not defined for this network."""
        return self.measured.search

    @property
    def prune_d(self) -> float:
        """The pruning strength d of the `leading` and `rigorous` rows."""
        return self.measured.d

    @property
    def test_error(self) -> float | None:
        """Test error of the unpruned network, a probability; None if no test set may be used."""
        return self.measured.test_error

    @property
    def true_error(self) -> float | None:
        """Test error of the network pruned at the searched d, a probability; None if no test set may be used."""
        return self.measured.true_error

    @property
    def pruned_test_error(self) -> float | None:
        """Test error of the network pruned at `prune_d`, a probability; None if no test set may be used."""
        return self.measured.pruned_error

    @property
    def compressed_error(self) -> float | None:
        """Training error of the network that is pruned at `prune_d` and rounded, a probability."""
        return self.measured.compressed_error

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers' names, in forward order."""
        return self.measured.layers

    def metrics(self) -> dict[str, float]:
        """The logged values, by key; bounds are natural logarithms, errors are probabilities."""
        optional = {
            "d": None if self.search is None else self.search.d,
            "chi": None if self.search is None else keep_probability(self.search.d),
            "compressed_error": self.compressed_error,
            "test_error": self.test_error,
            "true_error": self.true_error,
            "pruned_test_error": self.pruned_test_error,
        }
        return {
            "margin": self.margin,
            "prune/d": self.prune_d,
            "prune/chi": keep_probability(self.prune_d),
            **{name: value for name, value in optional.items() if value is not None},
            **{f"bounds/{bound.convention}/{bound.name}": bound.log_value for bound in self.bounds},
        }


class BoundsCallback(Remembering):
    """Log margin, d, χ, errors and all bounds after every n-th epoch, and report on the final network.

    The callback does not change the training: forward passes run in eval mode, pruned networks are evaluated
    functionally, and the global random state is not used.

    The report describes the network at the end of fit, whatever ended the fit or changed the weights last. If other
    weights are validated or tested afterwards, the report is updated to describe those. For a network that
    PruneCallback has pruned, the report describes the unpruned network.

    The initial weights are stored on the CPU and in every checkpoint, for the rows that measure distances from them.
    Rows about stability under noise (Arora et al. 2018, PAC-Bayes flatness) take seconds of forward passes and are
    measured for the final network only.

    Args:
        prune_d: pruning strength d of the `leading` and `rigorous` rows, ≥ 0; "auto" for the paper's search.
        seed: seed of the masks; use the seed of PruneCallback to bound the network that it prunes.
        every_n_epochs: epochs between two measurements; the final network is always measured.
        failure: η, the failure probability for which Theorem 5.2 is evaluated.
        keep_diagonal: whether the masks of the `leading` rows keep entries (i, i); as in PruneCallback.
        delta: joint failure probability of the `rigorous` rows that are computed from the training samples.
        initial: the initial weights by parameter name; by default the weights at the start of each fit.
        unpack: function that extracts (inputs, targets) from a batch that is not a pair.
        rule: which kernels are pruned in these rows, and at which strengths; as in PruneCallback.
        magnitudes: whether to also measure the rows about noise that is proportional to the weights' magnitudes.

    Attributes:
        initial: the initial weights, on the CPU; None before a fit.
        report: the latest `BoundsReport`; None before the first measurement.

    Raises:
        UserError: an argument is out of range; before training, the module or its data cannot be read; during training,
            the weights are no longer finite.
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
        unpack: Unpack | None = None,
        rule: PruneRule | None = None,
        magnitudes: bool = False,
    ) -> None:
        self.prune_d = check_strength("prune_d", prune_d)
        if every_n_epochs < 1:
            raise UserError(f"every_n_epochs must be at least 1, got {every_n_epochs}")
        for name, value in (("failure", failure), ("delta", delta)):
            if not 0 < value < 1:
                raise UserError(f"{name} must lie strictly between 0 and 1, got {value}")
        self.seed = seed
        self.every_n_epochs = every_n_epochs
        self.failure = failure
        self.keep_diagonal = keep_diagonal
        self.delta = delta
        self.initial = self._given_initial = initial
        self.unpack = unpack
        self.rule = rule or PruneRule()
        self.magnitudes = magnitudes
        self.report: BoundsReport | None = None
        self._measured_weights = ""
        # Of the fit at hand: read once, so that slow datasets are not read again every epoch.
        self._samples: tuple[Samples, Samples | None] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str | None = None) -> None:
        """Forget the initial weights of an earlier fit."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self.initial = self._given_initial

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the initial weights if the fit is resumed from a checkpoint."""
        if restored := self.remembered.get("initial"):
            self.initial = self._given_initial or restored

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check before training that the network and its data can be read."""
        self.report, self._measured_weights = None, ""
        self._samples = self._read_samples(source_of(trainer), pl_module)
        reading = read_samples(pl_module, self._samples[0])
        if self.prune_d == "auto":
            check_search(reading, "prune_d", self.rule)
        self.rule.of(reading.kernels, 0.0)
        if "initial" not in self.remembered:
            found: dict[str, Tensor] = {
                kernel.parameter: pl_module.get_parameter(kernel.parameter) for kernel in reading.kernels
            }
            state = {**dict(pl_module.named_parameters()), **dict(pl_module.named_buffers())}
            found |= {name: state[name] for name in reading.normalized_by}
            kept = {name: weight.detach().cpu().clone() for name, weight in found.items()}
            self.initial = self._given_initial or kept

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure and log."""
        epoch = trainer.current_epoch + 1
        last = epoch == trainer.max_epochs or trainer.should_stop
        if epoch % self.every_n_epochs and not last:
            return
        self._report_on(trainer, pl_module, epoch, stability=last)
        assert self.report is not None
        for name, value in self.report.metrics().items():
            pl_module.log(name, value, on_step=False, on_epoch=True, prog_bar=name in _SHOWN)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the final network, unless its last epoch was measured and nothing has changed since."""
        before = self.report
        self._report_on(trainer, pl_module, trainer.current_epoch, stability=True)
        if self.report is not before and self.report is not None:
            log_once(trainer, self.report.metrics())
        self._samples = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Measure the network of an interrupted fit, without the rows that take long."""
        if isinstance(exception, KeyboardInterrupt) and trainer.state.fn == "fit" and self._samples is not None:
            self._report_on(trainer, pl_module, trainer.current_epoch, stability=False)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure, if the report does not describe these weights."""
        self._report_outside_fit(trainer, pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure, if the report does not describe these weights."""
        self._report_outside_fit(trainer, pl_module)

    def _report_outside_fit(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit" and source_of(trainer) is not None:
            self._report_on(trainer, pl_module, trainer.current_epoch, stability=True)

    def _report_on(self, trainer: Trainer, module: LightningModule, epoch: int, *, stability: bool) -> None:
        """Make the report one of the module's present weights, measuring no more than is missing."""
        weights = fingerprint(module)
        if pruned := pruned_in(trainer, weights):
            weights = pruned.before
        same = self.report is not None and weights == self._measured_weights
        if same and self.report is not None and (not stability or self.report.measured.stability_measured):
            self.report = replace(self.report, epoch=epoch) if epoch != self.report.epoch else self.report
            return
        with on_training_device(trainer, module), unpruned(module, pruned):
            data = self._samples or self._read_samples(source_of(trainer), module)
            if same and self.report is not None:
                clock = Clock()
                with clock("stability"):
                    measured = measure_stability(
                        self.report.measured,
                        module,
                        data[0],
                        seed=self.seed,
                        initial=self.initial,
                        magnitudes=self.magnitudes,
                    )
                seconds = {**self.report.seconds, **clock.seconds}
                self.report = BoundsReport(epoch, measured, seconds)
            else:
                self.report = self._measure(module, *data, epoch, stability)
        self._measured_weights = weights

    def measure(
        self, module: nn.Module, data: Any, test: Any = None, epoch: int = 0, *, stability: bool = True
    ) -> BoundsReport:
        """The ladder of a module with its current weights; needs no Trainer.

        Args:
            module: a classifier that maps a batch of inputs to logits.
            data: a datamodule that is set up for fitting, whose test set is used unless its configuration says no_test;
                or the training samples, as a DataLoader, a Dataset or (inputs, targets).
            test: the test samples, in any of these forms, if the data are not a datamodule.
            epoch: recorded in the report.
            stability: whether to also measure the rows about noise.

        Raises:
            UserError: the module or the data cannot be read, or its weights or outputs are not finite.
        """
        train, held_out = self._read_samples(data, module)
        if test is not None:
            held_out = Samples.of(test, unpack=self.unpack)
        return self._measure(module, train, held_out, epoch, stability)

    def _measure(
        self, module: nn.Module, train: Samples, test: Samples | None, epoch: int, stability: bool
    ) -> BoundsReport:
        clock = Clock()
        try:
            measured = measure(
                module,
                train,
                test,
                prune_d=self.prune_d,
                seed=self.seed,
                keep_diagonal=self.keep_diagonal,
                failure=self.failure,
                delta=self.delta,
                initial=self.initial,
                stability=stability,
                magnitudes=self.magnitudes,
                clock=clock,
                rule=self.rule,
            )
        except UserError as error:
            raise UserError(f"after epoch {epoch}: {error}") from error
        return BoundsReport(epoch, measured, clock.seconds)

    def _read_samples(self, data: Any, module: nn.Module) -> tuple[Samples, Samples | None]:
        return train_samples(data, self.unpack), test_samples(data, module, self.unpack)

    def add_sketches(self, sketches: Sequence[LayerSketch]) -> dict[str, float]:
        """Add the row of these sketches to the latest report, if they are sketches of the network that it pruned.

        Returns:
            The row's natural log by its key in every log; empty if there is no such report.
        """
        if self.report is None:
            return {}
        return self._add("sketched", self.report.measured.with_sketches(sketches))

    def add_code(self, bits: float, error: float) -> dict[str, float]:
        """Add to the latest report the row of the bytes from which the network was decoded.

        Args:
            bits: their length.
            error: the error on the training samples of the network that they decode to, a probability.

        Returns:
            As `add_sketches`.
        """
        if self.report is None:
            return {}
        return self._add("coded", replace(self.report.measured, coded=Coded(bits, error)))

    def _add(self, name: str, measured: Measured) -> dict[str, float]:
        assert self.report is not None
        self.report = replace(self.report, measured=measured)
        rows = {bound.name: bound for bound in self.report.bounds if bound.convention == "rigorous"}
        return {f"bounds/rigorous/{name}": rows[name].log_value} if name in rows else {}

    def state_dict(self) -> dict[str, Any]:
        """The initial weights, for a checkpoint."""
        return {} if self.initial is None else {"initial": dict(self.initial)}
