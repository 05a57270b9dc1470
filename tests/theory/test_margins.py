import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from milkshake_mbp.theory.margins import error_rate, margin_loss, margins

fixed = settings(derandomize=True, deadline=None, max_examples=60, database=None)


@fixed
@given(st.data())
def test_margins_by_loops(data: st.DataObject) -> None:
    n, k = data.draw(st.integers(1, 6)), data.draw(st.integers(2, 5))
    logits = data.draw(arrays.arrays(np.float64, (n, k), elements=st.floats(-1e3, 1e3)))
    targets = data.draw(arrays.arrays(np.int64, n, elements=st.integers(0, k - 1)))
    expected = []
    for row, y in zip(logits, targets, strict=True):
        best_other = -math.inf
        for j in range(k):
            if j != y:
                best_other = max(best_other, row[j])
        expected.append(row[y] - best_other)
    result = margins(torch.tensor(logits), torch.tensor(targets))
    assert result.tolist() == expected


def test_a_tie_has_margin_zero() -> None:
    logits = torch.tensor([[2.0, 2.0, 1.0], [0.0, 0.0, 0.0]])
    assert margins(logits, torch.tensor([0, 2])).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_margins_are_computed_in_float64(dtype: torch.dtype) -> None:
    logits = torch.tensor([[60000.0, -60000.0, -61000.0]]).to(dtype)
    result = margins(logits, torch.tensor([0]))
    assert result.dtype == torch.float64
    assert result.item() == logits[0, 0].item() - logits[0, 1].item()


def test_margins_take_any_integer_targets_and_leave_the_logits() -> None:
    logits = torch.tensor([[1.0, 4.0], [3.0, 1.0]])
    copy = logits.clone()
    for dtype in (torch.uint8, torch.int32, torch.int64):
        assert margins(logits, torch.tensor([1, 1], dtype=dtype)).tolist() == [3.0, -2.0]
    assert torch.equal(logits, copy)


@pytest.mark.parametrize("position", [0, 1, 2])
def test_nan_logits_have_nan_margins_which_are_errors(position: int) -> None:
    logits = torch.tensor([[5.0, 1.0, 0.0], [5.0, 1.0, 0.0]])
    logits[0, position] = math.nan
    result = margins(logits, torch.tensor([0, 0]))
    assert math.isnan(result[0]) and result[1] == 4.0
    assert margin_loss(result, -1e9) == 0.5


@fixed
@given(st.integers(0, 10**6), st.floats(-5, 5))
def test_margins_ignore_a_common_shift(seed: int, shift: float) -> None:
    rng = np.random.default_rng(seed)
    logits, targets = torch.tensor(rng.normal(size=(5, 4))), torch.tensor(rng.integers(0, 4, 5))
    torch.testing.assert_close(margins(logits + shift, targets), margins(logits, targets), rtol=0, atol=1e-12)


def test_the_margin_is_positive_exactly_when_the_prediction_is_right_and_unique() -> None:
    rng = np.random.default_rng(0)
    logits, targets = (
        torch.tensor(rng.integers(-2, 3, (300, 3)).astype(float)),
        torch.tensor(rng.integers(0, 3, 300)),
    )
    for row, y, margin in zip(logits.tolist(), targets.tolist(), margins(logits, targets).tolist(), strict=True):
        assert (margin > 0) == (row.index(max(row)) == y and row.count(max(row)) == 1)


@pytest.mark.parametrize(
    ("logits", "targets"),
    [
        ((3,), (3,)),
        ((3, 1), (3,)),
        ((3, 4), (2,)),
        ((3, 4), (3, 1)),
        ((3, 4), ()),
        ((2, 3, 4), (2,)),
        ((), ()),
    ],
)
def test_shapes_that_do_not_match_raise(logits: tuple[int, ...], targets: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="logits"):
        margins(torch.zeros(logits), torch.zeros(targets, dtype=torch.long))


def test_margin_loss_is_strict() -> None:
    """E1: the released code counts margins < γ; a margin of exactly γ is not an error."""
    values = torch.tensor([-1.0, 0.0, 0.5, 0.5, 2.0], dtype=torch.float64)
    assert margin_loss(values, 0.5) == pytest.approx(0.4)
    assert margin_loss(values, math.nextafter(0.5, 1)) == pytest.approx(0.8)
    assert margin_loss(values, 0.0) == pytest.approx(0.2)
    assert margin_loss(values, -math.inf) == 0.0
    assert margin_loss(values, math.inf) == 1.0


@fixed
@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=1, max_size=20), st.floats(-10, 10))
def test_margin_loss_counts(values: list[float], gamma: float) -> None:
    errors = sum(1 for value in values if math.isnan(value) or value < gamma)
    assert margin_loss(torch.tensor(values, dtype=torch.float64), gamma) == pytest.approx(
        errors / len(values), abs=1e-15
    )


@fixed
@given(st.lists(st.one_of(st.integers(-2, 2), st.just(math.nan)), min_size=1, max_size=20), st.integers(-2, 2))
def test_the_error_rate_counts_ties(values: list[float], gamma: float) -> None:
    """E1: a compression bound counts margins ≤ γ; the two counts differ by the margins at γ."""
    sample = torch.tensor(values, dtype=torch.float64)
    at_most, ties = sum(1 for value in values if not value > gamma), values.count(gamma)
    assert error_rate(sample, gamma) == pytest.approx(at_most / len(values), abs=1e-15)
    assert error_rate(sample, gamma) - margin_loss(sample, gamma) == pytest.approx(ties / len(values), abs=1e-15)


def test_the_error_rate_is_by_default_the_classification_error() -> None:
    assert error_rate(torch.tensor([-1.0, 0.0, 1e-30, 5.0])) == 0.5


@fixed
@given(st.lists(st.floats(-10, 10), min_size=1, max_size=20), st.floats(-10, 10), st.floats(0, 10))
def test_margin_loss_grows_with_gamma(values: list[float], gamma: float, more: float) -> None:
    sample = torch.tensor(values, dtype=torch.float64)
    assert margin_loss(sample, gamma) <= margin_loss(sample, gamma + more)


def test_an_output_within_e_moves_a_margin_by_up_to_root_two_e() -> None:
    """E12: f = (1.2, 0) has margin 1.2 > e = 1, yet the unit vector u = (−1, 1)/√2 turns the prediction over."""
    output = torch.tensor([[1.2, 0.0]], dtype=torch.float64)
    moved = output + torch.tensor([[-1.0, 1.0]], dtype=torch.float64) / math.sqrt(2)
    target = torch.tensor([0])
    before, after = margins(output, target).item(), margins(moved, target).item()
    assert torch.linalg.vector_norm(moved - output).item() == pytest.approx(1.0, abs=1e-15)
    assert before > 1.0 and after < 0
    assert before - after == pytest.approx(math.sqrt(2), rel=1e-12)


def test_no_move_within_e_exceeds_root_two_e() -> None:
    rng = np.random.default_rng(3)
    outputs, moves = rng.normal(size=(2000, 4)), rng.normal(size=(2000, 4))
    moves /= np.linalg.norm(moves, axis=1, keepdims=True)
    targets = torch.tensor(rng.integers(0, 4, 2000))
    change = margins(torch.tensor(outputs + moves), targets) - margins(torch.tensor(outputs), targets)
    assert 1.0 < change.abs().max() <= math.sqrt(2) * (1 + 1e-12)
