"""Lottery tickets (paper §6): masks of one round, and the quantities of Theorem 6.2's bound."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from milkshake_mbp.theory.margins import error_rate
from milkshake_mbp.theory.perturbation import logsumexp, safe_log
from milkshake_mbp.theory.pruning import MaskDraw

__all__ = [
    "TicketBound",
    "active_units",
    "broken_hypotheses",
    "log_ticket_width",
    "magnitude_masks",
    "random_magnitude_masks",
    "shuffled_masks",
    "strength_for_rate",
    "ticket_bound",
    "ticket_parameters",
]

Numbers = TypeVar("Numbers", float, Tensor)
Scope = Literal["layer", "global"]


def magnitude_masks(
    weights: Sequence[Tensor], masks: Sequence[Tensor], rates: Sequence[float], scope: Scope = "global"
) -> list[Tensor]:
    """One round of magnitude pruning: prune the remaining weights of smallest magnitude (Frankle and Carbin 2019).

    Exactly round(rate·remaining) weights are pruned, with ties broken by position, so the kept fraction after any
    number of rounds is known beforehand.

    Args:
        weights: (out, in) tensors in forward order, any floating dtype.
        masks: (out, in) bools, True = survived so far, on the weights' devices.
        rates: the share of its survivors that each layer loses.
        scope: "layer" for a threshold of each layer; "global" for one that all layers of the same rate share.

    Returns:
        (out, in) bools, nested in those given.

    Raises:
        ValueError: a rate outside [0, 1], or a surviving weight is NaN or infinite.

    Example:
        >>> weight = torch.tensor([[0.5, -0.1], [0.3, -0.4]])
        >>> magnitude_masks([weight], [torch.ones(2, 2, dtype=torch.bool)], [0.5])[0].tolist()
        [[True, False], [False, True]]
    """
    _check(weights, masks, rates)
    found = list(masks)
    for group in _groups(rates, scope):
        sizes = [weights[layer].detach().abs() for layer in group]
        values = torch.cat(
            [_chosen(size, masks[layer]).to(sizes[0].device) for size, layer in zip(sizes, group, strict=True)]
        )
        if not bool(torch.isfinite(values.sum(dtype=torch.float64))):
            raise ValueError("the weights hold NaN or infinity; nothing can be pruned by magnitude")
        count = round(rates[group[0]] * len(values))
        if not count:
            continue
        threshold = _nth_smallest(values, count - 1)
        for size, layer in zip(sizes, group, strict=True):
            found[layer] = masks[layer] & (size > threshold.to(size.device))
        # Of those equal to the threshold the first were to go, the others stay.
        spared = len(values) - count - sum(int(found[layer].sum()) for layer in group)
        for size, layer in zip(reversed(sizes), reversed(group), strict=True):
            if spared:
                ties = (masks[layer] & (size == threshold.to(size.device))).nonzero()
                last = ties[max(0, len(ties) - spared) :]
                found[layer][last[:, 0], last[:, 1]] = True
                spared -= len(last)
    return found


def random_magnitude_masks(
    weights: Sequence[Tensor],
    masks: Sequence[Tensor],
    rates: Sequence[float],
    scope: Scope = "global",
    *,
    seed: int = 0,
    keep_diagonal: bool = False,
) -> tuple[list[Tensor], list[float]]:
    """One round of Algorithm 1: prune remaining weights at random, with the given shares in expectation.

    Args:
        weights: (out, in) tensors in forward order; those pruned before count as zeros in a layer's variance Ψ.
        masks: (out, in) bools, True = survived so far.
        rates: the share of its survivors that each layer is expected to lose.
        scope: "layer" for a strength of each layer; "global" for one d that all layers of the same rate share.
        seed: seed of the draw.
        keep_diagonal: surviving entries (i, i) are never pruned (Remark 4.1).

    Returns:
        (out, in) bools, nested in those given, and each layer's d.

    Raises:
        ValueError: a rate outside [0, 1], or a weight is NaN or infinite.
    """
    _check(weights, masks, rates)
    current = [weight.detach() * mask for weight, mask in zip(weights, masks, strict=True)]
    draw = MaskDraw(current, seed)
    strengths = [0.0] * len(weights)
    for group in _groups(rates, scope):
        ratios, total, spared = [], 0, 0
        for layer in group:
            chosen = masks[layer].clone()
            total += int(chosen.sum())
            if keep_diagonal:
                spared += int(chosen.diagonal().sum())
                chosen.diagonal().fill_(False)
            squares = current[layer].double().square()
            variance = current[layer].double().var(correction=0)
            ratios.append((squares[chosen] / variance.clamp_min(1e-300)).cpu())
        d = strength_for_rate(torch.cat(ratios), rates[group[0]] * total, total - spared)
        for layer in group:
            strengths[layer] = d
    drawn = zip(masks, draw.masks(strengths, keep_diagonal), strict=True)
    return [mask & kept for mask, kept in drawn], strengths


def strength_for_rate(ratios: Tensor, removed: float, total: int | None = None) -> float:
    """The d of Algorithm 1 at which Σ exp(−a²/(dΨ)) is the number of entries to lose; ∞ if there are not that many.

    Args:
        ratios: (n,) a²/Ψ of the entries that may go.
        removed: how many are to go in expectation, ≥ 0.
        total: how many may go; by default n.

    Example:
        >>> round(strength_for_rate(torch.ones(10), 10 * math.exp(-2.0)), 6)
        0.5
    """
    if removed <= 0:
        return 0.0
    if removed >= (len(ratios) if total is None else total):
        return math.inf
    low, high = -700.0, 700.0
    while high - low > 1e-12 * max(1.0, abs(low)):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        expected = float(torch.exp(-ratios.double() / math.exp(middle)).sum())
        low, high = (middle, high) if expected < removed else (low, middle)
    return math.exp(low)


def shuffled_masks(masks: Sequence[Tensor], seed: int = 0) -> list[Tensor]:
    """Random masks that keep as many entries of every layer as those given: the control of Frankle and Carbin 2019."""
    found = []
    for layer, mask in enumerate(masks):
        generator = np.random.default_rng((seed, layer))
        order = torch.from_numpy(generator.permutation(mask.numel())[: int(mask.sum())]).to(mask.device)
        found.append(torch.zeros_like(mask).flatten().index_fill_(0, order, True).reshape(mask.shape))
    return found


def active_units(masks: Sequence[Tensor]) -> list[int]:
    """How many units of each hidden layer lie on a path of surviving weights from an input to an output.

    Args:
        masks: (out, in) in forward order; nonzero = survived.

    Returns:
        One number per hidden layer, in forward order.

    Example:
        >>> active_units([torch.tensor([[1, 0], [0, 0], [0, 1]]), torch.tensor([[1, 1, 0]])])
        [1]
    """
    reached, paths = masks[0].new_ones(masks[0].shape[1], dtype=torch.bool), []
    for mask in masks[:-1]:
        reached = ((mask != 0) & reached).any(dim=1)
        paths.append(reached)
    useful = masks[-1].new_ones(masks[-1].shape[0], dtype=torch.bool)
    counts = []
    for mask, path in zip(reversed(masks[1:]), reversed(paths), strict=True):
        useful = ((mask != 0) & useful.unsqueeze(1)).any(dim=0)
        counts.append(int((useful & path).sum()))
    return counts[::-1]


def log_ticket_width(width: int, depth: int, log_epsilon: Numbers, delta: float = 0.05) -> Numbers:
    """Ln D_G, the width of a random network that hides a target within ε: ln[n_M⁵L²/ε²·ln(n_M L/δ)].

    The polynomial of Theorem 6.1 to leading order, its constant 1 (Malach et al. 2020, in the form that Pensia et al.
    2020 give it).

    Args:
        width: n_M, the target's widest hidden layer.
        depth: L, the target's layers.
        log_epsilon: ln ε, a number or (m,) of them: the imitation error, in ℓ2 on the unit ball.
        delta: δ, the probability that no such ticket exists.
    """
    log_factor = math.log(max(1.0, math.log(width * depth / delta)))
    return 5 * math.log(width) + 2 * math.log(depth) + log_factor - 2 * log_epsilon


def ticket_parameters(width: int, input_dim: int, depth: int, log_ticket_width: Numbers) -> Numbers:
    """[n_M d_0 + L n_M²] ln² D_G, the sketched parameters of Theorem 6.2 (n_M for Theorem 6.1's D_G: erratum E18).

    Args:
        width: n_M.
        input_dim: d_0.
        depth: L.
        log_ticket_width: ln D_G.
    """
    return (width * input_dim + depth * width**2) * log_ticket_width**2


@dataclass(frozen=True)
class TicketBound:
    """Theorem 6.2 for one ticket, everything in it measured.

    Attributes:
        log_value: natural log of the bound, hidden constant 1.
        log_complexity: of its second term.
        log_complexity_2l: the same with 2L layers to sketch, as the ticket has them (E18).
        empirical_risk: R̂_γ.
        gamma: γ = √2(ε + ε_ρ).
        width: n_M.
        ticket_width: D_G.
        epsilon: ε.
        rounding: ε_ρ.
        alphabet: r.
        broken: the theorem's hypotheses that fail, in words.
        applies: whether none does.
    """

    log_value: float
    log_complexity: float
    log_complexity_2l: float
    empirical_risk: float
    gamma: float
    width: int
    ticket_width: int
    epsilon: float
    rounding: float
    alphabet: int
    broken: tuple[str, ...]
    applies: bool


def ticket_bound(
    margins: Tensor,
    *,
    width: int,
    input_dim: int,
    depth: int,
    ticket_width: int,
    epsilon: float,
    rounding: float,
    alphabet: int,
    broken: Sequence[str] = (),
) -> TicketBound:
    """R̂_γ(M) + sqrt([n_M d_0 + L n_M²] ln²D_G ln r / n), γ = √2(ε + ε_ρ) (Theorem 6.2, `leading`; E12, E18, E34).

    Args:
        margins: (n,) margins of the target M on the training samples, in the units of ε.
        width: n_M, the target's widest hidden layer.
        input_dim: d_0.
        depth: L, the target's layers.
        ticket_width: D_G, the widest layer of the network that was pruned.
        epsilon: ε, the largest ℓ2 distance of the ticket's outputs from the target's.
        rounding: ε_ρ, that of the rounded ticket's from the ticket's.
        alphabet: r, the values that a rounded weight can take.
        broken: hypotheses that fail, as `broken_hypotheses` finds them.

    Raises:
        ValueError: no margins, or a size that is not positive.
    """
    if not margins.numel() or min(width, input_dim, depth, ticket_width) < 1 or alphabet < 2:
        raise ValueError("Theorem 6.2 needs samples, positive sizes and an alphabet of at least 2")
    gamma = math.sqrt(2) * (epsilon + rounding)
    # At γ = 0 an error is a margin that is not positive, ties included.
    risk = error_rate(margins, gamma)
    log_width = math.log(ticket_width)

    def log_complexity(layers: int) -> float:
        total = ticket_parameters(width, input_dim, layers, log_width) * math.log(alphabet)
        return 0.5 * (safe_log(total) - math.log(len(margins)))

    complexity = log_complexity(depth)
    return TicketBound(
        log_value=logsumexp([safe_log(risk), complexity]),
        log_complexity=complexity,
        log_complexity_2l=log_complexity(2 * depth),
        empirical_risk=risk,
        gamma=gamma,
        width=width,
        ticket_width=ticket_width,
        epsilon=epsilon,
        rounding=rounding,
        alphabet=alphabet,
        broken=tuple(broken),
        applies=not broken,
    )


def broken_hypotheses(
    target: Sequence[Tensor],
    *,
    spectral_norms: Sequence[float],
    input_norm: float,
    epsilon: float,
    ticket_depth: int,
    bare: Sequence[int],
    random: bool,
) -> list[str]:
    """Which of Theorems 6.1's and 6.2's hypotheses fail, in words that give the numbers.

    Args:
        target: M's (out, in) weights.
        spectral_norms: ‖A_l‖₂ of the target.
        input_norm: the largest ‖x‖₂.
        epsilon: ε.
        ticket_depth: layers of the network that was pruned.
        bare: those of its layers that pruning left without a full diagonal.
        random: whether the ticket's weights are as they were drawn, uniform on [−1, 1].
    """
    # Norms are measured in float32.
    slack = 1 + 1e-6
    largest = max(float(weight.abs().amax()) * math.sqrt(weight.shape[1]) for weight in target)
    claims = [
        (not input_norm <= slack, f"‖x‖ ≤ 1: the largest is {input_norm:.3g}"),
        (not max(spectral_norms) <= slack, f"‖A_l‖₂ ≤ 1: the largest is {max(spectral_norms):.3g}"),
        (not largest <= slack, f"‖A_l‖_max ≤ 1/√d_in: one is {largest:.3g} times that"),
        (not 0 < epsilon < 1, f"0 < ε < 1: it is {epsilon:.3g}"),
        (ticket_depth != 2 * len(target), f"2L layers: L = {len(target)}, the ticket has {ticket_depth}"),
        (not random, "weights drawn from U[−1, 1]: they were trained"),
        (bool(bare), f"a full diagonal, for Theorem 5.1: not in layer {', '.join(map(str, bare))} (erratum E18)"),
    ]
    return [words for broken, words in claims if broken]


def _check(weights: Sequence[Tensor], masks: Sequence[Tensor], rates: Sequence[float]) -> None:
    if not len(weights) == len(masks) == len(rates):
        raise ValueError(
            f"{len(weights)} weights, {len(masks)} masks and {len(rates)} rates: each layer has one of each"
        )
    for rate in rates:
        if not 0 <= rate <= 1:
            raise ValueError(f"a rate is the share of the survivors to prune, from 0 to 1, got {rate}")


def _groups(rates: Sequence[float], scope: Scope) -> list[list[int]]:
    """The layers that share a threshold."""
    if scope == "layer":
        return [[layer] for layer in range(len(rates))]
    return [[layer for layer, rate in enumerate(rates) if rate == shared] for shared in dict.fromkeys(rates)]


def _chosen(values: Tensor, mask: Tensor) -> Tensor:
    """(n,) values where the mask is True; a copy only of part of them."""
    return values.flatten() if bool(mask.all()) else values[mask]


def _nth_smallest(values: Tensor, index: int) -> Tensor:
    """The entry at `index`, from 0, of the sorted values."""
    if values.device.type == "cpu" and values.dtype in (torch.float32, torch.float64):
        # NumPy selects with vector instructions, several times faster than torch on a CPU.
        return torch.as_tensor(np.partition(values.numpy(), index)[index])
    return (values if values.dtype == torch.float64 else values.float()).kthvalue(index + 1).values
