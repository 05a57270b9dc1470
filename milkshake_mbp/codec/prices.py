"""What one number of a network costs, all others as they are: the lead of a search for a shorter code."""

from collections.abc import Callable

import torch
from torch import Tensor

from milkshake_mbp.codec.coder import Meter
from milkshake_mbp.codec.format import describe
from milkshake_mbp.codec.network import CodedNetwork

__all__ = ["Prices"]


class Prices:
    """Bits at the probabilities that the code has learned when it ends: not what the code takes, but near it.

    Attributes:
        bits: the length of the whole code, before it is rounded up to bytes.
    """

    def __init__(self, network: CodedNetwork) -> None:
        meter = Meter()
        _, described = describe(meter, network)
        self.bits = sum(meter.bits.values())
        self._network, self._models = network, described.models

    def weights(self, layer: int, largest: int) -> Tensor:
        """(out, in, 2·largest + 1) bits for the values from −largest to largest in each place."""
        models, values = self._models[layer].weights, range(-largest, largest + 1)
        known: dict[object, list[float]] = {}
        prices = []
        for row in self._network.layers[layer].values.tolist():
            for place in range(len(row)):
                contexts = models.contexts(row, place)
                if contexts not in known:
                    known[contexts] = [
                        self._cost(lambda meter: models.code_weight(meter, row, place, value))  # noqa: B023
                        for value in values
                    ]
                prices.append(known[contexts])
        return torch.tensor(prices).reshape(*self._network.layers[layer].values.shape, len(values))

    def bias(self, layer: int, value: int) -> float:
        """Bits for a bias."""
        return self._cost(lambda meter: self._models[layer].biases.code(meter, value))

    def scale(self, layer: int, value: int) -> float:
        """Bits for a scale."""
        return self._cost(lambda meter: self._models[layer].scales.code(meter, value))

    def _cost(self, code: Callable[[Meter], int]) -> float:
        meter = Meter(learns=False)
        code(meter)
        return sum(meter.bits.values())
