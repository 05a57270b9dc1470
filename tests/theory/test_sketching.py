import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from milkshake_mbp.theory.sketching import DistributedSparsity, distributed_sparsity

fixed = settings(derandomize=True, deadline=None, max_examples=80, database=None)


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
