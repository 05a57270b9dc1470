"""The `leading` convention: published leading-order bounds on the risk scale, hidden constants 1 (spec §4)."""

import math
from collections.abc import Sequence

from torch import Tensor

from milkshake_mbp.theory.counting import log_binomial
from milkshake_mbp.theory.lottery import log_ticket_width, ticket_parameters
from milkshake_mbp.theory.margins import error_rate
from milkshake_mbp.theory.measured import Measured
from milkshake_mbp.theory.perturbation import (
    largest_step,
    log_output_perturbation,
    log_telescoping_perturbation,
    logsumexp,
    perturbation_condition,
    safe_exp,
    safe_log,
)
from milkshake_mbp.theory.pruning import keep_probability
from milkshake_mbp.theory.rows.row import (
    SEQUENCE,
    Row,
    Value,
    best_margin,
    minimize_over_margins,
    noise_bound,
    risk_bound,
    sqrt_over_n,
)

__all__ = ["ROWS"]

_PLAIN = ("bias_free", "zero_preserving")
_HOMOGENEOUS = (*_PLAIN, "homogeneous")
_WIRED = ("wired",)


def neyshabur_2015(net: Measured) -> Value:
    """R̂_γ + 2^{L−1} B Π‖A_l‖_F/(γ√n)."""
    assert net.unrolled is not None
    peeled = net.unrolled.activations * math.log(2)
    frobenius = sum(net.unrolled.norms.log_frobenius)
    return best_margin(net, peeled + net.log_reach_of(2) + frobenius - 0.5 * math.log(net.num_samples))


def neyshabur_2017(net: Measured) -> Value:
    """R̂_γ + sqrt(B² L² h ln(Lh) Π‖A_l‖₂² Σ_l ‖A_l‖_F²/‖A_l‖₂² / (γ² n)), h the longest side of a layer.

    The published code takes each layer's output units for h; the proof needs both sides of its noise matrices.
    """
    assert net.unrolled is not None
    return noise_bound(net, net.unrolled.norms.log_frobenius)


def bartlett_2017(net: Measured) -> Value:
    """R̂_γ + B Π‖A_l‖₂ (Σ_l (‖A_lᵀ‖_{2,1}/‖A_l‖₂)^{2/3})^{3/2} ln(W)/(γ√n), W the widest side."""
    assert net.unrolled is not None
    return _bartlett_2017(net, net.unrolled.norms.log_2_1)


def bartlett_2017_initial(net: Measured) -> Value:
    """The same with the initial weights M_l for reference: ‖A_lᵀ − M_lᵀ‖_{2,1} in place of ‖A_lᵀ‖_{2,1}."""
    assert net.unrolled is not None and net.unrolled.initial is not None
    return _bartlett_2017(net, net.unrolled.initial.log_2_1)


def _bartlett_2017(net: Measured, distances: Sequence[float]) -> Value:
    assert net.unrolled is not None
    total = logsumexp([2 / 3 * (m + rest) for m, rest in zip(distances, net.unrolled.log_others, strict=True)])
    log_width = safe_log(math.log(net.unrolled.width))
    return best_margin(net, net.log_reach_of(2) + 1.5 * total + log_width - 0.5 * math.log(net.num_samples))


def _unmet(net: Measured) -> str:
    """What Lemma B.2 assumes of a chain and does not hold; the composition rules for other networks assume nothing."""
    return "; ".join(net.broken[trait] for trait in _PLAIN if trait in net.broken and net.log_moved is None)


def _log_pruning_gamma(net: Measured) -> tuple[float, dict[str, float], str]:
    """Ln γ = ln(√2·needed) for the pruned, rounded network (E12), its terms, and why Lemma B.2 does not apply.

    For networks that are not chains of Linear layers, `needed` is by the composition rules (spec §9), which hold with
    biases, pooling and residual sums, however much is pruned.
    """
    if net.log_moved is not None:
        log_gamma = 0.5 * math.log(2) + net.log_moved
        return log_gamma, {"d": net.d, "log_gamma": log_gamma}, ""
    distances = [layer.log_distance for layer in net.pruned]
    spectral = list(net.norms.log_spectral)
    needed = log_output_perturbation(spectral, distances, net.log_reach)
    perturbed = [logsumexp(pair) for pair in zip(spectral, distances, strict=True)]
    telescoping = log_telescoping_perturbation(spectral, perturbed, distances, net.log_reach)
    held = perturbation_condition(spectral, distances)
    broken = [str(layer) for layer, holds in enumerate(held) if not holds]
    admissible = min(
        largest_step(safe_exp(norm), layer.difference_norm, net.depth, layer.unit_error)
        for norm, layer in zip(spectral, net.pruned, strict=True)
    )
    advice = (
        f"but would hold with a rounding step of {admissible:.2g}"
        if admissible > 0
        else "because of pruning alone, so no rounding step helps"
    )
    where = f"layer{'s' * (len(broken) > 1)} {', '.join(broken)}"
    lemma = f"Lemma B.2 needs ‖U_l‖ ≤ ‖A_l‖/L, which fails in {where} {advice} (erratum E14)" if broken else ""
    reason = "; ".join(filter(None, (_unmet(net), lemma)))
    log_gamma = 0.5 * math.log(2) + needed
    terms = {
        "d": net.d,
        "log_gamma": log_gamma,
        "log_gamma_telescoping": 0.5 * math.log(2) + telescoping,
        "largest_step": admissible,
    }
    return log_gamma, terms, reason


def _counting_row(net: Measured, total: float) -> Value:
    log_gamma, terms, reason = _log_pruning_gamma(net)
    value = risk_bound(error_rate(net.margins, safe_exp(log_gamma)), sqrt_over_n(net, total), **terms)
    return Value(value.log_value, value.terms, reason=reason)


def theorem_5_2(net: Measured) -> Value:
    """R̂_γ + sqrt(Σ_l 3λ_l χ N_l ln²(p_l) ln r_l / n), γ = √2·needed, λ_l = ε_l = 2L/(η − Σ p_l⁻²).

    `claimed` is the paper's 1 − Σ_l(1/λ_l + 1/ε_l + p_l⁻²); the term `honest_probability` subtracts Lemma 5.1's
    d^{−1/3} terms too, and is below 0 at the usual sizes (E10, E11).
    """
    slack = net.failure - sum(side**-2.0 for side in net.sides)
    if slack <= 0:
        reason = f"no λ gives failure {net.failure:g}: Σ p_l⁻² alone exceeds it"
        return Value(math.inf, reason="; ".join(filter(None, (_unmet(net), reason))))
    lam = 2 * net.depth / slack
    total = sum(
        3 * lam * keep_probability(d) * size * math.log(side) ** 2 * math.log(layer.alphabet)
        for size, side, d, layer in zip(net.sizes, net.sides, net.strengths, net.pruned, strict=True)
    )
    claimed = 1 - net.failure
    honest = claimed - sum(rows ** (-1 / 3) + columns ** (-1 / 3) for rows, columns in net.norms.shapes)
    value = _counting_row(net, total)
    terms = {**value.terms, "lambda": lam, "honest_probability": honest}
    return Value(value.log_value, terms, claimed=claimed, reason=value.reason)


def theorem_5_2_measured(net: Measured) -> Value:
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


def naive(net: Measured) -> Value:
    """R̂_γ + sqrt(Σ_l [ln C(N_l, α_l) + α_l ln r_l]/n) (Lemma D.1)."""
    return _counting_row(
        net,
        sum(
            log_binomial(size, layer.coded_nonzeros) + layer.coded_nonzeros * math.log(layer.alphabet)
            for size, layer in zip(net.sizes, net.pruned, strict=True)
        ),
    )


def dense(net: Measured) -> Value:
    """R̂_0 + sqrt(Σ_l N_l ln 2³²/n): plain float counting, which every compression bound must beat."""
    return risk_bound(error_rate(net.margins), sqrt_over_n(net, sum(net.sizes) * 32 * math.log(2)))


def theorem_6_2(net: Measured) -> Value:
    """R̂_γ + sqrt([n_M d_0 + L n_M²] ln²D_G(ε) ln r / n) for a ticket that imitates this network, 2L layers deep.

    The theorem wants ‖x‖ ≤ 1, ‖A_l‖₂ ≤ 1 and ‖A_l‖_max ≤ 1/√d_in, so the network is rescaled to that, and its margins
    with it; ε = γ/√2 of what is left (E12). r = 2·2⁸ + 1, for weights in [−1, 1].
    """
    width = max((rows for rows, _ in net.norms.shapes[:-1]), default=net.norms.shapes[0][1])
    pairs = zip(net.norms.log_largest, net.norms.shapes, strict=True)
    largest = [peak + 0.5 * math.log(columns) for peak, (_, columns) in pairs]
    log_scale = net.log_reach + sum(map(max, net.norms.log_spectral, largest))

    def log_complexity(log_gamma: Tensor) -> Tensor:
        log_width = log_ticket_width(width, net.depth, log_gamma - log_scale - 0.5 * math.log(2))
        total = ticket_parameters(width, net.norms.shapes[0][1], net.depth, log_width) * math.log(2 * 2**8 + 1)
        return 0.5 * (total.log() - math.log(net.num_samples))

    value = minimize_over_margins(net, log_complexity)
    reason = value.reason or "Theorem 5.1 needs a full diagonal, which a ticket does not have (erratum E18)"
    return Value(value.log_value, value.terms, reason=reason)


ROWS = (
    Row(
        "neyshabur_2015",
        "leading",
        neyshabur_2015,
        "Neyshabur 2015",
        "Neyshabur et al. 2015, Cor. 2",
        structure=SEQUENCE,
        assumes=(*_HOMOGENEOUS, "entrywise"),
    ),
    Row(
        "neyshabur_2017",
        "leading",
        neyshabur_2017,
        "Neyshabur 2017",
        "Neyshabur et al. 2017, Thm. 1",
        structure=SEQUENCE,
        assumes=_HOMOGENEOUS,
    ),
    Row(
        "bartlett_2017",
        "leading",
        bartlett_2017,
        "Bartlett 2017",
        "Bartlett et al. 2017, Thm. 1.1",
        structure=SEQUENCE,
        assumes=_PLAIN,
    ),
    Row(
        "bartlett_2017_initial",
        "leading",
        bartlett_2017_initial,
        "Bartlett 2017, from initialization",
        "Bartlett et al. 2017, Thm. 1.1, with the initial weights for reference",
        needs=("initial",),
        structure=SEQUENCE,
        assumes=_PLAIN,
    ),
    Row("theorem_5_2", "leading", theorem_5_2, "Theorem 5.2", "Theorem 5.2", structure=_WIRED),
    Row(
        "theorem_5_2_measured",
        "leading",
        theorem_5_2_measured,
        "Theorem 5.2, measured spread",
        "Theorem 5.1 with the measured j_r, j_c",
        structure=_WIRED,
    ),
    Row("naive", "leading", naive, "Naive counting", "Lemma D.1", structure=_WIRED),
    Row(
        "theorem_6_2",
        "leading",
        theorem_6_2,
        "Theorem 6.2, a ticket",
        "Theorem 6.2, Malach et al. 2020",
        assumes=_HOMOGENEOUS,
    ),
    Row("dense", "leading", dense, "Plain float counting", "Theorem D.1 with 32-bit weights", structure=()),
)
