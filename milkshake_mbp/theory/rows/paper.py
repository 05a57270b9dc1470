"""The `paper` convention: what the authors' released routines computed for Tables 1–2 and Figures 1–2 (spec §4)."""

import math

from milkshake_mbp.theory.margins import margin_loss
from milkshake_mbp.theory.measured import Measured
from milkshake_mbp.theory.perturbation import logsumexp, safe_exp
from milkshake_mbp.theory.pruning import keep_probability
from milkshake_mbp.theory.rows.row import Row, Value, over_gamma_squared, risk_bound, sqrt_over_n

__all__ = ["ROWS"]


def neyshabur_2015(net: Measured) -> Value:
    """Π‖A_l‖_F²/γ² (E8: a squared complexity without B², depth factors and 1/n)."""
    return over_gamma_squared(net, 2 * sum(net.norms.log_frobenius))


def neyshabur_2017(net: Measured) -> Value:
    """Π‖A_l‖₂²·Σ_l d_in(l)‖A_l‖_F²/‖A_l‖₂² / γ² (E8)."""
    widths = [math.log(columns) for _, columns in net.norms.shapes]
    return over_gamma_squared(net, logsumexp([w + rank for w, rank in zip(widths, net.log_ranks, strict=True)]))


def bartlett_2017(net: Measured) -> Value:
    """Π‖A_l‖₂²·Σ_l ‖A_l‖_F²/‖A_l‖₂² / γ² (E8; the released (1, 2) norm works out to Frobenius)."""
    return over_gamma_squared(net, logsumexp(net.log_ranks))


def theorem_5_2(net: Measured) -> Value:
    """Fraction of margins < needed(d), plus sqrt(Σ_l N_l χ(d) ln²(p_l)/n) (E7: 3λ_l and ln 1/ρ_l dropped)."""
    assert net.search is not None
    total = sum(size * math.log(side) ** 2 for size, side in zip(net.sizes, net.sides, strict=True))
    complexity = sqrt_over_n(net, total * keep_probability(net.search.d))
    return risk_bound(
        margin_loss(net.margins, safe_exp(net.search.log_needed)),
        complexity,
        d=net.search.d,
        log_needed=net.search.log_needed,
    )


ROWS = (
    Row(
        "neyshabur_2015",
        "paper",
        neyshabur_2015,
        "Neyshabur 2015",
        "Neyshabur et al. 2015, as tabulated (E8)",
        risk=False,
    ),
    Row(
        "neyshabur_2017",
        "paper",
        neyshabur_2017,
        "Neyshabur 2017",
        "Neyshabur et al. 2017, as tabulated (E8)",
        risk=False,
    ),
    Row(
        "bartlett_2017",
        "paper",
        bartlett_2017,
        "Bartlett 2017",
        "Bartlett et al. 2017, as tabulated (E8)",
        risk=False,
    ),
    Row("theorem_5_2", "paper", theorem_5_2, "Theorem 5.2", "Theorem 5.2, as tabulated (E7)"),
)
