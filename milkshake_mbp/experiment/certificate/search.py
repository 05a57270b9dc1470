"""Search on the bound itself: change one number of the network, and keep the change if the guarantee improves.

In a round, errors are counted on the samples nearest to the border between two classes, where a change is felt first,
and the rest are taken to stay as they are; after it every sample is judged again. The bits are estimated from the
code's probabilities, which are learned anew after every round. A change for the worse is kept with the probability that
simulated annealing gives it.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from milkshake_mbp.codec import CodedLayer, CodedNetwork, Pool
from milkshake_mbp.codec.network import shifted
from milkshake_mbp.codec.prices import Prices
from milkshake_mbp.theory.tail import tail_bound

__all__ = ["Found", "Search"]

_LARGEST_SCALE, _BATCH = 12, 2048
# Below this, float32 holds every whole number.
_SINGLE = 2**24


@dataclass(frozen=True)
class Found:
    """Where a search stands after a round.

    Attributes:
        network: as it is now.
        errors: samples that it gets wrong.
        bits: its code's length before rounding to bytes.
    """

    network: CodedNetwork
    errors: int
    bits: float


@dataclass
class _Layer:
    """A layer as it changes, and what it does to the samples that are looked at: these come last in every tensor.

    Attributes:
        now: its numbers.
        pools: what stands between it and the next.
        reads: (c, h, w, m) what it reads, zeros around it.
        sums: (out, h', w', m) its sums.
        gives: (out, h'', w'', m) what the next one reads, without zeros around it.
    """

    now: CodedLayer
    pools: list[Pool]
    reads: Tensor
    sums: Tensor
    gives: Tensor

    def column(self, row: int, column: int) -> Tensor:
        """(h', w', m) what one of a row's weights is multiplied by."""
        if (window := self.now.window) is None:
            return self.reads.flatten(0, 2)[column, None, None]
        channel, place = divmod(column, window.kernel**2)
        channel += row * window.groups // len(self.sums) * (len(self.reads) // window.groups)
        return shifted(self.reads[channel], *divmod(place, window.kernel), window.stride, *self.sums.shape[1:3])


class Search:
    """A walk from one network to others of the same shape.

    Args:
        network: where it starts.
        seen: (n, inputs) what the network's input map makes of the samples.
        targets: (n,) class indices.
        delta: δ of the bound.
        largest: the largest weight tried, for each layer.
        seed: of the walk; a round is a function of it, of its own number and of the network at its start.
        near: samples looked at in a round.
    """

    def __init__(
        self,
        network: CodedNetwork,
        seen: Tensor,
        targets: Tensor,
        delta: float,
        largest: list[int],
        seed: int = 0,
        near: int = 8192,
    ) -> None:
        self._seen, self._targets, self._delta, self._largest, self._seed = seen, targets, delta, largest, seed
        self._n, self._near_count = len(targets), near
        self._start(network)

    def _start(self, network: CodedNetwork) -> None:
        """Judge every sample, and look at those nearest to the border."""
        self._network, self._single = network, self._exact_in_single(network)
        every = torch.cat(
            [
                _margins(self._laid_out(some)[-1].gives.flatten(0, 2), labels)
                for some, labels in zip(self._seen.split(_BATCH), self._targets.split(_BATCH), strict=True)
            ]
        )
        self._errors = int((every <= 0).sum())
        near = every.abs().topk(min(self._near_count, self._n), largest=False).indices.sort().values
        self._labels, self._own = self._targets[near], every[near]
        self._layers = self._laid_out(self._seen[near])

    def _exact_in_single(self, network: CodedNetwork) -> list[torch.dtype]:
        """For each layer float32, if that holds every sum that the search may make of it, or else float64."""
        kinds: list[torch.dtype] = []
        largest = float(network.inputs.largest)
        for node in network.nodes:
            if isinstance(node, Pool):
                largest *= node.kernel**2 if node.kind == "sum" else 1
                continue
            weights = self._largest[len(kinds)] * node.values.shape[1]
            largest = largest * weights + 2 * float(node.offsets.abs().max())
            kinds.append(torch.float32 if node.bias_exponent >= 0 and largest < _SINGLE else torch.float64)
            largest *= 256 if node.scales is None else 4 * float(node.factors.max())
        return kinds

    def _laid_out(self, seen: Tensor) -> list[_Layer]:
        hidden = seen.T.reshape(*self._network.inputs.grid, -1)
        layers: list[_Layer] = []
        for node in self._network.nodes:
            if isinstance(node, Pool):
                hidden = node(hidden)
                if layers:
                    layers[-1].pools.append(node)
                    layers[-1].gives = hidden
            else:
                reads = node.padded(hidden, self._single[len(layers)])
                sums = node.sums(reads)
                hidden = (sums if node is self._network.nodes[-1] else sums.relu()).double()
                hidden = hidden * node.factors.reshape(-1, 1, 1, 1)
                layers.append(_Layer(node, [], reads, sums, hidden))
        return layers

    @property
    def network(self) -> CodedNetwork:
        """As it is now."""
        layers = iter(self._layers)
        nodes = (node if isinstance(node, Pool) else next(layers).now for node in self._network.nodes)
        return CodedNetwork(self._network.inputs, tuple(nodes))

    def rounds(self, steps: int, heat: float, first: int = 0, count: int = 1) -> Iterator[Found]:
        """Rounds of the walk, with prices learned anew before each.

        Args:
            steps: changes tried in a round.
            heat: of annealing at the first round, in the bound's own unit; it falls to nothing at the last.
            first: number of the first round to do, where others were done before.
            count: rounds in all.
        """
        for number in range(first, count):
            generator = np.random.default_rng((self._seed, number))
            self._prices = Prices(self.network)
            self._bits = self._prices.bits
            self._weight_prices = [
                self._prices.weights(layer, largest).numpy() for layer, largest in enumerate(self._largest)
            ]
            self._heat = heat * (1 - (number + 1) / count) ** 2
            self._worth = self._slopes()
            places = np.cumsum([0] + [layer.now.values.numel() for layer in self._layers])
            for _ in range(steps):
                kind = generator.random()
                flat = int(generator.integers(places[-1]))
                layer = int(np.searchsorted(places, flat, side="right")) - 1
                row, column = divmod(flat - int(places[layer]), self._layers[layer].now.values.shape[1])
                if kind < 0.75:
                    self._try_weight(layer, row, column, generator)
                elif kind < 0.85:
                    self._try_move(layer, row, generator)
                elif kind < 0.96 or self._layers[layer].now.scales is None:
                    self._try_bias(layer, row, generator)
                else:
                    self._try_scale(layer, row, generator)
            self._start(self.network)
            yield Found(self._network, self._errors, Prices(self._network).bits)

    def _slopes(self) -> tuple[float, float]:
        """What the bound rises by for an error more, and for a bit more."""

        def bound(errors: int, bits: float) -> float:
            return tail_bound(min(errors, self._n), bits, self._n, self._delta)

        now, many = bound(self._errors, self._bits), max(1, self._n // 1000)
        if now == 1 or bound(self._errors + many, self._bits) == 1:
            # Where nothing is guaranteed yet, errors first.
            return 1 / self._n, 0.5 / self._n
        more_errors = (bound(self._errors + many, self._bits) - now) / many
        return more_errors, (bound(self._errors, self._bits + 16) - now) / 16

    def _try_weight(self, layer: int, row: int, column: int, generator: np.random.Generator) -> None:
        """Give a weight another value: zero, or any."""
        values, largest = self._layers[layer].now.values, self._largest[layer]
        old = int(values[row, column])
        new = 0 if old and generator.random() < 0.5 else int(generator.integers(-largest, largest + 1))
        if new != old:
            prices = self._weight_prices[layer][row, column]
            price = float(prices[new + largest] - prices[old + largest])
            self._try_weights(layer, row, {column: (old, new)}, price, generator)

    def _try_move(self, layer: int, row: int, generator: np.random.Generator) -> None:
        """Exchange two weights of a row, of any places or of neighbours on the image."""
        now, largest = self._layers[layer].now, self._largest[layer]
        used = now.values[row].nonzero()[:, 0].tolist()
        if not used:
            return
        one = int(generator.choice(used))
        width = now.window.kernel if now.window else self._layers[layer].reads.shape[2]
        step = int(generator.choice([-width, -1, 1, width, 0]))
        other = one + step if step else int(generator.integers(now.values.shape[1]))
        if not 0 <= other < now.values.shape[1]:
            return
        a, b = int(now.values[row, one]), int(now.values[row, other])
        if a != b:
            prices = self._weight_prices[layer][row]
            price = prices[one, b + largest] - prices[one, a + largest]
            price += prices[other, a + largest] - prices[other, b + largest]
            self._try_weights(layer, row, {one: (a, b), other: (b, a)}, float(price), generator)

    def _try_weights(
        self, layer: int, row: int, changes: dict[int, tuple[int, int]], price: float, generator: np.random.Generator
    ) -> None:
        now = self._layers[layer].now
        values = now.values.clone()
        sums = self._layers[layer].sums[row]
        for column, (old, new) in changes.items():
            values[row, column] = new
            sums = torch.add(sums, self._layers[layer].column(row, column), alpha=new - old)
        self._try(layer, row, replace(now, values=values), sums, price, generator)

    def _try_bias(self, layer: int, row: int, generator: np.random.Generator) -> None:
        now, size = self._layers[layer].now, int(generator.integers(1, 4))
        old = int(now.biases[row])
        new = old + int(generator.choice([-size, size]))
        price = self._prices.bias(layer, new) - self._prices.bias(layer, old)
        biases = now.biases.clone()
        biases[row] = new
        sums = self._layers[layer].sums[row] + (new - old) * 2.0**now.bias_exponent
        self._try(layer, row, replace(now, biases=biases), sums, price, generator)

    def _try_scale(self, layer: int, row: int, generator: np.random.Generator) -> None:
        now = self._layers[layer].now
        assert now.scales is not None
        old = int(now.scales[row])
        new = old + int(generator.choice([-1, 1]))
        if 0 <= new <= _LARGEST_SCALE:
            price = self._prices.scale(layer, new) - self._prices.scale(layer, old)
            scales = now.scales.clone()
            scales[row] = new
            self._try(layer, row, replace(now, scales=scales), self._layers[layer].sums[row], price, generator)

    def _try(
        self, layer: int, row: int, new: CodedLayer, sums: Tensor, price: float, generator: np.random.Generator
    ) -> None:
        """Let a row have other numbers and these sums, if that is accepted."""
        changed, last = self._layers[layer], layer == len(self._layers) - 1
        gives = ((sums if last else sums.relu()).double() * float(new.factors[row]))[None]
        for pool in changed.pools:
            gives = pool(gives)
        after = [] if last else self._after(layer, row, gives - changed.gives[row : row + 1])
        if last:
            logits = changed.gives.flatten(0, 2).clone()
            logits[row] = gives.flatten()
        else:
            logits = after[-1][1].flatten(0, 2)
        margins = _margins(logits, self._labels)
        more = int((margins <= 0).sum()) - int((self._own <= 0).sum())
        worse = self._worth[0] * more + self._worth[1] * price
        if worse >= 0 and (not self._heat or generator.random() >= math.exp(-worse / self._heat)):
            return
        self._errors += more
        self._own = margins
        changed.now = new
        changed.sums[row], changed.gives[row] = sums, gives[0]
        for index, (behind_sums, behind_gives) in enumerate(after, layer + 1):
            behind = self._layers[index]
            behind.reads = behind.now.padded(self._layers[index - 1].gives, behind.reads.dtype)
            behind.sums, behind.gives = behind_sums, behind_gives

    def _after(self, layer: int, row: int, change: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Sums and outputs of the layers behind one of whose channels changes by so much."""
        found: list[tuple[Tensor, Tensor]] = []
        for index, behind in enumerate(self._layers[layer + 1 :], layer + 1):
            kind = behind.sums.dtype
            if found:
                sums = behind.now.sums(behind.now.padded(found[-1][1], kind))
            else:
                sums = behind.sums + _of_channel(behind.now, row, behind.now.padded(change, kind), self._layers[layer])
            gives = (sums if index == len(self._layers) - 1 else sums.relu()).double()
            gives = gives * behind.now.factors.reshape(-1, 1, 1, 1)
            for pool in behind.pools:
                gives = pool(gives)
            found.append((sums, gives))
        return found


def _of_channel(layer: CodedLayer, channel: int, change: Tensor, before: _Layer) -> Tensor:
    """What a change (1, h, w, m) of one of its input's channels does to a layer's sums."""
    channels = len(before.gives)
    if layer.window is None:
        return (
            layer.values.reshape(len(layer.values), channels, -1)[:, channel].to(change.dtype) @ change.flatten(0, 2)
        )[:, None, None]
    window, side = layer.window, layer.window.kernel**2
    group, place = divmod(channel, channels // window.groups)
    values = torch.zeros(len(layer.values), side, dtype=torch.int64)
    part = slice(group * len(values) // window.groups, (group + 1) * len(values) // window.groups)
    values[part] = layer.values[part, place * side : (place + 1) * side]
    one = replace(layer, values=values, biases=torch.zeros_like(layer.biases), window=replace(window, groups=1))
    return one.sums(change)


def _margins(logits: Tensor, targets: Tensor) -> Tensor:
    """Of (k, m) logits."""
    own = logits.gather(0, targets[None])
    return own[0] - logits.scatter(0, targets[None], -math.inf).amax(dim=0)
