"""Sketching sparse matrices (paper §5): the structure that a pruned layer must have."""

from dataclasses import dataclass

from torch import Tensor

__all__ = ["DistributedSparsity", "distributed_sparsity"]


@dataclass(frozen=True)
class DistributedSparsity:
    """How evenly a matrix's nonzeros are spread (Definition 5.1).

    Attributes:
        column_max: j_r, the most nonzeros in any column.
        row_max: j_c, the most nonzeros in any row.
        diagonal_full: whether every entry (i, i) is nonzero.
    """

    column_max: int
    row_max: int
    diagonal_full: bool


def distributed_sparsity(matrix: Tensor) -> DistributedSparsity:
    """Count the nonzeros of a (rows, columns) matrix by column, by row and on its diagonal (Definition 5.1)."""
    nonzero = matrix != 0
    return DistributedSparsity(
        column_max=int(nonzero.sum(dim=0).amax()),
        row_max=int(nonzero.sum(dim=1).amax()),
        diagonal_full=bool(nonzero.diagonal().all()),
    )
