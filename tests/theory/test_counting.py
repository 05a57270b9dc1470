import math

import numpy as np
import pytest
import torch
from scipy.stats import binom

from milkshake_mbp.theory.counting import (
    counting_complexity,
    likely_pruned_fraction,
    log_binomial,
    more_are_likely_pruned,
    more_are_pruned,
)
from milkshake_mbp.theory.pruning import keep_probability, prune_probability, sample_mask


def test_log_binomial() -> None:
    for n, k in ((0, 0), (5, 0), (5, 5), (52, 5), (614656, 6750)):
        assert log_binomial(n, k) == pytest.approx(math.log(math.comb(n, k)), rel=1e-12, abs=1e-12)


def test_theorem_d_1_holds_for_a_finite_class() -> None:
    """J classifiers of true risk 1/2, independent: the best one's risk exceeds the bound in at most δ of the draws."""
    rng = np.random.default_rng(0)
    n, count, delta, draws = 60, 100, 0.1, 4000
    slack = counting_complexity(math.log(count), n, delta)
    best = rng.binomial(n, 0.5, (draws, count)).min(axis=1) / n
    assert np.mean(best + slack < 0.5) <= delta
    assert slack == pytest.approx(math.sqrt(math.log(1000) / 120))
    # As printed, with exp(−2τn) for exp(−2τ²n), τ would be ln(J/δ)/(2n), which fails almost always (erratum E19).
    assert np.mean(best + math.log(count / delta) / (2 * n) < 0.5) > 0.5


@pytest.mark.parametrize("d", [0.01, 0.3, 2.0, 50.0])
def test_lemma_d_2s_fraction_by_counting(d: float) -> None:
    weight = torch.randn(1000, 1000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for kappa in (0.05, 0.5, 0.99):
        probability = likely_pruned_fraction(kappa, d)
        counted = float((prune_probability(weight, d, variance=1.0, keep_diagonal=False) >= kappa).double().mean())
        assert abs(counted - probability) <= 4 * math.sqrt(probability * (1 - probability) / 1e6) + 1e-9


def test_lemma_d_2_is_more_than_not_at_least() -> None:
    """The incomplete beta gives P(> τ); P(≥ τ) is larger by P(= τ) (erratum E5)."""
    size, kappa, d = 40, 0.5, 1.0
    p = likely_pruned_fraction(kappa, d)
    for tau in range(size):
        assert more_are_likely_pruned(size, tau, kappa, d) == pytest.approx(binom.sf(tau, size, p), rel=1e-9)
    assert binom.sf(19, size, p) - more_are_likely_pruned(size, 20, kappa, d) == pytest.approx(binom.pmf(20, size, p))
    assert more_are_likely_pruned(size, size, kappa, d) == 0.0


def test_lemma_d_3_against_algorithm_1() -> None:
    """Given more than τ likely entries, more than α are pruned at least as often as the lemma says."""
    d, kappa, alpha, shape = 1.0, 0.5, 25, (20, 10)
    generator = torch.Generator().manual_seed(2)
    held, trials = 0, 0
    tau = 60
    for _ in range(1500):
        weight = torch.randn(shape, generator=generator, dtype=torch.float64)
        likely = prune_probability(weight, d, variance=1.0, keep_diagonal=False) >= kappa
        if int(likely.sum()) <= tau:
            continue
        mask = sample_mask(weight, d, variance=1.0, keep_diagonal=False, generator=generator)
        trials += 1
        held += int((~mask).sum()) > alpha
    promised = more_are_pruned(tau, alpha, kappa)
    assert trials > 500 and held / trials >= promised - 3 * math.sqrt(0.25 / trials)


def test_the_two_lemmas_lose_most_of_what_is_pruned() -> None:
    """At MNIST sizes the best κ promises about half of the N(1 − χ) entries that are pruned on average."""
    size, d = 784 * 783, 1.0
    promised = 0
    for kappa in np.linspace(0.05, 0.95, 19):
        tau = int(binom.ppf(0.001, size, likely_pruned_fraction(float(kappa), d))) - 1
        assert more_are_likely_pruned(size, tau, float(kappa), d) >= 0.998
        alpha = int(binom.ppf(0.001, tau, kappa)) - 1
        assert more_are_pruned(tau, alpha, float(kappa)) >= 0.998
        promised = max(promised, alpha)
    expected = size * (1 - keep_probability(d))
    assert 0.4 * expected < promised < 0.75 * expected
