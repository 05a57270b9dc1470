import math

import pytest
import torch

from milkshake_mbp.theory.layer_sketch import LayerSketch, _plans, predicted_spread, sketch_layer
from milkshake_mbp.theory.occam import elias_gamma_length, sparse_code_length
from milkshake_mbp.theory.pruning import keep_probability, sample_mask
from milkshake_mbp.theory.sketching import bipartite_ensemble, recover, sketch

STEP = 2.0**-6


def sparse(rows: int, columns: int, share: float, seed: int = 0) -> torch.Tensor:
    """Gaussian, on a grid of STEP."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, columns, generator=generator)
    kept = torch.rand(rows, columns, generator=generator) < share
    return torch.round(values / STEP) * STEP * kept


def without_lines_apart(layer: LayerSketch, weight: torch.Tensor) -> torch.Tensor:
    rest = weight.clone()
    rest[list(layer.rows_apart)] = 0
    rest[:, list(layer.columns_apart)] = 0
    return rest


def decoded(layer: LayerSketch, weight: torch.Tensor, index: int) -> torch.Tensor:
    """What a decoder makes of Y and the ensembles of seed 0."""
    assert layer.sketch_shape is not None
    pair = [
        None if m == dim else bipartite_ensemble(m, dim, layer.degree, seed=0, stream=2 * index + side)
        for side, (m, dim) in enumerate(zip(layer.sketch_shape, layer.shape, strict=True))
    ]
    y = sketch((weight / STEP).round().long(), *pair)
    found = recover(y, *pair)
    assert found.certified
    return found.matrix * STEP


@pytest.mark.parametrize("shape", [(60, 60), (50, 80), (80, 50)])
def test_a_decoder_gets_the_layer_back(shape: tuple[int, int]) -> None:
    weight = sparse(*shape, 0.05)
    layer = sketch_layer(weight, STEP, layer=3)
    assert layer.certified and layer.reason == ""
    rest = without_lines_apart(layer, weight)
    assert torch.equal(decoded(layer, rest, 3), rest.double())
    assert layer.nonzeros == int(weight.count_nonzero()) < 1.12 * int(rest.count_nonzero())
    assert layer.numbers is not None and int(rest.count_nonzero()) < layer.numbers < weight.numel()


def test_of_a_flat_layer_only_the_long_side_is_sketched() -> None:
    for flip in (False, True):
        weight = sparse(8, 300, 0.06, seed=1)
        layer = sketch_layer(weight.T.contiguous() if flip else weight, STEP)
        assert layer.certified and layer.sketch_shape is not None
        sketched = layer.sketch_shape[::-1] if flip else layer.sketch_shape
        assert sketched[0] == 8 and sketched[1] < 300


def test_full_lines_are_kept_apart() -> None:
    weight = sparse(200, 200, 0.02, seed=2)
    weight[5, :70] = 1.5
    layer = sketch_layer(weight, STEP)
    assert layer.certified and 5 in layer.rows_apart
    assert layer.sketch_shape is not None and max(layer.sketch_shape) < 4.5 * 70
    rest = without_lines_apart(layer, weight)
    assert torch.equal(decoded(layer, rest, 0), rest.double())


def test_a_tenth_of_the_nonzeros_may_be_kept_apart() -> None:
    """Of 200 nonzeros 20 are in one row: 180 are left, for which 4 · 180 numbers are enough, and fewer than 4 · 200."""
    integers = torch.zeros(61, 60, dtype=torch.int64)
    for row in range(60):
        integers[row, [row, (row + 20) % 60, (row + 40) % 60]] = 1
    integers[60, ::3] = 1
    plan = next(_plans(integers, 3))
    assert plan.sides == (True, True) and int(plan.rest(integers).count_nonzero()) == 180
    assert plan.rows.nonzero().flatten().tolist() == [60] and not plan.columns.any()
    numbers = (plan.estimate - plan.apart_length(integers, 3)) / math.log(3)
    # Sizes that are tried are a twentieth apart, and so numbers a tenth.
    assert 4 * 180 <= numbers + 1e-6 < 4 * 180 / 0.9


def test_bits_are_those_of_the_formula() -> None:
    """Spec §4, "sketched", with ln 3 for the sides, and the lines kept apart by places and values."""
    weight = sparse(60, 60, 0.04, seed=4)
    layer = sketch_layer(weight, STEP)
    assert layer.sketch_shape is not None and layer.sketch_shape[0] == layer.sketch_shape[1]
    m = layer.sketch_shape[0]
    left, right = (bipartite_ensemble(m, 60, layer.degree, seed=0, stream=side) for side in (0, 1))
    rest = without_lines_apart(layer, weight)
    largest = int(sketch((rest / STEP).round().long(), left, right).abs().amax())
    alphabet = 2 * math.ceil(float(weight.abs().max()) / STEP) + 1
    nats = math.log(60) + math.log(3) + elias_gamma_length([layer.degree, largest, alphabet]) + 32 * math.log(2)
    nats += m * m * math.log(2 * largest + 1)
    rows, columns = list(layer.rows_apart), list(layer.columns_apart)
    beside = weight.clone()
    beside[rows] = 0
    for size, count in ((60, len(rows)), (60, len(columns))):
        nats += math.log(size + 1) + math.log(math.comb(size, count))
    for size, part in ((60 * len(rows), weight[rows]), ((60 - len(rows)) * len(columns), beside[:, columns])):
        count = int(part.count_nonzero())
        nats += math.log(size + 1) + math.log(math.comb(size, count)) + count * math.log(alphabet - 1)
    assert layer.sketch_bits == pytest.approx(nats / math.log(2), rel=1e-9)
    assert layer.dense_bits == 32 * 3600


@pytest.mark.parametrize("step", [0.3, 0.4, 0.499, 0.7])
def test_the_alphabet_holds_a_largest_weight_that_is_rounded_up(step: float) -> None:
    """1.1/0.4 = 2.75 becomes 3, and an alphabet of 2⌊2.75⌋ + 1 values would lack it."""
    weight = torch.zeros(20, 20)
    weight[3, 4], weight[7, 1] = 1.1, -0.6
    layer, alphabet = sketch_layer(weight, step), 2 * math.ceil(1.1 / step) + 1
    count = int(torch.round(weight / step).count_nonzero())
    assert float(torch.round(weight / step).abs().max()) <= alphabet // 2
    assert layer.naive_bits * math.log(2) == pytest.approx(sparse_code_length(400, count, alphabet, 20, 0), rel=1e-9)


@pytest.mark.parametrize("share", [0.35, 0.9])
def test_what_is_too_full_for_a_sketch_says_so(share: float) -> None:
    layer = sketch_layer(sparse(40, 40, share), STEP)
    assert not layer.certified and layer.sketch_shape is None and math.isinf(layer.sketch_bits)
    assert "about four" in layer.reason and math.isfinite(layer.naive_bits)


def test_a_zero_layer_needs_no_sketch() -> None:
    layer = sketch_layer(torch.zeros(20, 30))
    assert (layer.nonzeros, layer.certified, layer.reason) == (
        0,
        False,
        "the layer is zero: there is nothing to sketch",
    )


@pytest.mark.parametrize("value", [0.0, 0.25, -3.0, 2.0**-100])
def test_a_constant_layer(value: float) -> None:
    layer = sketch_layer(torch.full((20, 30), value), None if value else STEP)
    assert layer.nonzeros == (600 if value else 0) and not layer.certified
    assert math.isfinite(layer.naive_bits) and math.isinf(layer.sketch_bits)


@pytest.mark.parametrize("power", [-100, 100])
def test_sketches_do_not_depend_on_the_unit_of_the_weights(power: int) -> None:
    weight = sparse(50, 50, 0.05, seed=9)
    assert sketch_layer(weight * 2.0**power, STEP * 2.0**power) == sketch_layer(weight, STEP)
    assert sketch_layer(weight.double() * 2.0**power) == sketch_layer(weight.double())


def test_weights_that_are_nothing_on_their_grid_say_so() -> None:
    layer = sketch_layer(torch.full((4, 5), 1e-170, dtype=torch.float64), 0.5)
    assert layer.nonzeros == 0 and "rounds to zero" in layer.reason


def test_a_step_too_fine_for_exact_sums_is_refused() -> None:
    for weight, step in ((torch.ones(2, 2), 1e-16), (torch.ones(2, 2), 5e-324), (torch.full((2, 2), 3e38), 1.0)):
        with pytest.raises(ValueError, match="2\\^53"):
            sketch_layer(weight, step)
    with pytest.raises(ValueError, match="finite"):
        sketch_layer(torch.full((2, 2), math.inf))


def test_weights_beyond_float32_have_a_step_too() -> None:
    huge = torch.zeros(50, 50, dtype=torch.float64).fill_diagonal_(1e200)
    assert sketch_layer(huge).nonzeros == 50


def test_naive_coding_is_shorter_than_any_certified_sketch() -> None:
    """The transition at m² > 4 nonzeros costs 4 values of a larger alphabet for each one and its place."""
    for share, seed in ((0.02, 5), (0.05, 6), (0.1, 7)):
        layer = sketch_layer(sparse(80, 80, share, seed), STEP)
        assert layer.certified and layer.sketch_bits > 2 * layer.naive_bits


def test_lemma_5_1s_prediction() -> None:
    assert predicted_spread((10, 784), 0.25) == 3 * 0.25 * 784
    assert predicted_spread((784, 784), 0.1, slack=2.0) == pytest.approx(6 * 0.1 * 784)
    generator = torch.Generator().manual_seed(8)
    weight = torch.randn(400, 400, generator=generator)
    mask = sample_mask(weight, 2.0, generator=generator)  # too much is left for a sketch to be sought
    layer = sketch_layer(weight * mask)
    assert layer.predicted_spread == pytest.approx(3 * 400 * keep_probability(2.0), rel=0.1)
    assert layer.lemma_5_1_held == (max(layer.column_max, layer.row_max) <= layer.predicted_spread)


def test_nothing_depends_on_global_state_or_changes_the_weight() -> None:
    weight = sparse(50, 50, 0.05, seed=9)
    before = weight.clone()
    torch.manual_seed(1)
    first = sketch_layer(weight, STEP)
    torch.manual_seed(2)
    assert sketch_layer(weight, STEP) == first and torch.equal(weight, before)


@pytest.mark.parametrize("weight", [torch.full((3, 3), torch.nan), torch.ones(3), torch.tensor([[math.inf, 0.0]])])
def test_bad_weights_raise(weight: torch.Tensor) -> None:
    with pytest.raises(ValueError):
        sketch_layer(weight)
    with pytest.raises(ValueError):
        sketch_layer(torch.ones(3, 3), 0.0)
