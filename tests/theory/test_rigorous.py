"""The `rigorous` rows: lengths of codes counted by hand, and what a guarantee is said to rest on."""

import math
from typing import Any

import pytest
import torch

from milkshake_mbp.theory.bounds import Bound, evaluate, order_margins, prune_layers
from milkshake_mbp.theory.layer_sketch import LayerSketch
from milkshake_mbp.theory.measured import HeldOut, LayerNorms, Measured
from milkshake_mbp.theory.occam import binomial_upper_limit, sparse_code_length

N, SHAPES = 100, ((12, 20), (5, 12))
# Flags, L = 2 and the widths 20, 12 and 5 by Elias' gamma code of one more.
HEADER = 8 + 3 + 9 + 7 + 5


def measured(steps: tuple[float | None, ...] = (None, None), **given: Any) -> Measured:
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(shape, generator=generator) for shape in SHAPES]
    margins = order_margins(torch.rand(N, generator=generator) + 0.5)
    return Measured(
        norms=LayerNorms.measure(weights),
        margins=margins,
        num_samples=N,
        log_input_norm=0.0,
        num_classes=5,
        pruned=prune_layers(weights, 0.7, steps=steps),
        compressed_margins=margins,
        **given,
    )


def rows(net: Measured) -> dict[str, Bound]:
    return {row.name: row for row in evaluate(net, "rigorous")}


def naive_bits(net: Measured) -> list[float]:
    """Of each layer, without what an odd step costs."""
    return [
        sparse_code_length(a * b, layer.coded_nonzeros, layer.alphabet, min(a, b), layer.coded_diagonal) / math.log(2)
        for (a, b), layer in zip(SHAPES, net.pruned, strict=True)
    ]


def sketch(net: Measured, layer: int, bits: float, seed: int) -> LayerSketch:
    nonzeros = net.pruned[layer].coded_nonzeros
    return LayerSketch(
        SHAPES[layer], nonzeros, 3, 3, False, 9.0, 5, 4, (5, 5), (), (), True, "", bits, 1.0, 1.0, seed=seed
    )


@pytest.mark.parametrize(("seeds", "told"), [((0, 0), 0), ((6, 6), 5), ((2, 5), 3 + 5), ((0, 1), 1 + 3)])
@pytest.mark.parametrize("bits", [(40.0, 1e6), (1e6, 1e6), (30.0, 20.0)])
def test_each_layer_by_what_is_shorter_and_a_bit_to_say_which(
    seeds: tuple[int, int], told: int, bits: tuple[float, float]
) -> None:
    """⌊log₂(s + 1)⌋ zeros, and as many digits and one, tell a seed s; equal ones are told once, zeros by a flag."""
    net = measured()
    found = rows(net.with_sketches([sketch(net, layer, bits[layer], seeds[layer]) for layer in range(2)]))["sketched"]
    naive = naive_bits(net)
    assert found.terms["bits"] == pytest.approx(
        HEADER + told + sum(1 + min(pair) for pair in zip(bits, naive, strict=True))
    )
    assert found.terms["bits_if_all_were"] == pytest.approx(sum(bits))
    assert found.terms["layers_by_sketch"] == sum(sketched < other for sketched, other in zip(bits, naive, strict=True))


@pytest.mark.parametrize(("steps", "odd"), [((None, None), 0), ((0.125, 0.1), 1), ((0.3, 0.1), 2)])
def test_a_step_that_no_float32_holds_costs_32_bits_more(steps: tuple[float | None, ...], odd: int) -> None:
    net = measured(steps)
    assert rows(net)["naive"].terms["bits"] == pytest.approx(HEADER + sum(naive_bits(net)) + 32 * odd)


@pytest.mark.parametrize(
    ("distinct", "said"),
    [
        (None, ""),
        (100, ""),
        (99, "99 of the 100 training samples are distinct"),
        (51, "51 of the 100 training samples are distinct"),
        (50, "only 50 of the 100 training samples are distinct: the guarantee assumes that all 100 are"),
    ],
)
def test_samples_that_occur_more_than_once_are_said(distinct: int | None, said: str) -> None:
    net = measured(distinct=distinct)
    for name in ("dense", "naive"):
        found = rows(net)[name]
        assert found.rests_on.startswith(said) and bool(found.rests_on) == bool(said)
        assert ("void if some are copies" in found.rests_on) == (distinct == 50)
        assert found.terms.get("distinct_samples") == (distinct if said else None)


def test_the_test_sets_row_holds_with_its_share_of_delta() -> None:
    found = rows(measured(test=HeldOut(3, 50, 0.06), delta=0.2))["test_set"]
    assert math.exp(found.log_value) == pytest.approx(binomial_upper_limit(3, 50, 0.05), rel=1e-12)
    assert found.holds_with == 0.95 and found.terms["test_samples"] == 50 and found.rests_on == ""
