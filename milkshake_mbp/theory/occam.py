"""Bounds without a hidden constant: the error of a network that a short code describes (spec §4, `rigorous`).

What bounds a probability from above here is rounded up: it is never below the real number that its formula defines.
"""

import math
from collections.abc import Callable, Iterable
from decimal import ROUND_CEILING, Decimal, localcontext
from functools import lru_cache

from scipy.special import betainccinv

from milkshake_mbp.theory.counting import log_binomial

__all__ = [
    "binomial_upper_limit",
    "elias_gamma_length",
    "grid_code_length",
    "kl_inverse",
    "occam_bound",
    "scattered_code_length",
    "sparse_code_length",
]

_DIGITS = 60
_BERNOULLI = [(1, 6), (-1, 30), (1, 42), (-1, 30), (5, 66), (-691, 2730), (7, 6), (-3617, 510)]
_TWO_PI = Decimal("6.28318530717958647692528676655900576839433879875021164194988918")


def kl_inverse(q: float, c: float) -> float:
    """kl⁻¹(q, c) = max{p : kl(q‖p) ≤ c}, with kl(q‖p) = q ln(q/p) + (1−q) ln((1−q)/(1−p)), in nats.

    Bisection to adjacent floats, of which the upper is returned, raised where more digits show it to be below the
    true value: never below that, for any floats q and c.

    Args:
        q: an empirical error, a probability.
        c: a budget in nats per sample, ≥ 0.

    Returns:
        A probability: kl⁻¹(1, c) = 1, kl⁻¹(0, c) = 1 − e^{−c}.

    Raises:
        ValueError: q is not a probability, or c is negative or NaN.

    Example:
        >>> round(kl_inverse(0.0, 0.5), 6), kl_inverse(1.0, 0.5)
        (0.393469, 1.0)
    """
    value = _kl_inverse(q, c)
    return value if value == 1 else _round_up(value, _exhausts(Decimal(q), Decimal(c)))


def _kl_inverse(q: float, c: float) -> float:
    """kl⁻¹(q, c) in float64, on either side of the true value."""
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


def _exhausts(q: Decimal, c: Decimal) -> Callable[[float], bool]:
    """Whether p ≥ kl⁻¹(q, c), for certain: kl(q‖p) ≥ c by more than what its evaluation may err by."""

    def exhausts(p: float) -> bool:
        if p >= 1 or (c == 0 and p >= q):
            return True
        with localcontext() as context:
            context.prec = _DIGITS
            above = Decimal(p) - q
            if above <= 0:
                return False
            # 10⁻⁴ of what a step to the next float p changes, (p − q)·2⁻⁵³ or more.
            context.prec = 24 - above.adjusted()
            spent = (1 - q) * ((1 - q) / (1 - Decimal(p))).ln()
            if q:
                spent += q * (q / Decimal(p)).ln()
            # Logarithms below 750, four roundings each.
            return spent - Decimal(10) ** (4 - context.prec) >= c

    return exhausts


def _round_up(value: float, enough: Callable[[float], bool]) -> float:
    """`value` if it is enough, else the next float above it that is; 1 always is, and what is above enough is too."""
    if enough(value):
        return value
    low, step = value, math.ulp(value)
    while (high := min(1.0, low + step)) < 1 and not enough(high):
        low, step = high, 2 * step
    while low < (middle := (low + high) / 2) < high:
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def occam_bound(error: float, bits: float, num_samples: int, delta: float) -> float:
    """R ≤ kl⁻¹(R̂, (C + ln 1/δ)/n) for every network of a prefix code at once, with probability ≥ 1 − δ.

    The one-sided Chernoff–kl bound P(kl(R̂‖R) ≥ c, R̂ < R) ≤ e^{−cn}, at c = (C + ln 1/δ)/n for a code length of C nats,
    summed over the code's words: Kraft's Σ e^{−C} ≤ 1 leaves δ. Rounded up with c, and R̂ where it is a number of errors
    over n, as they are before any rounding.

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
    value = _kl_inverse(error, (bits * math.log(2) - math.log(delta)) / num_samples)
    if value == 1:
        return 1.0
    errors = round(error * num_samples)
    with localcontext() as context:
        context.prec, context.rounding = _DIGITS, ROUND_CEILING
        exact = Decimal(errors) / num_samples if errors / num_samples == error else Decimal(error)
        budget = (Decimal(bits) * _log(2) - _log(delta)) / num_samples * (1 + Decimal(10) ** (10 - _DIGITS))
    return _round_up(value, _exhausts(exact, budget))


def binomial_upper_limit(errors: int, num_samples: int, delta: float) -> float:
    """The exact one-sided upper limit max{p : P(Bin(n, p) ≤ k) ≥ δ} of a probability of error, rounded up.

    With probability ≥ 1 − δ over n independent draws, of which the network knows nothing, its probability of error is
    at most that. No limit that depends on k alone, and grows with it, is smaller at this confidence.

    Args:
        errors: k, on the n samples.
        num_samples: n.
        delta: δ, the failure probability.

    Returns:
        A probability, 1 if every sample is an error; never below the real limit, and above it by rounding only.

    Raises:
        ValueError: an argument is out of range.

    Reference:
        Clopper and Pearson, The Use of Confidence or Fiducial Limits Illustrated in the Case of the Binomial,
        Biometrika 26, 1934; as a test-set bound: Langford, Tutorial on Practical Prediction Theory for Classification,
        JMLR 6, 2005, Theorem 3.3.

    Example:
        >>> round(binomial_upper_limit(200, 10_000, 0.05), 6), binomial_upper_limit(3, 3, 0.05)
        (0.022459, 1.0)
    """
    if not 0 <= errors <= num_samples or num_samples < 1 or not 0 < delta <= 1:
        raise ValueError(
            f"a binomial limit needs 0 ≤ errors ≤ n, n ≥ 1 and 0 < delta ≤ 1, got {errors} errors, n = {num_samples} "
            f"and delta = {delta}"
        )
    if errors == num_samples:
        return 1.0
    rare = _rare(errors, num_samples, delta)
    limit = float(betainccinv(errors + 1, num_samples - errors, delta))
    limit = errors / num_samples if math.isnan(limit) else limit
    step = math.ulp(limit)
    while rare(limit) and limit > 0:
        limit, step = max(0.0, limit - step), 2 * step
    return _round_up(limit, rare)


def _rare(errors: int, num_samples: int, delta: float) -> Callable[[float], bool]:
    """Whether P(Bin(n, p) ≤ k) ≤ δ, for certain."""
    k, n = errors, num_samples

    def rare(p: float) -> bool:
        if p >= 1 or delta == 1:
            return True
        if p <= 0:
            return False
        with localcontext() as context:
            context.prec = _DIGITS
            hit, miss, error = Decimal(p), 1 - Decimal(p), n * Decimal(10) ** -34
            below = k * miss < (n - k + 1) * hit
            # The smaller side of the distribution, whose terms fall from here on faster than a geometric series.
            first = k if below else k + 1
            term = total = Decimal(1)
            for j in range(first, 0, -1) if below else range(first, n):
                ratio = j * miss / ((n - j + 1) * hit) if below else (n - j) * hit / ((j + 1) * miss)
                term *= ratio
                total += term
                if term * ratio < Decimal(10) ** -35 * total * (1 - ratio):
                    break
            log_choices = _log_factorial(n) - _log_factorial(first) - _log_factorial(n - first)
            log_sum = log_choices + first * hit.ln() + (n - first) * miss.ln() + total.ln()
            if below:
                return log_sum + error <= _log(delta)
            return (log_sum - error).exp() >= 1 - Decimal(delta)

    return rare


def _log_factorial(n: int) -> Decimal:
    """Ln n!, by Stirling's series from 256 on, whose error is below the first term left out, 10⁻⁴¹."""
    if n < 256:
        return Decimal(math.factorial(n)).ln()
    exact = Decimal(n)
    series = Decimal(0)
    for j, (numerator, denominator) in enumerate(_BERNOULLI):
        series += Decimal(numerator) / (denominator * (2 * j + 1) * (2 * j + 2) * exact ** (2 * j + 1))
    return (exact + Decimal("0.5")) * exact.ln() - exact + _TWO_PI.ln() / 2 + series


@lru_cache(maxsize=256)
def _log(value: float) -> Decimal:
    with localcontext() as context:
        context.prec = _DIGITS
        return Decimal(value).ln()


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
