"""Bounds without a hidden constant: the error of a network that a short code describes (spec §4, `rigorous`)."""

import math
from collections.abc import Iterable

from milkshake_mbp.theory.counting import log_binomial

__all__ = [
    "elias_gamma_length",
    "grid_code_length",
    "kl_inverse",
    "occam_bound",
    "scattered_code_length",
    "sparse_code_length",
]


def kl_inverse(q: float, c: float) -> float:
    """kl⁻¹(q, c) = max{p : kl(q‖p) ≤ c}, with kl(q‖p) = q ln(q/p) + (1−q) ln((1−q)/(1−p)), in nats.

    Bisection to adjacent floats, of which the upper is returned: never below the true value by more than rounding.

    Args:
        q: an empirical error, a probability.
        c: a budget in nats per sample, ≥ 0.

    Returns:
        A probability: kl⁻¹(1, c) = 1, kl⁻¹(0, c) = 1 − e^{−c}.

    Raises:
        ValueError: q is no probability, or c is negative or NaN.

    Example:
        >>> round(kl_inverse(0.0, 0.5), 6), kl_inverse(1.0, 0.5)
        (0.393469, 1.0)
    """
    if not 0 <= q <= 1 or not c >= 0:
        raise ValueError(f"kl⁻¹(q, c) needs q in [0, 1] and c ≥ 0, got q = {q} and c = {c}")
    if q == 1 or math.isinf(c):
        return 1.0
    if q == 0:
        return -math.expm1(-c)
    low, high = q, 1.0
    while low < (middle := (low + high) / 2) < high:
        if q * math.log(q / middle) + (1 - q) * math.log((1 - q) / (1 - middle)) <= c:
            low = middle
        else:
            high = middle
    return high


def occam_bound(error: float, bits: float, num_samples: int, delta: float) -> float:
    """R ≤ kl⁻¹(R̂, (C + ln 1/δ)/n) for every network of a prefix code at once, with probability ≥ 1 − δ.

    The one-sided Chernoff–kl bound P(kl(R̂‖R) ≥ c, R̂ < R) ≤ e^{−cn}, at c = (C + ln 1/δ)/n for a code length of C nats,
    summed over the code's words: Kraft's Σ e^{−C} ≤ 1 leaves δ.

    Args:
        error: R̂, the network's own error over the n samples, a probability.
        bits: its code length in bits, C/ln 2.
        num_samples: n, independent draws, of which the code knows nothing.
        delta: δ, the failure probability.

    Returns:
        A bound on the probability of error.

    Raises:
        ValueError: an argument is out of range.
    """
    if not bits >= 0 or num_samples < 1 or not 0 < delta <= 1:
        raise ValueError(
            f"an Occam bound needs bits ≥ 0, n ≥ 1 and 0 < delta ≤ 1, got {bits} bits, n = {num_samples} and {delta}"
        )
    return kl_inverse(error, (bits * math.log(2) - math.log(delta)) / num_samples)


def elias_gamma_length(numbers: Iterable[int]) -> float:
    """Σ c(i) with c(i) = (2⌊log₂(i+1)⌋ + 1) ln 2 nats, what Elias' gamma code takes for integers ≥ 0."""
    return sum(2 * (number + 1).bit_length() - 1 for number in numbers) * math.log(2)


def scattered_code_length(size: int, nonzeros: int, alphabet: int) -> float:
    """ln(N+1) + ln C(N, α) + α ln(r−1) nats: how many of N entries are not zero, which, and their values.

    Args:
        size: N.
        nonzeros: α.
        alphabet: r, zero included.
    """
    return math.log(size + 1) + log_binomial(size, nonzeros) + nonzeros * math.log(max(alphabet - 1, 1))


def grid_code_length(alphabet: int) -> float:
    """Nats for ρ, a 32-bit float, and r, by Elias' gamma code."""
    return 32 * math.log(2) + elias_gamma_length([alphabet])


def sparse_code_length(size: int, nonzeros: int, alphabet: int, diagonal: int = 0, on_diagonal: int = 0) -> float:
    """Nats for one layer K·ρ, K integer: its nonzeros' number, places and values, ρ and r (spec §4, "naive").

    The whole layer's entries alike, or those off the diagonal and D ln r for those on it, whichever is shorter, and
    ln 2 to say which.

    Args:
        size: N.
        nonzeros: α, nonzeros after rounding.
        alphabet: r, odd: values from −(r−1)/2 to (r−1)/2.
        diagonal: D, entries on the diagonal.
        on_diagonal: how many of the nonzeros lie there.
    """
    apart = scattered_code_length(size - diagonal, nonzeros - on_diagonal, alphabet) + diagonal * math.log(alphabet)
    return math.log(2) + min(scattered_code_length(size, nonzeros, alphabet), apart) + grid_code_length(alphabet)
