"""The ladder: every bound, and one table of them (paper §5 and §7, spec §4).

A row is one function of a `Network` and one entry of `ROWS`; callbacks, CSV columns, dashboards and figures take their
names from that table. Every value is a natural log, products of norms live in log space, and everything is float64.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from milkshake_mbp.theory.margins import error_rate, margin_loss
from milkshake_mbp.theory.norms import frobenius_norm, norm_2_1, spectral_norm, spectral_norm_estimate
from milkshake_mbp.theory.perturbation import (
    NeededMargin,
    affordable_strength,
    discretization_error,
    discretize,
    leave_one_out,
    log_output_perturbation,
    log_telescoping_perturbation,
    logsumexp,
    perturbation_condition,
    safe_exp,
    safe_log,
    subgaussian_factor,
)
from milkshake_mbp.theory.pruning import MaskDraw, StrengthSearch, keep_probability
from milkshake_mbp.theory.sketching import DistributedSparsity, distributed_sparsity

__all__ = ["ROWS", "Bound", "Convention", "LayerNorms", "Network", "PrunedLayer", "Row", "bound_table"]

Convention = Literal["paper", "leading"]


@dataclass(frozen=True)
class Bound:
    """One row of the ladder, evaluated.

    Attributes:
        name: the bound's name; the same in every file, chart and table.
        convention: which of the spec's conventions it follows.
        log_value: natural log of the bound.
        terms: what it is made of, by name.
        holds_with: the probability with which it holds as computed; None where the source hides a constant.
        claimed: the probability that the source states, where it states one.
        applies: whether the conditions that the source needs hold.
        reason: why it does not apply; empty if it does.
        vacuous: whether the bound is at least 1 − 1/k, chance; None for a row that is not on the risk scale.
        trivial: whether the bound is at least 1; None for a row that is not on the risk scale.
    """

    name: str
    convention: Convention
    log_value: float
    terms: Mapping[str, float] = field(default_factory=dict)
    holds_with: float | None = None
    claimed: float | None = None
    applies: bool = True
    reason: str = ""
    vacuous: bool | None = None
    trivial: bool | None = None


@dataclass(frozen=True)
class LayerNorms:
    """Natural logs of each layer's norms, in forward order; −inf for a zero layer.

    Attributes:
        shapes: (out, in).
        log_spectral: ln ‖A_l‖₂.
        log_frobenius: ln ‖A_l‖_F.
        log_2_1: ln ‖A_lᵀ‖_{2,1}.
    """

    shapes: tuple[tuple[int, int], ...]
    log_spectral: tuple[float, ...]
    log_frobenius: tuple[float, ...]
    log_2_1: tuple[float, ...]

    @classmethod
    def measure(cls, weights: Sequence[Tensor]) -> "LayerNorms":
        """Measure the (out, in) weights; raises ValueError if they are not finite matrices that chain."""
        if not weights or any(weight.ndim != 2 or not weight.numel() for weight in weights):
            raise ValueError("a network is one or more (out, in) weight matrices, none of them empty")
        shapes = tuple((int(weight.shape[0]), int(weight.shape[1])) for weight in weights)
        for layer, (before, after) in enumerate(pairwise(shapes)):
            if before[0] != after[1]:
                raise ValueError(f"layer {layer} has {before[0]} outputs but layer {layer + 1} takes {after[1]} inputs")
        return cls(shapes, *(_logs(norm, weights) for norm in (spectral_norm, frobenius_norm, norm_2_1)))

    def distance_2_1(self, weights: Sequence[Tensor], reference: Sequence[Tensor] | None) -> tuple[float, ...]:
        """Ln ‖A_lᵀ − M_lᵀ‖_{2,1} for reference matrices M_l, or for M_l = 0."""
        if reference is None:
            return self.log_2_1
        return _logs(
            norm_2_1, [w.double() - m.to(w.device, torch.float64) for w, m in zip(weights, reference, strict=True)]
        )


@dataclass(frozen=True)
class PrunedLayer:
    """What the counting rows need to know of one pruned and discretized layer.

    Attributes:
        difference_norm: ‖Â_l − A_l‖₂.
        step: ρ_l.
        alphabet: r_l = 2⌈max|Â_l|/ρ_l⌉ + 1, the values an entry can take.
        nonzeros: J_l, nonzeros of Â_l.
        coded_nonzeros: α_l, nonzeros after rounding.
        spread: distributed sparsity of Â_l.
    """

    difference_norm: float
    step: float
    alphabet: int
    nonzeros: int
    coded_nonzeros: int
    spread: DistributedSparsity

    @classmethod
    def measure(cls, weight: Tensor, mask: Tensor, step: float | None = None) -> "PrunedLayer":
        """Measure one layer; the default step is ρ_l = max|A_l|·2⁻⁸, or 1 for a zero layer."""
        exact = weight.detach().double()
        pruned = exact * mask
        rho = step or float(exact.abs().amax()) * 2.0**-8 or 1.0
        spread = distributed_sparsity(pruned)
        return cls(
            # No row that reads this is a proof, so an uncertified norm will do, at a quarter of the price.
            difference_norm=float(spectral_norm_estimate(exact - pruned, tolerance=1e-7)),
            step=rho,
            alphabet=2 * math.ceil(float(pruned.abs().amax()) / rho) + 1,
            nonzeros=int((pruned != 0).sum()),
            coded_nonzeros=int((discretize(pruned, rho) != 0).sum()),
            spread=spread,
        )

    @property
    def log_distance(self) -> float:
        """Ln of a bound on ‖Ã_l − A_l‖₂: the measured pruning part and the rigorous rounding part (erratum E6)."""
        rounding = discretization_error(self.step, self.nonzeros, self.spread.column_max, self.spread.row_max)
        return safe_log(self.difference_norm + rounding)


@dataclass(frozen=True)
class Network:
    """Everything the rows read: measured once, shared by all of them.

    Attributes:
        weights: (out, in) tensors in forward order.
        norms: of the weights.
        margins: (n,) training margins of the unpruned network, sorted, float64, on the CPU.
        num_samples: n.
        log_input_norm: ln B.
        num_classes: k.
        d: the strength that the pruned layers, or the paper's search, belong to.
        search: the paper's search; None outside the `paper` convention.
        pruned: the pruned layers at d; empty outside the `leading` convention.
        failure: η, the failure probability that Theorem 5.2 is asked for.
        reference: M_l of Bartlett et al. 2017, or None for 0.
        violated: why the network is not the paper's bias-free, 0-preserving one; empty if it is.
    """

    weights: Sequence[Tensor]
    norms: LayerNorms
    margins: Tensor
    num_samples: int
    log_input_norm: float
    num_classes: int
    d: float = 0.0
    search: StrengthSearch | None = None
    pruned: tuple[PrunedLayer, ...] = ()
    failure: float = 0.05
    reference: Sequence[Tensor] | None = None
    violated: str = ""

    @property
    def depth(self) -> int:
        """L."""
        return len(self.norms.shapes)

    @cached_property
    def sizes(self) -> list[int]:
        """N_l = d_out·d_in."""
        return [rows * columns for rows, columns in self.norms.shapes]

    @cached_property
    def sides(self) -> list[int]:
        """p_l, the longer side."""
        return [max(shape) for shape in self.norms.shapes]

    @cached_property
    def log_gamma(self) -> float:
        """Ln of the smallest training margin; −inf if it is not positive."""
        return safe_log(float(self.margins[0]))

    @cached_property
    def log_others(self) -> list[float]:
        """Logs of Π_{i≠l} ‖A_i‖₂ for every l."""
        return leave_one_out(self.norms.log_spectral)

    @cached_property
    def log_ranks(self) -> list[float]:
        """Logs of ‖A_l‖_F²·Π_{i≠l}‖A_i‖₂² = Π‖A_i‖₂²·‖A_l‖_F²/‖A_l‖₂², finite or −inf even for a zero layer."""
        return [2 * (f + rest) for f, rest in zip(self.norms.log_frobenius, self.log_others, strict=True)]


@dataclass(frozen=True)
class Value:
    """What a row's function returns: its log value and, where there is something to say, the rest of a `Bound`."""

    log_value: float
    terms: Mapping[str, float] = field(default_factory=dict)
    claimed: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Row:
    """One entry of the ladder's table.

    Attributes:
        name: the bound's name.
        convention: `paper` or `leading`.
        evaluate: its formula.
        reference: where it comes from.
        label: its name for people.
        risk: whether it is on the risk scale, so that 1 − 1/k means chance.
        counts: whether it survives biases: it counts parameters and rests on no perturbation lemma.
    """

    name: str
    convention: Convention
    evaluate: Callable[[Network], Value]
    label: str
    reference: str
    risk: bool = True
    counts: bool = False


def _logs(norm: Callable[[Tensor], Tensor], weights: Sequence[Tensor]) -> tuple[float, ...]:
    return tuple(safe_log(float(norm(weight))) for weight in weights)


def _risk_bound(risk: float, log_complexity: float, **terms: float) -> Value:
    """R̂ + complexity, and what it is made of."""
    return Value(
        logsumexp([safe_log(risk), log_complexity]),
        {"empirical_risk": risk, "log_complexity": log_complexity, **terms},
    )


def _best_margin(net: Network, log_numerator: float, **terms: float) -> Value:
    """Min over the positive training margins γ of R̂_γ + e^{log_numerator}/γ; +inf if no margin is positive."""
    positive = net.margins[net.margins > 0]
    if not positive.numel():
        return Value(math.inf, terms, reason="no training margin is positive")
    below = torch.searchsorted(net.margins, positive).double() / len(net.margins)
    log_complexity = log_numerator - positive.log()
    log_values = torch.logaddexp(below.log(), log_complexity)
    best = int(log_values.argmin())
    return _risk_bound(float(below[best]), float(log_complexity[best]), gamma=float(positive[best]), **terms)


def _sqrt_over_n(net: Network, total: float) -> float:
    """Ln sqrt(total / n)."""
    return 0.5 * (safe_log(total) - math.log(net.num_samples))


def _over_gamma_squared(net: Network, log_numerator: float) -> Value:
    """A squared complexity over γ²; +inf if γ, the smallest margin, is not positive."""
    return Value(math.inf if math.isinf(net.log_gamma) else log_numerator - 2 * net.log_gamma)


def paper_neyshabur_2015(net: Network) -> Value:
    """Π‖A_l‖_F²/γ² (E8: a squared complexity without B², depth factors and 1/n)."""
    return _over_gamma_squared(net, 2 * sum(net.norms.log_frobenius))


def paper_neyshabur_2017(net: Network) -> Value:
    """Π‖A_l‖₂²·Σ_l d_in(l)‖A_l‖_F²/‖A_l‖₂² / γ² (E8)."""
    widths = [math.log(columns) for _, columns in net.norms.shapes]
    return _over_gamma_squared(net, logsumexp([w + rank for w, rank in zip(widths, net.log_ranks, strict=True)]))


def paper_bartlett_2017(net: Network) -> Value:
    """Π‖A_l‖₂²·Σ_l ‖A_l‖_F²/‖A_l‖₂² / γ² (E8; the released (1, 2) norm works out to Frobenius)."""
    return _over_gamma_squared(net, logsumexp(net.log_ranks))


def paper_theorem_5_2(net: Network) -> Value:
    """Fraction of margins < needed(d), plus sqrt(Σ_l N_l χ(d) ln²(p_l)/n) (E7: 3λ_l and ln 1/ρ_l dropped)."""
    assert net.search is not None
    total = sum(size * math.log(side) ** 2 for size, side in zip(net.sizes, net.sides, strict=True))
    complexity = _sqrt_over_n(net, total * keep_probability(net.d))
    return _risk_bound(
        margin_loss(net.margins, safe_exp(net.search.log_needed)), complexity, d=net.d, log_needed=net.search.log_needed
    )


def leading_neyshabur_2015(net: Network) -> Value:
    """R̂_γ + 2^{L−1} B Π‖A_l‖_F/(γ√n)."""
    frobenius = sum(net.norms.log_frobenius)
    return _best_margin(
        net, (net.depth - 1) * math.log(2) + net.log_input_norm + frobenius - 0.5 * math.log(net.num_samples)
    )


def leading_neyshabur_2017(net: Network) -> Value:
    """R̂_γ + sqrt(B² L² h ln(Lh) Π‖A_l‖₂² Σ_l ‖A_l‖_F²/‖A_l‖₂² / (γ² n)), h the widest side."""
    h, L = max(net.sides), net.depth
    square = math.log(h) + safe_log(math.log(L * h)) + logsumexp(net.log_ranks) - math.log(net.num_samples)
    return _best_margin(net, net.log_input_norm + math.log(L) + 0.5 * square)


def leading_bartlett_2017(net: Network) -> Value:
    """R̂_γ + B Π‖A_l‖₂ (Σ_l (‖A_lᵀ − M_lᵀ‖_{2,1}/‖A_l‖₂)^{2/3})^{3/2} ln(W)/(γ√n), W the widest side."""
    distances = net.norms.distance_2_1(net.weights, net.reference)
    total = logsumexp([2 / 3 * (m + rest) for m, rest in zip(distances, net.log_others, strict=True)])
    log_width = safe_log(math.log(max(net.sides)))
    return _best_margin(net, net.log_input_norm + 1.5 * total + log_width - 0.5 * math.log(net.num_samples))


def _log_pruning_gamma(net: Network) -> tuple[float, dict[str, float], str]:
    """Ln γ = ln(√2·needed) for the pruned, rounded network (E12), its terms, and why Lemma B.2 does not apply."""
    distances = [layer.log_distance for layer in net.pruned]
    spectral = list(net.norms.log_spectral)
    needed = log_output_perturbation(spectral, distances, net.log_input_norm)
    perturbed = [logsumexp(pair) for pair in zip(spectral, distances, strict=True)]
    telescoping = log_telescoping_perturbation(spectral, perturbed, distances, net.log_input_norm)
    held = perturbation_condition(spectral, distances)
    broken = [str(layer) for layer, holds in enumerate(held) if not holds]
    reason = f"Lemma B.2 needs ‖U_l‖ ≤ ‖A_l‖/L, broken in layer {', '.join(broken)} (E14)" if broken else ""
    log_gamma = 0.5 * math.log(2) + needed
    terms = {"d": net.d, "log_gamma": log_gamma, "log_gamma_telescoping": 0.5 * math.log(2) + telescoping}
    return log_gamma, terms, reason


def _counting_row(net: Network, total: float) -> Value:
    log_gamma, terms, reason = _log_pruning_gamma(net)
    value = _risk_bound(error_rate(net.margins, safe_exp(log_gamma)), _sqrt_over_n(net, total), **terms)
    return Value(value.log_value, value.terms, reason=reason)


def leading_theorem_5_2(net: Network) -> Value:
    """R̂_γ + sqrt(Σ_l 3λ_l χ N_l ln²(p_l) ln r_l / n), γ = √2·needed, λ_l = ε_l = 2L/(η − Σ p_l⁻²).

    `claimed` is the paper's 1 − Σ_l(1/λ_l + 1/ε_l + p_l⁻²); the term `honest_probability` subtracts Lemma 5.1's
    d^{−1/3} terms too, and is below 0 at the usual sizes (E10, E11).
    """
    slack = net.failure - sum(side**-2.0 for side in net.sides)
    if slack <= 0:
        return Value(math.inf, reason=f"no λ gives failure {net.failure:g}: Σ p_l⁻² alone exceeds it")
    lam = 2 * net.depth / slack
    total = sum(
        3 * lam * keep_probability(net.d) * size * math.log(side) ** 2 * math.log(layer.alphabet)
        for size, side, layer in zip(net.sizes, net.sides, net.pruned, strict=True)
    )
    claimed = 1 - net.failure
    honest = claimed - sum(rows ** (-1 / 3) + columns ** (-1 / 3) for rows, columns in net.norms.shapes)
    value = _counting_row(net, total)
    terms = {**value.terms, "lambda": lam, "honest_probability": honest}
    return Value(value.log_value, terms, claimed=claimed, reason=value.reason)


def leading_theorem_5_2_measured(net: Network) -> Value:
    """R̂_γ + sqrt(Σ_l max(j_c d_1, j_r d_2) ln²(p_l) ln r_l / n): the measured spread for 3λ_l χ N_l (E20)."""
    return _counting_row(
        net,
        sum(
            max(layer.spread.row_max * rows, layer.spread.column_max * columns)
            * math.log(side) ** 2
            * math.log(layer.alphabet)
            for (rows, columns), side, layer in zip(net.norms.shapes, net.sides, net.pruned, strict=True)
        ),
    )


def leading_naive(net: Network) -> Value:
    """R̂_γ + sqrt(Σ_l [ln C(N_l, α_l) + α_l ln r_l]/n) (Lemma D.1)."""
    return _counting_row(
        net,
        sum(
            _log_binomial(size, layer.coded_nonzeros) + layer.coded_nonzeros * math.log(layer.alphabet)
            for size, layer in zip(net.sizes, net.pruned, strict=True)
        ),
    )


def leading_dense(net: Network) -> Value:
    """R̂_0 + sqrt(Σ_l N_l ln 2³²/n): plain float counting, which every compression bound must beat."""
    return _risk_bound(error_rate(net.margins), _sqrt_over_n(net, sum(net.sizes) * 32 * math.log(2)))


def _log_binomial(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


ROWS: tuple[Row, ...] = (
    Row(
        "neyshabur_2015",
        "paper",
        paper_neyshabur_2015,
        "Neyshabur 2015",
        "Neyshabur et al. 2015, as tabulated (E8)",
        risk=False,
    ),
    Row(
        "neyshabur_2017",
        "paper",
        paper_neyshabur_2017,
        "Neyshabur 2017",
        "Neyshabur et al. 2017, as tabulated (E8)",
        risk=False,
    ),
    Row(
        "bartlett_2017",
        "paper",
        paper_bartlett_2017,
        "Bartlett 2017",
        "Bartlett et al. 2017, as tabulated (E8)",
        risk=False,
    ),
    Row("theorem_5_2", "paper", paper_theorem_5_2, "Theorem 5.2", "Theorem 5.2, as tabulated (E7)"),
    Row("neyshabur_2015", "leading", leading_neyshabur_2015, "Neyshabur 2015", "Neyshabur et al. 2015, Cor. 2"),
    Row("neyshabur_2017", "leading", leading_neyshabur_2017, "Neyshabur 2017", "Neyshabur et al. 2017, Thm. 1"),
    Row("bartlett_2017", "leading", leading_bartlett_2017, "Bartlett 2017", "Bartlett et al. 2017, Thm. 1.1"),
    Row("theorem_5_2", "leading", leading_theorem_5_2, "Theorem 5.2", "Theorem 5.2"),
    Row(
        "theorem_5_2_measured",
        "leading",
        leading_theorem_5_2_measured,
        "Theorem 5.2, measured spread",
        "Theorem 5.1 with the measured j_r, j_c",
    ),
    Row("naive", "leading", leading_naive, "Naive counting", "Lemma D.1"),
    Row("dense", "leading", leading_dense, "Plain float counting", "Theorem D.1 with 32-bit weights", counts=True),
)


def bound_table(
    weights: Sequence[Tensor],
    *,
    convention: Convention,
    margins: Tensor,
    num_samples: int,
    input_norm: float,
    d: float | None = None,
    num_classes: int | None = None,
    draw: MaskDraw | None = None,
    keep_diagonal: bool = True,
    steps: Sequence[float | None] | None = None,
    norms: LayerNorms | None = None,
    search: StrengthSearch | None = None,
    reference: Sequence[Tensor] | None = None,
    failure: float = 0.05,
    violated: str = "",
    seed: int = 0,
) -> list[Bound]:
    """Every row of one convention for one network.

    Args:
        weights: (out, in) tensors in forward order, any floating dtype, any device.
        convention: `paper`, what the released routines computed for the tables, or `leading`, each published
            leading-order expression on the risk scale with hidden constant 1.
        margins: (n,) margins of the unpruned network on the training samples.
        num_samples: n.
        input_norm: B, the largest ‖x‖₂ among those samples.
        d: pruning strength; by default the paper's search in `paper`, 1 in `leading`.
        num_classes: k; by default the last layer's outputs.
        draw: of Algorithm 1's masks, if already made; by default one from the seed.
        keep_diagonal: whether the masks of `leading` spare entries (i, i); those of `paper` never do.
        steps: ρ_l for `leading`; by default max|A_l|·2⁻⁸.
        norms: of the weights, if already measured.
        search: outcome of the paper's search, if already done.
        reference: M_l of Bartlett et al. 2017, such as the initial weights; by default 0.
        failure: η, the failure probability asked of Theorem 5.2.
        violated: why the network is not bias-free with 0-preserving activations, if it is not; such rows do not apply.
        seed: of the masks' draw.

    Returns:
        One `Bound` per row of the convention, in the order of `ROWS`.

    Raises:
        ValueError: unknown convention, NaN weights, layers that do not chain, no samples, or fewer than two classes.
    """
    if convention not in {row.convention for row in ROWS}:
        raise ValueError(f'unknown convention "{convention}": expected "paper" or "leading"')
    if not margins.numel() or num_samples < 1:
        raise ValueError("no training samples: the margins are empty")
    if not 0 <= input_norm < math.inf:
        raise ValueError(f"the input norm must be finite and not negative, got {input_norm}")
    norms = norms or LayerNorms.measure(weights)
    num_classes = num_classes or norms.shapes[-1][0]
    if num_classes < 2:
        raise ValueError("a classifier has at least two classes: give num_classes if the last layer has one output")
    log_input_norm = safe_log(input_norm)
    ordered = margins.detach().double().cpu().nan_to_num(nan=-math.inf).sort().values
    pruned: tuple[PrunedLayer, ...] = ()
    if convention == "paper":
        search = search or search_paper_strength(
            weights, norms, float(ordered[0]), num_samples, log_input_norm, draw=draw, seed=seed, d=d
        )
        d = search.d
    else:
        d = 1.0 if d is None else d
        masks = (draw or MaskDraw(weights, seed)).masks(d, keep_diagonal)
        pruned = tuple(
            PrunedLayer.measure(weight, mask, step)
            for weight, mask, step in zip(weights, masks, steps or [None] * len(weights), strict=True)
        )
    net = Network(
        weights=weights,
        norms=norms,
        margins=ordered,
        num_samples=num_samples,
        log_input_norm=log_input_norm,
        num_classes=num_classes,
        d=d,
        search=search,
        pruned=pruned,
        failure=failure,
        reference=reference,
        violated=violated,
    )
    return [_evaluate(row, net) for row in ROWS if row.convention == convention]


def search_paper_strength(
    weights: Sequence[Tensor],
    norms: LayerNorms,
    margin: float,
    num_samples: int,
    log_input_norm: float,
    *,
    draw: MaskDraw | None = None,
    seed: int = 0,
    d: float | None = None,
) -> StrengthSearch:
    """The paper's search for d, or its needed margin at a given d (`paper` convention, spec §4).

    Args:
        weights: (out, in) tensors in forward order.
        norms: of the weights.
        margin: γ, the smallest training margin.
        num_samples: n, for κ_l.
        log_input_norm: ln B.
        draw: of the masks, if already made.
        seed: of the draw, if not.
        d: evaluate here instead of searching.
    """
    if d is None and not margin > 0:
        return StrengthSearch(0.0, -math.inf, -math.inf, 0)
    factors = [subgaussian_factor(shape, num_samples) for shape in norms.shapes]
    needed = NeededMargin(weights, draw or MaskDraw(weights, seed), norms.log_spectral, log_input_norm, factors)
    if d is not None:
        return StrengthSearch(d, needed.log_needed(d), safe_log(margin), 1)
    return affordable_strength(needed, margin)


def _evaluate(row: Row, net: Network) -> Bound:
    value = row.evaluate(net)
    assumed = net.violated if row.convention == "leading" and not row.counts else ""
    reason = "; ".join(filter(None, (assumed, value.reason)))
    return Bound(
        name=row.name,
        convention=row.convention,
        log_value=value.log_value,
        terms=value.terms,
        claimed=value.claimed,
        applies=not reason,
        reason=reason,
        vacuous=value.log_value >= math.log1p(-1 / net.num_classes) if row.risk else None,
        trivial=value.log_value >= 0 if row.risk else None,
    )
