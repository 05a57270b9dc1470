"""The `rigorous` convention: Occam bounds, with no hidden constant and a stated probability (spec §4).

Each row is about the network that its code describes: R ≤ kl⁻¹(R̂, (C + ln 1/δ)/n), R̂ that network's own error on the
n samples, ties and NaN counted as errors, and C the length in nats of a prefix code. It holds for every network that
the code can describe at once, so d, the masks' seed, the epoch and the widths may all be chosen by looking. The code is
fixed beforehand: nothing in it may come from the samples, such as an input scaling by their mean.
"""

import math

from torch import Tensor

from milkshake_mbp.theory.margins import error_rate
from milkshake_mbp.theory.measured import Network
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
    return _occam(net, net.compressed_margins, _header(net) + sum(_naive_lengths(net)), d=net.d)


def sketched(net: Network) -> Value:
    """The same network, each layer by its sketch or naively, whichever is shorter, and ln 2 to say which.

    The decoder returns the one ℓ1 minimiser for a sketch; a certificate on this very layer proves that it is the layer.
    """
    assert net.compressed_margins is not None and net.sketches is not None
    lengths = [sketch.sketch_bits * math.log(2) for sketch in net.sketches]
    choices = list(zip(lengths, _naive_lengths(net), strict=True))
    length = _header(net) + sum(math.log(2) + min(choice) for choice in choices)
    by_sketch = sum(sketch < naive for sketch, naive in choices)
    all_sketched = sum(lengths) / math.log(2)
    terms = {"layers_by_sketch": by_sketch, "bits_if_all_were": all_sketched}
    return _occam(net, net.compressed_margins, length, d=net.d, **terms)


def coded(net: Network) -> Value:
    """The network that a decoder reads from bytes: C = 8·bytes·ln 2, whatever made it (spec §6)."""
    assert net.coded is not None
    bound = occam_bound(net.coded.error, net.coded.bits, net.num_samples, net.delta)
    measured = {"empirical_risk": net.coded.error, "bits": net.coded.bits, "delta": net.delta}
    return Value(safe_log(bound), measured, holds_with=1 - net.delta)


def _naive_lengths(net: Network) -> list[float]:
    return [
        sparse_code_length(size, layer.coded_nonzeros, layer.alphabet, min(shape), layer.coded_diagonal)
        for size, shape, layer in zip(net.sizes, net.norms.shapes, net.pruned, strict=True)
    ]


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
    Row(
        "coded",
        "rigorous",
        coded,
        "The bytes themselves",
        "Occam, Chernoff–kl, with a prefix code that a decoder reads",
        counts=True,
        needs=("coded",),
    ),
    Row(
        "sketched",
        "rigorous",
        sketched,
        "Pruned and rounded, by sketches",
        "Occam, Chernoff–kl, with Theorem 5.1's sketches, certified",
        counts=True,
        needs=("compressed_margins", "sketches"),
    ),
)
