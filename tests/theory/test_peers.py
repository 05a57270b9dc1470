import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from milkshake_mbp.theory.bounds import Bound, bound_table
from milkshake_mbp.theory.cushions import Cushions
from milkshake_mbp.theory.rows import peers

fixed = settings(derandomize=True, deadline=None, max_examples=20, database=None)
NAMES = [row.name for row in peers.ROWS]
PLAIN = [row.name for row in peers.ROWS if not row.needs]
WIDTHS = (6, 5, 7, 4, 3)
Layers = list[np.ndarray]


def chain(seed: int, widths: Sequence[int] = WIDTHS, scale: float = 1.0) -> Layers:
    rng = np.random.default_rng(seed)
    return [
        scale * rng.standard_normal((after, before)) / math.sqrt(before) for before, after in itertools.pairwise(widths)
    ]


def margins_of(seed: int, low: float = -2.0) -> torch.Tensor:
    return torch.tensor(low + np.random.default_rng(seed + 1000).gamma(2.0, 5.0, 60))


def cushions_of(depth: int, **changes: Any) -> Cushions:
    given = Cushions(
        layer=tuple(0.1 + 0.05 * layer for layer in range(depth)),
        interlayer=tuple(0.3 / (1 + layer) for layer in range(depth)),
        contraction=1.7,
        smoothness=3.0 * depth,
        output_norm=12.5,
        num_samples=40,
    )
    return replace(given, **changes)


def table(layers: Layers, start: Layers | None = None, **options: Any) -> dict[str, Bound]:
    """The peers' rows; those that need the initial weights or the cushions only if they are given."""
    weights = [torch.tensor(layer) for layer in layers]
    defaults: dict[str, Any] = {"margins": margins_of(0), "num_samples": 60, "input_norm": 1.5}
    if start is not None:
        defaults["initial"] = [torch.tensor(layer) for layer in start]
    rows = bound_table(weights, convention="leading", **{**defaults, **options})
    return {row.name: row for row in rows if row.name in NAMES}


def full(layers: Layers, start: Layers, **options: Any) -> dict[str, Bound]:
    return table(layers, start, **{"cushions": cushions_of(len(layers)), **options})


def top(matrix: np.ndarray) -> float:
    return float(np.linalg.svd(matrix, compute_uv=False)[0])


def frobenius(matrix: np.ndarray) -> float:
    return math.sqrt(sum(float(entry) ** 2 for row in matrix for entry in row))


def row_norms(matrix: np.ndarray, p: float) -> list[float]:
    return [sum(abs(float(entry)) ** p for entry in row) ** (1 / p) for row in matrix]


def worst_path_norm(layers: Layers, p: float) -> float:
    widths = [layers[0].shape[1], *(a.shape[0] for a in layers)]
    totals = [0.0] * widths[-1]
    for path in itertools.product(*(range(width) for width in widths)):
        product = 1.0
        for layer, (before, after) in zip(layers, itertools.pairwise(path), strict=True):
            product *= abs(float(layer[after, before])) ** p
        totals[path[-1]] += product
    return max(totals) ** (1 / p)


def reference_numerators(
    layers: Layers, start: Layers, n: int, radius: float, norms: dict[float, float], seen: Cushions
) -> dict[str, float]:
    """What stands over γ in each row, with loops and numpy."""
    depth, inputs = len(layers), layers[0].shape[1]
    peel = 2.0 ** (depth - 1)
    l1_inputs = norms[math.inf] * math.sqrt(4 * math.log(2 * inputs))
    l1_max = math.prod(max(row_norms(a, 1)) for a in layers)
    l3 = math.prod(sum(unit**1.5 for unit in row_norms(a, 3)) ** (1 / 1.5) for a in layers)
    hidden = max(a.shape[0] for a in layers[:-1])
    h = max(max(a.shape) for a in layers)
    fro, spec = math.prod(frobenius(a) for a in layers), math.prod(top(a) for a in layers)
    log_n = math.log(n)
    depth_free = max(1, log_n) ** 0.75 * math.sqrt(max(1, math.log(fro / spec))) / n**0.25
    moved = sum(frobenius(a - m) ** 2 / top(a) ** 2 for a, m in zip(layers, start, strict=True))
    cushions = sum(1 / (a * b) ** 2 for a, b in zip(seen.layer, seen.interlayer, strict=True))
    return {
        "bartlett_2002": peel * l1_max * l1_inputs / math.sqrt(n),
        "neyshabur_2015_l3": peel * l3 * norms[1.5] / n ** (1 / 3),
        "path_norm_l1": peel * worst_path_norm(layers, 1) * l1_inputs / math.sqrt(n),
        "path_norm_l2": (2 * math.sqrt(hidden)) ** (depth - 1) * worst_path_norm(layers, 2) * radius / math.sqrt(n),
        "golowich_2018": radius * fro * (math.sqrt(2 * math.log(2) * depth) + 1) / math.sqrt(n),
        "golowich_2018_l1": 2 * norms[math.inf] * l1_max * math.sqrt(depth + 1 + math.log(inputs)) / math.sqrt(n),
        "golowich_2018_depth_free": radius * fro * min(depth_free, math.sqrt(depth / n)),
        "neyshabur_2017_initial": math.sqrt(
            radius**2 * depth**2 * h * math.log(depth * h) * spec**2 * moved / n,
        ),
        "neyshabur_2019": math.sqrt(layers[-1].shape[0])
        * frobenius(layers[-1])
        * (frobenius(layers[0] - start[0]) + top(start[0]))
        * radius
        / math.sqrt(n),
        "arora_2018": math.sqrt(seen.contraction**2 * depth**2 * seen.output_norm**2 * cushions / n),
    }


def reference_best_margin(margins: torch.Tensor, numerator: float) -> tuple[float, float]:
    values = margins.tolist()
    best = (math.inf, math.inf)
    for gamma in values:
        if gamma > 0:
            best = min(best, (sum(1 for m in values if m < gamma) / len(values) + numerator / gamma, gamma))
    return best


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("scale", [0.05, 1.0])
@pytest.mark.parametrize("widths", [WIDTHS, (6, 5, 3), (3, 2, 5), (1,) * 81], ids=["deep", "shallow", "wide", "thin"])
@pytest.mark.parametrize("n", [2, 60, 10**7])
def test_rows_by_brute_force(seed: int, scale: float, widths: Sequence[int], n: int) -> None:
    layers, start, margins = chain(seed, widths, scale), chain(seed + 50, widths, scale), margins_of(seed)
    norms = {1.5: 2.1, math.inf: 0.4}
    rows = full(layers, start, margins=margins, num_samples=n, input_norms=norms, num_classes=5)
    seen = cushions_of(len(layers))
    for name, numerator in reference_numerators(layers, start, n, 1.5, norms, seen).items():
        row = rows[name]
        assert row.holds_with is None and row.claimed is None
        if name == "neyshabur_2019" and len(layers) != 2:
            assert row.log_value == math.inf and not row.applies and "two layers" in row.reason
            continue
        value, gamma = reference_best_margin(margins, numerator)
        if name == "neyshabur_2019":
            value += math.sqrt(layers[0].shape[0] / n)
        assert row.log_value == pytest.approx(math.log(value), abs=1e-8), name
        assert row.terms["gamma"] == pytest.approx(gamma, rel=1e-9)
        assert row.terms["log_complexity"] == pytest.approx(math.log(numerator / gamma), abs=1e-8)
        assert row.applies and row.reason == ""


def test_golowichs_minimum_is_reached_from_both_sides() -> None:
    """The depth-free factor wins for very deep networks of low rank on few samples, sqrt(L/n) elsewhere."""
    for widths, n, free in (((1,) * 81, 10, True), (WIDTHS, 10**7, False)):
        layers = chain(1, widths)
        rows = table(layers, margins=torch.ones(9), num_samples=n, input_norm=1.0, num_classes=3)
        log_fro = sum(math.log(frobenius(a)) for a in layers)
        shallow = log_fro + 0.5 * math.log(len(layers) / n)
        log_complexity = rows["golowich_2018_depth_free"].terms["log_complexity"]
        assert (log_complexity < shallow - 1e-6) == free
        assert log_complexity <= shallow + 1e-9


def test_inputs_not_measured_are_bounded_through_their_euclidean_norm() -> None:
    layers, start = chain(0), chain(50)
    norms = {1.5: 1.5 * 6 ** (1 / 1.5 - 0.5), math.inf: 1.5}
    bounded, given_norms = full(layers, start), full(layers, start, input_norms=norms)
    for name in NAMES:
        assert bounded[name].log_value == pytest.approx(given_norms[name].log_value, abs=1e-12)


def test_rows_are_left_out_without_their_ingredients() -> None:
    layers, start = chain(0), chain(50)
    distances = ["neyshabur_2017_initial", "neyshabur_2019"]
    assert list(table(layers)) == PLAIN
    assert list(table(layers, start)) == [*PLAIN, *distances]
    assert list(table(layers, cushions=cushions_of(4))) == [*PLAIN, "arora_2018"]
    assert list(full(layers, start)) == NAMES


def test_arora_needs_smoothness() -> None:
    layers, start = chain(0), chain(50)
    smooth, rough = full(layers, start), full(layers, start, cushions=cushions_of(4, smoothness=11.9))
    assert smooth["arora_2018"].applies and not rough["arora_2018"].applies
    assert "3L = 12" in rough["arora_2018"].reason and "11.9" in rough["arora_2018"].reason
    assert smooth["arora_2018"].log_value == rough["arora_2018"].log_value
    assert full(layers, start, cushions=cushions_of(4, smoothness=math.inf))["arora_2018"].applies
    assert not full(layers, start, cushions=cushions_of(4, smoothness=math.nan))["arora_2018"].applies


def test_arora_reports_what_was_measured() -> None:
    terms = full(chain(0), chain(50))["arora_2018"].terms
    assert terms["layer_cushion"] == 0.1 and terms["interlayer_cushion"] == pytest.approx(0.075)
    assert terms["contraction"] == 1.7 and terms["smoothness"] == 12.0
    assert terms["output_norm"] == 12.5 and terms["samples_measured"] == 40


@pytest.mark.parametrize(
    "changes",
    [
        {"layer": (0.1, 0.0, 0.1, 0.1)},
        {"interlayer": (0.1, 0.1, 0.1, 0.0)},
        {"layer": (0.1, math.nan, 0.1, 0.1)},
        {"contraction": math.inf, "output_norm": 0.0},
    ],
    ids=str,
)
def test_arora_of_a_network_without_cushions(changes: dict[str, Any]) -> None:
    row = full(chain(0), chain(50), cushions=cushions_of(4, **changes))["arora_2018"]
    assert row.log_value == math.inf and not row.applies and "cushion" in row.reason


# Invariances and scaling laws


def permuted(layers: Layers, orders: Sequence[np.ndarray]) -> Layers:
    layers = list(layers)
    for index, order in enumerate(orders):
        layers[index] = layers[index][order]
        layers[index + 1] = layers[index + 1][:, order]
    return layers


def assert_same(first: dict[str, Bound], second: dict[str, Bound], names: Sequence[str] = NAMES) -> None:
    for name in names:
        assert second[name].log_value == pytest.approx(first[name].log_value, abs=1e-7), name


@fixed
@given(st.integers(0, 10**6), st.sampled_from([WIDTHS, (6, 5, 3)]))
def test_hidden_units_have_no_order(seed: int, widths: Sequence[int]) -> None:
    layers, start, rng = chain(seed, widths), chain(seed + 1, widths), np.random.default_rng(seed)
    orders = [rng.permutation(width) for width in widths[1:-1]]
    assert_same(full(layers, start), full(permuted(layers, orders), permuted(start, orders)))


@fixed
@given(st.integers(0, 10**6), st.integers(-30, 30))
def test_rescaling_two_layers_against_each_other_changes_nothing(seed: int, exponent: int) -> None:
    """(cA_1, A_2/c), and the initial weights with them: the same function, and every row."""

    def rescaled(layers: Layers) -> Layers:
        return [layers[0] * 2.0**exponent, layers[1] * 2.0**-exponent, *layers[2:]]

    for widths in (WIDTHS, (6, 5, 3)):
        layers, start = chain(seed, widths), chain(seed + 1, widths)
        assert_same(full(layers, start), full(rescaled(layers), rescaled(start)))


def test_one_hidden_unit_rescaled_moves_all_but_the_path_norms() -> None:
    layers = chain(0)
    scales = np.array([100.0, 1, 1, 1, 1])
    before, after = table(layers), table([layers[0] * scales[:, None], layers[1] / scales, *layers[2:]])
    kept = [name for name in PLAIN if after[name].log_value == pytest.approx(before[name].log_value, abs=1e-9)]
    assert kept == ["path_norm_l1", "path_norm_l2"]


@fixed
@given(st.integers(0, 10**6), st.integers(-30, 30))
def test_the_units_of_the_output_do_not_matter(seed: int, exponent: int) -> None:
    """The last layer, its initial weights, max‖f(x)‖ and the margins, all times c."""
    c = 2.0**exponent
    for widths in (WIDTHS, (6, 5, 3)):
        layers, start, margins = chain(seed, widths), chain(seed + 1, widths), margins_of(seed)
        before = full(layers, start, margins=margins)
        after = full(
            [*layers[:-1], layers[-1] * c],
            [*start[:-1], start[-1] * c],
            margins=margins * c,
            cushions=cushions_of(len(layers), output_norm=12.5 * c),
        )
        assert_same(before, after)


@fixed
@given(st.integers(0, 10**6), st.integers(3, 10**6))
def test_how_complexities_fall_with_the_sample_size(seed: int, n: int) -> None:
    """1/√n, but n^{−1/3} for ℓ3; Golowich's depth-free row by less than 1/√n while its first factor wins."""
    layers, start, margins = chain(seed), chain(seed + 1), torch.full((20,), 3.0)
    rates = {"neyshabur_2015_l3": 1 / 3}
    before, after = (full(layers, start, margins=margins, num_samples=m) for m in (n, 4 * n))
    for name in NAMES:
        if name == "neyshabur_2019":
            assert not before[name].applies
            continue
        change = before[name].terms["log_complexity"] - after[name].terms["log_complexity"]
        if name == "golowich_2018_depth_free":
            assert change <= math.log(2) + 1e-9
        else:
            assert change == pytest.approx(rates.get(name, 0.5) * math.log(4), abs=1e-9), name
    two = [
        full(layers[:2], start[:2], margins=margins, num_samples=m, num_classes=3)["neyshabur_2019"].log_value
        for m in (n, 4 * n)
    ]
    assert two[0] - two[1] == pytest.approx(math.log(2), abs=1e-9)


# Inequalities between the rows


@pytest.mark.parametrize("p", [2, 2.5, 3, 7])
@pytest.mark.parametrize("n", [1, 2, 5, 10])
def test_linear_classes_have_type_constant_one(p: float, n: int) -> None:
    """E‖Σ ε_i x_i‖_{p*} ≤ n^{1/p*} max‖x_i‖_{p*} over all signs, without a √2; attained by disjoint unit vectors."""
    dual = p / (p - 1)
    signs = np.array(list(itertools.product([-1.0, 1.0], repeat=n)))
    rng = np.random.default_rng(n)

    def mean_norm(samples: np.ndarray) -> float:
        return float(np.linalg.norm(signs @ samples, dual, axis=1).mean())

    for dim in (1, 2, 3, 12):
        for samples in (rng.standard_normal((n, dim)), rng.standard_normal((n, dim)) ** 3, np.ones((n, dim))):
            largest = float(np.linalg.norm(samples, dual, axis=1).max())
            assert mean_norm(samples) <= n ** (1 / dual) * largest * (1 + 1e-12)
    assert mean_norm(np.eye(n)) == pytest.approx(n ** (1 / dual), rel=1e-12)


def test_one_theorem_of_2015_has_one_constant() -> None:
    """One layer, one output: the ℓ2 path norm is the Frobenius norm, and the two rows that use it are equal."""
    weights = [torch.tensor(layer) for layer in chain(3, (6, 1))]
    rows = bound_table(
        weights, convention="leading", margins=margins_of(0), num_samples=60, input_norm=1.5, num_classes=2
    )
    values = {row.name: row.log_value for row in rows}
    assert values["path_norm_l2"] == pytest.approx(values["neyshabur_2015"], abs=1e-12)


@fixed
@given(st.integers(0, 10**6), st.floats(0.2, 5))
def test_inequalities_between_rows(seed: int, scale: float) -> None:
    layers = chain(seed, scale=scale)
    norms = {1.0: 2.5, 1.5: 2.0, math.inf: 0.5}
    options: dict[str, Any] = {"margins": torch.ones(9), "input_norms": norms}
    rows = {name: row.terms["log_complexity"] for name, row in table(layers, **options).items()}
    slack = 1e-9
    assert rows["path_norm_l1"] <= rows["bartlett_2002"] + slack
    # φ_2 ≤ Π‖A_l‖_{2,∞} ≤ Π‖A_l‖_F
    fro = math.log(1.5) + sum(math.log(frobenius(a)) for a in layers) - 0.5 * math.log(60)
    factor = (len(layers) - 1) * math.log(2 * math.sqrt(7))
    assert rows["path_norm_l2"] <= fro + factor + slack
    # The peeled exponent 2^{L−1} against sqrt(L), from three layers on
    assert rows["golowich_2018"] <= fro + (len(layers) - 1) * math.log(2) + slack
    assert rows["golowich_2018_l1"] <= rows["bartlett_2002"] + slack
    assert rows["golowich_2018_depth_free"] <= rows["golowich_2018"] + slack


@fixed
@given(st.integers(0, 10**6))
def test_without_initial_weights_the_distances_are_norms(seed: int) -> None:
    layers = chain(seed)
    weights = [torch.tensor(layer) for layer in layers]
    rows = bound_table(
        weights,
        convention="leading",
        margins=margins_of(seed),
        num_samples=60,
        input_norm=1.5,
        initial=[torch.zeros_like(weight) for weight in weights],
    )
    values = {row.name: row.log_value for row in rows}
    assert values["neyshabur_2017_initial"] == pytest.approx(values["neyshabur_2017"], abs=1e-9)


def test_weights_that_never_moved() -> None:
    layers = chain(0)
    row = table(layers, layers)["neyshabur_2017_initial"]
    assert row.terms["log_complexity"] == -math.inf
    assert math.isfinite(table(layers[:2], layers[:2])["neyshabur_2019"].log_value)  # ‖M_1‖₂ stays


# Extremes


@pytest.mark.parametrize("scale", [1e20, 1e-20])
def test_fifty_layers_stay_finite(scale: float) -> None:
    widths = (8,) * 51
    layers, start = chain(0, widths, scale), chain(1, widths, scale)
    seen = cushions_of(50, layer=(1e-9,) * 50, interlayer=(1e-12,) * 50)
    rows = full(layers, start, margins=torch.full((20,), 2.0), cushions=seen)
    for name in NAMES:
        assert math.isfinite(rows[name].log_value) == (name != "neyshabur_2019"), name
    plain = full(chain(0, widths), chain(1, widths), margins=torch.full((20,), 2.0), cushions=seen)
    for name in NAMES:
        if name not in ("arora_2018", "neyshabur_2019"):
            change = rows[name].terms["log_complexity"] - plain[name].terms["log_complexity"]
            assert change == pytest.approx(50 * math.log(scale), rel=1e-9), name


@pytest.mark.parametrize("dead", [0, 1, 3])
@pytest.mark.parametrize("margins", [torch.zeros(50), margins_of(0)], ids=["f ≡ 0", "biases"])
def test_a_zero_layer_gives_no_nan(dead: int, margins: torch.Tensor) -> None:
    layers, start = chain(0), chain(1)
    layers[dead] = np.zeros_like(layers[dead])
    for rows in (full(layers, start, margins=margins), full(layers, layers, margins=margins)):
        for name in NAMES:
            assert not math.isnan(rows[name].log_value), name
        for name in PLAIN:
            if margins.sum() == 0:
                assert rows[name].log_value == math.inf
            else:
                assert rows[name].terms["log_complexity"] == -math.inf


@pytest.mark.parametrize("widths", [(4, 3), (1, 1), (1, 1, 1), (3, 1, 2)], ids=str)
def test_the_smallest_networks(widths: Sequence[int]) -> None:
    rows = full(chain(0, widths), chain(1, widths), num_classes=3)
    for name in NAMES:
        assert not math.isnan(rows[name].log_value), name
        assert math.isfinite(rows[name].log_value) == (name != "neyshabur_2019" or len(widths) == 3), name


def test_without_a_positive_margin_nothing_applies() -> None:
    for widths in (WIDTHS, (6, 5, 3)):
        rows = full(chain(0, widths), chain(1, widths), margins=torch.tensor([-1.0, 0.0]))
        for row in rows.values():
            assert row.log_value == math.inf and not row.applies
            assert "margin" in row.reason or row.name == "neyshabur_2019"


def test_biases_void_every_row() -> None:
    rows = full(chain(0), chain(1), violated="it has biases")
    assert not any(row.applies for row in rows.values())
    assert all(row.vacuous is not None for row in rows.values())


def test_half_precision_is_measured_in_float64() -> None:
    layers = [torch.tensor(300 * layer).to(torch.float16) for layer in chain(0)]
    call: Callable[..., Any] = bound_table
    options = {"convention": "leading", "margins": margins_of(0), "num_samples": 60, "input_norm": 1.5}
    half, double = call(layers, **options), call([layer.double() for layer in layers], **options)
    for first, second in zip(half, double, strict=True):
        if first.name in PLAIN:
            assert first.log_value == pytest.approx(second.log_value, abs=1e-12)
