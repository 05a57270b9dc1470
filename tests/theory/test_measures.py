import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from milkshake_mbp.theory.bounds import Bound, bound_table
from milkshake_mbp.theory.flatness import Flatness
from milkshake_mbp.theory.rows import measures

fixed = settings(derandomize=True, deadline=None, max_examples=20, database=None)
# Of a chain, without those that a search of their own is asked for (test_flatness.py).
NAMES = [row.name for row in measures.ROWS if not {"fourier", "magnitudes", "operator_scales"} & set(row.needs)]
WIDTHS = (6, 5, 7, 4, 3)
OVER_MARGIN = [
    "inverse_margin",
    "spec_init_main",
    "spec_orig_main",
    "prod_of_spec_over_margin",
    "sum_of_spec_over_margin",
    "prod_of_fro_over_margin",
    "sum_of_fro_over_margin",
    "path_norm_over_margin",
]
# These read how large each layer is, not only what the layers do together.
SCALED = ["fro_dist", "dist_spec_init", "param_norm", "l2", "l2_dist", "pacbayes_init", "pacbayes_orig"]
Layers = list[np.ndarray]


def chain(seed: int, widths: Sequence[int] = WIDTHS, scale: float = 1.0) -> Layers:
    rng = np.random.default_rng(seed)
    return [
        scale * rng.standard_normal((after, before)) / math.sqrt(before) for before, after in itertools.pairwise(widths)
    ]


def margins_of(seed: int, low: float = 0.5, n: int = 60) -> torch.Tensor:
    return torch.tensor(low + np.random.default_rng(seed + 1000).gamma(2.0, 5.0, n))


def flatness_of(sigma: float = 0.03) -> Flatness:
    return Flatness(sigma=sigma, deviation=0.1, error=0.01, noisy_error=0.1, draws=5, num_samples=100)


def table(layers: Layers, start: Layers | None = None, **options: Any) -> dict[str, Bound]:
    weights = [torch.tensor(layer) for layer in layers]
    defaults: dict[str, Any] = {"margins": margins_of(0), "num_samples": 60, "input_norm": 1.5, "pruned": ()}
    if start is not None:
        defaults["initial"] = [torch.tensor(layer) for layer in start]
    rows = bound_table(weights, convention="measure", **{**defaults, **options})
    return {row.name: row for row in rows}


def full(layers: Layers, start: Layers, **options: Any) -> dict[str, Bound]:
    return table(layers, start, **{"flatness": flatness_of(), **options})


def top(matrix: np.ndarray) -> float:
    return float(np.linalg.svd(matrix, compute_uv=False)[0])


def square(matrix: np.ndarray) -> float:
    return sum(float(entry) ** 2 for row in matrix for entry in row)


def squared_paths(layers: Layers) -> float:
    """Σ over every path of Πw²."""
    widths = [layers[0].shape[1], *(a.shape[0] for a in layers)]
    total = 0.0
    for path in itertools.product(*(range(width) for width in widths)):
        product = 1.0
        for layer, (before, after) in zip(layers, itertools.pairwise(path), strict=True):
            product *= float(layer[after, before]) ** 2
        total += product
    return total


def reference(layers: Layers, start: Layers, margins: torch.Tensor, n: int, sigma: float) -> dict[str, float]:
    """Each measure from Jiang et al. 2020, Appendix C."""
    depth = len(layers)
    gamma = sorted(margins.tolist())[math.ceil(len(margins) / 10) - 1]
    spec = [top(a) ** 2 for a in layers]
    fro = [square(a) for a in layers]
    moved = [square(a - m) for a, m in zip(layers, start, strict=True)]
    moved_spec = [top(a - m) ** 2 for a, m in zip(layers, start, strict=True)]
    spectral, frobenius, paths = math.prod(spec), math.prod(fro), squared_paths(layers)
    rank = sum(f / s for f, s in zip(fro, spec, strict=True))
    return {
        "params": sum(a.size for a in layers),
        "inverse_margin": 1 / gamma**2,
        "spec_init_main": spectral * sum(m / s for m, s in zip(moved, spec, strict=True)) / gamma**2,
        "spec_orig_main": spectral * rank / gamma**2,
        "prod_of_spec_over_margin": spectral / gamma**2,
        "prod_of_spec": spectral,
        "fro_over_spec": rank,
        "sum_of_spec_over_margin": depth * (spectral / gamma**2) ** (1 / depth),
        "sum_of_spec": depth * spectral ** (1 / depth),
        "prod_of_fro_over_margin": frobenius / gamma**2,
        "prod_of_fro": frobenius,
        "sum_of_fro_over_margin": depth * (frobenius / gamma**2) ** (1 / depth),
        "sum_of_fro": depth * frobenius ** (1 / depth),
        "fro_dist": sum(moved),
        "dist_spec_init": sum(moved_spec),
        "param_norm": sum(fro),
        "l2": math.sqrt(sum(fro)),
        "l2_dist": math.sqrt(sum(moved)),
        "path_norm_over_margin": paths / gamma**2,
        "path_norm": paths,
        "pacbayes_init": sum(moved) / (4 * sigma**2) + math.log(n / sigma) + 10,
        "pacbayes_orig": sum(fro) / (4 * sigma**2) + math.log(n / sigma) + 10,
        "pacbayes_flatness": 1 / sigma**2,
    }


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("scale", [0.05, 1.0, 7.0])
@pytest.mark.parametrize("widths", [WIDTHS, (6, 3), (2, 2, 2, 2, 2, 2, 2)], ids=str)
@pytest.mark.parametrize("sigma", [1e-3, 0.7])
def test_measures_by_brute_force(seed: int, scale: float, widths: Sequence[int], sigma: float) -> None:
    layers, start, margins = chain(seed, widths, scale), chain(seed + 50, widths, scale), margins_of(seed)
    rows = full(layers, start, margins=margins, flatness=flatness_of(sigma))
    expected = reference(layers, start, margins, 60, sigma)
    assert list(rows) == NAMES and set(NAMES) == set(expected)
    for name, value in expected.items():
        row = rows[name]
        assert row.log_value == pytest.approx(math.log(value), abs=1e-8), name
        assert row.applies and row.vacuous is None and row.trivial is None and row.holds_with is None


def test_path_norm_is_the_network_of_squared_weights_on_ones() -> None:
    layers = chain(3)
    outputs = np.ones(6)
    for layer in layers:
        outputs = np.maximum(layer**2 @ outputs, 0)
    assert math.exp(table(layers)["path_norm"].log_value) == pytest.approx(outputs.sum(), rel=1e-12)


@pytest.mark.parametrize(("n", "index"), [(1, 0), (9, 0), (10, 0), (11, 1), (20, 1), (21, 2), (60, 5), (1000, 99)])
def test_the_margin_is_the_tenth_percentile(n: int, index: int) -> None:
    """The least margin that at least a tenth of the samples do not exceed."""
    margins = torch.arange(1, n + 1).double().flip(0)
    row = table(chain(0), margins=margins)["inverse_margin"]
    assert row.terms["gamma"] == index + 1
    assert sum(m <= index + 1 for m in margins.tolist()) >= n / 10 > sum(m < index + 1 for m in margins.tolist())
    assert row.log_value == pytest.approx(-2 * math.log(index + 1), abs=1e-12)


def test_biases_count_as_parameters() -> None:
    assert table(chain(0), biases=19)["params"].log_value == pytest.approx(math.log(30 + 35 + 28 + 12 + 19), rel=1e-12)


@pytest.mark.parametrize("bad", [0.0, -3.0, math.nan, -math.inf])
def test_a_percentile_that_is_not_positive(bad: float) -> None:
    margins = margins_of(0)
    margins[:6] = bad
    rows = full(chain(0), chain(1), margins=margins)
    for name, row in rows.items():
        assert (row.log_value == math.inf) == (not row.applies) == (name in OVER_MARGIN), name
        assert ("percentile" in row.reason) == (name in OVER_MARGIN)
    margins[5] = 1.0
    assert all(row.applies for row in full(chain(0), chain(1), margins=margins).values())


def test_measures_are_left_out_without_their_ingredients() -> None:
    layers, start = chain(0), chain(50)
    initial, flat = {"spec_init_main", "fro_dist", "dist_spec_init", "l2_dist"}, {"pacbayes_orig", "pacbayes_flatness"}
    plain = set(NAMES) - initial - flat - {"pacbayes_init"}
    assert set(table(layers)) == plain
    assert set(table(layers, start)) == plain | initial
    assert set(table(layers, flatness=flatness_of())) == plain | flat
    assert set(full(layers, start)) == set(NAMES)


# Invariances and scaling laws


def permuted(layers: Layers, orders: Sequence[np.ndarray]) -> Layers:
    layers = list(layers)
    for index, order in enumerate(orders):
        layers[index] = layers[index][order]
        layers[index + 1] = layers[index + 1][:, order]
    return layers


@fixed
@given(st.integers(0, 10**6))
def test_hidden_units_have_no_order(seed: int) -> None:
    layers, start, rng = chain(seed), chain(seed + 1), np.random.default_rng(seed)
    orders = [rng.permutation(width) for width in WIDTHS[1:-1]]
    before, after = full(layers, start), full(permuted(layers, orders), permuted(start, orders))
    for name in NAMES:
        assert after[name].log_value == pytest.approx(before[name].log_value, abs=1e-8), name


@fixed
@given(st.integers(0, 10**6), st.integers(1, 30), st.booleans())
def test_what_rescaling_two_layers_changes(seed: int, exponent: int, down: bool) -> None:
    """(cA_1, A_2/c), the initial weights with them, computes the same; only sums over single layers notice."""
    c = 2.0 ** (-exponent if down else exponent)

    def rescaled(layers: Layers) -> Layers:
        return [layers[0] * c, layers[1] / c, *layers[2:]]

    layers, start = chain(seed), chain(seed + 1)
    before, after = full(layers, start), full(rescaled(layers), rescaled(start))
    for name in NAMES:
        if name not in SCALED:
            assert after[name].log_value == pytest.approx(before[name].log_value, abs=1e-8), name
        elif exponent > 2:
            assert after[name].log_value > before[name].log_value + 0.1, name


@fixed
@given(st.integers(0, 10**6), st.integers(-20, 20))
def test_the_units_of_the_output_do_not_matter_over_the_margin(seed: int, exponent: int) -> None:
    c = 2.0**exponent
    layers, start, margins = chain(seed), chain(seed + 1), margins_of(seed)
    before = full(layers, start, margins=margins)
    after = full([*layers[:-1], layers[-1] * c], [*start[:-1], start[-1] * c], margins=margins * c)
    for name in OVER_MARGIN:
        shift = -2 * math.log(c) if name == "inverse_margin" else 0.0
        assert after[name].log_value == pytest.approx(before[name].log_value + shift, abs=1e-8), name
    for name in ("prod_of_spec", "prod_of_fro", "path_norm"):
        assert after[name].log_value == pytest.approx(before[name].log_value + 2 * math.log(c), abs=1e-8)
    for name in ("sum_of_spec", "sum_of_fro"):
        assert after[name].log_value == pytest.approx(before[name].log_value + 2 * math.log(c) / 4, abs=1e-8)
    assert after["fro_over_spec"].log_value == pytest.approx(before["fro_over_spec"].log_value, abs=1e-8)


@fixed
@given(st.integers(0, 10**6), st.floats(0.1, 10))
def test_inequalities_between_measures(seed: int, scale: float) -> None:
    layers, start = chain(seed, scale=scale), chain(seed + 1, scale=scale)
    value = {name: row.log_value for name, row in full(layers, start).items()}
    slack = 1e-9
    for less, more in (
        ("prod_of_spec", "prod_of_fro"),
        ("sum_of_spec", "sum_of_fro"),
        ("sum_of_fro", "param_norm"),  # the geometric mean below the arithmetic one
        ("path_norm", "prod_of_fro"),  # φ_2 sums the squares of some products of entries, ΠF² of all
        ("prod_of_spec_over_margin", "spec_orig_main"),
        ("dist_spec_init", "fro_dist"),
        ("pacbayes_flatness", "pacbayes_orig"),
    ):
        if less == "pacbayes_flatness":  # Σ‖A_l‖_F²/(4σ²) exceeds 1/σ² where the weights have norm ≥ 2
            less_value, more_value = value[less] + value["param_norm"] - math.log(4), value[more]
        else:
            less_value, more_value = value[less], value[more]
        assert less_value <= more_value + slack, (less, more)
    assert math.log(4) <= value["fro_over_spec"] + slack <= math.log(5 + 5 + 4 + 3) + 2 * slack


# Extremes


@pytest.mark.parametrize("scale", [1e20, 1e-20])
def test_fifty_layers_stay_finite(scale: float) -> None:
    widths = (8,) * 51
    rows = full(chain(0, widths, scale), chain(1, widths, scale))
    plain = full(chain(0, widths), chain(1, widths))
    for name in NAMES:
        assert math.isfinite(rows[name].log_value), name
    for name in ("prod_of_spec", "prod_of_fro", "path_norm", "spec_init_main", "spec_orig_main"):
        change = rows[name].log_value - plain[name].log_value
        assert change == pytest.approx(100 * math.log(scale), rel=1e-9), name


@pytest.mark.parametrize("dead", [0, 1, 3])
@pytest.mark.parametrize("margins", [torch.zeros(50), margins_of(0)], ids=["f ≡ 0", "biases"])
def test_a_zero_layer_gives_no_nan(dead: int, margins: torch.Tensor) -> None:
    layers, start = chain(0), chain(1)
    rest = sum(square(layer) / top(layer) ** 2 for index, layer in enumerate(layers) if index != dead)
    layers[dead] = np.zeros_like(layers[dead])
    for rows in (full(layers, start, margins=margins), full(layers, layers, margins=margins)):
        for name in NAMES:
            assert not math.isnan(rows[name].log_value), name
        for name in ("prod_of_spec", "prod_of_fro", "sum_of_spec", "path_norm"):
            assert rows[name].log_value == -math.inf
        assert math.exp(rows["fro_over_spec"].log_value) == pytest.approx(rest, rel=1e-9)


def test_a_network_of_zeros_gives_no_nan() -> None:
    layers = [np.zeros_like(layer) for layer in chain(0)]
    for rows in (full(layers, chain(1)), full(layers, layers)):
        assert not [name for name, row in rows.items() if math.isnan(row.log_value)]
        assert rows["fro_over_spec"].log_value == -math.inf


def test_no_noise_tolerated() -> None:
    for start in (chain(1), chain(0)):
        rows = full(chain(0), start, flatness=flatness_of(0.0))
        for name in ("pacbayes_init", "pacbayes_orig"):
            assert rows[name].log_value == math.inf and not rows[name].applies and "noise" in rows[name].reason
        assert rows["pacbayes_flatness"].log_value == math.inf


@pytest.mark.parametrize("sigma", [1e-300, 1e20, 1e300])
def test_any_noise_gives_a_number(sigma: float) -> None:
    """σ beyond n·e^{10} makes ln(n/σ) + 10 negative; it then counts as 0."""
    rows = full(chain(0), chain(1), flatness=flatness_of(sigma))
    for name in ("pacbayes_init", "pacbayes_orig", "pacbayes_flatness"):
        assert math.isfinite(rows[name].log_value)
    fro = math.log(sum(square(layer) for layer in chain(0)))
    if sigma > 1:
        expected = fro - math.log(4) - 2 * math.log(sigma)
        assert rows["pacbayes_orig"].log_value == pytest.approx(expected, abs=1e-8)


def test_biases_leave_measures_alone() -> None:
    plain, biased = full(chain(0), chain(1)), full(chain(0), chain(1), violated="it has biases")
    assert plain == biased
