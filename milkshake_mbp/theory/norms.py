"""Norms of a layer's weight, shape (out, in): the spectral norm with a stated error, group norms; and path norms."""

import math
from collections.abc import Callable, Sequence

import torch
from scipy.linalg import eigvalsh_tridiagonal
from torch import Tensor

__all__ = ["frobenius_norm", "group_norm", "log_path_norm", "norm_2_1", "spectral_norm", "spectral_norm_estimate"]

_SMALL = 128
_MAX_STEPS = 160
_TINY = torch.finfo(torch.float64).tiny
_NOT_FINITE = "the weights hold NaN or infinity; nothing can be said about such a network"


def spectral_norm(weight: Tensor) -> Tensor:
    """Largest singular value ‖A‖₂, with a certified relative error.

    Lanczos on the Gram matrix approaches the value from below; a Cholesky factorization of (1 + ε)²σ̂²I − AᵀA then
    proves that no singular value exceeds (1 + ε)σ̂. Where the proof fails, all eigenvalues are computed instead. So
    σ̂ ≤ ‖A‖₂ ≤ (1 + ε)σ̂ up to rounding, with ε = max(1e-9, 2·D²·u), D the shorter side and u = 2⁻⁵³.

    Args:
        weight: (out, in), any floating dtype, any device; dense, or sparse with coalesced coordinates.

    Returns:
        A float64 scalar tensor on the weight's device.

    Raises:
        ValueError: the weight is not a matrix, or holds NaN or infinity.
    """
    matrix, scale = _scaled(weight)
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    gram = tall.T @ tall.to_dense()
    size = gram.shape[0]
    if size > _SMALL:
        tolerance = max(1e-9, 2.0 * size**2 * 2.0**-53)
        square = _lanczos(lambda vector: gram @ vector, size, gram, tolerance / 10)
        shifted = -gram
        shifted.diagonal().add_((1 + tolerance) ** 2 * square)
        if torch.linalg.cholesky_ex(shifted).info == 0:
            return scale * square.sqrt()
    return scale * torch.linalg.eigvalsh(gram)[-1].clamp_min(0).sqrt()


def spectral_norm_estimate(weight: Tensor, tolerance: float = 1e-3) -> Tensor:
    """An estimate of ‖A‖₂ from below that stops at about the given relative tolerance; no certificate.

    For a search that will check its answer with `spectral_norm`: a few matrix–vector products instead of a Gram matrix.

    Args:
        weight: (out, in), any floating dtype, any device; dense, or sparse with coalesced coordinates.
        tolerance: relative change of the estimate at which to stop.

    Returns:
        A float64 scalar tensor on the weight's device.

    Raises:
        ValueError: the weight is not a matrix, or holds NaN or infinity.
    """
    matrix, scale = _scaled(weight)
    return scale * _lanczos(lambda v: matrix.T @ (matrix @ v), matrix.shape[1], matrix, 2 * tolerance).sqrt()


def frobenius_norm(weight: Tensor) -> Tensor:
    """‖A‖_F as a float64 scalar tensor on the weight's device; raises ValueError as `spectral_norm` does."""
    matrix, scale = _scaled(weight)
    return scale * torch.linalg.vector_norm(_entries(matrix))


def norm_2_1(weight: Tensor) -> Tensor:
    """‖Aᵀ‖_{2,1}: the sum over output units of the ℓ2 norm of their weights (Bartlett et al. 2017).

    Args:
        weight: (out, in); each row is one unit's incoming weights.

    Returns:
        A float64 scalar tensor on the weight's device.

    Raises:
        ValueError: the weight is not a matrix, or holds NaN or infinity.
    """
    matrix, scale = _scaled(weight)
    return scale * torch.linalg.vector_norm(matrix, dim=1).sum()


def group_norm(weight: Tensor, p: float, q: float) -> Tensor:
    """‖A‖_{p,q} = (Σ_i ‖A_i‖_p^q)^{1/q} over the rows A_i, each one unit's incoming weights (Neyshabur et al. 2015).

    Args:
        weight: (out, in), dense.
        p: of each row, 1 ≤ p < ∞.
        q: over the rows, 1 ≤ q ≤ ∞; ∞ takes the largest row.

    Returns:
        A float64 scalar tensor on the weight's device.

    Raises:
        ValueError: p or q is out of range, the weight is not a matrix, or it holds NaN or infinity.

    Example:
        >>> group_norm(torch.tensor([[3.0, -4.0], [0.0, 2.0]]), 1, math.inf).item()
        7.0
    """
    if not 1 <= p < math.inf or not q >= 1:
        raise ValueError(f"a group norm needs 1 ≤ p < ∞ and q ≥ 1, got p = {p} and q = {q}")
    peaks, spreads = _row_norms(_magnitudes(weight), p)
    rows = peaks * spreads
    largest = rows.amax()
    if not torch.isfinite(largest):
        raise ValueError(_NOT_FINITE)
    largest = largest.clamp_min(_TINY)
    return largest * torch.linalg.vector_norm(rows / largest, q)


def log_path_norm(weights: Sequence[Tensor], p: float) -> Tensor:
    """Ln φ_p of each output unit: φ_p = (Σ_paths Π|w|^p)^{1/p} over all paths from an input to it.

    One forward pass of the units' own φ_p, in logs and rescaled at every unit, so that nothing overflows.

    Args:
        weights: (out, in) matrices in forward order.
        p: 1 ≤ p < ∞.

    Returns:
        (out,) float64 tensor on the weights' device; −inf where no path leads.

    Raises:
        ValueError: p is out of range, a weight is not a matrix, or one holds NaN or infinity.

    Reference:
        Neyshabur, Tomioka and Srebro, Norm-Based Capacity Control in Neural Networks, COLT 2015.

    Example:
        >>> log_path_norm([torch.tensor([[1.0, -2.0], [3.0, 0.0]]), torch.tensor([[1.0, 5.0]])], 1).exp()
        tensor([18.0000], dtype=torch.float64)
    """
    if not 1 <= p < math.inf:
        raise ValueError(f"a path norm needs 1 ≤ p < ∞, got p = {p}")
    logs = torch.zeros(weights[0].shape[-1], dtype=torch.float64, device=weights[0].device)
    for weight in weights:
        largest = logs.amax().clamp_min(torch.finfo(torch.float64).min)
        peaks, spreads = _row_norms(_magnitudes(weight).mul_((logs - largest).exp()), p)
        logs = largest + peaks.log() + spreads.log()
    if logs.isnan().any():
        raise ValueError(_NOT_FINITE)
    return logs


def _magnitudes(weight: Tensor) -> Tensor:
    """|A| in float64, in memory of its own."""
    return _matrix(weight).abs().double()


def _row_norms(entries: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """Each row's largest entry and what times it is the row's ℓ_p norm, of nonnegative entries, overwriting them."""
    peaks = entries.amax(dim=1, keepdim=True).clamp_min(_TINY)
    # In place, and with `pow`, which is vectorized for whole powers: several times as fast as `vector_norm`.
    sums = entries.div_(peaks).pow_(p).sum(dim=1)
    return peaks[:, 0], sums.pow_(1 / p)


def _matrix(weight: Tensor) -> Tensor:
    if weight.ndim != 2:
        raise ValueError(f"a norm of a layer needs a matrix, got shape {tuple(weight.shape)}")
    return weight.detach()


def _scaled(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The matrix in float64 with largest entry 1, and its scale, so that squares neither overflow nor vanish."""
    matrix = _matrix(weight).double()
    entries = _entries(matrix)
    scale = entries.abs().amax() if entries.numel() else entries.new_zeros(())
    if not torch.isfinite(scale):
        raise ValueError(_NOT_FINITE)
    return (matrix / scale if scale > 0 else matrix), scale


def _entries(matrix: Tensor) -> Tensor:
    return matrix.values() if matrix.is_sparse else matrix


def _lanczos(apply: Callable[[Tensor], Tensor], size: int, like: Tensor, tolerance: float) -> Tensor:
    """Largest eigenvalue of a positive semidefinite operator, from below, to about a relative tolerance.

    Full reorthogonalization, twice; the start is a fixed function of the size, so that equal input gives equal output.
    """
    steps = min(size, _MAX_STEPS)
    basis = torch.zeros(steps, size, dtype=torch.float64, device=like.device)
    start = torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(size))
    vector, length = start.to(like.device), float(torch.linalg.vector_norm(start))
    diagonal: list[float] = []
    beside: list[float] = []
    previous = ritz = 0.0
    for step in range(steps):
        basis[step] = vector / length
        vector = apply(basis[step])
        known = basis[: step + 1]
        first = known @ vector
        vector = vector - first @ known
        second = known @ vector
        vector = vector - second @ known
        diagonal.append(float(first[step] + second[step]))
        length = float(torch.linalg.vector_norm(vector))
        exhausted = length <= 1e-14 * max(diagonal)
        if exhausted or step % 3 == 2 or step == steps - 1:
            ritz = float(eigvalsh_tridiagonal(diagonal, beside)[-1])
            if exhausted or ritz - previous <= tolerance * ritz / 4:
                break
            previous = ritz
        beside.append(length)
    return torch.tensor(max(ritz, 0.0), dtype=torch.float64, device=like.device)
