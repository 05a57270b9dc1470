"""Sketching sparse matrices (paper §5): ensembles, sketches, their dimension, and the structure that they need."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from milkshake_mbp.theory.recovery import Recovery, recover
from milkshake_mbp.theory.uniqueness import Certificate, certify

__all__ = [
    "Certificate",
    "DistributedSparsity",
    "Recovery",
    "SketchSearch",
    "bipartite_ensemble",
    "certify",
    "distributed_sparsity",
    "ensemble_degree",
    "ensemble_pair",
    "recover",
    "sketch",
    "sketch_dimension",
    "smallest_sketch_dimension",
]


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


def bipartite_ensemble(sketch_dim: int, dim: int, degree: int, *, seed: int, stream: int = 0) -> Tensor:
    """The degree-random bipartite ensemble: each of the `dim` columns picks `degree` rows (Definition E.1, erratum E3).

    Rows are picked uniformly with replacement, and duplicates collapse, so that a column holds between 1 and `degree`
    ones. The matrix is a fixed function of the arguments: Philox4×64-10 with key (seed, stream) and initial counter
    (0, sketch_dim, dim, degree); the k-th output, modulo sketch_dim, is pick k mod degree of column ⌊k/degree⌋. (The
    modulus favours some rows by less than sketch_dim/2⁶⁴.)

    Args:
        sketch_dim: m, the rows.
        dim: p, the columns: the side of the layer that is sketched.
        degree: δ, the picks of each column.
        seed: below 2⁶⁴.
        stream: below 2⁶⁴; separates layers and sides under one seed.

    Returns:
        (sketch_dim, dim) float32 sparse COO tensor, coalesced, with entries 1.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> bipartite_ensemble(3, 5, 2, seed=0).to_dense().sum(0).tolist()
        [2.0, 2.0, 1.0, 2.0, 2.0]
    """
    for name, value in (("sketch_dim", sketch_dim), ("dim", dim), ("degree", degree)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    for name, value in (("seed", seed), ("stream", stream)):
        if not 0 <= value < 2**64:
            raise ValueError(f"{name} must be in [0, 2^64), got {value}")
    source = np.random.Philox(
        key=np.array([seed, stream], dtype=np.uint64),
        counter=np.array([0, sketch_dim, dim, degree], dtype=np.uint64),
    )
    rows = (source.random_raw(dim * degree) % np.uint64(sketch_dim)).astype(np.int64)
    positions = np.unique(rows * dim + np.repeat(np.arange(dim), degree))
    indices = torch.from_numpy(np.stack(np.divmod(positions, dim)))
    ones = torch.ones(len(positions))
    return torch.sparse_coo_tensor(indices, ones, (sketch_dim, dim), check_invariants=True, is_coalesced=True)


def ensemble_pair(
    shape: tuple[int, int], sketch_dim: int, degree: int, *, seed: int, layer: int = 0
) -> tuple[Tensor, Tensor]:
    """A (m, d_1) and B (m, d_2) for one layer: streams 2·layer and 2·layer + 1 of `bipartite_ensemble`."""
    left = bipartite_ensemble(sketch_dim, shape[0], degree, seed=seed, stream=2 * layer)
    return left, bipartite_ensemble(sketch_dim, shape[1], degree, seed=seed, stream=2 * layer + 1)


def sketch(matrix: Tensor, left: Tensor | None, right: Tensor | None) -> Tensor:
    """Y = A X Bᵀ, summed in float64, and therefore exact if X and A |X| Bᵀ consist of integers below 2⁵³.

    Args:
        matrix: X (d_1, d_2), any real dtype.
        left: A (m_1, d_1), any layout; None is the identity.
        right: B (m_2, d_2), likewise.

    Returns:
        (m_1, m_2) in the matrix's dtype, int64 for integers; in full precision only if the matrix is float64.

    Raises:
        ValueError: shapes do not fit, or X is of an integer dtype and the sketch may not be exact: a sum of magnitudes
            reaches 2⁵³, or A or B is not made of integers.
    """
    if matrix.ndim != 2:
        raise ValueError(f"only matrices are sketched, got shape {tuple(matrix.shape)}")
    result = _product(matrix.detach().double(), left, right)
    if matrix.is_floating_point():
        return result.to(matrix.dtype).contiguous()
    magnitudes = _product(
        matrix.detach().double().abs(), *(None if side is None else side.abs() for side in (left, right))
    )
    if result.numel() and float(magnitudes.amax()) >= 2**53:
        raise ValueError("a sum in the sketch of an integer matrix reaches 2^53 and would not be exact")
    if not torch.equal(result, result.round()):
        raise ValueError("an integer matrix is sketched by integer matrices alone, as those of an ensemble are")
    return result.long().contiguous()


def _product(matrix: Tensor, left: Tensor | None, right: Tensor | None) -> Tensor:
    """A X Bᵀ in float64."""
    for side, dim in ((left, matrix.shape[0]), (right, matrix.shape[1])):
        if side is not None:
            if side.ndim != 2 or side.shape[1] != dim:
                raise ValueError(f"a sketching matrix must be (sketch_dim, {dim}), got shape {tuple(side.shape)}")
            matrix = side.to(matrix) @ matrix
        matrix = matrix.T
    return matrix


def ensemble_degree(dim: int, *, constant: float = 1.0) -> int:
    """⌈c₁ ln p⌉, at least 1 (Theorem 5.1; the constant is unpublished)."""
    return max(1, math.ceil(constant * math.log(dim)))


def sketch_dimension(shape: tuple[int, int], sparsity: DistributedSparsity, *, constant: float = 1.0) -> int:
    """Theorem 5.1's m = ⌈c₀ sqrt(max(j_c d_1, j_r d_2)) ln p⌉ (the constant is unpublished).

    Args:
        shape: (d_1, d_2) = (out, in).
        sparsity: sparsity of the matrix.
        constant: c₀ > 0.

    Returns:
        m, at least 1. The theorem needs m ≤ min(d_1, d_2), and m² < d_1 d_2 for the sketch to save numbers.

    Example:
        >>> sketch_dimension((784, 784), DistributedSparsity(column_max=9, row_max=9, diagonal_full=True))
        560
    """
    if not constant > 0:
        raise ValueError(f"the constant c₀ must be positive, got {constant}")
    count = max(sparsity.row_max * shape[0], sparsity.column_max * shape[1])
    return max(1, math.ceil(constant * math.sqrt(count) * math.log(max(shape))))


@dataclass(frozen=True)
class SketchSearch:
    """Result of `smallest_sketch_dimension`.

    Attributes:
        sketch_dim: the smallest m found whose sketch provably determines the matrix; None if there is none.
        fails_at: the largest smaller m that was tried, or ruled out by counting, without success.
        recovery: the recovery at `sketch_dim`; None if there is none.
        evaluations: number of m that were tried.
    """

    sketch_dim: int | None
    fails_at: int
    recovery: Recovery | None
    evaluations: int


def smallest_sketch_dimension(
    matrix: Tensor,
    degree: int,
    *,
    seed: int,
    layer: int = 0,
    sides: tuple[bool, bool] = (True, True),
    largest: int | None = None,
    tolerance: float = 0.0,
) -> SketchSearch:
    """The smallest m at which `recover` returns X with a certificate, by bisection.

    Each m has its own fixed ensembles, so success is not strictly monotone in m; the result is the upper end of a
    bracket whose lower end fails. The sketch must have at least as many numbers as X has nonzeros.

    Args:
        matrix: X (d_1, d_2).
        degree: degree of the ensembles.
        seed: seed of the ensembles.
        layer: number of the layer, which distinguishes its ensembles from those of other layers.
        sides: whether to sketch the rows (A) and the columns (B); the other side keeps its length.
        largest: the largest m to try; by default the largest that saves numbers.
        tolerance: relative width of the final bracket; 0 asks for adjacent m.

    Raises:
        ValueError: X is not a finite matrix, or no side is sketched.
    """
    if matrix.ndim != 2 or not bool(torch.isfinite(matrix).all()):
        raise ValueError(f"only finite matrices are sketched, got shape {tuple(matrix.shape)}")
    if not any(sides):
        raise ValueError("no side is to be sketched: sides = (False, False)")
    rows, columns = matrix.shape
    both = all(sides)
    if largest is None:
        largest = math.isqrt(rows * columns - 1) if both else (rows if sides[0] else columns) - 1
    original, nonzeros = matrix.detach().double(), int(torch.count_nonzero(matrix))

    def attempt(m: int) -> Recovery | None:
        pair = ensemble_pair((rows, columns), m, degree, seed=seed, layer=layer)
        left, right = (side if wanted else None for side, wanted in zip(pair, sides, strict=True))
        if not certify(original, left, right).certified:
            return None
        found = recover(sketch(original, left, right), left, right)
        close = torch.linalg.vector_norm(found.matrix - original) <= 1e-9 * torch.linalg.vector_norm(original)
        return found if found.certified and bool(close) else None

    least = math.isqrt(max(nonzeros - 1, 0)) + 1 if both else -(-nonzeros // (columns if sides[0] else rows))
    fails, works, best, evaluations = max(least, 1) - 1, None, None, 0
    # The transition lies near m² = 5 nonzeros.
    trial = min(largest, max(fails + 1, math.ceil(2.2 * least)))
    while trial > fails and (works is None or works - fails > max(1, tolerance * works)):
        evaluations += 1
        found = attempt(trial)
        if found is None:
            fails = trial
        else:
            works, best = trial, found
        trial = (fails + works) // 2 if works is not None else min(largest, math.ceil(1.25 * fails))
    return SketchSearch(works, fails, best, evaluations)
