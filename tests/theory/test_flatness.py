import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from torch import Tensor

from milkshake_mbp.theory.flatness import Flatness, MagnitudeFlatness, _noisy, search_flatness

fixed = settings(derandomize=True, deadline=None, max_examples=25, database=None)


def margin_error(margin: float, length: float, copies: int = 20_000, dim: int = 4) -> tuple[Tensor, Callable]:
    """Copies of one linear classifier w and one sample x with wᵀx = margin and ‖x‖ = length."""
    x = torch.full((dim,), length / math.sqrt(dim), dtype=torch.float64)
    weight = (margin / length**2 * x).repeat(copies, 1)
    return weight, lambda weights: float((weights[0].double() @ x <= 0).double().mean())


def mean_error(weights: list[Tensor], error: Callable, sigma: float, draws: int, seed: int = 0) -> float:
    return sum(error(_noisy(weights, sigma, seed, draw)) for draw in range(draws)) / draws


@pytest.mark.parametrize("deviation", [0.02, 0.1, 0.3])
@pytest.mark.parametrize(("margin", "length"), [(1.0, 1.0), (0.02, 5.0), (300.0, 0.1)])
def test_agrees_with_the_closed_form(margin: float, length: float, deviation: float) -> None:
    # error(σ) = Φ(−margin/(σ‖x‖)) at every copy.
    weight, error = margin_error(margin, length)
    found = search_flatness([weight], error, num_samples=1, deviation=deviation, draws=5, tolerance=1e-3)
    quantile = -norm.ppf(deviation)
    expected = margin / (quantile * length)
    spread = math.sqrt(deviation * (1 - deviation) / (5 * len(weight))) / (norm.pdf(quantile) * quantile)
    assert found.sigma == pytest.approx(expected, rel=4 * spread + 2e-3)
    assert found.error == 0
    assert found.noisy_error == pytest.approx(deviation, abs=1e-3)


@fixed
@given(
    st.floats(1e-3, 1e3),
    st.floats(0, 0.45),
    st.integers(1, 4),
    st.sampled_from([0.5, 0.1, 0.01]),
    st.integers(0, 100),
)
def test_the_noise_found_satisfies_the_condition_and_a_little_more_does_not(
    margin: float, deviation: float, draws: int, tolerance: float, seed: int
) -> None:
    weight, error = margin_error(margin, 2.0, copies=300)
    found = search_flatness(
        [weight], error, num_samples=1, deviation=deviation, draws=draws, tolerance=tolerance, seed=seed
    )
    assert found.noisy_error == mean_error([weight], error, found.sigma, draws, seed)
    assert found.noisy_error - found.error <= deviation
    # With these draws the mean error increases with σ, so there is one crossing.
    more = found.sigma * (1 + tolerance) * (1 + 1e-9)
    assert mean_error([weight], error, more, draws, seed) - found.error > deviation


@fixed
@given(st.floats(-200, 200), st.integers(0, 100))
def test_scales_with_the_weights(power: float, seed: int) -> None:
    weight, error = margin_error(1.0, 2.0, copies=300)
    scale = 10.0**power
    one = search_flatness([weight], error, num_samples=1, draws=2, seed=seed)
    other = search_flatness([scale * weight], error, num_samples=1, draws=2, seed=seed)
    assert other.sigma == pytest.approx(scale * one.sigma, rel=0.02)


def test_evaluations_are_counted_and_few() -> None:
    weight, error = margin_error(1.0, 1.0)
    calls = []

    def counted(weights: list[Tensor]) -> float:
        calls.append(1)
        return error(weights)

    found = search_flatness([weight], counted, num_samples=1)
    assert found.evaluations == len(calls)
    assert found.evaluations <= 1 + 10 * 10


def test_an_error_that_never_moves_returns_the_cap() -> None:
    found = search_flatness([torch.tensor([[0.5, -2.0]])], lambda weights: 0.25, num_samples=7, draws=3)
    assert found.sigma == pytest.approx(2000)
    expected = Flatness(found.sigma, 0.1, 0.25, 0.25, 3, 7, found.evaluations)
    assert found == expected
    assert search_flatness([torch.zeros(2, 2)], lambda weights: 0.25, num_samples=1).sigma == pytest.approx(1000)


def test_a_deviation_up_to_certain_error_returns_the_cap() -> None:
    weight, error = margin_error(1.0, 1.0, copies=50)
    found = search_flatness([weight], error, num_samples=1, deviation=1.0)
    assert found.sigma == pytest.approx(1000 * float(weight.abs().max()))


def test_a_jump_is_bracketed_to_the_tolerance() -> None:
    weight, at = torch.ones(1, 1, dtype=torch.float64), 3.7e-5

    def error(weights: list[Tensor]) -> float:
        return float((weights[0] - 1).abs() > at * moved)

    moved = float((_noisy([weight], 1.0, 0, 0)[0] - 1).abs())
    sigma = search_flatness([weight], error, num_samples=1, draws=1, tolerance=1e-3).sigma
    assert at / 1.001 <= sigma * (1 + 1e-9)
    assert sigma <= at * (1 + 1e-9)


def test_nan_under_noise_is_too_much() -> None:
    weight = torch.ones(2, 2)
    with pytest.raises(ValueError, match="raises the error"):
        search_flatness([weight], lambda weights: 0.25 if weights[0].equal(weight) else math.nan, num_samples=1)
    found = search_flatness(
        [weight], lambda weights: 0.25 if float((weights[0] - weight).abs().max()) < 0.5 else math.nan, num_samples=1
    )
    assert found.noisy_error == 0.25
    assert 0.05 < found.sigma < 0.5


def test_a_network_that_tolerates_nothing() -> None:
    weight = torch.ones(2, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match="larger deviation"):
        search_flatness([weight], lambda weights: float(not weights[0].equal(weight)), num_samples=1)


@pytest.mark.parametrize(
    ("options", "own"),
    [
        ({"draws": 0}, 0.0),
        ({"deviation": -0.1}, 0.0),
        ({"deviation": math.nan}, 0.0),
        ({"tolerance": 0.0}, 0.0),
        ({}, math.nan),
        ({}, 1.5),
    ],
)
def test_what_cannot_be_searched(options: dict[str, float], own: float) -> None:
    with pytest.raises(ValueError, match="the σ search needs"):
        search_flatness([torch.ones(2, 2)], lambda weights: own, num_samples=1, **options)


def test_weights_that_are_not_finite() -> None:
    with pytest.raises(ValueError, match="finite weights"):
        search_flatness([torch.tensor([[math.inf]])], lambda weights: 0.0, num_samples=1)


def test_a_fixed_function_that_leaves_global_randomness_and_the_weights_alone() -> None:
    weight, error = margin_error(1.0, 1.0, copies=300)
    weight.requires_grad_()
    before, state = weight.detach().clone(), torch.get_rng_state()
    one = search_flatness([weight], error, num_samples=1, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(weight, before)
    assert search_flatness([weight], error, num_samples=1, seed=3) == one
    assert search_flatness([weight], error, num_samples=1, seed=4) != one


def test_the_noise_differs_between_draws_layers_and_seeds_but_not_between_scales() -> None:
    weights = [torch.zeros(40, 50), torch.zeros(40, 50, dtype=torch.float64)]
    noises = [
        noise.flatten().double() for seed in (0, 1) for draw in (0, 1) for noise in _noisy(weights, 1.0, seed, draw)
    ]
    correlation = torch.corrcoef(torch.stack(noises)) - torch.eye(8)
    assert correlation.abs().max() < 5 / math.sqrt(2000)
    for noise in noises:
        assert abs(noise.mean()) < 5 / math.sqrt(2000)
        assert noise.std() == pytest.approx(1, abs=5 / math.sqrt(4000))
    twice = _noisy(weights, 2.0, 0, 0)
    assert torch.equal(twice[0].flatten().double(), 2 * noises[0])
    assert twice[1].dtype == torch.float64


@pytest.mark.parametrize("floor", [0.0, 0.05])
def test_noise_in_proportion_to_the_weights_agrees_with_the_closed_form(floor: float) -> None:
    """One classifier w, one sample x: its score has deviation sqrt(Σ x_i²(σ²w_i² + ε²)), and errs with Φ(−wᵀx/that)."""
    x, w = torch.tensor([1.0, -2.0, 0.5, 3.0]), torch.tensor([0.4, -0.3, 2.0, 0.1])
    margin, deviation, copies = float(w @ x), 0.2, 100_000
    found = search_flatness(
        [w.repeat(copies, 1)],
        lambda weights: float((weights[0] @ x <= 0).double().mean()),
        num_samples=1,
        deviation=deviation,
        draws=2,
        tolerance=1e-3,
        floor=floor,
    )
    needed = (margin / -norm.ppf(deviation)) ** 2
    expected = math.sqrt((needed - floor**2 * float(x.square().sum())) / float((x * w).square().sum()))
    assert found.sigma == pytest.approx(expected, rel=0.02)


def test_noise_in_proportion_to_the_weights_does_not_see_their_scale() -> None:
    x, w = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([[0.4, -0.3, 2.0]]).repeat(4000, 1)
    found = [
        search_flatness(
            [scale * w], lambda weights: float((weights[0] @ x <= 0).double().mean()), num_samples=1, floor=0.0
        ).sigma
        for scale in (0.01, 1.0, 100.0)
    ]
    assert max(found) == pytest.approx(min(found), rel=1e-3)


def test_sums_by_magnitude_are_those_of_the_source() -> None:
    generator = torch.Generator().manual_seed(3)
    weights = [torch.randn(3, 2, generator=generator), torch.randn(2, 3, generator=generator)]
    initial = [torch.randn(3, 2, generator=generator), torch.randn(2, 3, generator=generator)]
    sigma, floor = 0.3, 1e-3
    found = MagnitudeFlatness.measure(weights, initial, sigma, floor)
    w = [float(x) for part in weights for x in part.flatten()]
    moved = [a - float(b) for a, b in zip(w, [x for part in initial for x in part.flatten()], strict=True)]
    for value, vector in ((found.from_initial, moved), (found.from_zero, w)):
        top = floor**2 + (sigma**2 + 1) * sum(x * x for x in vector) / len(w)
        assert value == pytest.approx(sum(math.log(top / (floor**2 + sigma**2 * x * x)) for x in moved) / 4)
    # By Jensen's inequality, since the mean of the denominators is no more than the numerator.
    assert found.from_initial > 0
    assert MagnitudeFlatness.measure(weights, None, sigma).from_initial is None
