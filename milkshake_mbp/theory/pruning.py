"""Magnitude-based pruning (paper §4, Algorithm 1): its probabilities, its masks, and the choice of its strength d.

Algorithm 1 depends only on a²/Ψ, so it does not depend on a layer's scale. A layer of equal entries has Ψ = 0: its
nonzero entries are never pruned, since a²/(dΨ) tends to infinity as Ψ tends to 0. A zero entry is pruned at every
d > 0 for every Ψ, including 0, since exp(−0/(dΨ)) = 1 for every Ψ > 0.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "MaskDraw",
    "StrengthSearch",
    "difference_moments",
    "keep_probability",
    "layer_generator",
    "prune_probability",
    "prune_thresholds",
    "sample_mask",
    "search_strength",
]

_TINY = torch.finfo(torch.float64).tiny


def keep_probability(d: float) -> float:
    """χ(d) = 1 − sqrt(d/(d+2)): the probability that an off-diagonal Gaussian entry survives (Lemma 5.1, erratum E2).

    Args:
        d: pruning strength, ≥ 0; infinity prunes everything off the diagonal.

    Raises:
        ValueError: d is negative or NaN.

    Example:
        >>> keep_probability(0.0), round(keep_probability(1.0), 4)
        (1.0, 0.4226)
    """
    _check_strength(d)
    if math.isinf(d):
        return 0.0
    return 2 / (d + 2) / (1 + math.sqrt(d / (d + 2)))


def difference_moments(d: float, variance: float) -> tuple[float, float]:
    """E Δ² = Ψ(d/(d+2))^{3/2} and E Δ⁴ = 3Ψ²(d/(d+2))^{5/2} for a ~ N(0, Ψ) (Lemma 4.1).

    Args:
        d: pruning strength, ≥ 0.
        variance: Ψ, ≥ 0.

    Raises:
        ValueError: d is negative or NaN.
    """
    _check_strength(d)
    ratio = 1.0 if math.isinf(d) else d / (d + 2)
    # Of a large Ψ the square may be beyond floats where E Δ⁴ is not.
    fourth = 3 * variance**2 * ratio**2.5 if variance < 1e150 else variance * (3 * ratio**2.5 * variance)
    return variance * ratio**1.5, fourth


def prune_probability(
    weight: Tensor, d: float, variance: float | Tensor | None = None, keep_diagonal: bool = True
) -> Tensor:
    """exp(−a²/(dΨ)) for every entry: the probability that Algorithm 1 zeroes it.

    Where Ψ = 0 it is 0 for nonzero entries and 1 for zeros, unless d = 0.

    Args:
        weight: (out, in).
        d: pruning strength, ≥ 0; at 0 nothing is pruned.
        variance: Ψ; by default the population variance of the layer's entries (ddof 0).
        keep_diagonal: entries (i, i) are never pruned (Remark 4.1).

    Returns:
        (out, in) float64 probabilities on the weight's device.

    Raises:
        ValueError: d or Ψ is negative or NaN, or the weight is not a finite matrix.
    """
    _check_strength(d)
    squares, psi = _squares_and_variance(weight, variance)
    scale = d * psi if psi else 0.0
    probability = torch.exp(-squares / scale) if scale else ((squares == 0) & (d > 0)).double()
    if keep_diagonal:
        probability.diagonal().zero_()
    return probability


def prune_thresholds(
    weight: Tensor, *, variance: float | Tensor | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """The strength above which each entry is pruned, for one draw of Algorithm 1's randomness.

    With E ~ Exponential(1), a² < E·d·Ψ has probability exp(−a²/(dΨ)). One draw of E per entry therefore gives every
    mask at once: entry (i, j) is pruned exactly when d > a²/(EΨ), and the masks are nested in d.

    Args:
        weight: (out, in), any floating dtype.
        variance: Ψ; by default the population variance of the layer's entries (ddof 0).
        generator: source of the draw, on the weight's device; by default torch's own for that device.

    Returns:
        (out, in) float64 thresholds on the weight's device; 0 only for zero entries, infinity for all others if Ψ = 0.

    Raises:
        ValueError: Ψ is negative or NaN, or the weight is not a finite matrix.
    """
    squares, psi = _squares_and_variance(weight, variance)
    zero = squares == 0
    draw = torch.rand(weight.shape, dtype=torch.float64, device=weight.device, generator=generator)
    # E·Ψ = −Ψ·ln(1 − u), kept off 0, for which there is no quotient if a = 0.
    scale = draw.neg_().log1p_().mul_(-psi).clamp_min_(1e-300) if psi else draw.zero_()
    return squares.div_(scale).clamp_min_(_TINY).masked_fill_(zero, 0.0)


def sample_mask(
    weight: Tensor,
    d: float,
    *,
    variance: float | Tensor | None = None,
    keep_diagonal: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """One draw of Algorithm 1's mask; the same generator state gives masks that are nested in d.

    Args:
        weight: (out, in), any floating dtype.
        d: pruning strength, ≥ 0; at 0 everything is kept.
        variance: Ψ; by default the population variance of the layer's entries (ddof 0).
        keep_diagonal: entries (i, i) are never pruned (Remark 4.1).
        generator: source of the draw, on the weight's device; by default torch's own for that device.

    Returns:
        (out, in) bool on the weight's device, True = kept.

    Raises:
        ValueError: d or Ψ is negative or NaN, or the weight is not a finite matrix.
    """
    _check_strength(d)
    return _mask(prune_thresholds(weight, variance=variance, generator=generator), d, keep_diagonal)


class MaskDraw:
    """One draw of Algorithm 1's randomness for a whole network, which gives its masks at every strength.

    The draw is a fixed function of the weights, the seed and the device, and does not use global state.

    Args:
        weights: (out, in) tensors in forward order.
        seed: seed of the draw.

    Attributes:
        thresholds: (out, in) float64 per layer; see `prune_thresholds`.

    Raises:
        ValueError: a weight is not a finite matrix.
    """

    def __init__(self, weights: Sequence[Tensor], seed: int = 0) -> None:
        self.thresholds = [
            prune_thresholds(weight, generator=layer_generator(seed, layer, weight.device))
            for layer, weight in enumerate(weights)
        ]

    def masks(self, d: float | Sequence[float], keep_diagonal: bool = True) -> list[Tensor]:
        """Algorithm 1's masks at strength d, or at one for each layer; True = kept; nested in d."""
        strengths = [d] * len(self.thresholds) if isinstance(d, (int, float)) else d
        for strength in strengths:
            _check_strength(strength)
        layers = zip(self.thresholds, strengths, strict=True)
        return [_mask(threshold, strength, keep_diagonal) for threshold, strength in layers]

    @property
    def smallest(self) -> float:
        """A strength at which nothing but zeros is pruned; infinity if there is nothing else."""
        positive = [torch.where(threshold > 0, threshold, torch.inf).amin() for threshold in self.thresholds]
        return min(map(float, positive))


def layer_generator(seed: int, layer: int, device: torch.device | str = "cpu") -> torch.Generator:
    """The generator of one layer's draw: a fixed function of (seed, layer, device), never of global state."""
    (state,) = np.random.SeedSequence((seed, layer)).generate_state(1, np.uint64)
    return torch.Generator(device=device).manual_seed(int(state))


@dataclass(frozen=True)
class StrengthSearch:
    """Result of `search_strength`.

    Attributes:
        d: the strength found; its needed margin does not exceed the available margin.
        log_needed: natural log of the needed margin at d; −inf if nothing is pruned.
        log_margin: natural log of the available margin; −inf if it is not positive.
        evaluations: number of evaluations of the needed margin.
    """

    d: float
    log_needed: float
    log_margin: float
    evaluations: int


def search_strength(
    log_needed: Callable[[float], float],
    margin: float,
    *,
    smallest: float,
    start: float,
    largest: float = 10.0,
    tolerance: float = 0.01,
) -> StrengthSearch:
    """The largest strength, to a relative tolerance, whose needed margin does not exceed the network's (spec §4).

    A bracket in ln d is narrowed by interpolating ln needed(d), which is close to a power law d^{3/4}. The lower end
    always satisfies needed ≤ margin and is returned. needed(d) may cross the margin several times; the result is one
    of these crossings.

    Args:
        log_needed: ln needed(d) for d in [smallest, largest]; −inf if nothing is pruned.
        margin: the smallest training margin, in units of the network's output.
        smallest: a strength at which nothing is pruned, > 0.
        start: first guess.
        largest: largest strength; returned if its needed margin does not exceed the margin.
        tolerance: relative width of the final bracket.

    Returns:
        The result of the search; d = 0 if the margin is not positive.
    """
    if not margin > 0:
        return StrengthSearch(0.0, -math.inf, -math.inf, 0)
    log_margin, width = math.log(margin), math.log1p(tolerance)
    high, high_excess = math.log(largest), log_needed(largest) - log_margin
    if high_excess <= 0:
        return StrengthSearch(largest, high_excess + log_margin, log_margin, 1)
    d, low, low_excess = min(smallest, largest), math.log(min(smallest, largest)), -math.inf
    evaluations, proposal, moved, push = 1, math.log(start), 0, 0.0
    while high - low > width:
        rim = min(width, high - low) / 5
        point = proposal if low + rim <= proposal <= high - rim else (low + high) / 2
        excess = log_needed(math.exp(point)) - log_margin
        evaluations += 1
        end = 1 if excess <= 0 else -1
        # Aim beyond the root, to move the other end; further each time it stays, for needed(d) moves in steps.
        push = 2 * push if end == moved else 0.4 * width
        moved = end
        if excess <= 0:
            d, low, low_excess = math.exp(point), point, excess
        else:
            high, high_excess = point, excess
        if math.isinf(low_excess):
            root = high - high_excess / 0.75
        else:
            root = low - low_excess * (high - low) / (high_excess - low_excess)
        proposal = root + moved * push
    return StrengthSearch(d, low_excess + log_margin, log_margin, evaluations)


def _check_strength(d: float) -> None:
    if not d >= 0:
        raise ValueError(f"the pruning strength d must be ≥ 0, got {d}")


def _mask(threshold: Tensor, d: float, keep_diagonal: bool) -> Tensor:
    kept = threshold >= d
    if keep_diagonal:
        kept.diagonal().fill_(True)
    return kept


def _squares_and_variance(weight: Tensor, variance: float | Tensor | None) -> tuple[Tensor, float]:
    """a², not 0 unless a is, and Ψ, both times one power of 4, which keeps their quotient to the last bit."""
    if weight.ndim != 2 or not weight.numel():
        raise ValueError(f"Algorithm 1 prunes matrices, got shape {tuple(weight.shape)}")
    matrix = weight.detach().double()
    largest = float(matrix.abs().amax())
    if not math.isfinite(largest):
        raise ValueError("the weights hold NaN or infinity; nothing can be pruned by magnitude")
    if variance is None:
        scaled = _times_power_of_two(matrix, -math.frexp(largest)[1])
        # Of equal entries the mean, and with it the variance, may come out with an error of rounding.
        psi = 0.0 if scaled.amin() == scaled.amax() else float(scaled.var(correction=0))
    else:
        psi = float(variance)
        if not 0 <= psi < math.inf:
            raise ValueError(f"the variance Ψ must be ≥ 0 and finite, got {psi}")
        shift = -(math.frexp(psi)[1] // 2)
        scaled, psi = _times_power_of_two(matrix, shift), math.ldexp(psi, 2 * shift)
    return scaled.square().clamp_min_(_TINY).masked_fill_(matrix == 0, 0.0), psi


def _times_power_of_two(matrix: Tensor, exponent: int) -> Tensor:
    """2^exponent·A, in two steps, since 2^1074 itself is not a float64."""
    return matrix * 2.0 ** (exponent // 2) * 2.0 ** (exponent - exponent // 2)
