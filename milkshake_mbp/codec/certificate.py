"""A certificate: a network's code, its errors on samples, and the guarantee that follows."""

from dataclasses import dataclass

from torch import Tensor

from milkshake_mbp.codec.format import decode, encode
from milkshake_mbp.codec.network import CodedNetwork
from milkshake_mbp.theory.tail import tail_bound

__all__ = ["Certificate", "certify"]


@dataclass(frozen=True)
class Certificate:
    """A network that was decoded from its code, and the guarantee on its test error.

    Attributes:
        code: the bytes of the code.
        network: the network that they decode to.
        errors: number of training samples that the network misclassifies.
        num_samples: n, the number of training samples.
        delta: δ, the failure probability of the guarantee.
        distinct: number of distinct samples (x, y); None if it was not counted.
    """

    code: bytes
    network: CodedNetwork
    errors: int
    num_samples: int
    delta: float
    distinct: int | None = None

    @property
    def bits(self) -> int:
        """C/ln 2, the length of the code in bits: eight for every byte that the decoder consumes."""
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
        """The logged values, by key."""
        return {
            "certificate/bound": self.bound,
            "certificate/bits": float(self.bits),
            "certificate/train_error": self.error,
            "certificate/nonzeros": float(self.network.nonzeros),
        }


def certify(
    network: CodedNetwork, data: Tensor, targets: Tensor, delta: float, distinct: int | None = None
) -> Certificate:
    """Encode a network, decode it, and count the errors of the decoded network.

    Args:
        network: the network.
        data: (n, ...) samples, which are independent draws, and on which the design of the code does not depend.
        targets: (n,) class indices.
        delta: δ, the failure probability of the guarantee.
        distinct: number of distinct samples, if it was counted.

    Raises:
        ValueError: the network is beyond the limits of the format.
    """
    code = encode(network)
    decoded, _ = decode(code)
    return Certificate(code, decoded, decoded.errors(data, targets), len(targets), delta, distinct)
