"""The strong ticket (Theorem 6.1): a target network found inside a random one of twice the depth, by pruning alone.

Each target layer W becomes two random layers, a ReLU between them. The units between form a block for every input j,
and a unit keeps one incoming weight u, that from its input. With v its outgoing weight to output i it carries
v·σ(u·x_j): a slope of v·u for x_j > 0 if u > 0, and for x_j < 0 if u < 0. Which of the v survive is chosen so that the
slopes of either sign give w_ij: the one v·u nearest to w_ij (Malach et al. 2020), or the subset of them whose sum is
(Pensia et al. 2020). Inputs that come out of a ReLU need the units of u > 0 alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from milkshake_mbp.theory.norms import spectral_norm

__all__ = [
    "Method",
    "RandomNetwork",
    "StrongTicket",
    "Target",
    "boxed_error",
    "find_ticket",
    "log_mask_count",
    "nearest_error",
    "promised_candidates",
    "promised_subset_candidates",
    "subset_sum",
]

Method = Literal["nearest", "subset_sum"]

# Sums of half the candidates that are held at a time, 64 MiB of them.
_SUMS = 2**23
# More change nothing: the sums of 24 numbers are closer to one another than float32 tells apart.
_MOST_SUMMED = 24


@dataclass(frozen=True)
class Target:
    """A bias-free ReLU network M, rescaled to the theorem's: ‖x‖ ≤ 1, ‖A_l‖₂ ≤ 1, ‖A_l‖_max ≤ 1/√d_in.

    ReLU is positively homogeneous: M(x) is e^{log_scale} times the rescaled network at x/B.

    Attributes:
        weights: (out, in) float64 rescaled weights, in forward order.
        input_norm: B, by which inputs are divided.
        log_scale: ln of the factor lost, B·Π s_l.
    """

    weights: tuple[Tensor, ...]
    input_norm: float
    log_scale: float

    @classmethod
    def of(cls, weights: Sequence[Tensor], input_norm: float = 1.0) -> "Target":
        """Rescale the (out, in) weights of a bias-free ReLU network whose inputs have ‖x‖₂ ≤ B.

        Raises:
            ValueError: a layer is zero or not a finite matrix, or B is not positive and finite.
        """
        if not 0 < input_norm < math.inf:
            raise ValueError(f"the input norm must be positive and finite, got {input_norm}")
        scaled, log_scale = [], math.log(input_norm)
        for weight in weights:
            matrix = weight.detach().double().cpu()
            largest = float(matrix.abs().amax()) * math.sqrt(matrix.shape[1])
            scale = max(float(spectral_norm(matrix)), largest)
            if not 0 < scale < math.inf:
                raise ValueError("a target's layers must be finite and not zero")
            scaled.append(matrix / scale)
            log_scale += math.log(scale)
        return cls(tuple(scaled), input_norm, log_scale)

    @property
    def sizes(self) -> tuple[int, ...]:
        """d_0, n_1, …, n_L."""
        return (self.weights[0].shape[1], *(weight.shape[0] for weight in self.weights))

    @property
    def width(self) -> int:
        """n_M, the widest hidden layer; the inputs where there is none."""
        return max(self.sizes[1:-1], default=self.sizes[0])

    def __call__(self, inputs: Tensor) -> Tensor:
        """(n, d_0) rescaled inputs to (n, k) rescaled outputs."""
        return _forward(self.weights, inputs)


@dataclass(frozen=True)
class RandomNetwork:
    """G: 2L dense layers whose weights are independent and uniform on [−1, 1], a fixed function of the seed.

    It is drawn piece by piece, each from a generator of its own (Philox, keyed by seed, layer, side, block and column),
    so that what pruning never looks at is never drawn.

    Attributes:
        sizes: d_0, n_1, …, n_L: those of the target, and of every second layer of G.
        candidates: m, the units of a block; a layer between has m units for each of its inputs.
        seed: seed of the draw.
    """

    sizes: tuple[int, ...]
    candidates: int
    seed: int = 0

    def incoming(self, layer: int, block: int, column: int | None = None) -> Tensor:
        """(m,) weights into a block's units from one input, by default the block's own."""
        return self._draw((self.candidates,), layer, 0, block, block if column is None else column)

    def outgoing(self, layer: int, block: int) -> Tensor:
        """(out, m) weights from a block's units to the target layer's outputs."""
        return self._draw((self.sizes[layer + 1], self.candidates), layer, 1, block, 0)

    def dense(self, layer: int) -> tuple[Tensor, Tensor]:
        """Both (out, in) matrices whole, for a network small enough."""
        blocks = range(self.sizes[layer])
        first = [torch.stack([self.incoming(layer, block, column) for column in blocks], dim=1) for block in blocks]
        return torch.cat(first), torch.cat([self.outgoing(layer, block) for block in blocks], dim=1)

    @property
    def width(self) -> int:
        """D_G, the widest hidden layer."""
        return max(*self.sizes[1:-1], *(size * self.candidates for size in self.sizes[:-1]))

    @property
    def parameters(self) -> int:
        """Weights of the whole dense network."""
        pairs = zip(self.sizes[:-1], self.sizes[1:], strict=True)
        return sum(self.candidates * inputs * (inputs + outputs) for inputs, outputs in pairs)

    def _draw(self, shape: tuple[int, ...], *key: int) -> Tensor:
        generator = np.random.Generator(np.random.Philox(np.random.SeedSequence((self.seed, *key))))
        return torch.from_numpy(2 * generator.random(shape) - 1)


@dataclass(frozen=True)
class _Pair:
    """What is left of the two random layers that stand for one of the target, units without an outgoing weight cut.

    Attributes:
        units: (h,) positions in the layer between, ascending.
        blocks: (h,) the input that each listens to.
        incoming: (h,) its one incoming weight.
        outgoing: (out, h) outgoing weights as drawn.
        kept: (out, h) bools, which of them survive.
    """

    units: Tensor
    blocks: Tensor
    incoming: Tensor
    outgoing: Tensor
    kept: Tensor

    def matrices(self, inputs: int) -> tuple[Tensor, Tensor]:
        """Both as (out, in) weights, pruned ones zero."""
        first = torch.zeros(len(self.units), inputs, dtype=torch.float64)
        first[torch.arange(len(self.units)), self.blocks] = self.incoming
        return first, self.outgoing * self.kept

    def slopes(self, inputs: int) -> tuple[Tensor, Tensor]:
        """(out, in) slopes for inputs above 0 and below 0."""
        products = self.outgoing * self.kept * self.incoming
        empty = torch.zeros(len(self.kept), inputs, dtype=torch.float64)
        above, below = (
            empty.index_add(1, self.blocks[chosen], products[:, chosen])
            for chosen in (self.incoming > 0, self.incoming < 0)
        )
        return above, below


@dataclass(frozen=True)
class StrongTicket:
    """A random network that is pruned to approximate the target.

    Attributes:
        target: M.
        network: G.
        pairs: the pruned layers of G, two for each layer of the target.
        method: how G was pruned.
    """

    target: Target
    network: RandomNetwork
    pairs: tuple[_Pair, ...]
    method: Method

    @cached_property
    def weights(self) -> list[Tensor]:
        """The 2L (out, in) float64 matrices, pruned weights zero, idle units cut away."""
        sizes = self.target.sizes
        return [matrix for pair, size in zip(self.pairs, sizes, strict=False) for matrix in pair.matrices(size)]

    def __call__(self, inputs: Tensor) -> Tensor:
        """(n, d_0) rescaled inputs to (n, k) rescaled outputs, through the 2L layers."""
        return _forward(self.weights, inputs)

    def masks(self) -> list[Tensor]:
        """The 2L (out, in) bools of the dense network's weights, for one small enough."""
        found = []
        for pair, inputs, outputs in zip(self.pairs, self.target.sizes, self.target.sizes[1:], strict=False):
            hidden = inputs * self.network.candidates
            first = torch.zeros(hidden, inputs, dtype=torch.bool)
            first[pair.units, pair.blocks] = True
            second = torch.zeros(outputs, hidden, dtype=torch.bool)
            second[:, pair.units] = pair.kept
            found += [first, second]
        return found

    @property
    def active_weights(self) -> int:
        """Surviving weights, all 2L layers together."""
        return sum(len(pair.units) + int(pair.kept.sum()) for pair in self.pairs)

    @property
    def bare_layers(self) -> list[int]:
        """The layers of the 2L whose diagonals pruning has not left full (Definition 5.1)."""
        found = []
        for layer, (pair, weight) in enumerate(zip(self.pairs, self.target.weights, strict=True)):
            outputs, inputs = weight.shape
            at = {unit: place for place, unit in enumerate(pair.units.tolist())}
            if any(i not in at or int(pair.blocks[at[i]]) != i for i in range(inputs)):
                found.append(2 * layer)
            if any(i not in at or not bool(pair.kept[i, at[i]]) for i in range(outputs)):
                found.append(2 * layer + 1)
        return found

    @property
    def ball_bound(self) -> float:
        """A proof of sup_{‖x‖ ≤ 1} ‖G̃(x) − M(x)‖₂, by the triangle inequality from layer to layer.

        With Δ_l the slopes' distance from W_l (both signs side by side in the first layer, whose inputs have either)
        and n_l a bound on the ticket's activations: e_l = ‖W_l‖e_{l−1} + ‖Δ_l‖n_{l−1}, n_l = (‖W_l‖ + ‖Δ_l‖)n_{l−1}.
        """
        error, size = 0.0, 1.0
        for layer, (pair, weight) in enumerate(zip(self.pairs, self.target.weights, strict=True)):
            above, below = pair.slopes(weight.shape[1])
            moved = torch.cat([above - weight, below - weight], dim=1) if layer == 0 else above - weight
            norm, distance = float(spectral_norm(weight)), float(spectral_norm(moved))
            error, size = norm * error + distance * size, (norm + distance) * size
        return error


def find_ticket(target: Target, candidates: int, method: Method = "subset_sum", seed: int = 0) -> StrongTicket:
    """Prune a random network of twice the depth so that it approximates the target as well as possible.

    Args:
        target: the target network, rescaled.
        candidates: m, hidden units for each input; about half of them have either sign of u.
        method: "nearest" keeps the one candidate nearest to each weight, or none if 0 is nearer; "subset_sum" the
            subset with the nearest sum, exactly, of at most 24 candidates.
        seed: seed of the random network.

    Raises:
        ValueError: no candidates, or an unknown method.
    """
    if candidates < 1:
        raise ValueError(f"a block needs at least one candidate, got {candidates}")
    if method not in ("nearest", "subset_sum"):
        raise ValueError(f'unknown method "{method}": expected nearest or subset_sum')
    network = RandomNetwork(target.sizes, candidates, seed)
    choose = _nearest if method == "nearest" else _summed
    pairs = tuple(choose(network, layer, weight) for layer, weight in enumerate(target.weights))
    return StrongTicket(target, network, pairs, method)


def subset_sum(candidates: Tensor, targets: Tensor) -> Tensor:
    """For each problem the subset whose sum is nearest to its target, exactly: Horowitz and Sahni's meet in the middle.

    Args:
        candidates: (p, n) float64 numbers, n at most 24 or so: 2^{n/2} sums are listed. A zero is never chosen.
        targets: (p,) float64.

    Returns:
        (p, n) bools.

    Example:
        >>> subset_sum(torch.tensor([[0.5, -0.2, 0.9]]), torch.tensor([0.31])).tolist()
        [[True, True, False]]
    """
    problems, n = candidates.shape
    # The wider half is sorted, the other one looked up in it.
    split = n // 2
    chunk = max(1, _SUMS >> (n - split))
    picks = torch.cat(
        [
            _meet(c.double(), t.double(), split)
            for c, t in zip(candidates.split(chunk), targets.split(chunk), strict=True)
        ]
    )
    bits = torch.arange(n, device=candidates.device)
    return (picks.unsqueeze(1) >> bits & 1).bool() & (candidates != 0) if problems else candidates != 0


def _meet(candidates: Tensor, targets: Tensor, split: int) -> Tensor:
    """(p,) subsets as bits, the k-th for the k-th candidate."""
    low, high = _all_sums(candidates[:, :split]), _all_sums(candidates[:, split:])
    high, order = high.sort(dim=1, stable=True)
    wanted = targets.unsqueeze(1) - low
    above = torch.searchsorted(high, wanted).clamp_max_(high.shape[1] - 1)
    below = (above - 1).clamp_min_(0)
    gap_above, gap_below = ((high.gather(1, place) - wanted).abs_() for place in (above, below))
    place = torch.where(gap_below <= gap_above, below, above)
    best = torch.minimum(gap_below, gap_above).argmin(dim=1, keepdim=True)
    return (best + (order.gather(1, place.gather(1, best)) << split)).squeeze(1)


def _all_sums(numbers: Tensor) -> Tensor:
    """(p, k) to (p, 2^k): the sum of every subset, at the place that its bits spell."""
    sums = numbers.new_zeros(len(numbers), 1)
    for column in numbers.unbind(dim=1):
        sums = torch.cat([sums, sums + column.unsqueeze(1)], dim=1)
    return sums


def _nearest(network: RandomNetwork, layer: int, weight: Tensor) -> _Pair:
    """Malach et al.: for every weight, and either sign of u, the candidate v·u nearest to it."""
    chosen = []
    for block in range(weight.shape[1]):
        incoming, outgoing = network.incoming(layer, block), network.outgoing(layer, block)
        kept = torch.zeros_like(outgoing, dtype=torch.bool)
        for sign in _signs(layer):
            usable = (sign * incoming > 0).nonzero().flatten()
            if len(usable):
                gaps = (outgoing[:, usable] * incoming[usable]).sub_(weight[:, block : block + 1]).abs_()
                best, place = gaps.min(dim=1)
                worth = best < weight[:, block].abs()
                kept[worth.nonzero().flatten(), usable[place[worth]]] = True
        chosen.append(_block(network, block, incoming, outgoing, kept))
    return _joined(chosen)


def _summed(network: RandomNetwork, layer: int, weight: Tensor) -> _Pair:
    """Pensia et al.: for every weight, and either sign of u, the subset of candidates whose sum is nearest to it."""
    blocks = range(weight.shape[1])
    incoming = torch.stack([network.incoming(layer, block) for block in blocks])
    outgoing = torch.stack([network.outgoing(layer, block) for block in blocks])
    kept = torch.zeros_like(outgoing, dtype=torch.bool)
    for sign in _signs(layer):
        usable = sign * incoming > 0
        count = min(_MOST_SUMMED, int(usable.sum(dim=1).max()))
        # Those of the right sign first, in their order; what else comes along counts for nothing.
        places = usable.double().sort(dim=1, descending=True, stable=True).indices[:, :count]
        products = (outgoing * (incoming * usable).unsqueeze(1)).gather(
            2, places.unsqueeze(1).expand(-1, len(weight), -1)
        )
        picked = subset_sum(products.flatten(0, 1), weight.T.flatten()).reshape(products.shape)
        kept.scatter_(
            2, places.unsqueeze(1).expand_as(picked), picked | kept.gather(2, places.unsqueeze(1).expand_as(picked))
        )
    return _joined([_block(network, block, incoming[block], outgoing[block], kept[block]) for block in blocks])


def _signs(layer: int) -> tuple[int, ...]:
    """Of u: what comes out of a ReLU has one sign."""
    return (1, -1) if layer == 0 else (1,)


def _block(network: RandomNetwork, block: int, incoming: Tensor, outgoing: Tensor, kept: Tensor) -> _Pair:
    units = kept.any(dim=0).nonzero().flatten()
    return _Pair(
        units=units + block * network.candidates,
        blocks=torch.full_like(units, block),
        incoming=incoming[units],
        outgoing=outgoing[:, units],
        kept=kept[:, units],
    )


def _joined(parts: Sequence[_Pair]) -> _Pair:
    return _Pair(
        units=torch.cat([part.units for part in parts]),
        blocks=torch.cat([part.blocks for part in parts]),
        incoming=torch.cat([part.incoming for part in parts]),
        outgoing=torch.cat([part.outgoing for part in parts], dim=1),
        kept=torch.cat([part.kept for part in parts], dim=1),
    )


def _forward(weights: Sequence[Tensor], inputs: Tensor) -> Tensor:
    for weight in weights[:-1]:
        inputs = (inputs.to(weight) @ weight.T).relu_()
    return inputs.to(weights[-1]) @ weights[-1].T


def nearest_error(incoming: Tensor, outgoing: Tensor, weights: Tensor) -> Tensor:
    """|w − v·u| of the nearest of the first m candidates, for every m.

    Args:
        incoming: (p, m) u > 0.
        outgoing: (p, m) v.
        weights: (p,) w.

    Returns:
        (p, m) errors, none larger than |w|, that of no candidate.
    """
    gaps = (incoming * outgoing - weights.unsqueeze(1)).abs()
    return torch.minimum(gaps, weights.abs().unsqueeze(1)).cummin(dim=1).values


def boxed_error(incoming: Tensor, outgoing: Tensor, weights: Tensor) -> Tensor:
    """The same where u must be near 1 and v near w, as Malach et al.'s proof asks: max(1 − u, |v − w|)."""
    gaps = torch.maximum((1 - incoming).abs(), (outgoing - weights.unsqueeze(1)).abs())
    return gaps.cummin(dim=1).values


def promised_candidates(epsilon: float, delta: float) -> float:
    """4/ε²·ln(2/δ): candidates that meet one weight within 2ε, but for a chance of δ (Malach et al., Lemma A.1)."""
    return 4 / epsilon**2 * math.log(2 / delta)


def promised_subset_candidates(epsilon: float, delta: float) -> float:
    """ln(2/min(ε, δ)): the same by subset sums, hidden constant 1 (Lueker 1998, as Pensia et al. use it)."""
    return math.log(2 / min(epsilon, delta))


def log_mask_count(ticket: StrongTicket) -> float:
    """Ln of how many masks with as many surviving weights there are, in the part of G that a ticket can use.

    A unit has one usable incoming weight, which survives if any of its outgoing ones does, so only those need saying.
    """
    total = 0.0
    for pair, inputs in zip(ticket.pairs, ticket.target.sizes, strict=False):
        total += _log_binomial(len(pair.kept) * inputs * ticket.network.candidates, int(pair.kept.sum()))
    return total


def _log_binomial(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
