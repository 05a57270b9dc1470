"""The Gaussian noise that a network's weights tolerate (Jiang et al. 2020, PAC-Bayes flatness)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = ["Flatness", "MagnitudeFlatness", "search_flatness"]

_STEP = math.log(4.0)


@dataclass(frozen=True)
class Flatness:
    """Outcome of the search for the tolerated noise.

    Attributes:
        sigma: the largest standard deviation found whose mean error exceeds the network's own by at most `deviation`.
        deviation: the increase of the training error allowed, a probability.
        error: the network's own error on the samples used.
        noisy_error: mean error at sigma.
        draws: noise draws behind each mean.
        num_samples: samples used.
        evaluations: how often the error was computed; 0 if sigma comes from elsewhere.
    """

    sigma: float
    deviation: float
    error: float
    noisy_error: float
    draws: int
    num_samples: int
    evaluations: int = 0


@dataclass(frozen=True)
class MagnitudeFlatness:
    """The noise in proportion to their size that the weights tolerate, u_i ~ N(0, σ'²w_i² + ε²).

    Jiang et al. 2020, eq. 51–57 and 61: unlike noise of one size for all weights it does not see a layer's scale.

    Attributes:
        sigma: σ', the largest found.
        floor: ε, the part of the deviation that does not depend on the weight.
        from_initial: ¼ Σ_i ln((ε² + (σ'² + 1)‖w − w⁰‖₂²/ω)/(ε² + σ'²(w_i − w⁰_i)²)), ω the number of weights; None
            where the initial weights w⁰ are unknown.
        from_zero: the same with ‖w‖₂² in the numerator.
    """

    sigma: float
    floor: float
    from_initial: float | None = None
    from_zero: float | None = None

    @classmethod
    def measure(
        cls, weights: Sequence[Tensor], initial: Sequence[Tensor] | None, sigma: float, floor: float = 1e-3
    ) -> "MagnitudeFlatness":
        """The sums at a σ' that `search_flatness` has found with this floor; shapes of both lists alike."""
        if initial is None:
            return cls(sigma, floor)
        parts = list(zip(weights, initial, strict=True))
        moved = [(w.detach().double() - start.to(w.device, torch.float64)).square() for w, start in parts]
        squares = [
            sum(float(part.sum()) for part in moved),
            sum(float(w.detach().double().square().sum()) for w in weights),
        ]
        count = sum(weight.numel() for weight in weights)
        spread = math.fsum(float((floor**2 + sigma**2 * part).log().sum()) for part in moved)
        sums = [(count * math.log(floor**2 + (sigma**2 + 1) * square / count) - spread) / 4 for square in squares]
        return cls(sigma, floor, *sums)


def search_flatness(
    weights: Sequence[Tensor],
    error: Callable[[list[Tensor]], float],
    *,
    num_samples: int,
    deviation: float = 0.1,
    draws: int = 10,
    seed: int = 0,
    tolerance: float = 0.01,
    floor: float | None = None,
) -> Flatness:
    """The largest σ, to a relative tolerance, with E error(A + σG) ≤ error(A) + deviation, G standard normal.

    Jiang et al. 2020 (Fantastic Generalization Measures and Where to Find Them), the σ of their PAC-Bayes measures,
    whose deviation is 0.1. The mean is over the same draws of G at every σ, so it is one function of σ: a bracket in
    ln σ, narrowed by interpolation. Its lower end always satisfies the condition and is what is returned. The mean may
    cross the limit several times; the answer is one of the crossings. The draws of a σ stop as soon as those that
    remain cannot bring the mean back under the limit.

    G is a fixed function of (seed, draw, layer, device), drawn again for each σ rather than held. Biases and whatever
    else `error` knows are not perturbed.

    Args:
        weights: weights of the network; any shapes, floating dtype and device. They are not changed.
        error: from such a list of weights to the network's error, a probability; NaN counts as too much.
        num_samples: how many samples `error` looks at; for the record.
        deviation: the increase allowed, ≥ 0.
        draws: number of draws of G, ≥ 1. The mean's own standard error adds to the tolerance.
        seed: seed of the draws.
        tolerance: relative width of the final bracket, > 0.
        floor: ε ≥ 0, for noise in proportion to the weights, of deviation sqrt(σ²w² + ε²); None for σ alike for all.

    Returns:
        The search's outcome. If the error is still within the limit at 1000 times the largest absolute weight (at 1000
        with `floor`), where the network is all noise, that σ is returned; so it is whenever error(A) + deviation ≥ 1.

    Raises:
        ValueError: an argument is out of range, the network's error is not a probability, or noise of 10⁻⁶ times the
            largest absolute weight, below which float32 begins to round it away, is already too much.
    """
    if draws < 1 or not deviation >= 0 or not tolerance > 0:
        raise ValueError(
            "the σ search needs draws ≥ 1, deviation ≥ 0 and tolerance > 0, "
            f"got draws={draws}, deviation={deviation}, tolerance={tolerance}"
        )
    exact = [weight.detach() for weight in weights]
    scale = max((float(weight.abs().amax()) for weight in exact if weight.numel()), default=0.0) or 1.0
    scale = scale if floor is None or not math.isfinite(scale) else 1.0
    own = float(error(list(exact)))
    if not (0 <= own <= 1 and math.isfinite(scale)):
        raise ValueError(f"the σ search needs finite weights and an error in [0, 1], got largest {scale}, error {own}")
    evaluations = 1

    def mean_error(log_sigma: float) -> float:
        nonlocal evaluations
        total = 0.0
        for draw in range(draws):
            total += float(error(_noisy(exact, math.exp(log_sigma), seed, draw, floor)))
            evaluations += 1
            if not total / draws - own <= deviation:
                return total / (draw + 1)
        return total / draws

    smallest, largest, width = math.log(1e-6 * scale), math.log(1e3 * scale), math.log1p(tolerance)
    low, low_mean, high, high_mean = -math.inf, math.nan, math.inf, math.nan
    point, moved, push = math.log(0.1 * scale), 0, 0.0
    while high - low > width:
        mean = mean_error(point)
        end = 1 if mean - own <= deviation else -1
        # Aim beyond the root, to move the other end; further each time it stays.
        push = 2 * push if end == moved else 0.4 * width
        moved = end
        if end > 0:
            low, low_mean = point, mean
            if point == largest:
                break
        else:
            high, high_mean = point, mean
            if point == smallest:
                raise ValueError(
                    f"noise of σ = {math.exp(point):.1e} raises the error of {own:.4g} by more than {deviation} "
                    "already; check that the error is not NaN, or allow a larger deviation"
                )
        if math.isinf(high):
            point = min(point + _STEP, largest)
        elif math.isinf(low):
            point = max(point - _STEP, smallest)
        else:
            rim = min(width, high - low) / 5
            root = low + (high - low) * (own + deviation - low_mean) / (high_mean - low_mean) + moved * push
            point = root if low + rim <= root <= high - rim else (low + high) / 2
    return Flatness(math.exp(low), deviation, own, low_mean, draws, num_samples, evaluations)


def _noisy(weights: Sequence[Tensor], sigma: float, seed: int, draw: int, floor: float | None = None) -> list[Tensor]:
    """A + σG, G standard normal in float32; with a floor A + sqrt(σ²A² + ε²)·G, entry by entry."""
    return [
        weight
        + (sigma if floor is None else (sigma**2 * weight.square() + floor**2).sqrt())
        * torch.randn(weight.shape, generator=generator, device=weight.device).to(weight.dtype)
        for layer, weight in enumerate(weights)
        for generator in [_noise_generator(seed, draw, layer, weight.device)]
    ]


def _noise_generator(seed: int, draw: int, layer: int, device: torch.device) -> torch.Generator:
    """A fixed function of its arguments; the spawn key keeps it apart from `layer_generator`'s streams."""
    (state,) = np.random.SeedSequence(seed, spawn_key=(draw, layer)).generate_state(1, np.uint64)
    return torch.Generator(device=device).manual_seed(int(state))
