import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd.functional import jacobian

from milkshake_mbp.theory import cushions as module
from milkshake_mbp.theory.cushions import Cushions
from milkshake_mbp.theory.pruning import layer_generator

fixed = settings(derandomize=True, deadline=None, max_examples=25, database=None)
widths = st.lists(st.integers(1, 7), min_size=2, max_size=5)
seeds = st.integers(0, 10**6)


def network(sizes: list[int], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(b, a, generator=generator, dtype=torch.float64) for a, b in pairwise(sizes)]


def samples(count: int, size: int, seed: int = 1) -> Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def through(weights: list[Tensor], source: int, target: int, state: Tensor) -> Tensor:
    """M^{i,j}, for layers counted from 0."""
    for weight in weights[source + 1 : target + 1]:
        state = weight @ state.relu()
    return state


def states(weights: list[Tensor], x: Tensor) -> list[Tensor]:
    return [through(weights, 0, target, weights[0] @ x) for target in range(len(weights))]


def smallest(ratios: list[float]) -> float:
    return min(ratios, default=math.inf)


def brute_force(weights: list[Tensor], inputs: Tensor) -> Cushions:
    """Definitions 4 to 6, one sample, one layer and one Jacobian at a time."""
    paths = [states(weights, x) for x in inputs]
    depth = len(weights)
    layer, interlayer, contraction = [], [], 1.0
    for i, weight in enumerate(weights):
        before = [path[i - 1].relu() if i else x for path, x in zip(paths, inputs, strict=True)]
        ratios = [(weight @ a).norm() / (weight.norm() * a.norm()) for a in before if a.norm() > 0]
        layer.append(float(min(ratios)) if ratios else 0.0)
        cushions = [weight.shape[0] ** -0.5]
        for j in range(i + 1, depth):
            for path in paths:
                norm = jacobian(lambda state, i=i, j=j: through(weights, i, j, state), path[i]).norm()
                if norm > 0 and path[i].norm() > 0:
                    cushions.append(float(path[j].norm() / (norm * path[i].norm())))
        interlayer.append(min(cushions))
    for i in range(depth - 1):
        for path in paths:
            if path[i].norm() > 0:
                kept = float(path[i].relu().norm())
                contraction = max(contraction, float(path[i].norm()) / kept if kept else math.inf)
    output = max(float(path[-1].norm()) for path in paths)
    return Cushions(tuple(layer), tuple(interlayer), contraction, math.nan, output, len(inputs))


def assert_same(measured: Cushions, expected: Cushions, relative: float = 1e-5) -> None:
    assert measured.layer == pytest.approx(expected.layer, rel=1e-9, abs=0)
    assert measured.interlayer == pytest.approx(expected.interlayer, rel=relative, abs=0)
    assert measured.contraction == pytest.approx(expected.contraction, rel=1e-9)
    assert measured.output_norm == pytest.approx(expected.output_norm, rel=1e-9, abs=0)


@fixed
@given(widths, st.integers(1, 6), seeds)
def test_agrees_with_the_definitions(sizes: list[int], count: int, seed: int) -> None:
    weights, inputs = network(sizes, seed), samples(count, sizes[0], seed + 1)
    measured = Cushions.measure(weights, inputs)
    assert_same(measured, brute_force(weights, inputs))
    assert measured.num_samples == count


@fixed
@given(widths, seeds)
def test_smoothness_agrees_with_the_definition(sizes: list[int], seed: int) -> None:
    weights, inputs, noise, draws = network(sizes, seed), samples(3, sizes[0], seed + 1), 0.4, 5
    ratios = []
    for i in range(len(weights) - 1):
        direction = torch.randn(draws, len(inputs), sizes[i + 1], generator=layer_generator(seed, i)).double()
        for index, x in enumerate(inputs):
            path = states(weights, x)
            for unscaled in direction[:, index]:
                eta = noise * path[i].norm() * unscaled / unscaled.norm()
                for j in range(i + 1, len(weights)):
                    slope = jacobian(lambda state, i=i, j=j: through(weights, i, j, state), path[i])
                    moved = path[i] + eta
                    distance = (through(weights, i, j, moved) - slope @ moved).norm()
                    if distance > 1e-5 * slope.norm() * path[i].norm():
                        ratios.append(float(eta.norm() * path[j].norm() / (path[i].norm() * distance)))
    measured = Cushions.measure(weights, inputs, noise=noise, draws=draws, seed=seed).smoothness
    assert measured == pytest.approx(smallest(ratios), rel=1e-3)


@fixed
@given(widths, seeds)
def test_bounds_of_the_cushions(sizes: list[int], seed: int) -> None:
    weights, inputs = network(sizes, seed), samples(4, sizes[0], seed + 1)
    measured = Cushions.measure(weights, inputs)
    for mu, arrow, weight in zip(measured.layer, measured.interlayer, weights, strict=True):
        assert 0 <= mu <= float(torch.linalg.matrix_norm(weight, 2) / weight.norm()) * (1 + 1e-9)
        assert 0 <= arrow <= weight.shape[0] ** -0.5 * (1 + 1e-12)
    assert measured.interlayer[-1] == pytest.approx(sizes[-1] ** -0.5)
    assert measured.contraction >= 1
    assert measured.smoothness >= 0


@fixed
@given(seeds)
def test_permuting_hidden_units_changes_nothing(seed: int) -> None:
    weights, inputs = network([6, 7, 5, 4], seed), samples(5, 6, seed + 1)
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.randperm(7, generator=generator), torch.randperm(5, generator=generator)
    permuted = [weights[0][first], weights[1][second][:, first], weights[2][:, second]]
    assert_same(Cushions.measure(permuted, inputs), Cushions.measure(weights, inputs))


@fixed
@given(seeds, st.lists(st.floats(-60, 60), min_size=4, max_size=4))
def test_positive_rescaling_changes_nothing_but_the_output(seed: int, powers: list[float]) -> None:
    weights, inputs = network([6, 7, 5, 4], seed), samples(5, 6, seed + 1)
    scales = [10.0**power for power in powers]
    scaled = [scale * weight for scale, weight in zip(scales, weights, strict=False)]
    one, other = Cushions.measure(weights, inputs), Cushions.measure(scaled, scales[3] * inputs)
    assert other.layer == pytest.approx(one.layer)
    assert other.interlayer == pytest.approx(one.interlayer)
    assert other.contraction == pytest.approx(one.contraction)
    assert other.smoothness == pytest.approx(one.smoothness, rel=1e-2)
    assert other.output_norm == pytest.approx(math.prod(scales) * one.output_norm)


def test_a_network_that_is_linear_on_its_inputs_is_perfectly_stable() -> None:
    weights = [weight.abs() for weight in network([5, 6, 4, 3])]
    measured = Cushions.measure(weights, samples(8, 5).abs() + 0.1, noise=1e-3)
    assert measured.contraction == 1
    assert measured.smoothness == math.inf


def test_larger_noise_is_less_smooth() -> None:
    weights, inputs = network([20, 40, 40, 5]), samples(50, 20)
    rho = [Cushions.measure(weights, inputs, noise=noise).smoothness for noise in (1e-3, 1e-2, 1e-1, 1.0)]
    assert rho == sorted(rho, reverse=True)


def test_one_layer_has_neither_contraction_nor_smoothness() -> None:
    measured = Cushions.measure(network([4, 9]), samples(3, 4))
    assert (measured.contraction, measured.smoothness) == (1.0, math.inf)
    assert measured.interlayer == (pytest.approx(1 / 3),)


def test_a_sample_on_which_the_network_dies() -> None:
    weights = network([3, 5, 4, 2])
    alive = samples(6, 3)
    weights[0][:, 0] = -weights[0][:, 0].abs()
    dead = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
    one, other = Cushions.measure(weights, alive), Cushions.measure(weights, torch.cat([alive, dead]))
    assert other.contraction == math.inf
    assert other.layer[1:] == pytest.approx(one.layer[1:])
    assert other.interlayer == pytest.approx(one.interlayer)
    alone = Cushions.measure(weights, dead)
    assert_same(alone, brute_force(weights, dead))
    assert alone.layer[0] > 0
    assert alone.layer[1:] == (0, 0)
    assert alone.output_norm == 0


def test_an_output_that_vanishes_has_no_cushion() -> None:
    hidden = torch.eye(2, dtype=torch.float64)
    measured = Cushions.measure([hidden, torch.tensor([[1.0, -1.0]])], torch.tensor([[1.0, 1.0]], dtype=torch.float64))
    assert measured.layer[1] == 0
    assert measured.interlayer == (0, 1)


def test_a_zero_sample_says_nothing() -> None:
    weights, inputs = network([3, 5, 4, 2]), samples(6, 3)
    one = Cushions.measure(weights, inputs)
    other = Cushions.measure(weights, torch.cat([inputs, torch.zeros(1, 3)]))
    assert_same(other, one)
    assert other.num_samples == 7


def test_a_zero_layer_has_no_cushion() -> None:
    weights = network([3, 5, 4, 2])
    weights[1].zero_()
    measured = Cushions.measure(weights, samples(4, 3))
    assert measured.layer[1:] == (0, 0)
    assert measured.output_norm == 0
    assert not any(map(math.isnan, (*measured.layer, *measured.interlayer, measured.contraction, measured.smoothness)))


def test_depth_and_scale_do_not_underflow() -> None:
    weights = [1e-30 * weight.abs() for weight in network([8] * 80)]
    measured = Cushions.measure(weights, samples(4, 8).abs(), probes=4)
    assert min(measured.interlayer) > 0.1
    assert measured.output_norm == 0


@pytest.mark.parametrize("probes", [1, 3, 4, 24, 60])
def test_the_estimate_is_unbiased_with_the_standard_error_stated(probes: int) -> None:
    weight, before = network([50, 60], seed=3)[0], network([30, 50], seed=4)[0]
    weight = weight @ torch.diag(1 / torch.arange(1, 51, dtype=torch.float64))
    truth = (weight @ before).square().sum()
    runs = 400
    squares = torch.empty(runs, dtype=torch.float64)
    for seed in range(runs):
        rows = module._leading_rows(weight, probes, torch.Generator().manual_seed(seed))
        assert len(rows) <= probes or probes >= 60
        squares[seed] = (rows @ before).square().sum()
    relative = squares / truth - 1
    top = probes // 4
    if probes >= 60:
        assert torch.equal(rows, weight)
        return
    assert abs(relative.mean()) <= 4 * relative.std() / math.sqrt(runs)
    leading = (rows[:top] @ before).square().sum() / truth
    # The variance of Hutchinson's estimate is at most 2 trace²/p; the root halves the relative error.
    assert relative.std() / 2 <= 1.2 * float(1 - leading) / math.sqrt(2 * (probes - top))


def test_estimated_cushions_are_close_to_exact_ones() -> None:
    weights, inputs = network([40, 200, 180, 160, 150]), samples(20, 40)
    exact = Cushions.measure(weights, inputs, probes=200)
    # Else 1/√h_l would hide the estimates.
    assert exact.interlayer[0] < 0.97 * 200**-0.5
    for seed in range(5):
        estimate = Cushions.measure(weights, inputs, probes=64, seed=seed)
        assert estimate.layer == exact.layer
        assert estimate.interlayer == pytest.approx(exact.interlayer, rel=0.05)
        assert estimate.interlayer[0] != exact.interlayer[0]


def test_groups_of_samples_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    weights, inputs = network([6, 9, 8, 4]), samples(23, 6)
    one = Cushions.measure(weights, inputs)
    monkeypatch.setattr(module, "_FLOATS", 9 * 64 * 5)
    assert_same(Cushions.measure(weights, inputs), one)


def test_a_fixed_function_that_leaves_global_randomness_alone() -> None:
    weights, inputs = network([30, 90, 90, 4]), samples(10, 30)
    state = torch.get_rng_state()
    one = Cushions.measure(weights, inputs, probes=8, seed=5)
    assert torch.equal(state, torch.get_rng_state())
    assert Cushions.measure(weights, inputs, probes=8, seed=5) == one
    assert Cushions.measure(weights, inputs, probes=8, seed=6) != one


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_dtypes_and_gradients(dtype: torch.dtype) -> None:
    weights, inputs = [weight.to(dtype).requires_grad_() for weight in network([5, 6, 3])], samples(4, 5).to(dtype)
    expected = brute_force([weight.detach().double() for weight in weights], inputs.double())
    assert_same(Cushions.measure(weights, inputs), expected)


@pytest.mark.parametrize(
    ("weights", "inputs", "options", "message"),
    [
        ([], samples(2, 3), {}, "one or more"),
        ([torch.ones(3)], samples(2, 3), {}, "matrices"),
        ([torch.ones(4, 3), torch.ones(2, 5)], samples(2, 3), {}, "do not chain"),
        ([torch.ones(4, 3)], samples(2, 4), {}, r"must be \(m ≥ 1, 3\), got \(2, 4\)"),
        ([torch.ones(4, 3)], samples(0, 3), {}, "m ≥ 1"),
        ([torch.ones(4, 3)], torch.full((2, 3), math.nan), {}, "NaN"),
        ([torch.full((4, 3), math.inf)], samples(2, 3), {}, "NaN or infinity"),
        ([torch.ones(4, 3)], samples(2, 3), {"probes": 0}, "probes"),
        ([torch.ones(4, 3)], samples(2, 3), {"draws": 0}, "draws"),
        ([torch.ones(4, 3)], samples(2, 3), {"noise": 0}, "noise"),
    ],
)
def test_what_cannot_be_measured(weights: list[Tensor], inputs: Tensor, options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Cushions.measure(weights, inputs, **options)
