"""A network's code judged on samples: what its bytes and its errors guarantee."""

from dataclasses import dataclass

from torch import Tensor

from milkshake_mbp.codec.format import decode, encode
from milkshake_mbp.codec.network import CodedNetwork
from milkshake_mbp.theory.tail import tail_bound

__all__ = ["Certificate", "certify"]


@dataclass(frozen=True)
class Certificate:
    """A network that was read back from its code, and the guarantee on its test error.

    Attributes:
        code: its bytes.
        network: what they decode to.
        errors: samples that it gets wrong, of those that the guarantee rests on.
        num_samples: n.
        delta: δ.
        distinct: how many of the samples (x, y) differ from one another; None if that was not counted.
    """

    code: bytes
    network: CodedNetwork
    errors: int
    num_samples: int
    delta: float
    distinct: int | None = None

    @property
    def bits(self) -> int:
        """C/ln 2: the bytes that the decoder consumes, as bits."""
        return 8 * len(self.code)

    @property
    def error(self) -> float:
        """R̂, a probability."""
        return self.errors / self.num_samples

    @property
    def bound(self) -> float:
        """`tail_bound`, a probability: the test error is below it with probability at least 1 − δ."""
        return tail_bound(self.errors, self.bits, self.num_samples, self.delta)

    def metrics(self) -> dict[str, float]:
        """What is logged, by its key in every log."""
        return {
            "certificate/bound": self.bound,
            "certificate/bits": float(self.bits),
            "certificate/train_error": self.error,
            "certificate/nonzeros": float(self.network.nonzeros),
        }


def certify(
    network: CodedNetwork, data: Tensor, targets: Tensor, delta: float, distinct: int | None = None
) -> Certificate:
    """Encode, decode, and judge what came back.

    Args:
        network: what to encode.
        data: (n, ...) samples, independent draws, that no choice of the code was made by.
        targets: (n,) class indices.
        delta: δ.
        distinct: how many of the samples differ from one another, if that was counted.

    Raises:
        ValueError: the network is beyond the limits of the format.
    """
    code = encode(network)
    decoded, _ = decode(code)
    return Certificate(code, decoded, decoded.errors(data, targets), len(targets), delta, distinct)
