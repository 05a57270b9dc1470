import math
from fractions import Fraction

import pytest
from scipy.stats import binom

from milkshake_mbp.theory.occam import occam_bound
from milkshake_mbp.theory.tail import binomial_tail, tail_bound


@pytest.mark.parametrize(("k", "n", "p"), [(0, 1, 0.5), (3, 40, 0.2), (0, 40, 0.2), (39, 40, 0.99), (90, 1000, 0.3)])
def test_the_tail_is_the_sum(k, n, p):
    exact = Fraction(p)
    total = sum(math.comb(n, j) * exact**j * (1 - exact) ** (n - j) for j in range(k + 1))
    log = math.log(total.numerator) - math.log(total.denominator)
    assert log <= binomial_tail(k, n, p) <= log + 1e-6


@pytest.mark.parametrize(("errors", "bits", "n"), [(0, 10, 100), (5, 30, 100), (996, 2300, 60_000), (100, 0, 200)])
def test_the_bound_is_the_smallest_that_the_tail_allows(errors, bits, n):
    found, budget = tail_bound(errors, bits, n, 0.05), math.log(0.05) - bits * math.log(2)
    # The tail is rounded up, and for no errors at all Chernoff's bound is the tail itself.
    assert binomial_tail(errors, n, found) <= budget + 1e-6
    assert binomial_tail(errors, n, found - 1e-6) > budget
    assert errors / n < found <= occam_bound(errors / n, bits, n, 0.05)
    # What is left of the search is 10⁻⁹ wide.
    assert found - 1.001e-9 < errors / n or binomial_tail(errors, n, found - 1.001e-9) > budget


def test_where_nothing_is_known_it_is_one():
    assert tail_bound(10, 5, 10, 0.05) == 1
    assert tail_bound(3, 1e5, 10, 0.05) == 1


def test_a_sample_keeps_the_promise():
    # For one network, the limit is Clopper and Pearson's: P(limit < p) ≤ δ, and nearly δ.
    n, p, delta = 50, 0.3, 0.2
    broken = sum(
        math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1) if k < n and tail_bound(k, 0, n, delta) < p
    )
    assert 0.1 < broken <= delta


@pytest.mark.parametrize(
    ("k", "n", "p"), [(5_000_000, 10_000_000, 0.5001), (20_000, 40_000, 0.5002), (7, 10_000, 0.01)]
)
def test_a_tail_of_more_terms_than_are_added(k, n, p):
    """Its last terms are bounded by a geometric series: above the real tail, and not by much."""
    found = binomial_tail(k, n, p)
    assert binom.logcdf(k, n, p) - 1e-6 <= found <= binom.logcdf(k, n, p) + 1e-3
