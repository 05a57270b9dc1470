"""The quantities of a network from which the rows of the ladder are computed, measured once for all rows."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from milkshake_mbp.theory.convolutional import ConvolutionalDistances, Patches
from milkshake_mbp.theory.cushions import Cushions
from milkshake_mbp.theory.flatness import Flatness, MagnitudeFlatness
from milkshake_mbp.theory.layer_sketch import LayerSketch
from milkshake_mbp.theory.margins import error_rate
from milkshake_mbp.theory.norms import (
    frobenius_norm,
    group_norm,
    log_path_norm,
    norm_2_1,
    spectral_norm,
    spectral_norm_estimate,
)
from milkshake_mbp.theory.paths import PathLengths
from milkshake_mbp.theory.perturbation import (
    default_step,
    discretization_error,
    discretize,
    leave_one_out,
    logsumexp,
    safe_exp,
    safe_log,
)
from milkshake_mbp.theory.pruning import StrengthSearch
from milkshake_mbp.theory.sketching import DistributedSparsity, distributed_sparsity

__all__ = [
    "Coded",
    "HeldOut",
    "InitialDistances",
    "Kernels",
    "LayerNorms",
    "LayerScales",
    "Measured",
    "Paths",
    "PrunedLayer",
    "Unrolled",
    "check_chain",
]


@dataclass(frozen=True)
class LayerNorms:
    """Natural logs of each kernel's norms, in forward order; −inf for a zero layer.

    Attributes:
        shapes: (out, in).
        log_spectral: ln ‖A_l‖₂.
        log_frobenius: ln ‖A_l‖_F.
        log_2_1: ln ‖A_lᵀ‖_{2,1}.
        log_l1_max: ln ‖A_l‖_{1,∞}, the largest ℓ1 norm of a unit's incoming weights.
        log_l3_l1p5: ln ‖A_l‖_{3,1.5}, the ℓ1.5 norm over units of the ℓ3 norms of their weights.
        log_largest: ln of the largest |entry|.
        log_paths_l1: ln φ_1 of each output unit (`log_path_norm`); empty if the layers are not a chain.
        log_paths_l2: likewise φ_2.
    """

    shapes: tuple[tuple[int, int], ...]
    log_spectral: tuple[float, ...]
    log_frobenius: tuple[float, ...]
    log_2_1: tuple[float, ...]
    log_l1_max: tuple[float, ...] = ()
    log_l3_l1p5: tuple[float, ...] = ()
    log_largest: tuple[float, ...] = ()
    log_paths_l1: tuple[float, ...] = ()
    log_paths_l2: tuple[float, ...] = ()

    @classmethod
    def measure(cls, weights: Sequence[Tensor], chain: bool = True) -> "LayerNorms":
        """Measure the (out, in) weights.

        Args:
            weights: in forward order, any floating dtype.
            chain: whether each takes what the one before puts out.

        Raises:
            ValueError: the weights are not finite matrices; or do not chain though they should.
        """
        if not weights or any(weight.ndim != 2 or not weight.numel() for weight in weights):
            raise ValueError("a network is one or more (out, in) weight matrices, none of them empty")
        shapes = tuple((int(weight.shape[0]), int(weight.shape[1])) for weight in weights)
        if chain:
            check_chain(shapes)
        norms = cls(shapes, *(_logs(norm, weights) for norm in (spectral_norm, frobenius_norm, norm_2_1)))
        return norms.completed(weights, chain)

    def completed(self, weights: Sequence[Tensor], chain: bool = True) -> "LayerNorms":
        """The same with those that were not measured, if there are weights to measure; arguments as for `measure`."""
        if self.log_largest or not weights:
            return self
        return replace(
            self,
            log_l1_max=_logs(partial(group_norm, p=1, q=math.inf), weights),
            log_l3_l1p5=_logs(partial(group_norm, p=3, q=1.5), weights),
            log_largest=_logs(_largest, weights),
            log_paths_l1=tuple(log_path_norm(weights, 1).tolist()) if chain else (),
            log_paths_l2=tuple(log_path_norm(weights, 2).tolist()) if chain else (),
        )


def check_chain(shapes: Sequence[tuple[int, int]]) -> None:
    """Raise ValueError unless each (out, in) layer takes what the one before puts out."""
    for layer, (before, after) in enumerate(pairwise(shapes)):
        if before[0] != after[1]:
            raise ValueError(f"layer {layer} has {before[0]} outputs but layer {layer + 1} takes {after[1]} inputs")


@dataclass(frozen=True)
class InitialDistances:
    """Natural logs of each layer's distances from its initial weights M_l, in forward order.

    Attributes:
        log_spectral: ln ‖A_l − M_l‖₂.
        log_frobenius: ln ‖A_l − M_l‖_F.
        log_2_1: ln ‖A_lᵀ − M_lᵀ‖_{2,1}.
        log_first_initial: ln ‖M_1‖₂.
        log_l1_max: ln ‖A_l − M_l‖_{1,∞}.
        log_initial: ln ‖M_l‖₂.
    """

    log_spectral: tuple[float, ...]
    log_frobenius: tuple[float, ...]
    log_2_1: tuple[float, ...]
    log_first_initial: float
    log_l1_max: tuple[float, ...] = ()
    log_initial: tuple[float, ...] = ()

    @classmethod
    def measure(cls, weights: Sequence[Tensor], initial: Sequence[Tensor]) -> "InitialDistances":
        """Measure from (out, in) weights and initial weights; raises ValueError if their shapes differ."""
        if [w.shape for w in weights] != [m.shape for m in initial]:
            raise ValueError("the initial weights are not those of this network: their shapes differ")
        start = [m.detach().to(w.device, torch.float64) for w, m in zip(weights, initial, strict=True)]
        moved = [w.detach().double() - m for w, m in zip(weights, start, strict=True)]
        return cls(
            _logs(_uncertified_norm, moved),
            _logs(frobenius_norm, moved),
            _logs(norm_2_1, moved),
            safe_log(float(_uncertified_norm(start[0]))),
            _logs(partial(group_norm, p=1, q=math.inf), moved),
            _logs(_uncertified_norm, start),
        )


@dataclass(frozen=True)
class PrunedLayer:
    """The quantities of one pruned and rounded layer that the counting rows need.

    Attributes:
        difference_norm: ‖Â_l − A_l‖₂.
        step: ρ_l.
        alphabet: r_l = 2⌈max|Â_l|/ρ_l⌉ + 1, the number of values that an entry can take.
        nonzeros: J_l, the number of nonzeros of Â_l.
        coded_nonzeros: α_l, the number of nonzeros after rounding.
        coded_diagonal: number of these on the diagonal.
        spread: distributed sparsity of Â_l.
    """

    difference_norm: float
    step: float
    alphabet: int
    nonzeros: int
    coded_nonzeros: int
    coded_diagonal: int
    spread: DistributedSparsity

    @classmethod
    def measure(cls, weight: Tensor, mask: Tensor, step: float | None = None) -> "PrunedLayer":
        """Measure one layer; the default step is `default_step`."""
        return cls.compress(weight, mask, step)[0]

    @classmethod
    def compress(cls, weight: Tensor, mask: Tensor, step: float | None = None) -> tuple["PrunedLayer", Tensor]:
        """Prune and round one (out, in) layer: its measurements, and the layer itself in float64."""
        exact = weight.detach().double()
        pruned = exact * mask
        rho = step or default_step(weight)
        rounded = discretize(pruned, rho)
        coded = rounded != 0
        layer = cls(
            difference_norm=float(_uncertified_norm(exact - pruned)),
            step=rho,
            alphabet=2 * math.ceil(float(pruned.abs().amax()) / rho) + 1,
            nonzeros=int((pruned != 0).sum()),
            coded_nonzeros=int(coded.sum()),
            coded_diagonal=int(coded.diagonal().sum()),
            spread=distributed_sparsity(pruned),
        )
        return layer, rounded

    @property
    def unit_error(self) -> float:
        """The rigorous bound on the rounding error for ρ = 1 (erratum E6)."""
        return discretization_error(1.0, self.nonzeros, self.spread.column_max, self.spread.row_max)

    @property
    def log_distance(self) -> float:
        """Ln of a bound on ‖Ã_l − A_l‖₂: the measured pruning part and the rigorous rounding part."""
        return safe_log(self.difference_norm + self.step * self.unit_error)


class PositiveMargins(NamedTuple):
    """(m,) training margins γ > 0, sorted, and the share of all margins strictly below each, with their logs."""

    values: Tensor
    logs: Tensor
    risks: Tensor
    log_risks: Tensor


@dataclass(frozen=True)
class Coded:
    """A network that a decoder reads from bytes.

    Attributes:
        bits: C/ln 2, the length of its code.
        error: R̂ of the decoded network, a probability.
    """

    bits: float
    error: float


@dataclass(frozen=True)
class Paths:
    """The paths of a network from its inputs and biases to its outputs.

    Attributes:
        log_norm: ln of the sum over the outputs of φ_1, the ℓ1 path norm.
        lengths: of the longest.
        log_squared: ln Σ_k f_{w²}(1)[k], the network with squared weights on all ones.
    """

    log_norm: float
    lengths: PathLengths
    log_squared: float


@dataclass(frozen=True)
class LayerScales:
    """Natural logs of one size per layer, of what a measure takes for the layer's matrix.

    Attributes:
        log_spectral: ln of what stands for ‖A_l‖₂.
        log_frobenius: ln ‖A_l‖_F.
        log_distance_spectral: ln of what stands for ‖A_l − M_l‖₂; empty if the initial weights are not known.
        log_distance_frobenius: ln ‖A_l − M_l‖_F; likewise.
    """

    log_spectral: tuple[float, ...]
    log_frobenius: tuple[float, ...]
    log_distance_spectral: tuple[float, ...] = ()
    log_distance_frobenius: tuple[float, ...] = ()

    @cached_property
    def log_others(self) -> list[float]:
        """Logs of Π_{i≠l} ‖A_i‖₂ for every l."""
        return leave_one_out(self.log_spectral)


@dataclass(frozen=True)
class Unrolled:
    """A sequence of layers as a chain of matrices, each the operator that a layer unrolls to.

    A bound of fully connected networks holds for that chain, which shares no weights: sharing only shrinks the class.
    Spectral norms are the certified upper ends.

    Attributes:
        norms: norms of the operators, in forward order; gains included.
        initial: their distances from the operators of the initial kernels; None where those are not known.
        log_factors: ln of what the functions between the layers multiply ‖·‖_p by at most, by p = 2, 1.5 and ∞.
        log_path_l1: ln of the worst output's φ_1, what the functions multiply by included; infinity if there is none.
        log_path_l2: likewise φ_2.
        trailing: whether a function of one entry follows the last layer.
        averages: fixed linear maps between the layers, such as average pooling.
    """

    norms: LayerNorms
    initial: InitialDistances | None
    log_factors: Mapping[float, float]
    log_path_l1: float
    log_path_l2: float
    trailing: bool = False
    averages: int = 0

    @property
    def depth(self) -> int:
        """L."""
        return len(self.norms.shapes)

    @property
    def activations(self) -> int:
        """Functions of one entry that a proof peels off: L − 1 between the layers, and one that follows the last."""
        return self.depth - 1 + self.trailing

    @property
    def num_inputs(self) -> int:
        """Numbers in an input."""
        return self.norms.shapes[0][1]

    @cached_property
    def width(self) -> int:
        """The longest side of an operator."""
        return max(map(max, self.norms.shapes))

    @cached_property
    def log_others(self) -> list[float]:
        """Logs of Π_{i≠l} ‖A_i‖₂ for every l."""
        return leave_one_out(self.norms.log_spectral)


@dataclass(frozen=True)
class Kernels:
    """What the bounds made for convolutions read of a network's layers.

    Attributes:
        distances: norms of kernels and operators, and their distances from the initial ones.
        log_sensitivities: ln of how far the output moves if a layer's operator moves by 1, per layer.
    """

    distances: ConvolutionalDistances
    log_sensitivities: tuple[float, ...]


@dataclass(frozen=True)
class HeldOut:
    """A network's errors on test samples, on which no choice depends.

    Attributes:
        errors: number of misclassified samples; ties and NaN are errors.
        num_samples: number of samples.
        error: share of misclassified samples as accuracies count it, by argmax.
    """

    errors: int
    num_samples: int
    error: float


@dataclass(frozen=True)
class Measured:
    """All quantities of a network and its samples that the rows use, measured once for all rows.

    The numbers are copies, which do not change with the module. An attribute that is None was not measured.

    Attributes:
        norms: norms of the kernels, in forward order.
        margins: (n,) training margins of the unpruned network, sorted, float64, on the CPU.
        num_samples: n.
        log_input_norm: ln B.
        num_classes: k.
        d: pruning strength of the pruned layers, or of the paper's search.
        given_strengths: strengths of the layers, if they differ; 0 for a layer that is not pruned; see `strengths`.
        layers: the layers' names, in forward order.
        log_lipschitz: ln of the product of the Lipschitz constants of the functions between the layers, each taken as
            at least 1.
        broken: for each assumption that does not hold, the reason; assumptions are a `Trait` of the network, or
            "clean_labels" and "still_samples" of the samples.
        input_norms: largest ‖x‖_p measured, by p; others are bounded with B.
        search: result of the paper's search; None if it was not run.
        pruned: the pruned layers at d; empty if no row counts them.
        failure: η, the failure probability for which Theorem 5.2 is evaluated.
        delta: δ, the joint failure probability of the `rigorous` rows that are computed from the training samples.
        compressed_margins: (n,) margins of the pruned and rounded network on the same samples.
        distinct: number of distinct training samples (x, y).
        weight_bits: bits of a stored weight.
        plain: number of values outside the kernels, such as biases, which the `rigorous` rows code with the same bits.
        biases: number of bias parameters among these.
        initial: distances from the initial weights.
        cushions: the noise stability of Arora et al. 2018, measured on data.
        flatness: the Gaussian noise that the weights tolerate.
        magnitudes: the same in proportion to their size.
        sketches: the pruned and rounded layers as sketches.
        coded: a network's own bytes and error, where a decoder reads it from them.
        given_paths: of a wired network that is not a chain of Linear layers; see `paths`.
        given_kernels: likewise; see `kernels`.
        patches: patches of the training samples, in a chain of convolutions without biases that ends in one place.
        given_unrolled: likewise, where nothing branches; see `unrolled`.
        given_scales: of kernels with gains; see `kernel_scales`.
        fourier: scales by the Fourier symbols of the kernels on the grid of the network's input, strides ignored; None
            where every layer is Linear.
        operator_scales: scales by the operators that convolutions unroll to; likewise.
        log_moved: ln of a bound on how far pruning and rounding move the output of such a network (`transfer`).
        given_inputs: numbers in an input, where its first layer does not tell; see `num_inputs`.
        structure: nats that tell a code's reader the network's shape; None for a chain's widths.
        test: errors of the unpruned network on a test set, and how many samples that has.
        true_error: test error of the network pruned at the searched d, a probability.
        pruned_error: test error of the network pruned at `d`, a probability.
    """

    norms: LayerNorms
    margins: Tensor
    num_samples: int
    log_input_norm: float
    num_classes: int
    d: float = 0.0
    given_strengths: tuple[float, ...] | None = None
    layers: tuple[str, ...] = ()
    log_lipschitz: float = 0.0
    broken: Mapping[str, str] = field(default_factory=dict)
    input_norms: Mapping[float, float] = field(default_factory=dict)
    search: StrengthSearch | None = None
    pruned: tuple[PrunedLayer, ...] = ()
    failure: float = 0.05
    delta: float = 0.05
    compressed_margins: Tensor | None = None
    distinct: int | None = None
    weight_bits: int = 32
    plain: int = 0
    biases: int = 0
    initial: InitialDistances | None = None
    cushions: Cushions | None = None
    flatness: Flatness | None = None
    magnitudes: MagnitudeFlatness | None = None
    sketches: tuple[LayerSketch, ...] | None = None
    coded: Coded | None = None
    given_paths: Paths | None = None
    given_kernels: Kernels | None = None
    patches: Patches | None = None
    given_unrolled: Unrolled | None = None
    given_scales: LayerScales | None = None
    fourier: LayerScales | None = None
    operator_scales: LayerScales | None = None
    log_moved: float | None = None
    given_inputs: int | None = None
    structure: float | None = None
    test: HeldOut | None = None
    true_error: float | None = None
    pruned_error: float | None = None

    def __post_init__(self) -> None:
        if self.compressed_margins is not None and len(self.compressed_margins) != len(self.margins):
            raise ValueError(
                f"{len(self.compressed_margins)} margins of the compressed network for {len(self.margins)} of the "
                "network: they must be of the same samples"
            )

    def with_sketches(self, sketches: Sequence[LayerSketch] | None) -> "Measured":
        """The same with the layers' sketches, unless those are of another network than the one pruned and rounded."""
        alike = sketches is not None and [s.nonzeros for s in sketches] == [p.coded_nonzeros for p in self.pruned]
        return replace(self, sketches=tuple(sketches) if alike and sketches is not None else None)

    @property
    def depth(self) -> int:
        """L."""
        return len(self.norms.shapes)

    @property
    def strengths(self) -> tuple[float, ...]:
        """The strength d of each layer."""
        return (self.d,) * self.depth if self.given_strengths is None else self.given_strengths

    @property
    def margin(self) -> float:
        """γ, the smallest training margin; −inf if the network's output was NaN."""
        return float(self.margins[0])

    @property
    def input_norm(self) -> float:
        """B, the largest ‖x‖₂ among the training samples."""
        return self.input_norms.get(2, safe_exp(self.log_input_norm))

    @property
    def num_inputs(self) -> int:
        """Numbers in an input."""
        return self.norms.shapes[0][1] if self.given_inputs is None else self.given_inputs

    @cached_property
    def kernels(self) -> Kernels | None:
        """Of a wired network whose initial weights are known."""
        start, norms = self.initial, self.norms
        if self.given_kernels is not None or start is None or not start.log_initial:
            return self.given_kernels
        distances = ConvolutionalDistances(
            parameters=tuple(self.sizes),
            places=(1,) * self.depth,
            log_operator=norms.log_spectral,
            log_frobenius=norms.log_frobenius,
            log_1_inf=norms.log_l1_max,
            log_initial=start.log_initial,
            log_distance=start.log_spectral,
            log_distance_frobenius=start.log_frobenius,
            log_distance_1_inf=start.log_l1_max,
            log_distance_rows=start.log_2_1,
            log_distance_taps=start.log_2_1,
        )
        return Kernels(distances, tuple(self.log_reach + others for others in self.log_others))

    @property
    def unrolled(self) -> Unrolled | None:
        """Of a wired network in which nothing branches; of a chain of Linear layers, its kernels."""
        if self.given_unrolled is not None or not self.norms.log_paths_l1:
            return self.given_unrolled
        factors = dict.fromkeys((2.0, 1.5, math.inf), self.log_lipschitz)
        path_l1, path_l2 = max(self.norms.log_paths_l1), max(self.norms.log_paths_l2)
        return Unrolled(self.norms, self.initial, factors, path_l1 + self.log_lipschitz, path_l2 + self.log_lipschitz)

    @property
    def kernel_scales(self) -> LayerScales:
        """By the kernel matrices, with the gain of a normalization where one is known to stand behind the layer."""
        if self.given_scales is not None:
            return self.given_scales
        moved = () if self.initial is None else (self.initial.log_spectral, self.initial.log_frobenius)
        return LayerScales(self.norms.log_spectral, self.norms.log_frobenius, *moved)

    @property
    def paths(self) -> Paths | None:
        """Of a wired network whose functions are positively homogeneous, or of any chain of Linear layers."""
        if self.given_paths is not None or not self.norms.log_paths_l1:
            return self.given_paths
        squared = logsumexp([2 * norm for norm in self.norms.log_paths_l2])
        return Paths(logsumexp(self.norms.log_paths_l1), PathLengths(self.depth, 0, 1), squared)

    @property
    def log_squared_network(self) -> float | None:
        """Ln Σ_k f_{w²}(1)[k], the network with squared weights on all ones; None where there is no path norm."""
        return None if self.paths is None else self.paths.log_squared

    @property
    def stability_measured(self) -> bool:
        """Whether the rows about noise were measured."""
        return self.flatness is not None or self.cushions is not None

    @property
    def test_error(self) -> float | None:
        """Test error of the unpruned network, a probability; None without a test set."""
        return None if self.test is None else self.test.error

    @property
    def compressed_error(self) -> float | None:
        """Training error of the network pruned at d and rounded, a probability; ties and NaN are errors."""
        return None if self.compressed_margins is None else error_rate(self.compressed_margins)

    @cached_property
    def sizes(self) -> list[int]:
        """N_l = d_out·d_in."""
        return [rows * columns for rows, columns in self.norms.shapes]

    @cached_property
    def sides(self) -> list[int]:
        """p_l, the longer side."""
        return [max(shape) for shape in self.norms.shapes]

    @property
    def log_reach(self) -> float:
        """Ln of B times the Lipschitz constants on the way: what the product of the layers' norms multiplies."""
        return self.log_input_norm + self.log_lipschitz

    def log_input_norm_of(self, p: float) -> float:
        """Ln max ‖x‖_p, or its bound D^{1/p − 1/2}·B (p < 2), B (p ≥ 2), D the numbers in an input."""
        if p in self.input_norms:
            return safe_log(self.input_norms[p])
        return self.log_input_norm + max(0.0, 1 / p - 0.5) * math.log(self.num_inputs)

    def log_reach_of(self, p: float) -> float:
        """Ln max ‖x‖_p times what the functions between the layers multiply ‖·‖_p by: what Π‖A_l‖ multiplies."""
        assert self.unrolled is not None
        norm = self.log_input_norm if p == 2 else self.log_input_norm_of(p)
        return norm + self.unrolled.log_factors[p]

    @cached_property
    def log_gamma(self) -> float:
        """Ln of the smallest training margin; −inf if it is not positive."""
        return safe_log(self.margin)

    @cached_property
    def positive_margins(self) -> "PositiveMargins":
        """The margins γ > 0, and R̂_γ at each."""
        values = self.margins[self.margins > 0]
        risks = torch.searchsorted(self.margins, values).double() / len(self.margins)
        return PositiveMargins(values, values.log(), risks, risks.log())

    @cached_property
    def log_others(self) -> list[float]:
        """Logs of Π_{i≠l} ‖A_i‖₂ for every l."""
        return leave_one_out(self.norms.log_spectral)

    @cached_property
    def log_ranks(self) -> list[float]:
        """Logs of ‖A_l‖_F²·Π_{i≠l}‖A_i‖₂² = Π‖A_i‖₂²·‖A_l‖_F²/‖A_l‖₂², finite or −inf even for a zero layer."""
        return [2 * (f + rest) for f, rest in zip(self.norms.log_frobenius, self.log_others, strict=True)]


def _uncertified_norm(matrix: Tensor) -> Tensor:
    """‖A‖₂ for rows that are no proofs, at a quarter of the price of a certificate."""
    return spectral_norm_estimate(matrix, tolerance=1e-7)


def _largest(matrix: Tensor) -> Tensor:
    return matrix.detach().abs().amax().double()


def _logs(norm: Callable[[Tensor], Tensor], weights: Sequence[Tensor]) -> tuple[float, ...]:
    return tuple(safe_log(float(norm(weight))) for weight in weights)
