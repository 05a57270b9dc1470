"""Estimators of a ranking against loops over pairs, and on sweeps whose answer is known."""

import math
from itertools import combinations, product

import numpy as np
import pytest
from scipy.stats import kendalltau

from milkshake_mbp.theory.ranking import (
    Design,
    conditional_mutual_information,
    granulated_psi,
    kendall_tau,
    pair_signs,
    rank,
    resample,
    sign_errors,
    significance_weight,
)

AXES = ("width", "depth", "lr")
N_TEST = 10_000


def sweep(levels=(2, 3, 2), seeds=1):
    """Settings of a full grid, each repeated."""
    return [dict(zip(AXES, point, strict=True)) for point in product(*map(range, levels)) for _ in range(seeds)]


@pytest.fixture
def random():
    return np.random.default_rng(7)


def sign(x):
    return int(x > 0) - int(x < 0)


def test_tau_is_scipys_with_ties_and_infinities(random):
    for _ in range(20):
        x, y = random.integers(0, 4, 12).astype(float), random.integers(0, 5, 12).astype(float)
        x[x == 3] = math.inf
        assert kendall_tau(x, y) == pytest.approx(kendalltau(np.where(np.isinf(x), 99, x), y)[0], abs=1e-6)
    assert math.isnan(kendall_tau([1, 1, 1], [1, 2, 3])) and math.isnan(kendall_tau([1, 2, 3], [5, 5, 5]))
    with pytest.raises(ValueError, match="NaN"):
        kendall_tau([1, math.nan, 2], [1, 2, 3])


def test_a_pair_of_infinities_is_a_tie():
    assert pair_signs([math.inf, math.inf, 0.0]).tolist() == [[0, 0, 1], [0, 0, 1], [-1, -1, 0]]


def test_psi_is_the_mean_of_tau_over_groups_that_differ_in_one_axis(random):
    settings = sweep(seeds=2)
    measure, target = random.integers(0, 6, len(settings)), random.normal(size=len(settings))
    psi, mean = granulated_psi(measure, target, Design.of(settings))
    expected = {}
    for axis in AXES:
        groups = {}
        for index, setting in enumerate(settings):
            groups.setdefault(tuple(setting[other] for other in AXES if other != axis), []).append(index)
        taus = []
        for group in groups.values():
            pairs = [(i, j) for i, j in combinations(group, 2) if settings[i][axis] != settings[j][axis]]
            taus.append(np.mean([sign(measure[i] - measure[j]) * sign(target[i] - target[j]) for i, j in pairs]))
        expected[axis] = float(np.mean(taus))
    assert psi == pytest.approx(expected, abs=1e-6)
    assert mean == pytest.approx(np.mean(list(expected.values())), abs=1e-6)


def test_information_is_the_least_over_conditions_of_a_table_of_signs(random):
    settings = sweep()
    target = random.normal(size=len(settings))
    measure = np.round(target + random.normal(size=len(settings)), 0)
    found = conditional_mutual_information(measure, target, Design.of(settings))
    ratios = []
    for size in range(3):
        for kept in combinations(AXES, size):
            groups = {}
            for index, setting in enumerate(settings):
                groups.setdefault(tuple(setting[axis] for axis in kept), []).append(index)
            tables = {}
            for group in groups.values():
                table = np.zeros((3, 2))
                for i, j in product(group, group):
                    if i != j:
                        table[sign(measure[i] - measure[j]) + 1, int(target[i] > target[j])] += 1
                tables[tuple(group)] = table
            total = sum(table.sum() for table in tables.values())
            information = entropy = 0.0
            for table in tables.values():
                p = table / table.sum()
                rows, columns = p.sum(axis=1, keepdims=True), p.sum(axis=0, keepdims=True)
                inside = p > 0
                weight = table.sum() / total
                information += weight * float((p[inside] * np.log(p[inside] / (rows * columns)[inside])).sum())
                entropy -= weight * float((columns * np.log(columns)).sum())
            ratios.append(information / entropy)
    assert found == pytest.approx(min(ratios), abs=1e-5)


def test_sign_errors_are_weighted_means_over_pairs(random):
    settings = sweep(levels=(2, 2, 2), seeds=4)
    measure, target = random.normal(size=len(settings)), random.uniform(0, 0.3, len(settings))
    design = Design.of(settings)
    for pooled in (True, False):
        found = sign_errors(measure, target, design.environments(pooled), N_TEST, min_effective_sample=3)
        assert found
        for environment, error in found:
            weights = [
                max(0, max(0, 1 - 2 * math.exp(-N_TEST * (target[i] - target[j]) ** 2 / 2)) ** 2 - 0.5)
                for i, j in zip(environment.first, environment.second, strict=True)
            ]
            wrong = [
                (1 - sign(measure[i] - measure[j]) * sign(target[i] - target[j])) / 2
                for i, j in zip(environment.first, environment.second, strict=True)
            ]
            assert error == pytest.approx(np.dot(weights, wrong) / sum(weights), abs=1e-6)
            assert sum(weights) ** 2 / np.dot(weights, weights) >= 3
        pairs = {
            frozenset((int(i), int(j)))
            for e in design.environments(pooled)
            for i, j in zip(e.first, e.second, strict=True)
        }
        assert len(pairs) == 3 * 4 * 16 == sum(len(e.first) for e in design.environments(pooled))


def test_environments_of_single_settings_need_repeats():
    """As in the source, where 12 is the effective sample that 12 equal weights have: 4 seeds a side give 16 pairs."""
    for seeds, count in ((1, 0), (3, 0), (4, 12)):
        settings = sweep(levels=(2, 2, 2), seeds=seeds)
        target = [0.1 + 0.2 * s["width"] + 0.3 * s["depth"] + 0.05 * s["lr"] for s in settings]
        found = sign_errors(target, target, Design.of(settings).environments(False), 100_000)
        assert len(found) == count and not any(error for _, error in found)


def test_weight_is_a_probability_that_the_order_is_the_true_one(random):
    """Hoeffding's bound holds in simulation: how often two sampled errors order as their means do."""
    n, means = 400, (0.20, 0.36)
    seen = random.binomial(n, np.array(means), size=(20_000, 2)) / n
    claimed = significance_weight(seen[:, 0] - seen[:, 1], n) + 0.5
    sure = claimed > 0.9
    assert sure.mean() > 0.1 and (seen[sure, 0] < seen[sure, 1]).mean() > 0.9
    assert significance_weight(0.0, n) == 0 and significance_weight(1.0, n) == pytest.approx(0.5)


def test_the_error_itself_ranks_perfectly():
    settings = sweep(levels=(4, 4, 4))
    target = np.array([0.1 + 0.05 * s["width"] + 0.013 * s["depth"] + 0.003 * s["lr"] for s in settings])
    ranking = rank(target, target, Design.of(settings), num_samples=100_000, resamples=50)
    assert ranking.tau.value == ranking.tau.low == ranking.tau.high == pytest.approx(1)
    assert ranking.mean_psi.value == pytest.approx(1) and set(ranking.psi) == set(AXES)
    assert ranking.information.value == pytest.approx(1)
    assert ranking.worst_sign_error.value == 0 and ranking.sign_errors


def test_noise_is_zero_within_its_interval(random):
    """At 95% an interval misses zero in 5% of the sweeps; of 30 it misses at most 6 with probability 0.999."""
    settings = sweep(levels=(4, 4, 4))
    design, missed = Design.of(settings), {"tau": 0, "psi": 0}
    for _ in range(30):
        measure, target = random.normal(size=(2, len(settings)))
        ranking = rank(measure, target, design, num_samples=N_TEST, resamples=150)
        missed["tau"] += not ranking.tau.low <= 0 <= ranking.tau.high
        missed["psi"] += not ranking.mean_psi.low <= 0 <= ranking.mean_psi.high
    assert max(missed.values()) <= 6


def test_a_count_of_parameters_in_a_sweep_of_one_width_is_undefined(random):
    settings = sweep(levels=(1, 6, 4))
    target, same = random.normal(size=len(settings)), np.full(len(settings), 8.3)
    ranking = rank(same, target, Design.of(settings), num_samples=N_TEST, size=same, resamples=20)
    for estimate in (ranking.tau, ranking.tau_equal_size, ranking.mean_psi, ranking.information, *ranking.psi.values()):
        assert not estimate.defined and estimate.reason == "the measure is the same for all networks"
    assert not ranking.worst_sign_error.defined and not ranking.mean_sign_error.defined


def test_what_counting_tells_is_gone_at_equal_size(random):
    """A measure that orders by size alone has no τ at equal size, and none above the size's own."""
    settings = sweep(levels=(4, 4, 1))
    size = np.array([s["width"] for s in settings])
    target = -size + 0.2 * random.normal(size=len(settings))
    ranking = rank(3 * size, target, Design.of(settings), num_samples=N_TEST, size=size, resamples=30)
    assert ranking.tau.value < -0.8 and not ranking.tau_equal_size.defined
    assert ranking.tau_gain.value == ranking.tau_gain.low == ranking.tau_gain.high == 0
    assert ranking.psi["depth"].reason == "the measure is the same along it" and ranking.psi["width"].value < -0.8
    assert ranking.mean_psi.value == pytest.approx(ranking.psi["width"].value / 2)


def test_an_axis_that_cannot_change_the_target_does_not_count():
    settings = sweep(levels=(3, 3, 2))
    target = [s["width"] + 3 * s["depth"] for s in settings]
    psi, mean = granulated_psi(target, target, Design.of(settings))
    assert math.isnan(psi["lr"]) and mean == pytest.approx(1)


def test_a_bootstrap_draws_trainings():
    settings = sweep(levels=(2, 2, 2))
    trainings = [(s["width"], s["depth"]) for s in settings]
    counts = resample(Design.of(settings, trainings), 200, seed=3)
    assert counts.shape == (200, 8) and (counts.sum(axis=1) == 2 * counts[:, ::2].sum(axis=1)).all()
    assert (counts[:, ::2].sum(axis=1) == 4).all() and (counts[:, 0] == counts[:, 1]).all()
    assert (counts == resample(Design.of(settings, trainings), 200, seed=3)).all()


def test_intervals_cover_the_truth(random):
    """τ of a bivariate normal with correlation ρ is 2/π·arcsin ρ; of 30 intervals at 90% at least 22 hold it."""
    rho, held = 0.5, 0
    truth = 2 / math.pi * math.asin(rho)
    settings = [{"network": index} for index in range(60)]
    for number in range(30):
        x, noise = random.normal(size=(2, 60))
        y = rho * x + math.sqrt(1 - rho**2) * noise
        tau = rank(x, y, Design.of(settings), num_samples=N_TEST, resamples=150, level=0.9, seed=number).tau
        held += tau.low <= truth <= tau.high
    assert held >= 22
