"""Masks against brute force, and the theorem's bound by hand."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from milkshake_mbp.theory.lottery import (
    active_units,
    broken_hypotheses,
    magnitude_masks,
    random_magnitude_masks,
    shuffled_masks,
    strength_for_rate,
    ticket_bound,
)
from milkshake_mbp.theory.pruning import prune_probability


def ones(*shapes):
    return [torch.ones(shape, dtype=torch.bool) for shape in shapes]


def draw_layers(seed, *shapes):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


seeds = st.integers(0, 10_000)
rates = st.floats(0, 1)


class TestMagnitudeMasks:
    @given(seeds, st.floats(0.05, 0.95), st.sampled_from(["layer", "global"]))
    def test_as_sorting_says(self, seed, rate, scope):
        """Three rounds with retrained weights in between, against a sort of all survivors."""
        shapes = [(5, 7), (3, 5)]
        masks = ones(*shapes)
        for turn in range(3):
            weights = draw_layers(seed + turn, *shapes)
            found = magnitude_masks(weights, masks, [rate, rate], scope)
            for group in [[0], [1]] if scope == "layer" else [[0, 1]]:
                alive = sorted(float(w) for layer in group for w in weights[layer].abs()[masks[layer]])
                kept = sorted(float(w) for layer in group for w in weights[layer].abs()[found[layer]])
                assert kept == alive[round(rate * len(alive)) :]
            assert all(bool((new <= old).all()) for new, old in zip(found, masks, strict=True))
            masks = found

    @given(seeds, rates)
    def test_ties_are_counted_exactly(self, seed, rate):
        weight = draw_layers(seed, (6, 6))[0].mul(2).round()
        (mask,) = magnitude_masks([weight], ones((6, 6)), [rate])
        assert int(mask.sum()) == 36 - round(36 * rate)
        if 0 < int(mask.sum()) < 36:
            assert weight.abs()[mask].min() >= weight.abs()[~mask].max()

    def test_pruned_weights_never_come_back_however_large_they_are(self):
        weight = torch.tensor([[100.0, 1.0], [2.0, 3.0]])
        mask = torch.tensor([[False, True], [True, True]])
        (found,) = magnitude_masks([weight], [mask], [1 / 3])
        assert found.tolist() == [[False, False], [True, True]]

    def test_global_takes_from_the_layer_of_small_weights(self):
        small, large = torch.full((4, 4), 0.1), torch.full((4, 4), 1.0)
        shared = magnitude_masks([small, large], ones((4, 4), (4, 4)), [0.5, 0.5], "global")
        assert [int(mask.sum()) for mask in shared] == [0, 16]
        apart = magnitude_masks([small, large], ones((4, 4), (4, 4)), [0.5, 0.5], "layer")
        assert [int(mask.sum()) for mask in apart] == [8, 8]

    def test_layers_of_another_rate_have_another_threshold(self):
        layers = [torch.full((4, 4), value) for value in (0.1, 1.0, 0.01)]
        found = magnitude_masks(layers, ones((4, 4), (4, 4), (4, 4)), [0.5, 0.5, 0.25], "global")
        assert [int(mask.sum()) for mask in found] == [0, 16, 12]

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_other_dtypes(self, dtype):
        weight = torch.arange(12, dtype=dtype).reshape(3, 4) - 6
        (mask,) = magnitude_masks([weight], ones((3, 4)), [0.5])
        assert int(mask.sum()) == 6
        assert weight.abs()[mask].min() >= weight.abs()[~mask].max()

    def test_refusals(self):
        with pytest.raises(ValueError, match="rate"):
            magnitude_masks(draw_layers(0, (2, 2)), ones((2, 2)), [1.5])
        with pytest.raises(ValueError, match="NaN"):
            magnitude_masks([torch.tensor([[math.nan, 1.0]])], ones((1, 2)), [0.5])
        with pytest.raises(ValueError, match="each layer"):
            magnitude_masks(draw_layers(0, (2, 2)), ones((2, 2)), [0.5, 0.5])


class TestRandomMagnitudeMasks:
    @given(seeds, st.floats(0.05, 0.8), st.booleans())
    def test_strength_makes_the_expected_loss_the_rate(self, seed, rate, keep_diagonal):
        weights = draw_layers(seed, (12, 9), (6, 12))
        masks = [torch.rand(weight.shape, generator=torch.Generator().manual_seed(seed)) > 0.3 for weight in weights]
        found, strengths = random_magnitude_masks(
            weights, masks, [rate, rate], "layer", seed=seed, keep_diagonal=keep_diagonal
        )
        for weight, mask, new, d in zip(weights, masks, found, strengths, strict=True):
            assert bool((new <= mask).all())
            if keep_diagonal:
                assert torch.equal(new.diagonal(), mask.diagonal())
            if math.isfinite(d):
                lost = prune_probability(weight * mask, d, keep_diagonal=keep_diagonal)[mask].sum()
                assert float(lost) == pytest.approx(rate * int(mask.sum()), rel=1e-6)

    def test_one_strength_for_all_layers_if_global(self):
        weights = draw_layers(3, (30, 30), (10, 30))
        found, strengths = random_magnitude_masks(weights, ones((30, 30), (10, 30)), [0.5, 0.5], "global", seed=1)
        assert strengths[0] == strengths[1]
        lost = sum(float(prune_probability(weight, strengths[0], keep_diagonal=False).sum()) for weight in weights)
        assert lost == pytest.approx(600, rel=1e-6)
        # Five standard deviations of a sum of 1,200 coins.
        assert abs(sum(int(mask.sum()) for mask in found) - 600) < 5 * math.sqrt(300)

    def test_small_weights_go_more_often(self):
        weight = torch.linspace(0.01, 1, 400).reshape(20, 20)
        (mask,), _ = random_magnitude_masks([weight], ones((20, 20)), [0.5], seed=2)
        assert int(mask.flatten()[200:].sum()) > 2 * int(mask.flatten()[:200].sum())
        assert int(mask.flatten()[:200].sum()) > 0

    @given(st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=20), st.floats(0.01, 0.99))
    def test_strength_solves_its_equation(self, ratios, share):
        d = strength_for_rate(torch.tensor(ratios, dtype=torch.float64), share * len(ratios))
        assert sum(math.exp(-ratio / d) for ratio in ratios) == pytest.approx(share * len(ratios), rel=1e-6)

    def test_strength_at_the_ends(self):
        assert strength_for_rate(torch.ones(3), 0.0) == 0.0
        assert strength_for_rate(torch.ones(3), 3.0) == math.inf


@given(seeds)
def test_shuffled_masks_keep_the_counts_and_nothing_else(seed):
    masks = [weight > 0.5 for weight in draw_layers(seed, (8, 9), (4, 8))]
    found = shuffled_masks(masks, seed)
    assert [int(mask.sum()) for mask in found] == [int(mask.sum()) for mask in masks]
    assert all(torch.equal(a, b) for a, b in zip(found, shuffled_masks(masks, seed), strict=True))
    others = [shuffled_masks(masks, seed + step)[0] for step in range(1, 4)]
    assert any(not torch.equal(found[0], other) for other in others)


@given(seeds)
def test_active_units_lie_on_a_path(seed):
    masks = [weight > 0.8 for weight in draw_layers(seed, (4, 3), (3, 4), (2, 3))]
    on_path = [set(), set()]
    for x, h, g, y in itertools.product(range(3), range(4), range(3), range(2)):
        if masks[0][h, x] and masks[1][g, h] and masks[2][y, g]:
            on_path[0].add(h)
            on_path[1].add(g)
    assert active_units(masks) == [len(units) for units in on_path]


class TestTicketBound:
    sizes = {"width": 5, "input_dim": 7, "depth": 3, "ticket_width": 1000, "alphabet": 513}  # noqa: RUF012

    def test_by_hand(self):
        margins = torch.tensor([-1.0, 0.05, 0.5, 2.0])
        bound = ticket_bound(margins, epsilon=0.03, rounding=0.01, **self.sizes)
        total = (5 * 7 + 3 * 25) * math.log(1000) ** 2 * math.log(513)
        assert bound.gamma == pytest.approx(math.sqrt(2) * 0.04)
        assert bound.empirical_risk == 0.5
        assert math.exp(bound.log_value) == pytest.approx(0.5 + math.sqrt(total / 4))
        doubled = (5 * 7 + 6 * 25) * math.log(1000) ** 2 * math.log(513)
        assert math.exp(bound.log_complexity_2l) == pytest.approx(math.sqrt(doubled / 4))
        assert bound.applies

    @given(st.integers(2, 50), st.integers(2, 10**6), st.floats(0, 2))
    def test_grows_with_width_and_error(self, width, ticket_width, epsilon):
        margins = torch.linspace(-1, 3, 50)
        keys = self.sizes | {"width": width, "ticket_width": ticket_width}
        here = ticket_bound(margins, epsilon=epsilon, rounding=0.0, **keys).log_value
        for change in ({"width": width + 1}, {"ticket_width": 2 * ticket_width}):
            assert ticket_bound(margins, epsilon=epsilon, rounding=0.0, **(keys | change)).log_value > here
        assert ticket_bound(margins, epsilon=epsilon + 0.5, rounding=0.0, **keys).log_value >= here

    def test_refusals(self):
        with pytest.raises(ValueError, match="samples"):
            ticket_bound(torch.empty(0), epsilon=0.1, rounding=0.0, **self.sizes)


def test_broken_hypotheses_are_named_with_their_numbers():
    held = {"spectral_norms": [1.0, 1.0], "input_norm": 1.0, "epsilon": 0.1, "ticket_depth": 4, "random": True}
    small = [torch.full((3, 4), 0.1), torch.full((2, 3), 0.1)]
    assert broken_hypotheses(small, bare=[], **held) == []
    for change, words in (
        ({"spectral_norms": [1.0, 2.5]}, "the largest is 2.5"),
        ({"input_norm": 28.0}, "the largest is 28"),
        ({"epsilon": 0.0}, "it is 0"),
        ({"ticket_depth": 2}, "L = 2, the ticket has 2"),
        ({"random": False}, "trained"),
        ({"bare": [0, 3]}, "not in layer 0, 3"),
    ):
        (found,) = broken_hypotheses(small, **({"bare": []} | held | change))
        assert words in found
    (found,) = broken_hypotheses([torch.full((3, 4), 1.0)] * 2, bare=[], **held)
    assert "one is 2 times" in found
