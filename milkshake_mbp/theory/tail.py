"""What a code and its errors guarantee, by the binomial distribution's own tail in place of Chernoff's bound on it."""

import math

from milkshake_mbp.theory.occam import occam_bound

__all__ = ["binomial_tail", "tail_bound"]

# Terms of a tail that are added one by one; what is left is bounded by a geometric series.
_TERMS = 4096
# Above what the rounding of two log-gammas and a sum of that many terms can be, in nats.
_ROUNDING = 1e-8


def binomial_tail(errors: int, num_samples: int, p: float) -> float:
    """Ln P(X ≤ k) for X of Binomial(n, p), not below its true value.

    Terms fall from the k-th downwards by factors that fall too, so that what is left is less than a geometric series.

    Args:
        errors: k, from 0 to n − 1, at most np.
        num_samples: n.
        p: a probability between 0 and 1.
    """
    k, n = errors, num_samples
    odds = (1 - p) / p
    first = (
        math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) + k * math.log(p) + (n - k) * math.log1p(-p)
    )
    total, term = 1.0, 1.0
    for j in range(k, 0, -1):
        ratio = j / (n - j + 1) * odds
        if k - j == _TERMS or term < 1e-12:
            total += term * ratio / (1 - ratio)
            break
        term *= ratio
        total += term
    # Log-gammas near n ln n carry that many units in their last place.
    return first + math.log(total) + _ROUNDING + 4 * math.ulp(math.lgamma(n + 1))


def tail_bound(errors: int, bits: float, num_samples: int, delta: float) -> float:
    """The least of two bounds on the error of every network of a prefix code: `occam_bound`'s, and the exact tail's.

    A fixed network with a probability of error of p or more gets at most k of n samples wrong with probability
    P(Binomial(n, p) ≤ k) at most. With p such that this is δ 2^{−bits}, Kraft's inequality leaves δ for all networks at
    once, as it does for Chernoff's bound on the same tail, which is never smaller.

    Args:
        errors: k, samples that the network gets wrong.
        bits: its code length.
        num_samples: n.
        delta: δ.

    Returns:
        A probability, rounded up.
    """
    high = occam_bound(errors / num_samples, bits, num_samples, delta)
    low, budget = errors / num_samples, math.log(delta) - bits * math.log(2)
    if errors == num_samples or high >= 1:
        return high
    while high - low > 1e-9:
        middle = (low + high) / 2
        if binomial_tail(errors, num_samples, middle) <= budget:
            high = middle
        else:
            low = middle
    return high
