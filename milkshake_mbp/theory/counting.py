"""Counting pruned networks (paper App. D): the naive count, and how many entries Algorithm 1 leaves."""

import math

from scipy.special import betainc, erf

__all__ = [
    "counting_complexity",
    "likely_pruned_fraction",
    "log_binomial",
    "more_are_likely_pruned",
    "more_are_pruned",
]


def log_binomial(n: int, k: int) -> float:
    """Ln C(n, k)."""
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def counting_complexity(log_count: float, num_samples: int, delta: float) -> float:
    """sqrt(ln(J/δ)/(2n)), what J parameterizations add to the risk with probability 1 − δ (Theorem D.1, erratum E19).

    Args:
        log_count: ln J.
        num_samples: n.
        delta: δ.
    """
    return math.sqrt((log_count - math.log(delta)) / (2 * num_samples))


def likely_pruned_fraction(kappa: float, d: float) -> float:
    """p₁ = erf(sqrt(−d ln κ/2)), the probability that Algorithm 1 prunes a Gaussian entry with probability ≥ κ.

    That is P(|a| ≤ sqrt(−dΨ ln κ)) for a ~ N(0, Ψ) (Lemma D.2).

    Args:
        kappa: κ in (0, 1].
        d: pruning strength, ≥ 0.
    """
    return float(erf(math.sqrt(max(0.0, -d * math.log(kappa) / 2))))


def more_are_likely_pruned(size: int, tau: int, kappa: float, d: float) -> float:
    """P(more than τ of a layer's entries are each pruned with probability ≥ κ) = 1 − I_{1−p₁}(N − τ, 1 + τ).

    Lemma D.2, whose "at least τ" is a "more than τ" (erratum E5): I is P(Binomial(N, p₁) ≤ τ).

    Args:
        size: N, entries of the layer, the exempt diagonal left out.
        tau: τ in [0, N).
        kappa: κ in (0, 1].
        d: pruning strength, ≥ 0.
    """
    return _more_than(tau, size, likely_pruned_fraction(kappa, d))


def more_are_pruned(tau: int, alpha: int, kappa: float) -> float:
    """P(more than α are pruned | τ entries are, each with probability ≥ κ) ≥ 1 − I_{1−κ}(τ − α, α + 1).

    Lemma D.3, with the same slip as D.2; its α counts the entries that go, D.1's the ones that stay (erratum E5).

    Args:
        tau: τ, entries that are likely to be pruned.
        alpha: α in [0, τ).
        kappa: κ in [0, 1].
    """
    return _more_than(alpha, tau, kappa)


def _more_than(threshold: int, trials: int, probability: float) -> float:
    """P(Binomial(trials, probability) > threshold), by the regularized incomplete beta function."""
    if threshold >= trials:
        return 0.0
    # I_p(k + 1, n − k) = 1 − I_{1−p}(n − k, k + 1), without the cancellation.
    return float(betainc(threshold + 1, trials - threshold, probability))
