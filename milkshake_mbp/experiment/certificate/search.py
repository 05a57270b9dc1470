"""Search on the bound itself: change one number of the network, and keep the change if the guarantee improves.

The errors are counted exactly, on the samples that the change can reach; the bits are estimated from the code's
probabilities, which are learned anew after every round. A change for the worse is kept with the probability that
simulated annealing gives it.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from milkshake_mbp.codec import CodedLayer, CodedNetwork, scale_factor
from milkshake_mbp.codec.prices import Prices
from milkshake_mbp.theory.occam import occam_bound

__all__ = ["Found", "Search"]

_LARGEST_SCALE = 12


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


class Search:
    """A walk from one network to others with the same widths.

    Args:
        network: where it starts.
        data: (n, ...) samples.
        targets: (n,) class indices.
        delta: δ of the bound.
        largest: the largest weight tried, for each layer.
        seed: of the walk; a round is a function of it, of its own number and of the network at its start.
    """

    def __init__(
        self,
        network: CodedNetwork,
        data: Tensor,
        targets: Tensor,
        delta: float,
        largest: list[int],
        seed: int = 0,
    ) -> None:
        self._inputs, self._targets, self._delta, self._largest, self._seed = (
            network.inputs,
            targets,
            delta,
            largest,
            seed,
        )
        self._n = len(targets)
        self._samples = torch.arange(self._n)
        # One input after another, each with the samples that have it at all.
        self._columns = torch.cat([network.inputs(some) for some in data.split(8192)]).T.contiguous()
        self._reach = [column.nonzero()[:, 0] for column in self._columns]
        self._amounts = [column[where] for column, where in zip(self._columns, self._reach, strict=True)]
        self._start(network)

    def _start(self, network: CodedNetwork) -> None:
        self._values = [layer.values.clone() for layer in network.layers]
        self._biases = [layer.biases.clone() for layer in network.layers]
        self._scales = [layer.scales.clone() for layer in network.layers]
        self._units = [2.0**layer.bias_exponent for layer in network.layers]
        self._exponents = [layer.bias_exponent for layer in network.layers]
        self._last = len(self._values) - 1
        self._measure()

    def _measure(self) -> None:
        """The sums of every layer, (width, n), and what follows from the last."""
        hidden = self._columns
        self._sums = []
        for layer in range(self._last + 1):
            self._sums.append(self._layer_sums(layer, hidden))
            hidden = self._outputs(layer, self._sums[-1])
        # A row a sample, so that some samples are read at once.
        self._logits = hidden.T.contiguous()
        self._own = self._margins(self._logits, self._targets)

    def _layer_sums(self, layer: int, hidden: Tensor) -> Tensor:
        return self._values[layer].double() @ hidden + (self._biases[layer].double() * self._units[layer])[:, None]

    def _outputs(self, layer: int, sums: Tensor) -> Tensor:
        return (sums if layer == self._last else sums.relu()) * scale_factor(self._scales[layer])[:, None]

    @staticmethod
    def _margins(logits: Tensor, targets: Tensor) -> Tensor:
        own = logits.gather(1, targets[:, None])
        return own[:, 0] - logits.scatter(1, targets[:, None], -math.inf).amax(dim=1)

    @property
    def network(self) -> CodedNetwork:
        """As it is now."""
        parts = zip(self._values, self._biases, self._scales, self._exponents, strict=True)
        return CodedNetwork(self._inputs, tuple(CodedLayer(v.clone(), b.clone(), k.clone(), e) for v, b, k, e in parts))

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
            prices = Prices(self.network)
            self._bits, self._errors = prices.bits, int((self._own <= 0).sum())
            self._weight_prices = [prices.weights(layer, largest) for layer, largest in enumerate(self._largest)]
            self._prices = prices
            self._heat = heat * (1 - (number + 1) / count) ** 2
            self._value = self._bound(0, 0.0)
            places = np.cumsum([0] + [v.numel() for v in self._values])
            for _ in range(steps):
                kind = generator.random()
                if kind < 0.75:
                    flat = int(generator.integers(places[-1]))
                    layer = int(np.searchsorted(places, flat, side="right")) - 1
                    row, column = divmod(flat - int(places[layer]), self._values[layer].shape[1])
                    self._try_weight(layer, row, column, generator)
                else:
                    layer = int(generator.integers(self._last + 1))
                    row = int(generator.integers(len(self._biases[layer])))
                    if kind < 0.85:
                        self._try_move(layer, row, generator)
                    elif kind < 0.96:
                        self._try_bias(layer, row, generator)
                    else:
                        self._try_scale(layer, row, generator)
            self._measure()
            yield Found(self.network, int((self._own <= 0).sum()), Prices(self.network).bits)

    def _bound(self, more_errors: int, more_bits: float) -> float:
        return occam_bound((self._errors + more_errors) / self._n, self._bits + more_bits, self._n, self._delta)

    def _try_weight(self, layer: int, row: int, column: int, generator: np.random.Generator) -> None:
        """Give a weight another value: zero, or any."""
        old, largest = int(self._values[layer][row, column]), self._largest[layer]
        new = 0 if old and generator.random() < 0.5 else int(generator.integers(-largest, largest + 1))
        if new == old:
            return
        prices = self._weight_prices[layer][row, column]
        where, amounts = self._fed(layer, column)
        if self._try_sums(
            layer, row, where, amounts * (new - old), float(prices[new + largest] - prices[old + largest]), generator
        ):
            self._values[layer][row, column] = new

    def _try_move(self, layer: int, row: int, generator: np.random.Generator) -> None:
        """Move a weight to another place of its row, of any kind or one of those beside it."""
        used = self._values[layer][row].nonzero()[:, 0].tolist()
        if not used:
            return
        old = int(generator.choice(used))
        columns = self._inputs.grid[2] if layer == 0 else 1
        step = int(generator.choice([-columns, -1, 1, columns, 0]))
        new = old + step if step else int(generator.integers(self._values[layer].shape[1]))
        if not 0 <= new < self._values[layer].shape[1] or self._values[layer][row, new]:
            return
        value, largest = int(self._values[layer][row, old]), self._largest[layer]
        prices = self._weight_prices[layer][row]
        price = float(
            prices[old, largest] - prices[old, value + largest] + prices[new, value + largest] - prices[new, largest]
        )
        change = torch.zeros(self._n, dtype=torch.float64)
        for column, sign in ((new, value), (old, -value)):
            where, amounts = self._fed(layer, column)
            change[where] += sign * amounts
        where = change.nonzero()[:, 0]
        if self._try_sums(layer, row, where, change[where], price, generator):
            self._values[layer][row, old], self._values[layer][row, new] = 0, value

    def _try_bias(self, layer: int, row: int, generator: np.random.Generator) -> None:
        old = int(self._biases[layer][row])
        new = old + int(generator.choice([-2, -1, 1, 2])) if generator.random() < 0.9 else 0
        if new == old:
            return
        price = self._prices.bias(layer, new) - self._prices.bias(layer, old)
        change = torch.full((self._n,), (new - old) * self._units[layer], dtype=torch.float64)
        if self._try_sums(layer, row, self._samples, change, price, generator):
            self._biases[layer][row] = new

    def _try_scale(self, layer: int, row: int, generator: np.random.Generator) -> None:
        old = int(self._scales[layer][row])
        new = old + int(generator.choice([-1, 1]))
        if not 0 <= new <= _LARGEST_SCALE:
            return
        price = self._prices.scale(layer, new) - self._prices.scale(layer, old)
        outputs = self._outputs_of(layer, row)
        where = outputs.nonzero()[:, 0]
        # In whole numbers: the ratio of two factors is none.
        change = outputs[where] / _factor(old) * (_factor(new) - _factor(old))
        if self._accepts(self._judge(layer, row, where, change), where, price, generator):
            self._apply(layer, row, where, change)
            self._scales[layer][row] = new

    def _fed(self, layer: int, column: int) -> tuple[Tensor, Tensor]:
        """The samples that have an input of a layer at all, and how much."""
        if layer == 0:
            return self._reach[column], self._amounts[column]
        outputs = self._outputs_of(layer - 1, column)
        where = outputs.nonzero()[:, 0]
        return where, outputs[where]

    def _outputs_of(self, layer: int, row: int) -> Tensor:
        if layer == self._last:
            return self._logits[:, row]
        return self._sums[layer][row].relu() * _factor(int(self._scales[layer][row]))

    def _try_sums(
        self, layer: int, row: int, where: Tensor, change: Tensor, price: float, generator: np.random.Generator
    ) -> bool:
        """Let a neuron's sums change on some samples, if that is accepted."""
        factor, at, shift = _factor(int(self._scales[layer][row])), where, change
        if layer >= self._last - 1:
            # A margin moves by no more than this, so nothing happens to samples that are further from zero.
            effect = self._effect(row) if layer < self._last else torch.tensor([0.0, 1.0])
            reach = float(effect.max() - effect.min()) * factor
            near = self._own[where].abs() <= change.abs() * reach
            at, shift = where[near], change[near]
        judged = self._judge(layer, row, at, self._moved(layer, row, at, shift) * factor)
        if not self._accepts(judged, at, price, generator):
            return False
        moved = self._moved(layer, row, where, change)
        moves = moved != 0
        if layer < self._last:
            self._sums[layer][row, where] += change
        self._apply(layer, row, where[moves], moved[moves] * factor)
        return True

    def _moved(self, layer: int, row: int, where: Tensor, change: Tensor) -> Tensor:
        """What comes of a change of sums behind the ReLU."""
        if layer == self._last:
            return change
        before = self._sums[layer][row, where]
        return (before + change).relu_() - before.relu()

    def _effect(self, row: int) -> Tensor:
        """What the last hidden layer's neuron does to each logit."""
        return self._values[self._last][:, row].double() * scale_factor(self._scales[self._last])

    def _logits_after(self, layer: int, row: int, where: Tensor, change: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The logits if a neuron's outputs change, and the sums of the hidden layers between."""
        if layer == self._last:
            logits = self._logits.index_select(0, where)
            logits[:, row] += change
            return logits, []
        if layer == self._last - 1:
            return torch.addcmul(self._logits.index_select(0, where), change[:, None], self._effect(row)), []
        sums = [self._sums[layer + 1][:, where] + self._values[layer + 1][:, row].double()[:, None] * change]
        for after in range(layer + 1, self._last):
            sums.append(self._layer_sums(after + 1, self._outputs(after, sums[-1])))
        return self._outputs(self._last, sums[-1]).T, sums[:-1]

    def _judge(self, layer: int, row: int, where: Tensor, change: Tensor) -> Tensor:
        """The margins of some samples if a neuron's outputs change."""
        return self._margins(self._logits_after(layer, row, where, change)[0], self._targets[where])

    def _apply(self, layer: int, row: int, where: Tensor, change: Tensor) -> None:
        """Change a neuron's outputs, and everything behind them."""
        logits, between = self._logits_after(layer, row, where, change)
        for index, sums in enumerate(between):
            self._sums[layer + 1 + index][:, where] = sums
        self._logits[where] = logits
        self._own[where] = self._margins(logits, self._targets[where])

    def _accepts(self, margins: Tensor, where: Tensor, price: float, generator: np.random.Generator) -> bool:
        """Decide on a change by the margins that some samples would have and its price; count it if it is made."""
        more = int((margins <= 0).sum()) - int((self._own[where] <= 0).sum())
        value = self._bound(more, price)
        worse = value - self._value
        if worse > 0 and (not self._heat or generator.random() >= math.exp(-worse / self._heat)):
            return False
        self._errors += more
        self._bits += price
        self._value = value
        return True


def _factor(k: int) -> float:
    """`scale_factor` of one number."""
    return (2 + k % 2) * 2.0 ** (k // 2)
