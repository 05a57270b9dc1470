"""A certificate as a module: what is guaranteed is what is deployed."""

from pathlib import Path

from torch import Tensor, nn

from milkshake_mbp.codec.format import from_file_bytes
from milkshake_mbp.codec.network import CodedNetwork

__all__ = ["CertifiedNetwork", "load_certificate"]


class CertifiedNetwork(nn.Module):
    """A network of integers as a module, its bank included; it has no parameters to change.

    Args:
        network: what it computes.
    """

    def __init__(self, network: CodedNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, data: Tensor) -> Tensor:
        """(n, ...) stored pixels, from 0 to 255, to (n, classes) float64 logits, exactly.

        The class is the index of the largest; where two are the largest the guarantee counts an error.
        """
        return self.network.logits(data)


def load_certificate(path: str | Path) -> CertifiedNetwork:
    """The network that a certificate's file holds.

    Args:
        path: a file that `exps/certificate.py` or `CertificateCallback` wrote.

    Raises:
        OSError: the file cannot be read.
        DecodeError: it is no certificate, or is damaged.
    """
    network, _ = from_file_bytes(Path(path).read_bytes())
    return CertifiedNetwork(network)
