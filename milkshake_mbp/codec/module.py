"""A certificate as a module that computes exactly the guaranteed network."""

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from milkshake_mbp.codec.format import from_file_bytes
from milkshake_mbp.codec.network import CodedNetwork

__all__ = ["CertifiedNetwork", "export_certificate", "load_certificate"]


# Samples that an exported network is compared on.
_CHECKED = 70


class CertifiedNetwork(nn.Module):
    """An integer network, including its bank, as a module without trainable parameters.

    Args:
        network: the network.
    """

    def __init__(self, network: CodedNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, data: Tensor) -> Tensor:
        """Compute (n, classes) float64 logits of (n, ...) stored pixels, from 0 to 255, exactly.

        The class is the index of the largest logit; the guarantee counts a tie as an error.
        """
        return self.network.logits(data)


def load_certificate(path: str | Path) -> CertifiedNetwork:
    """The network of a certificate's file.

    Args:
        path: a file that `exps/certificate.py` or `CertificateCallback` wrote.

    Raises:
        OSError: the file cannot be read.
        DecodeError: it is not a certificate, or is damaged.
    """
    network, _ = from_file_bytes(Path(path).read_bytes())
    return CertifiedNetwork(network)


def export_certificate(module: CertifiedNetwork, path: str | Path) -> torch.jit.ScriptModule:
    """Write a network as TorchScript, which `torch.jit.load` reads without this package.

    The TorchScript computes in float64 and returns exactly the network's logits; this is checked on random pixels, for
    a batch and for a single sample.

    Args:
        module: a network on stored pixels.
        path: the file to write.

    Returns:
        The TorchScript module.

    Raises:
        ValueError: the network is not on pixels, or the TorchScript computes other logits.
    """
    inputs = module.network.inputs
    if not inputs.pixels:
        raise ValueError("the network reads inputs that a datamodule has scaled, not stored pixels")
    generator = torch.Generator().manual_seed(0)
    shape = (inputs.channels, inputs.height, inputs.width)
    pixels = torch.randint(0, 256, (_CHECKED, *shape), dtype=torch.uint8, generator=generator)
    precision = torch.get_float32_matmul_precision()
    # Whoever loads the file may let float32 be less than it is.
    torch.set_float32_matmul_precision("high")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", torch.jit.TracerWarning)
            warnings.simplefilter("ignore", FutureWarning)
            traced = torch.jit.trace(module, (pixels[:2],), check_trace=False)
    finally:
        torch.set_float32_matmul_precision(precision)
    right = module(pixels)
    with torch.jit.optimized_execution(False):
        same = torch.equal(traced(pixels), right) and torch.equal(traced(pixels[:1]), right[:1])
    if not same:
        raise ValueError("the TorchScript module computes different logits than the network")
    traced.save(str(path))
    return traced
