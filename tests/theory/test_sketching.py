import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from milkshake_mbp.theory.kronecker import Kronecker, restricted_columns, to_csr
from milkshake_mbp.theory.sketching import (
    DistributedSparsity,
    bipartite_ensemble,
    certify,
    distributed_sparsity,
    ensemble_degree,
    ensemble_pair,
    recover,
    sketch,
    sketch_dimension,
    smallest_sketch_dimension,
)

from .sketch_instances import KINDS, ensemble, instance, smallest_norm, tensors, uniqueness_margin

fixed = settings(derandomize=True, deadline=None, max_examples=80, database=None)
few = settings(derandomize=True, deadline=None, max_examples=25, database=None)


@fixed
@given(st.integers(0, 10**6), st.integers(1, 7), st.integers(1, 7), st.floats(0, 1))
def test_distributed_sparsity_by_loops(seed: int, rows: int, columns: int, density: float) -> None:
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(rows, columns)) * (rng.random((rows, columns)) < density)
    in_column, in_row, diagonal = [0] * columns, [0] * rows, True
    for i in range(rows):
        for j in range(columns):
            if matrix[i, j] != 0:
                in_column[j] += 1
                in_row[i] += 1
            elif i == j:
                diagonal = False
    expected = DistributedSparsity(column_max=max(in_column), row_max=max(in_row), diagonal_full=diagonal)
    assert distributed_sparsity(torch.tensor(matrix)) == expected


def test_columns_are_not_rows() -> None:
    matrix = torch.zeros(3, 5)
    matrix[1] = 1.0
    assert distributed_sparsity(matrix) == DistributedSparsity(column_max=1, row_max=5, diagonal_full=False)
    assert distributed_sparsity(matrix.T) == DistributedSparsity(column_max=5, row_max=1, diagonal_full=False)


@pytest.mark.parametrize("shape", [(4, 4), (3, 6), (6, 3)])
def test_the_diagonal_is_as_long_as_the_shorter_side(shape: tuple[int, int]) -> None:
    identity = torch.eye(*shape)
    assert distributed_sparsity(identity) == DistributedSparsity(1, 1, True)
    identity[min(shape) - 1, min(shape) - 1] = 0.0
    assert distributed_sparsity(identity) == DistributedSparsity(1, 1, False)


def test_tiny_and_negative_entries_count() -> None:
    assert distributed_sparsity(torch.tensor([[-1e-300, 0.0], [5e-324, -0.0]], dtype=torch.float64)).column_max == 2
    assert distributed_sparsity(torch.zeros(2, 3)) == DistributedSparsity(0, 0, False)


@fixed
@given(st.integers(1, 60), st.integers(1, 90), st.integers(1, 8), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_ensembles_are_fixed_functions_of_their_arguments(m: int, p: int, degree: int, seed: int, stream: int) -> None:
    first = bipartite_ensemble(m, p, degree, seed=seed, stream=stream)
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    second = bipartite_ensemble(m, p, degree, seed=seed, stream=stream)
    assert first.is_sparse and first.is_coalesced() and first.shape == (m, p)
    dense = first.to_dense()
    assert torch.equal(dense, second.to_dense())
    assert set(dense.unique().tolist()) <= {0.0, 1.0}
    per_column = dense.sum(0)
    assert per_column.min() >= 1 and per_column.max() <= min(m, degree)


def test_ensemble_is_the_stated_generator() -> None:
    m, p, degree, seed, stream = 11, 7, 3, 5, 9
    source = np.random.Philox(
        key=np.array([seed, stream], dtype=np.uint64), counter=np.array([0, m, p, degree], dtype=np.uint64)
    )
    expected = torch.zeros(m, p)
    for column in range(p):
        for _ in range(degree):
            expected[int(source.random_raw()) % m, column] = 1
    assert torch.equal(bipartite_ensemble(m, p, degree, seed=seed, stream=stream).to_dense(), expected)


def test_ensembles_frozen() -> None:
    # Codes written with an earlier version must stay readable.
    matrix = bipartite_ensemble(230, 784, 7, seed=0, stream=3).to_dense()
    weights = torch.arange(1, 231, dtype=torch.float64)[:, None] * torch.arange(1, 785, dtype=torch.float64)
    assert int((matrix * weights).sum()) == 245894997


def test_ensembles_are_uniform_and_distinct() -> None:
    m, p, degree = 50, 4000, 4
    dense = bipartite_ensemble(m, p, degree, seed=3).to_dense()
    # Each entry is 1 with probability 1 − (1 − 1/m)^degree; rows are sums of p such, columns are never empty (E3).
    chance = 1 - (1 - 1 / m) ** degree
    z = (dense.sum(1) - p * chance) / math.sqrt(p * chance * (1 - chance))
    assert z.abs().max() < 4.5 and 0.6 < z.square().mean() < 1.5
    others = [bipartite_ensemble(m, p, degree, seed=s, stream=t).to_dense() for s, t in ((4, 0), (3, 1), (0, 3))]
    for other in others:
        assert 0.5 < (dense * other).sum() / (p * m * chance**2) < 1.5
    left, right = ensemble_pair((30, 40), 10, 3, seed=8, layer=2)
    assert torch.equal(left.to_dense(), bipartite_ensemble(10, 30, 3, seed=8, stream=4).to_dense())
    assert torch.equal(right.to_dense(), bipartite_ensemble(10, 40, 3, seed=8, stream=5).to_dense())


@pytest.mark.parametrize(
    "arguments",
    [(0, 4, 2, 0, 0), (3, 0, 2, 0, 0), (3, 4, 0, 0, 0), (3, 4, 2, -1, 0), (3, 4, 2, 2**64, 0), (3, 4, 2, 0, -1)],
)
def test_ensemble_arguments_are_checked(arguments: tuple[int, int, int, int, int]) -> None:
    m, p, degree, seed, stream = arguments
    with pytest.raises(ValueError, match="must be"):
        bipartite_ensemble(m, p, degree, seed=seed, stream=stream)


@few
@given(st.integers(0, 10**6))
def test_sketch_is_the_product(seed: int) -> None:
    rng = np.random.default_rng(seed)
    d1, d2, m1, m2 = rng.integers(1, 12, size=4).tolist()
    left, right = bipartite_ensemble(m1, d1, 2, seed=seed), bipartite_ensemble(m2, d2, 2, seed=seed, stream=1)
    integers = torch.from_numpy(rng.integers(-(2**40), 2**40, size=(d1, d2)))
    exact = left.to_dense().long() @ integers @ right.to_dense().long().T
    assert torch.equal(sketch(integers, left, right), exact)
    assert torch.equal(sketch(integers.double(), left.to_dense(), right.to_sparse_csr()), exact.double())
    assert torch.equal(sketch(integers, None, right), integers @ right.to_dense().long().T)
    assert torch.equal(sketch(integers, left, None), left.to_dense().long() @ integers)
    assert sketch(integers.float(), left, right).dtype == torch.float32


def test_sketch_refuses() -> None:
    left = bipartite_ensemble(2, 3, 1, seed=0)
    with pytest.raises(ValueError, match=r"\(sketch_dim, 4\)"):
        sketch(torch.ones(4, 4), left, None)
    with pytest.raises(ValueError, match="only matrices"):
        sketch(torch.ones(3), left, None)
    with pytest.raises(ValueError, match="would not be exact"):
        sketch(torch.full((3, 3), 2**53), left, None)


def test_theorem_dimension() -> None:
    sparsity = DistributedSparsity(column_max=4, row_max=9, diagonal_full=False)
    assert sketch_dimension((100, 784), sparsity) == math.ceil(math.sqrt(max(9 * 100, 4 * 784)) * math.log(784))
    # j_c belongs to the rows: swapping both the shape and the counts changes nothing.
    swapped = DistributedSparsity(column_max=9, row_max=4, diagonal_full=False)
    assert sketch_dimension((784, 100), swapped) == sketch_dimension((100, 784), sparsity)
    assert sketch_dimension((100, 784), sparsity, constant=0.5) == math.ceil(math.sqrt(3136) * math.log(784) / 2)
    assert ensemble_degree(784) == 7 and ensemble_degree(1) == 1 and ensemble_degree(784, constant=0.5) == 4
    with pytest.raises(ValueError, match="positive"):
        sketch_dimension((3, 3), sparsity, constant=0.0)


@few
@given(st.integers(0, 10**6))
def test_operator_against_the_kronecker_product(seed: int) -> None:
    rng = np.random.default_rng(seed)
    d1, d2, m1, m2 = rng.integers(1, 9, size=4).tolist()
    a, b = (rng.integers(0, 2, size=shape).astype(float) for shape in ((m1, d1), (m2, d2)))
    left, right = to_csr(torch.from_numpy(a), d1), to_csr(torch.from_numpy(b).to_sparse(), d2)
    operator, full = Kronecker(left, right), np.kron(a, b)
    x, w = rng.normal(size=(d1, d2)), rng.normal(size=(m1, m2))
    np.testing.assert_allclose(operator.forward(torch.from_numpy(x)).numpy().ravel(), full @ x.ravel(), atol=1e-12)
    np.testing.assert_allclose(operator.adjoint(torch.from_numpy(w)).numpy().ravel(), full.T @ w.ravel(), atol=1e-12)
    inverse = np.linalg.pinv(full @ full.T, rcond=1e-11)
    np.testing.assert_allclose(operator.whiten(torch.from_numpy(w)).numpy().ravel(), inverse @ w.ravel(), atol=1e-7)
    assert operator.ranks == (np.linalg.matrix_rank(a), np.linalg.matrix_rank(b))
    rows, columns = np.nonzero(rng.random((d1, d2)) < 0.5)
    np.testing.assert_array_equal(
        restricted_columns(left, right, rows, columns).toarray(), full[:, rows * d2 + columns]
    )


def planted(p: int, m: int, degree: int, nonzeros: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    matrix = np.zeros(p * p)
    matrix[rng.choice(p * p, nonzeros, replace=False)] = rng.standard_normal(nonzeros)
    left, right = ensemble_pair((p, p), m, degree, seed=seed)
    return torch.from_numpy(matrix.reshape(p, p)), left, right


@pytest.mark.parametrize("degree", [5, 6, 7])
def test_recovers_with_certificate_above_the_transition(degree: int) -> None:
    matrix, left, right = planted(200, 96, degree, 1200, seed=degree)
    found = recover(sketch(matrix, left, right), left, right)
    assert found.certified and found.reason == "" and found.off_support < 1
    assert found.residual <= 1e-14
    assert torch.linalg.vector_norm(found.matrix - matrix) <= 1e-12 * torch.linalg.vector_norm(matrix)
    assert torch.equal(found.matrix != 0, matrix != 0)


def test_without_a_certificate_nothing_is_claimed() -> None:
    matrix, left, right = planted(60, 40, 5, 150, seed=8)
    found = recover(sketch(matrix, left, right), left, right, certificate=False)
    assert not found.certified and "asked" in found.reason
    assert torch.linalg.vector_norm(found.matrix - matrix) <= 1e-12 * torch.linalg.vector_norm(matrix)


def test_a_short_run_gives_up_with_a_reason() -> None:
    matrix, left, right = planted(60, 40, 5, 150, seed=8)
    found = recover(sketch(matrix, left, right), left, right, max_iterations=3)
    assert not found.certified and "3 iterations" in found.reason and found.iterations == 3
    assert found.matrix.shape == (60, 60) and found.residual > 0


def test_a_wrong_matrix_that_fits_exactly_is_not_certified() -> None:
    # Two nonzeros in a row whose columns B cannot tell apart: both placements fit, and neither is unique.
    right = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    sketched = sketch(torch.tensor([[1.0, 0.0, 2.0]]), None, right)
    found = recover(sketched, None, right)
    assert torch.allclose(sketch(found.matrix, None, right).float(), sketched, atol=1e-5)
    assert not found.certified and found.reason


def test_below_the_transition_it_says_so() -> None:
    matrix, left, right = planted(100, 30, 5, 600, seed=1)
    found = recover(sketch(matrix, left, right), left, right)
    assert not found.certified and found.reason
    assert not certify(matrix, left, right).certified


def test_integers_come_back_exactly() -> None:
    matrix, left, right = planted(100, 60, 6, 400, seed=2)
    integers = (100 * matrix).round()
    found = recover(sketch(integers.long(), left, right), left, right)
    assert found.certified and found.residual == 0.0
    assert torch.equal(found.matrix, integers)


def test_float32_sketches_are_matched_to_their_precision() -> None:
    matrix, left, right = planted(100, 60, 6, 400, seed=3)
    found = recover(sketch(matrix.float(), left, right), left, right)
    assert found.certified and found.residual <= 1e-6
    assert torch.linalg.vector_norm(found.matrix - matrix) <= 1e-5 * torch.linalg.vector_norm(matrix)


@pytest.mark.parametrize("sides", [(True, False), (False, True)])
def test_one_side_of_a_rectangular_layer(sides: tuple[bool, bool]) -> None:
    rng = np.random.default_rng(0)
    shape = (120, 10) if sides[0] else (10, 120)
    matrix = torch.from_numpy(rng.normal(size=shape) * (rng.random(shape) < 0.06))
    pair = ensemble_pair(shape, 60, 6, seed=1)
    left, right = (side if wanted else None for side, wanted in zip(pair, sides, strict=True))
    found = recover(sketch(matrix, left, right), left, right)
    assert found.certified
    assert torch.linalg.vector_norm(found.matrix - matrix) <= 1e-12 * torch.linalg.vector_norm(matrix)


def test_a_heavy_row_needs_its_own_side_wide() -> None:
    # A row with r nonzeros is seen through B alone, in m₂ numbers.
    matrix, left, _ = planted(100, 70, 6, 250, seed=4)
    rng = np.random.default_rng(4)
    matrix[17] = torch.from_numpy(rng.normal(size=100) * (rng.random(100) < 0.5))
    narrow, wide = (bipartite_ensemble(m, 100, 6, seed=5) for m in (45, 99))
    assert not certify(matrix, left, narrow).certified
    found = recover(sketch(matrix, left, narrow), left, narrow)
    assert not found.certified
    one_side = recover(sketch(matrix, left, None), left, None)
    assert one_side.certified and torch.allclose(one_side.matrix, matrix, atol=1e-12)
    assert certify(matrix, left, wide).certified == recover(sketch(matrix, left, wide), left, wide).certified


def test_nothing_to_recover() -> None:
    _, left, right = planted(20, 5, 3, 1, seed=0)
    found = recover(torch.zeros(5, 5), left, right)
    assert found.certified and not found.matrix.any() and found.matrix.shape == (20, 20)
    assert certify(torch.zeros(20, 20), left, right).rank_proof == "empty"


def test_known_failures_are_named() -> None:
    eye = torch.eye(4, dtype=torch.float64)
    twins = eye.clone()
    twins[:, 1] = twins[:, 0]
    x = torch.zeros(4, 4, dtype=torch.float64)
    x[0, 2] = 1.0
    twin = certify(x, twins, None)
    assert not twin.certified and twin.off_support == 1.0 and "reaches 1" in twin.reason
    holed = eye.clone()
    holed[:, 0] = 0
    assert "empty" in certify(x, holed, None).reason
    assert "exceed" in certify(torch.ones(4, 4), torch.ones(1, 4), None).reason
    assert "0 and 1" in certify(x, 2 * eye, None).reason
    outside = recover(torch.tensor([[1.0], [2.0]]), torch.ones(2, 3), torch.ones(1, 3))
    assert not outside.certified and "range" in outside.reason
    both = torch.zeros(4, 4, dtype=torch.float64)
    both[0, 2] = both[1, 2] = 1.0
    assert "injective" in certify(both, twins, None).reason


def test_bad_input_is_refused() -> None:
    left = torch.ones(2, 3)
    with pytest.raises(ValueError, match="finite"):
        recover(torch.full((2, 3), math.nan), left, None)
    with pytest.raises(ValueError, match="has shape"):
        recover(torch.ones(3, 3), left, None)
    with pytest.raises(ValueError, match="sketch_dim"):
        certify(torch.ones(4, 4), left, None)
    with pytest.raises(ValueError, match="NaN"):
        certify(torch.ones(3, 3), left * math.inf, None)


@pytest.mark.parametrize("power", [-200, -3, 0, 5, 200])
def test_scaling_by_a_power_of_two_changes_nothing_else(power: int) -> None:
    matrix, left, right = planted(50, 35, 5, 120, seed=6)
    sketched = sketch(matrix, left, right)
    base, scaled = recover(sketched, left, right), recover(sketched * 2.0**power, left, right)
    assert base.certified and scaled.certified
    assert torch.equal(scaled.matrix, base.matrix * 2.0**power)
    assert scaled.off_support == base.off_support


def test_transposing_and_permuting() -> None:
    matrix, left, right = planted(60, 40, 5, 150, seed=7)
    generator = torch.Generator().manual_seed(0)
    order, turned = torch.randperm(60, generator=generator), torch.randperm(60, generator=generator)
    a, b = left.to_dense()[:, order], right.to_dense()[:, turned]
    assert torch.equal(sketch(matrix[order][:, turned], a, b), sketch(matrix, left, right)) or torch.allclose(
        sketch(matrix[order][:, turned], a, b), sketch(matrix, left, right), rtol=1e-14, atol=1e-13
    )
    plain = recover(sketch(matrix, left, right), left, right)
    for found, expected in (
        (recover(sketch(matrix.T, right, left), right, left), matrix.T),
        (recover(sketch(matrix[order][:, turned], a, b), a, b), matrix[order][:, turned]),
    ):
        assert plain.certified and found.certified
        torch.testing.assert_close(found.matrix, expected, rtol=0, atol=1e-12)


def test_signs_and_support_decide_the_certificate_not_the_magnitudes() -> None:
    matrix, left, right = planted(60, 40, 5, 150, seed=8)
    rng = np.random.default_rng(0)
    stretched = matrix * torch.from_numpy(10.0 ** rng.uniform(-6, 6, size=(60, 60)))
    assert certify(matrix, left, right) == certify(stretched, left, right)
    assert certify(matrix, left, right).certified == certify(-matrix, left, right).certified


def test_twelve_orders_of_magnitude() -> None:
    matrix, left, right = planted(60, 45, 5, 120, seed=9)
    rng = np.random.default_rng(1)
    matrix = matrix.sign() * torch.from_numpy(10.0 ** rng.uniform(-6, 6, size=(60, 60)))
    found = recover(sketch(matrix, left, right), left, right)
    assert torch.linalg.vector_norm(found.matrix - matrix) <= 1e-12 * torch.linalg.vector_norm(matrix)
    if found.certified:
        assert torch.equal(found.matrix != 0, matrix != 0)


def check(kind: str, seed: int) -> tuple[bool, bool]:
    """Whether X was certified, and whether it is unique by a margin; fails on any false claim."""
    x, a, b = instance(kind, seed)
    y = a @ x @ b.T
    matrix, left, right, sketched = tensors(x, a, b, y)
    margin = uniqueness_margin(x, a, b)
    direct = certify(matrix, left, right).certified
    assert not direct or margin > 0, f"{kind} {seed}: certified, but the margin is {margin}"
    found = recover(sketched, left, right)
    estimate = found.matrix.numpy()
    if found.certified:
        assert found.residual <= 1e-14, f"{kind} {seed}"
        assert uniqueness_margin(estimate, a, b) > 0, f"{kind} {seed}: recovered, certified, not unique"
        norm = np.abs(estimate).sum()
        assert abs(norm - smallest_norm(y, a, b)) <= 1e-6 * norm, f"{kind} {seed}: certified, not a minimiser"
        if margin > 0:
            assert np.linalg.norm(estimate - x) <= 1e-9 * np.linalg.norm(x), f"{kind} {seed}: another minimiser"
    else:
        assert found.reason
    return found.certified and direct, margin > 0.01


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_no_false_claims(kind: str) -> None:
    outcomes = [check(kind, seed) for seed in range(20)]
    # Entries many orders below the rest may stay unseen by float32, but then nothing is claimed.
    assert kind == "orders" or all(certified for certified, unique in outcomes if unique)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_no_false_claims_over_thousands(kind: str) -> None:
    outcomes = [check(kind, seed) for seed in range(20, 170)]
    missed = sum(unique and not certified for certified, unique in outcomes)
    assert missed <= (15 if kind == "orders" else 1)


# What "certified" promises, checked in rational numbers

SIZES = {
    "small integers": lambda rng, shape: rng.integers(-9, 10, shape),
    "integers to 2^30": lambda rng, shape: rng.integers(-(2**30), 2**30, shape),
    "integers to 2^50": lambda rng, shape: rng.integers(-(2**50), 2**50, shape),
    "integers about 2^53": lambda rng, shape: 2**53 + rng.integers(-2, 3, shape),
    "integers to 2^60": lambda rng, shape: rng.integers(-(2**60), 2**60, shape),
    "one and 2^50": lambda rng, shape: rng.choice([1, 2**50, -(2**50), -3], shape),
    "one and 2^60": lambda rng, shape: rng.choice([1, 2**60, -1], shape),
    "gaussian": lambda rng, shape: rng.normal(size=shape),
    "halves": lambda rng, shape: rng.integers(-9, 10, shape) / 2,
    "subnormal": lambda rng, shape: rng.integers(-9, 10, shape) * 5e-324,
    "almost subnormal": lambda rng, shape: rng.normal(size=shape) * 1e-307,
    "largest": lambda rng, shape: rng.uniform(-1, 1, shape) * 1.7e308,
    "whole and largest": lambda rng, shape: rng.choice([1e308, -3e307, 2.0**53, 5.0], shape),
    "huge and tiny": lambda rng, shape: rng.choice([1.0, -1e16, 1e-16, 3e8], shape),
    "any exponent": lambda rng, shape: rng.normal(size=shape) * 10.0 ** rng.integers(-300, 300, shape),
    "negative zeros": lambda rng, shape: rng.choice([-0.0, 1.5, -0.0, -2.25], shape),
}


def exact_product(x: np.ndarray, a: np.ndarray, b: np.ndarray) -> list[list[Fraction]]:
    """A X Bᵀ in rational numbers."""
    rows = [[Fraction(0)] * x.shape[1] for _ in a]
    for i, k in zip(*np.nonzero(a), strict=True):
        rows[i] = [total + Fraction(entry) for total, entry in zip(rows[i], x[k].tolist(), strict=True)]
    return [[sum((row[j] for j in np.flatnonzero(b[i])), Fraction(0)) for i in range(len(b))] for row in rows]


def assert_as_promised(y: Tensor, a: np.ndarray, b: np.ndarray, max_iterations: int = 150) -> bool:
    """Whether it is certified; fails unless all that is then promised is true."""
    left, right = tensors(a, b)
    found = recover(y, left, right, max_iterations=max_iterations)
    estimate = found.matrix.numpy()
    if not found.certified:
        assert found.reason
        return False
    assert np.isfinite(estimate).all()
    assert uniqueness_margin(estimate, a, b) > 0
    values = [[Fraction(value) for value in row] for row in y.tolist()]
    sums, sizes = exact_product(estimate, a, b), exact_product(np.abs(estimate), a, b)
    unit = 0 if not y.is_floating_point() else torch.finfo(y.dtype).eps / 2
    whole = all(value.denominator == 1 for row in values for value in row)
    if whole and (not unit or max(abs(value) for row in values for value in row) < 1 / unit):
        assert sums == values, (y, estimate)
        assert (estimate == estimate.round()).all(), (y, estimate)
    counts = (a @ (estimate != 0) @ b.T).astype(int)
    tolerance = 1e-14 if y.dtype == torch.float64 else 1e-6
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            share = max(tolerance, counts[i, j] * unit) + 4 * (counts[i, j] + 1) * 2.0**-53
            assert abs(sums[i][j] - value) <= Fraction(share) * sizes[i][j], (i, j, y, estimate)
    return True


@pytest.mark.long
@pytest.mark.parametrize("size", SIZES)
def test_what_is_certified_is_true_in_rational_numbers(size: str) -> None:
    certified = 0
    for seed in range(10):
        rng = np.random.default_rng((list(SIZES).index(size), seed))
        rows, columns = rng.integers(2, 6, size=2)
        a, b = (ensemble(rng, int(rng.integers(2, dim + 2)), int(dim)) for dim in (rows, columns))
        if seed % 5 == 0:
            a[:, rng.integers(rows)] = a[:, rng.integers(rows)]
        if seed % 7 == 0:
            a, b = np.eye(int(rows)), np.eye(int(columns))
        chosen = rng.random((rows, columns)) < rng.choice([0.15, 0.4, 1.0])
        x = np.where(chosen, SIZES[size](rng, (rows, columns)), 0)
        if x.dtype == np.int64:
            y = torch.from_numpy(a.astype(np.int64) @ x @ b.astype(np.int64).T)
            certified += assert_as_promised(y, a, b)
            x = x.astype(float)
        with np.errstate(over="ignore", invalid="ignore"):
            y = torch.from_numpy(a @ x @ b.T)
        for sketched in (y, y.float()):
            if bool(sketched.isfinite().all()):
                certified += assert_as_promised(sketched, a, b)
    assert certified >= 2


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.float64, torch.float32])
def test_sketches_of_no_integer_matrix(dtype: torch.dtype) -> None:
    """Random integers, A invertible: the one matrix with that sketch is integer or fractional, by the determinant."""
    outcomes = []
    for seed in range(25):
        rng = np.random.default_rng((77, seed))
        a = rng.integers(0, 2, (4, 4)).astype(float)
        if abs(np.linalg.det(a)) < 0.5:
            continue
        numbers = rng.integers(-5, 6, (4, 2))
        exact = np.rint(np.linalg.solve(a, numbers))
        integer = bool((a @ exact == numbers).all())
        assert assert_as_promised(torch.from_numpy(numbers).to(dtype), a, np.eye(2), 500) == integer
        outcomes.append(integer)
    assert len(set(outcomes)) == 2


CYCLE = torch.tensor([[1, 1, 0], [0, 1, 1], [1, 0, 1]])


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.float32, torch.float64])
def test_a_fractional_minimiser_of_an_integer_sketch_is_not_certified(dtype: torch.dtype) -> None:
    """(½, ½, ½) alone has the sketch (1, 1, 1) by a cycle of three; of (1.5, 1.5, 1.5), which is not whole, it is."""
    found = recover(torch.ones(3, 1).to(dtype), CYCLE, None)
    assert torch.allclose(found.matrix, torch.full((3, 1), 0.5).double())
    assert not found.certified and "integer" in found.reason
    halves = recover(torch.full((3, 1), 1.5), CYCLE, None)
    assert halves.certified and torch.allclose(halves.matrix, torch.full((3, 1), 0.75).double())
    assert recover(torch.full((3, 1), 2).to(dtype), CYCLE, None).certified


@pytest.mark.parametrize("value", [2**52, 2**53 - 1, 2**53, 2**53 + 1, 2**62, -(2**63), 2**63 - 1])
def test_integers_come_back_up_to_the_stated_size(value: int) -> None:
    found = recover(torch.tensor([[value]]), None, None)
    assert found.certified == (abs(value) < 2**53)
    assert int(found.matrix) == value if found.certified else "2^53" in found.reason


def test_large_integers_come_back_to_the_last_digit() -> None:
    """Entries beyond what least squares alone gives to the nearest integer."""
    for seed in range(5):
        matrix, left, right = planted(30, 22, 5, 20, seed)
        integers = (2.0**46 * matrix).round().long()
        found = recover(sketch(integers, left, right), left, right)
        assert found.certified and torch.equal(found.matrix.long(), integers)


def test_what_overflows_or_is_passed_over_is_not_certified() -> None:
    huge = torch.tensor([[1.7e308, -1.7e308]], dtype=torch.float64)
    plain = recover(huge, None, None)
    assert plain.certified and torch.equal(plain.matrix, huge)
    opposed = torch.tensor([[1.0, 0.0, 1.0], [1.0, 1.0, 0.0], [0.0, 1.0, 1.0]])
    found = recover(torch.tensor([[1.7e308], [1.7e308], [-1.7e308]], dtype=torch.float64), opposed, None)
    assert not found.certified and "range" in found.reason
    for tiny in (1.0, 1e-5, 5e-324):
        found = recover(torch.tensor([[1e16, tiny]], dtype=torch.float64), None, None)
        assert not found.certified or found.matrix.tolist() == [[1e16, tiny]]


def test_a_sketch_of_zeros_or_of_none() -> None:
    for zeros in (torch.zeros(2, 2), -torch.zeros(2, 2), torch.zeros(2, 2, dtype=torch.int64), torch.zeros(2, 2) > 0):
        found = recover(zeros, torch.ones(2, 3), None)
        assert found.certified and found.residual == 0 and not found.matrix.any() and found.matrix.shape == (3, 2)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_sketches_that_are_not_finite_are_refused(bad: float, dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match="finite"):
        recover(torch.tensor([[1.0, bad]], dtype=dtype), None, None)
    with pytest.raises(ValueError, match="real"):
        recover(torch.ones(1, 2, dtype=torch.complex64), None, None)


def test_columns_added_up_in_a_sparse_sketching_matrix_are_not_zeros_and_ones() -> None:
    twice = torch.sparse_coo_tensor(torch.tensor([[0, 0, 1], [0, 0, 1]]), torch.ones(3), (2, 2))
    found = recover(torch.tensor([[2.0], [0.0]]), twice, None)
    assert not found.certified and "0 and 1" in found.reason


def test_integer_sketches_are_exact_or_refused() -> None:
    """Sums that cancel: entries from 2^53 on are rounded before they are summed."""
    row = torch.ones(1, 2)
    with pytest.raises(ValueError, match="2\\^53"):
        sketch(torch.tensor([[2**53 + 1, -(2**53)]]), None, row)
    with pytest.raises(ValueError, match="2\\^53"):
        sketch(torch.tensor([[-(2**63), 5]]), None, row)
    assert sketch(torch.tensor([[2**52, -(2**52) + 1]]), None, row).tolist() == [[1]]
    with pytest.raises(ValueError, match="integer"):
        sketch(torch.tensor([[1, 2]]), None, 0.5 * row)


def test_smallest_dimension() -> None:
    matrix, _, _ = planted(50, 30, 5, 60, seed=10)
    search = smallest_sketch_dimension(matrix, 5, seed=3, layer=1)
    assert search.sketch_dim is not None and search.fails_at == search.sketch_dim - 1
    assert math.isqrt(59) < search.sketch_dim < 50 and search.recovery is not None
    for m, works in ((search.sketch_dim, True), (search.fails_at, False)):
        left, right = ensemble_pair((50, 50), m, 5, seed=3, layer=1)
        assert certify(matrix, left, right).certified == works
    assert torch.allclose(search.recovery.matrix, matrix, atol=1e-12)
    one = smallest_sketch_dimension(matrix, 5, seed=3, sides=(False, True), tolerance=0.1)
    assert one.sketch_dim is not None and one.sketch_dim < 50
    full = smallest_sketch_dimension(torch.ones(8, 8), 3, seed=0)
    assert full.sketch_dim is None and full.recovery is None
    with pytest.raises(ValueError, match="no side"):
        smallest_sketch_dimension(matrix, 5, seed=0, sides=(False, False))


def test_a_rank_proof_by_cholesky_is_needed_where_entries_do_not_peel() -> None:
    # Every cell of the sketch by [[1,1,0],[0,1,1],[1,0,1]] meets two of the three entries, and yet the rank is full.
    cycle = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0], [1.0, 0.0, 1.0]])
    x = torch.tensor([[1.0], [-2.0], [3.0]])
    proof = certify(x, cycle, None)
    assert proof.certified and proof.rank_proof == "cholesky"
    even = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 1.0, 1.0, 0.0], [0.0, 0.0, 1.0, 1.0], [1.0, 0.0, 0.0, 1.0]])
    assert not certify(torch.tensor([[1.0], [-2.0], [3.0], [1.0]]), even, None).certified
