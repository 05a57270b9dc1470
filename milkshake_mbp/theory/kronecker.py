"""The sketching operator X ↦ A X Bᵀ, applied one side at a time; A ⊗ B itself never exists."""

from typing import Any

import numpy as np
import scipy.sparse
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Kronecker", "restricted_columns", "to_csr"]


def to_csr(matrix: Tensor | None, dim: int) -> Any:
    """A sketching matrix, any torch layout and device, as a float64 SciPy CSR array; None is the identity.

    Raises:
        ValueError: not a finite matrix with `dim` columns.
    """
    if matrix is None:
        return scipy.sparse.eye_array(dim, format="csr")
    if matrix.ndim != 2 or matrix.shape[1] != dim:
        raise ValueError(f"a sketching matrix must be (sketch_dim, {dim}), got shape {tuple(matrix.shape)}")
    coordinates = matrix.detach().cpu().double()
    coordinates = (coordinates if coordinates.layout == torch.sparse_coo else coordinates.to_sparse_coo()).coalesce()
    values, (rows, columns) = coordinates.values().numpy(), coordinates.indices().numpy()
    if not np.isfinite(values).all():
        raise ValueError("a sketching matrix holds NaN or infinity")
    result = scipy.sparse.csr_array((values, (rows, columns)), shape=tuple(matrix.shape))
    result.eliminate_zeros()
    return result


class Kronecker:
    """X ↦ A X Bᵀ for X (d₁, d₂), A (m₁, d₁), B (m₂, d₂), in one dtype on one device.

    On the CPU both sides stay sparse: `degree` additions for every entry. Elsewhere they are dense.

    Args:
        left: A, a SciPy CSR array.
        right: B, a SciPy CSR array.
        dtype: dtype of the arithmetic.
        device: where it runs.

    Attributes:
        shape: (m₁, m₂).
        ranks: ranks of A and B.
        conditioning: κ(AAᵀ)·κ(BBᵀ) on the ranges; 1 where a side is empty.
    """

    def __init__(
        self, left: Any, right: Any, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
    ) -> None:
        self.dtype, self.device, self.shape = dtype, torch.device(device), (left.shape[0], right.shape[0])
        self._left, self._right = self._place(left), self._place(right)
        self._left_t, self._right_t = self._place(left.T.tocsr()), self._place(right.T.tocsr())
        first, second = _gram_inverse(left), _gram_inverse(right)
        self.ranks = (first[1], second[1])
        self.conditioning = first[2] * second[2]
        self._inverses = [None if g is None else g.to(self.device, dtype) for g in (first[0], second[0])]

    def cast(self, dtype: torch.dtype) -> "Kronecker":
        """The same operator in another dtype."""
        other = object.__new__(Kronecker)
        other.__dict__.update(self.__dict__, dtype=dtype)
        for name in ("_left", "_right", "_left_t", "_right_t"):
            side = getattr(self, name)
            setattr(other, name, side.to(dtype) if isinstance(side, Tensor) else side.astype(_numpy(dtype)))
        other._inverses = [None if inverse is None else inverse.to(dtype) for inverse in self._inverses]
        return other

    def forward(self, matrix: Tensor) -> Tensor:
        """A X Bᵀ, (m₁, m₂)."""
        half = self._times(self._left, matrix)
        return self._times(self._right, half.T.contiguous()).T.contiguous()

    def adjoint(self, weights: Tensor) -> Tensor:
        """Aᵀ W B, (d₁, d₂)."""
        half = self._times(self._right_t, weights.T.contiguous())
        return self._times(self._left_t, half.T.contiguous())

    def whiten(self, weights: Tensor) -> Tensor:
        """(AAᵀ)⁺ W (BBᵀ)⁺; `adjoint(whiten(Y))` is the least-norm X with A X Bᵀ = Y, where there is one."""
        first, second = self._inverses
        weights = weights if first is None else first @ weights
        return weights if second is None else weights @ second

    def _place(self, side: Any) -> Any:
        if self.device.type == "cpu":
            return side.astype(_numpy(self.dtype))
        return torch.from_numpy(side.toarray()).to(self.device, self.dtype)

    def _times(self, side: Any, matrix: Tensor) -> Tensor:
        return side @ matrix if isinstance(side, Tensor) else torch.from_numpy(side @ matrix.numpy())


def restricted_columns(left: Any, right: Any, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> Any:
    """Φ_S: column e of A ⊗ B for each entry (rows[e], columns[e]), a SciPy CSC array (m₁·m₂, |S|)."""
    (first, a), (second, b) = _padded_columns(left), _padded_columns(right)
    cells = (first[rows] * right.shape[0])[:, :, None] + second[columns][:, None, :]
    values = a[rows][:, :, None] * b[columns][:, None, :]
    present = values != 0
    start = np.concatenate(([0], np.cumsum(present.sum(axis=(1, 2)))))
    shape = (left.shape[0] * right.shape[0], len(rows))
    return scipy.sparse.csc_array((values[present], cells[present], start), shape=shape)


def _padded_columns(side: Any) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The row numbers and values of every column, (dim, most nonzeros in a column), filled up with zeros."""
    matrix = side.tocsc()
    counts = np.diff(matrix.indptr)
    present = np.arange(counts.max(initial=0)) < counts[:, None]
    rows, values = np.zeros(present.shape, dtype=np.int64), np.zeros(present.shape)
    rows[present], values[present] = matrix.indices, matrix.data
    return rows, values


def _gram_inverse(side: Any) -> tuple[Tensor | None, int, float]:
    """(AAᵀ)⁺, or None where it is the identity; the rank of A; the condition number of AAᵀ on its range."""
    gram = (side @ side.T).toarray()
    if np.array_equal(gram, np.eye(len(gram))):
        return None, len(gram), 1.0
    values, vectors = np.linalg.eigh(gram)
    keep = values > len(gram) * 1e-14 * max(values[-1], 0.0)
    if not keep.any():
        return torch.zeros(gram.shape, dtype=torch.float64), 0, 1.0
    basis = vectors[:, keep]
    inverse = (basis / values[keep]) @ basis.T
    return torch.from_numpy(inverse), int(keep.sum()), float(values[-1] / values[keep][0])


def _numpy(dtype: torch.dtype) -> Any:
    return np.float32 if dtype == torch.float32 else np.float64
