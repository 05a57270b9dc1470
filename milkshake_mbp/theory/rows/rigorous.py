"""The `rigorous` convention: Occam bounds, with no hidden constant and a stated probability (spec §4).

Each row is about the network that its code describes: R ≤ kl⁻¹(R̂, (C + ln 1/δ)/n), R̂ that network's own error on the
n samples, ties and NaN counted as errors, and C the length in nats of a prefix code. It holds for every network that
the code can describe at once, so d, the masks' seed, the epoch and the widths may all be chosen by looking. The code is
fixed beforehand: nothing in it may come from the samples, such as an input scaling by their mean.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from milkshake_mbp.theory.margins import error_rate
from milkshake_mbp.theory.measured import Measured
from milkshake_mbp.theory.occam import binomial_upper_limit, elias_gamma_length, occam_bound, sparse_code_length
from milkshake_mbp.theory.perturbation import safe_log
from milkshake_mbp.theory.rows.row import Row, Value

__all__ = ["ROWS"]

# Bits for the activation, the weights' type, and whether there are biases, odd steps and a seed.
_FLAGS = 8
_SHARE = 0.25


def _header(net: Measured) -> float:
    """Nats for the architecture: flags, and L and the L + 1 widths or the graph; and for all plain numbers."""
    structure = net.structure
    if structure is None:
        structure = elias_gamma_length([net.depth, net.norms.shapes[0][1], *(rows for rows, _ in net.norms.shapes)])
    return (_FLAGS + net.weight_bits * net.plain) * math.log(2) + structure


def _occam(net: Measured, margins: Tensor, length: float, **terms: float) -> Value:
    return _guarantee(net, error_rate(margins), length / math.log(2), **terms)


def _guarantee(net: Measured, error: float, bits: float, **terms: float) -> Value:
    delta = net.delta * _SHARE
    bound = occam_bound(error, bits, len(net.margins), delta)
    measured = {"empirical_risk": error, "bits": bits, "delta": delta, **terms}
    if net.distinct is not None and net.distinct < len(net.margins):
        measured["distinct_samples"] = net.distinct
    return Value(safe_log(bound), measured, holds_with=1 - delta, rests_on=_repeats(net))


def _repeats(net: Measured) -> str:
    """What a guarantee rests on where samples occur more than once."""
    n = len(net.margins)
    if net.distinct is None or net.distinct == n:
        return ""
    count = f"{net.distinct:,} of the {n:,} training samples are distinct"
    if 2 * net.distinct > n:
        return count
    return f"only {count}: the guarantee assumes that all {n:,} are independent draws, and is void if some are copies"


def dense(net: Measured) -> Value:
    """Every weight as it is stored: C = header + Σ_l N_l·ln 2^b, b = 32 for float32."""
    return _occam(net, net.margins, _header(net) + sum(net.sizes) * net.weight_bits * math.log(2))


def naive(net: Measured) -> Value:
    """The pruned and rounded network by the places and values of its nonzeros (`sparse_code_length`)."""
    assert net.compressed_margins is not None
    return _occam(net, net.compressed_margins, _header(net) + sum(_naive_lengths(net)), d=net.d)


def sketched(net: Measured) -> Value:
    """The same network, each layer by its sketch or naively, whichever is shorter, and ln 2 to say which.

    The decoder returns the one ℓ1 minimiser for a sketch; a certificate on this very layer proves that it is the layer.
    """
    assert net.compressed_margins is not None and net.sketches is not None
    lengths = [sketch.sketch_bits * math.log(2) for sketch in net.sketches]
    choices = list(zip(lengths, _naive_lengths(net), strict=True))
    length = _header(net) + _seed_length(net) + sum(math.log(2) + min(choice) for choice in choices)
    by_sketch = sum(sketch < naive for sketch, naive in choices)
    all_sketched = sum(lengths) / math.log(2)
    terms = {"layers_by_sketch": by_sketch, "bits_if_all_were": all_sketched}
    return _occam(net, net.compressed_margins, length, d=net.d, **terms)


def coded(net: Measured) -> Value:
    """The network that a decoder reads from bytes: C = 8·bytes·ln 2, whatever made it (spec §6)."""
    assert net.coded is not None
    return _guarantee(net, net.coded.error, net.coded.bits)


def test_set(net: Measured) -> Value:
    """The exact upper limit on the unpruned network's error from samples held out: no code, and no training sample.

    It rests on other data than the rows above: no certificate from training samples beats it at the usual sizes.
    """
    assert net.test is not None
    delta = net.delta * _SHARE
    limit = binomial_upper_limit(net.test.errors, net.test.num_samples, delta)
    error = net.test.errors / net.test.num_samples
    terms = {"test_error": error, "test_samples": net.test.num_samples, "delta": delta}
    return Value(safe_log(limit), terms, holds_with=1 - delta)


def _seed_length(net: Measured) -> float:
    """Nats for the seeds of the ensembles; for 0, the default, a flag of the header's."""
    seeds = [sketch.seed for sketch in net.sketches or ()]
    return elias_gamma_length(seeds[:1] if len(set(seeds)) == 1 else seeds) if any(seeds) else 0.0


def _naive_lengths(net: Measured) -> list[float]:
    # A step that no float32 holds takes 32 bits more; the header's flags say so.
    return [
        sparse_code_length(size, layer.coded_nonzeros, layer.alphabet, min(shape), layer.coded_diagonal)
        + (0.0 if layer.step == float(torch.tensor(layer.step, dtype=torch.float32)) else 32 * math.log(2))
        for size, shape, layer in zip(net.sizes, net.norms.shapes, net.pruned, strict=True)
    ]


# What a guarantee from training samples needs; each row's share of δ is the same, whichever rows there are.
_PREMISES = ("coded", "clean_labels", "still_samples")


def _row(
    name: str,
    evaluate: Callable[[Measured], Value],
    label: str,
    reference: str,
    needs: tuple[str, ...] = (),
    assumes: tuple[str, ...] = _PREMISES,
) -> Row:
    return Row(name, "rigorous", evaluate, label, reference, needs=needs, structure=(), assumes=assumes, share=_SHARE)


ROWS = (
    _row("dense", dense, "Every weight as a float", "Occam, Chernoff–kl (Langford 2005)"),
    _row(
        "naive",
        naive,
        "Pruned and rounded, coded naively",
        "Occam, Chernoff–kl, with Lemma D.1's count",
        ("compressed_margins",),
    ),
    _row(
        "coded",
        coded,
        "The coded bytes",
        "Occam, Chernoff–kl, with a prefix code that a decoder reads",
        ("coded",),
        ("clean_labels", "still_samples"),
    ),
    _row(
        "sketched",
        sketched,
        "Pruned and rounded, coded by sketches",
        "Occam, Chernoff–kl, with Theorem 5.1's sketches, certified",
        ("compressed_margins", "sketches"),
    ),
    _row(
        "test_set",
        test_set,
        "Test set, Clopper–Pearson",
        "Exact binomial tail (Clopper and Pearson 1934)",
        ("test",),
        (),
    ),
)
