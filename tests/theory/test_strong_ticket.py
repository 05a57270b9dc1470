"""The constructions against brute force, and against the dense network that they prune."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from milkshake_mbp.theory.strong_ticket import (
    RandomNetwork,
    Target,
    boxed_error,
    find_ticket,
    log_mask_count,
    nearest_error,
    promised_candidates,
    subset_sum,
)


def draw(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def forward(weights, inputs):
    for weight in weights[:-1]:
        inputs = (inputs @ weight.T).relu()
    return inputs @ weights[-1].T


def in_ball(seed, count, dim):
    points = draw(seed, count, dim)
    return points / points.norm(dim=1, keepdim=True) * torch.linspace(0, 1, count).unsqueeze(1)


@pytest.fixture
def target():
    return Target.of([draw(0, 4, 3), draw(1, 4, 4), draw(2, 2, 4)], 3.0)


class TestSubsetSum:
    @given(st.integers(0, 10_000), st.integers(1, 9), st.integers(1, 4))
    def test_nearest_of_all_subsets(self, seed, n, problems):
        candidates, targets = draw(seed, problems, n), 2 * draw(seed + 1, problems)
        found = ((subset_sum(candidates, targets) * candidates).sum(dim=1) - targets).abs()
        every = (torch.arange(2**n).unsqueeze(1) >> torch.arange(n) & 1).double()
        best = (candidates @ every.T - targets.unsqueeze(1)).abs().min(dim=1).values
        assert torch.allclose(found, best, atol=1e-12)

    def test_zeros_are_never_chosen(self):
        candidates = torch.tensor([[0.0, 0.3, 0.0, 0.0]], dtype=torch.float64)
        assert subset_sum(candidates, torch.tensor([0.31], dtype=torch.float64)).tolist() == [
            [False, True, False, False]
        ]

    def test_many_problems_are_split_up(self, monkeypatch):
        from milkshake_mbp.theory import strong_ticket

        candidates, targets = draw(5, 50, 10), draw(6, 50)
        whole = subset_sum(candidates, targets)
        monkeypatch.setattr(strong_ticket, "_SUMS", 64)
        assert torch.equal(subset_sum(candidates, targets), whole)

    def test_finds_a_planted_subset_of_twenty_four(self):
        candidates = draw(7, 3, 24)
        planted = draw(8, 3, 24) > 0
        found = subset_sum(candidates, (candidates * planted).sum(dim=1))
        assert torch.allclose((candidates * found).sum(dim=1), (candidates * planted).sum(dim=1), atol=1e-9)


class TestTarget:
    @given(st.integers(0, 1000), st.floats(0.1, 50))
    def test_the_theorem_s_conditions_hold_and_the_function_is_the_same(self, seed, input_norm):
        weights = [draw(seed, 5, 3) * 4, draw(seed + 1, 2, 5) / 7]
        target = Target.of(weights, input_norm)
        for weight in target.weights:
            assert float(torch.linalg.matrix_norm(weight, 2)) <= 1 + 1e-9
            assert float(weight.abs().max()) <= 1 / math.sqrt(weight.shape[1]) + 1e-12
        inputs = in_ball(seed, 20, 3) * input_norm
        whole = math.exp(target.log_scale) * target(inputs / input_norm)
        assert torch.allclose(whole, forward(weights, inputs), rtol=1e-9)

    def test_refusals(self):
        with pytest.raises(ValueError, match="zero"):
            Target.of([torch.zeros(2, 2)])
        with pytest.raises(ValueError, match="input norm"):
            Target.of([torch.ones(2, 2)], 0.0)


class TestRandomNetwork:
    def test_pieces_are_those_of_the_dense_network(self):
        network = RandomNetwork((3, 4, 2), candidates=5, seed=7)
        for layer, (inputs, outputs) in enumerate(((3, 4), (4, 2))):
            first, second = network.dense(layer)
            assert first.shape == (inputs * 5, inputs)
            assert second.shape == (outputs, inputs * 5)
            for block in range(inputs):
                units = slice(block * 5, block * 5 + 5)
                assert torch.equal(first[units, block], network.incoming(layer, block))
                assert torch.equal(second[:, units], network.outgoing(layer, block))
        assert network.width == 20
        assert network.parameters == sum(matrix.numel() for layer in (0, 1) for matrix in network.dense(layer))

    def test_uniform_and_independent(self):
        first, second = RandomNetwork((20, 20), candidates=10, seed=1).dense(0)
        for matrix in (first, second):
            assert matrix.abs().max() <= 1
            # Five standard errors of 4,000 uniform draws.
            assert abs(float(matrix.mean())) < 5 / math.sqrt(3 * 4000)
            assert float(matrix.square().mean()) == pytest.approx(1 / 3, abs=5 * 0.3 / math.sqrt(4000))
            assert len(matrix.unique()) == matrix.numel()
        other = RandomNetwork((20, 20), candidates=10, seed=2).dense(0)[0]
        assert not torch.equal(first, other)


class TestFindTicket:
    @pytest.mark.parametrize("method", ["nearest", "subset_sum"])
    def test_it_is_the_dense_random_network_masked(self, target, method):
        ticket = find_ticket(target, 6, method, seed=3)
        dense = [matrix for layer in range(3) for matrix in ticket.network.dense(layer)]
        assert len(dense) == 6
        masks = ticket.masks()
        assert sum(int(mask.sum()) for mask in masks) == ticket.active_weights
        masked = [weight * mask for weight, mask in zip(dense, masks, strict=True)]
        inputs = in_ball(1, 200, 3)
        assert torch.allclose(forward(masked, inputs), ticket(inputs), atol=1e-12)
        assert torch.allclose(forward(ticket.weights, inputs), ticket(inputs), atol=1e-12)
        full = [layer for layer, mask in enumerate(masks) if bool(mask.diagonal().all())]
        assert ticket.bare_layers == [layer for layer in range(6) if layer not in full]

    def test_nearest_is_the_nearest_of_each_sign(self, target):
        ticket = find_ticket(target, 8, "nearest", seed=3)
        for layer, weight in enumerate(target.weights):
            above, below = ticket.pairs[layer].slopes(weight.shape[1])
            for i in range(weight.shape[0]):
                for j in range(weight.shape[1]):
                    u, v = ticket.network.incoming(layer, j), ticket.network.outgoing(layer, j)[i]
                    for slope, usable in ((above, u > 0), (below, u < 0)):
                        if layer and slope is below:
                            assert slope[i, j] == 0
                            continue
                        w = float(weight[i, j])
                        choices = [0.0, *(u * v)[usable].tolist()]
                        assert abs(float(slope[i, j]) - w) == pytest.approx(min(abs(c - w) for c in choices), abs=1e-12)

    def test_subset_sum_is_the_best_subset_of_each_sign(self, target):
        ticket = find_ticket(target, 8, "subset_sum", seed=4)
        weight = target.weights[0]
        above, below = ticket.pairs[0].slopes(3)
        for slope, sign in ((above, 1), (below, -1)):
            for i in range(4):
                for j in range(3):
                    u = ticket.network.incoming(0, j)
                    products = (u * ticket.network.outgoing(0, j)[i])[sign * u > 0]
                    every = (torch.arange(2 ** len(products)).unsqueeze(1) >> torch.arange(len(products)) & 1).double()
                    best = float((every @ products - weight[i, j]).abs().min())
                    assert float((slope[i, j] - weight[i, j]).abs()) == pytest.approx(best, abs=1e-12)

    @settings(max_examples=15)
    @given(st.integers(0, 1000), st.sampled_from(["nearest", "subset_sum"]), st.integers(2, 14))
    def test_the_proof_covers_the_ball(self, seed, method, candidates):
        target = Target.of([draw(seed, 4, 3), draw(seed + 1, 3, 4), draw(seed + 2, 2, 3)])
        ticket = find_ticket(target, candidates, method, seed)
        inputs = in_ball(seed, 300, 3)
        assert float((ticket(inputs) - target(inputs)).norm(dim=1).max()) <= ticket.ball_bound * (1 + 1e-9)

    def test_more_candidates_imitate_better(self, target):
        inputs = in_ball(1, 300, 3)

        def error(candidates, method):
            return float((find_ticket(target, candidates, method)(inputs) - target(inputs)).norm(dim=1).max())

        assert error(40, "subset_sum") < 1e-3 < error(6, "subset_sum")
        assert error(20_000, "nearest") < 1e-3 < error(20, "nearest")

    def test_a_weight_of_zero_costs_nothing(self):
        target = Target.of([torch.tensor([[0.0, 1.0]])])
        ticket = find_ticket(target, 50, "nearest")
        # One weight of either sign, each with its unit.
        assert ticket.active_weights == 4
        assert set(ticket.pairs[0].blocks.tolist()) == {1}

    def test_mask_count(self):
        ticket = find_ticket(Target.of([draw(0, 2, 3)]), 4, "subset_sum", seed=1)
        kept = int(ticket.pairs[0].kept.sum())
        assert log_mask_count(ticket) == pytest.approx(math.log(math.comb(2 * 3 * 4, kept)))

    def test_refusals(self, target):
        with pytest.raises(ValueError, match="candidate"):
            find_ticket(target, 0)
        with pytest.raises(ValueError, match="nearest or subset_sum"):
            find_ticket(target, 3, "best")


def test_rates_of_growth():
    """One weight within ε takes 1/ε² candidates as Malach et al. prove it, 1/ε if the product may be anything."""
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.rand(400, 8192, generator=generator, dtype=torch.float64) for _ in range(2))
    v, weights = 2 * v - 1, torch.rand(400, generator=generator, dtype=torch.float64) - 0.5
    for errors, power in ((boxed_error(u, v, weights), 0.5), (nearest_error(u, v, weights), 1.0)):
        medians = errors.median(dim=0).values
        fall = math.log(float(medians[511] / medians[8191])) / math.log(16)
        assert fall == pytest.approx(power, abs=0.1)
    promised = promised_candidates(0.1, 0.05)
    assert float((boxed_error(u, v, weights)[:, math.ceil(promised) - 1] <= 0.1).double().mean()) >= 0.95
