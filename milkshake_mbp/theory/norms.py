"""Norms of a layer: the spectral norm with a stated error, group norms of its rows; and path norms."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from scipy.linalg import eigh_tridiagonal, eigvalsh_tridiagonal
from torch import Tensor

from milkshake_mbp.theory.layers import Layer, Window
from milkshake_mbp.theory.symbol import UNIT, absolute_mass, axes, bound_eigenvalues, by_phase, symbol_norm, taps

__all__ = [
    "frobenius_norm",
    "group_norm",
    "log_group_norm",
    "log_path_norm",
    "log_path_sums",
    "norm_2_1",
    "operator_norm",
    "operator_norm_estimate",
    "reshaped_norm",
    "spectral_norm",
    "spectral_norm_estimate",
]

_SMALL = 128
_MAX_STEPS = 160
_MAX_CONVOLUTIONS = 40
_CHEAP, _AFFORDABLE = 2**28, 2**31
_GAP = 9e-10
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


def operator_norm(layer: Layer | Tensor) -> tuple[float, float]:
    """A certified interval around ‖A‖₂, A the map of a layer's input to its output, gain included and bias left out.

    For a matrix, and a convolution whose windows do not overlap, high − low ≤ 1e-9·high while the sides' product is
    below a million (beyond, rounding is all that widens it); for other convolutions, high is the largest singular value
    of the Fourier symbol (`symbol_norm`) and low comes from Lanczos on the operator and its adjoint, in float32.

    Rounding is accounted for in both directions: low is ‖Av‖/‖v‖ of one vector, computed in float64 on the CPU, less
    n·u·‖|A|‖ for sums of n products in any order; the errors behind high are bounded a priori and added.

    Args:
        layer: a layer, or an (out, in) matrix, dense, of any floating dtype, on any device.

    Raises:
        ValueError: the kernel holds NaN or infinity, or the sizes of a convolution's input and output are not known.
    """
    if isinstance(layer, Tensor):
        return _matrix_norm(_matrix(layer)[None])
    kernel = layer.effective_kernel
    if layer.window is None:
        return _matrix_norm(kernel[None])
    matrix, scale = _scaled(kernel)
    dimensions = axes(layer)
    found = taps(layer, dimensions, matrix)
    if not found or not scale:
        return 0.0, 0.0
    if all(axis.constant and axis.whole for axis in dimensions):
        # Some output sees every tap, and no two see the same input: as good as a matrix.
        low, high = _matrix_norm(by_phase(found, lambda entries: entries[0]))
    elif (cost := _unrolling_cost(layer)) <= _AFFORDABLE:
        low, high = _matrix_norm(_unrolled(layer, layer.window, matrix), _GAP if cost <= _CHEAP else 1e-5)
    else:
        low = _norm_from_below(layer, matrix, absolute_mass(found))
        high = max(low, symbol_norm(replace(layer, kernel=matrix, gain=None), low))
    return low * float(scale) * (1 - UNIT), high * float(scale) * (1 + UNIT)


def operator_norm_estimate(layer: Layer | Tensor, tolerance: float = 1e-3) -> float:
    """An estimate of ‖A‖₂ from below that stops at about the given relative tolerance; no certificate.

    For a search that will check its answer with `operator_norm`: a few applications of the layer and its adjoint.

    Args:
        layer: a layer, or an (out, in) matrix.
        tolerance: relative change of the estimate at which to stop.

    Raises:
        ValueError: the kernel holds NaN or infinity.
    """
    if isinstance(layer, Tensor) or layer.window is None:
        return float(spectral_norm_estimate(layer if isinstance(layer, Tensor) else layer.effective_kernel, tolerance))
    matrix, scale = _scaled(layer.effective_kernel)
    normal, size = _normal(layer, matrix), math.prod(layer.inputs)
    return float(scale * _lanczos(normal, size, matrix, 2 * tolerance).sqrt())


def reshaped_norm(layer: Layer) -> Tensor:
    """‖gain·K‖₂ of the kernel matrix, which measures of convolutions use for ‖A‖₂; a bound on it from below, if any.

    Returns:
        A float64 scalar tensor, as `spectral_norm`.
    """
    return spectral_norm(layer.kernel if layer.gain is None else layer.effective_kernel)


def _matrix_norm(blocks: Tensor, gap: float = _GAP) -> tuple[float, float]:
    """(low, high) of the largest ‖A‖₂ among (n, out, in) matrices; high − low ≤ gap·high is enough of a large one."""
    largest = float(blocks.abs().amax()) if blocks.numel() else 0.0
    if not math.isfinite(largest):
        raise ValueError(_NOT_FINITE)
    if not largest:
        return 0.0, 0.0
    matrices = blocks.double() / largest
    tall = matrices if matrices.shape[1] >= matrices.shape[2] else matrices.mT
    grams = tall.mT @ tall
    _, longer, shorter = tall.shape
    norms = torch.linalg.matrix_norm(tall)
    frobenius = float(norms.amax())

    def interval(vectors: Tensor, gap: float = _GAP) -> tuple[float, float]:
        images = torch.linalg.vector_norm(tall @ vectors[:, :, None], dim=(1, 2))
        rounding = (longer + shorter + 8) * UNIT * norms
        low = float((images / torch.linalg.vector_norm(vectors, dim=1) - rounding).amax().clamp_min(0))
        # AᵀA in floating point is off by no more than longer·u·‖A‖_F²; the entries of A by u each.
        square = bound_eigenvalues(grams, low**2 * (1 + 0.45 * gap), tolerance=0.45 * gap)
        return low, math.sqrt(square + 1.1 * longer * UNIT * frobenius**2) + 2 * UNIT * frobenius

    low = high = 0.0
    if shorter > _SMALL and len(grams) == 1:
        low, high = interval(_top_vector(lambda v: grams[0] @ v, shorter, grams, gap / 100, _MAX_STEPS)[None], gap)
    if high - low > gap * high or not high:
        low, high = interval(torch.linalg.eigh(grams).eigenvectors[:, :, -1])
    return low * largest * (1 - 8 * UNIT), high * largest * (1 + 8 * UNIT)


def _unrolling_cost(layer: Layer) -> int:
    """Multiplications in AᵀA or AAᵀ, whichever is smaller."""
    short, long = sorted((math.prod(layer.inputs), math.prod(layer.outputs)))
    return short**2 * long


def _unrolled(layer: Layer, window: Window, kernel: Tensor) -> Tensor:
    """A convolution's map as a matrix, or as many blocks of one as it has groups: (groups, outputs, inputs)."""
    single = replace(layer, window=replace(window, groups=1))
    places, size = math.prod(layer.inputs[1:]), math.prod(window.size)
    # Which output reads which place of one channel with which tap.
    unit = torch.eye(places, dtype=kernel.dtype, device=kernel.device).reshape(places, 1, *layer.inputs[1:])
    reads = single.apply(torch.eye(size, dtype=kernel.dtype, device=kernel.device), unit).flatten(2)
    filters = kernel.reshape(window.groups, len(kernel) // window.groups, -1, size)
    return torch.einsum("goct,itp->gopci", filters, reads).flatten(3).flatten(1, 2)


def _norm_from_below(layer: Layer, kernel: Tensor, mass: float) -> float:
    """A certified lower bound on ‖A‖₂ of a convolution with this (scaled) kernel; ‖|A|‖₂ ≤ mass."""
    size = math.prod(layer.inputs)
    vector = _top_vector(_normal(layer, kernel), size, kernel, 1e-3, _MAX_CONVOLUTIONS).cpu()
    exact = kernel.cpu()
    y = layer.apply(exact, vector.reshape(1, *layer.inputs))
    ratio = float(torch.linalg.vector_norm(y) / torch.linalg.vector_norm(vector)) * (1 - (size + y.numel() + 4) * UNIT)
    return max(0.0, ratio - (kernel.shape[1] + 4) * UNIT * mass) * (1 - 4 * UNIT)


def _normal(layer: Layer, kernel: Tensor) -> Callable[[Tensor], Tensor]:
    """AᵀA of a convolution with this kernel, in float32, of a float64 vector."""
    single = kernel.float()

    def apply(vector: Tensor) -> Tensor:
        x = vector.float().reshape(1, *layer.inputs)
        return layer.adjoint(single, layer.apply(single, x)).flatten().double()

    return apply


def _top_vector(apply: Callable[[Tensor], Tensor], size: int, like: Tensor, tolerance: float, max_steps: int) -> Tensor:
    """About the top eigenvector of a positive semidefinite operator, (size,) float64."""
    _, diagonal, beside, basis = _krylov(apply, size, like, tolerance, max_steps)
    last = len(diagonal) - 1
    weights = eigh_tridiagonal(diagonal, beside[:last], select="i", select_range=(last, last))[1][:, 0]
    return torch.from_numpy(weights).to(basis.device) @ basis[: last + 1]


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
        p: order of the norm of each row, 1 ≤ p < ∞.
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


def log_group_norm(layer: Layer, p: float, q: float) -> float:
    """Ln ‖A‖_{p,q} = ln (Σ_i ‖A_i‖_p^q)^{1/q} over the rows A_i of a layer's map, gain included; −inf for a zero layer.

    A row's Σ|a|^p is what the layer makes of a tensor of ones with |K|^p for its kernel, so that no matrix is written
    out. (2, 2) is ‖A‖_F; (2, 1) is ‖Aᵀ‖_{2,1}, as in `norm_2_1`.

    Args:
        layer: its input's size known if it is a convolution.
        p: order of the norm of each row, 1 ≤ p < ∞.
        q: over the rows, 1 ≤ q ≤ ∞; ∞ takes the largest row.

    Raises:
        ValueError: p or q is out of range, the kernel holds NaN or infinity, or the sizes of a convolution's input and
            output are not known.
    """
    if not 1 <= p < math.inf or not q >= 1:
        raise ValueError(f"a group norm needs 1 ≤ p < ∞ and q ≥ 1, got p = {p} and q = {q}")
    kernel = layer.kernel if layer.gain is None else layer.effective_kernel
    if layer.window is None:
        if p == 2 and q in (1, 2):
            value = float(norm_2_1(kernel) if q == 1 else frobenius_norm(kernel))
        else:
            value = float(group_norm(kernel, p, q))
        log_value = math.log(value) if value > 0 else -math.inf
        return log_value + (0.0 if math.isinf(q) else math.log(max(layer.places, 1)) / q)
    peaks, sums = row_power_sums(layer, p)
    rows = peaks.log()[:, None] + sums.log() / p
    if rows.isnan().any():
        raise ValueError(_NOT_FINITE)
    return float(rows.amax() if math.isinf(q) else torch.logsumexp(q * rows.flatten(), 0) / q)


def row_power_sums(layer: Layer, p: float) -> tuple[Tensor, Tensor]:
    """Each kernel row's largest |entry| m, (out,), and Σ|a/m|^p of the rows of a convolution's map, (out, places)."""
    layer.check_sizes()
    kernel = layer.effective_kernel.abs()
    peaks = kernel.amax(dim=1)
    powers = (kernel / peaks.clamp_min(_TINY)[:, None]).pow_(p)
    ones = powers.new_ones(1, *layer.inputs)
    return peaks, layer.apply(powers, ones)[0].flatten(1)


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
        logs = log_path_sums(weight, logs, p)
    return logs


def log_path_sums(weight: Tensor, logs: Tensor, p: float) -> Tensor:
    """Ln φ_p of the outputs, (out,), of a weight (out, in) from that of its inputs, (in,)."""
    largest = logs.amax().clamp_min(torch.finfo(torch.float64).min)
    peaks, spreads = _row_norms(_magnitudes(weight).mul_((logs - largest).exp()), p)
    after = largest + peaks.log() + spreads.log()
    if after.isnan().any():
        raise ValueError(_NOT_FINITE)
    return after


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
    ritz = _krylov(apply, size, like, tolerance, _MAX_STEPS)[0]
    return torch.tensor(max(ritz, 0.0), dtype=torch.float64, device=like.device)


def _krylov(
    apply: Callable[[Tensor], Tensor], size: int, like: Tensor, tolerance: float, max_steps: int
) -> tuple[float, list[float], list[float], Tensor]:
    """Lanczos: the largest Ritz value, the tridiagonal matrix's entries on and beside the diagonal, and the basis."""
    steps = min(size, max_steps)
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
    return ritz, diagonal, beside, basis
