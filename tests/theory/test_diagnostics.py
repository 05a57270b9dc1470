import math

import numpy as np
import pytest
import torch

from milkshake_mbp.theory.diagnostics import Normality, normal_quantiles, spread_over_strengths
from milkshake_mbp.theory.pruning import keep_probability, prune_probability, prune_thresholds
from milkshake_mbp.theory.sketching import distributed_sparsity

STRENGTHS = [0.0, 1e-3, 0.1, 0.5, 1.0, 3.0, 10.0, 1e4]


@pytest.mark.parametrize("shape", [(30, 40), (40, 30), (1, 7), (10, 60)])
@pytest.mark.parametrize("keep_diagonal", [True, False])
def test_spread_is_that_of_the_masks(shape: tuple[int, int], keep_diagonal: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator)
    weight[0, 0] = 0.0
    thresholds = prune_thresholds(weight, generator=generator)
    before = thresholds.clone()
    spread = spread_over_strengths(thresholds, STRENGTHS, keep_diagonal)
    assert torch.equal(thresholds, before)
    for index, d in enumerate(STRENGTHS):
        mask = thresholds >= d
        if keep_diagonal:
            mask.diagonal().fill_(True)
        expected = distributed_sparsity(mask)
        assert (int(spread.column_max[index]), int(spread.row_max[index]), int(spread.kept[index])) == (
            expected.column_max,
            expected.row_max,
            int(mask.sum()),
        )


def test_a_normal_layer_is_found_normal() -> None:
    weight = 0.3 * torch.randn(400, 500, generator=torch.Generator().manual_seed(1))
    found = Normality.measure(weight, 1.0)
    n = weight.numel()
    assert abs(found.mean_over_deviation) < 4 / math.sqrt(n)
    assert abs(found.skewness) < 4 * math.sqrt(6 / n)
    assert abs(found.excess_kurtosis) < 4 * math.sqrt(24 / n)
    assert found.distance < 2 / math.sqrt(n)  # Kolmogorov's 0.06% quantile
    assert found.predicted_chi == keep_probability(1.0)
    assert found.expected_chi == pytest.approx(found.predicted_chi, abs=4 * 0.5 / math.sqrt(n))
    normal, quantiles = normal_quantiles(weight)
    assert torch.allclose(normal[10:-10], quantiles[10:-10], atol=0.1)


def test_a_uniform_layer_is_not_and_keeps_more() -> None:
    """Uniform on [−1, 1] has excess kurtosis −6/5, and mean 1 − exp(−a²/(dΨ)) with Ψ = 1/3 in closed form."""
    weight = torch.rand(500, 500, generator=torch.Generator().manual_seed(2)) * 2 - 1
    found = Normality.measure(weight, 1.0)
    assert found.excess_kurtosis == pytest.approx(-1.2, abs=0.02)
    root = math.sqrt(3.0)
    assert found.expected_chi == pytest.approx(1 - math.sqrt(math.pi) / 2 * math.erf(root) / root, abs=0.003)
    assert found.expected_chi > found.predicted_chi
    assert found.distance == pytest.approx(0.0572, abs=0.005)


def test_the_share_expected_to_stay_is_that_of_algorithm_1() -> None:
    weight = torch.tensor(np.random.default_rng(3).standard_t(4, (60, 80)))
    for d in (0.0, 0.2, 5.0):
        expected = 1 - prune_probability(weight, d, keep_diagonal=False).mean()
        assert Normality.measure(weight, d).expected_chi == pytest.approx(float(expected), rel=1e-9)


def test_quantiles_reach_both_extremes_and_never_repeat() -> None:
    for shape in ((1, 2), (3, 3), (50, 60)):
        weight = torch.randn(shape, generator=torch.Generator().manual_seed(4))
        normal, quantiles = normal_quantiles(weight, points=101)
        scale = weight.double().std(correction=0)
        assert float(quantiles[0] * scale) == pytest.approx(float(weight.min()), rel=1e-6)
        assert float(quantiles[-1] * scale) == pytest.approx(float(weight.max()), rel=1e-6)
        assert (normal.diff() > 0).all() and float(normal[0]) == pytest.approx(-float(normal[-1]))


def test_a_constant_layer_has_no_distribution() -> None:
    with pytest.raises(ValueError, match="all alike"):
        Normality.measure(torch.ones(3, 4), 1.0)
