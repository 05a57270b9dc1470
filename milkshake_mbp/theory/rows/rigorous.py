"""The `rigorous` convention: Occam bounds, with no hidden constant and a stated probability (spec §4).

Each row is about the network that its code describes: R ≤ kl⁻¹(R̂, (C + ln 1/δ)/n), R̂ that network's own error on the
n samples, ties and NaN counted as errors, and C the length in nats of a prefix code. It holds for every network that
the code can describe at once, so d, the masks' seed, the epoch and the widths may all be chosen by looking. The code is
fixed beforehand: nothing in it may come from the samples, such as an input scaling by their mean.
"""

import math

from torch import Tensor

from milkshake_mbp.theory.margins import error_rate
from milkshake_mbp.theory.network import Network
from milkshake_mbp.theory.occam import elias_gamma_length, occam_bound, sparse_code_length
from milkshake_mbp.theory.perturbation import safe_log
from milkshake_mbp.theory.rows.row import Row, Value

__all__ = ["ROWS"]

_FLAGS = 8  # bits for the activation, the weights' type and whether there are biases


def _header(net: Network) -> float:
    """Nats for the architecture: flags, L and the L + 1 widths; and for the biases, as plain floats."""
    widths = [net.norms.shapes[0][1], *(rows for rows, _ in net.norms.shapes)]
    return (_FLAGS + net.weight_bits * net.biases) * math.log(2) + elias_gamma_length([net.depth, *widths])


def _occam(net: Network, margins: Tensor, length: float, **terms: float) -> Value:
    error = error_rate(margins)
    bits = length / math.log(2)
    bound = occam_bound(error, bits, net.num_samples, net.delta)
    measured = {"empirical_risk": error, "bits": bits, "delta": net.delta, **terms}
    return Value(safe_log(bound), measured, holds_with=1 - net.delta)


def dense(net: Network) -> Value:
    """Every weight as it is stored: C = header + Σ_l N_l·ln 2^b, b = 32 for float32."""
    return _occam(net, net.margins, _header(net) + sum(net.sizes) * net.weight_bits * math.log(2))


def naive(net: Network) -> Value:
    """The pruned and rounded network by the places and values of its nonzeros (`sparse_code_length`)."""
    assert net.compressed_margins is not None
    layers = sum(
        sparse_code_length(size, layer.coded_nonzeros, layer.alphabet, min(shape), layer.coded_diagonal)
        for size, shape, layer in zip(net.sizes, net.norms.shapes, net.pruned, strict=True)
    )
    nonzeros = sum(layer.coded_nonzeros for layer in net.pruned)
    return _occam(net, net.compressed_margins, _header(net) + layers, d=net.d, nonzeros=nonzeros)


ROWS = (
    Row("dense", "rigorous", dense, "Every float", "Occam, Chernoff–kl (Langford 2005)", counts=True),
    Row(
        "naive",
        "rigorous",
        naive,
        "Pruned and rounded, coded naively",
        "Occam, Chernoff–kl, with Lemma D.1's count",
        counts=True,
        needs=("compressed_margins",),
    ),
)
