"""The proof that a matrix is the only ℓ1 minimiser with its sketch (paper §5, spec §3)."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from milkshake_mbp.theory.kronecker import Kronecker, restricted_columns, to_csr

__all__ = ["Certificate", "certify", "certify_with", "working_precision"]

_GRID_BITS = 40
# 6,000 entries: 576 MB and two seconds.
_GRAM_LIMIT = 6000


@dataclass(frozen=True)
class Certificate:
    """Whether a matrix X is proved to be the only minimiser of ‖X'‖₁ over all X' with A X' Bᵀ = A X Bᵀ.

    Attributes:
        certified: whether it is proved; if False, uniqueness may still hold.
        reason: why it is not proved, in one line; empty if it is.
        off_support: o, the largest |AᵀWB| off the support of X, for the exact W of the proof; NaN if none was found.
        rank_proof: how Φ_S is shown to be injective: "triangular", "cholesky", "empty", or "" if it is not.
        iterations: number of iterations for W.
    """

    certified: bool
    reason: str
    off_support: float
    rank_proof: str
    iterations: int


def certify(
    matrix: Tensor, left: Tensor | None, right: Tensor | None, *, dual: Tensor | None = None, max_iterations: int = 400
) -> Certificate:
    """Prove that X is the unique ℓ1 minimiser with its sketch A X Bᵀ.

    With S the support of X and Φ_S the restricted operator, X is unique if Φ_S is injective and some W has
    (AᵀWB)_S = sign(X_S) and |AᵀWB| < 1 off S. The proof is in exact arithmetic. W is rounded to a dyadic grid, where
    every sum that is formed is an integer below 2⁵³. An entry of S is peeled once it alone, of those left, touches
    some cell of the sketch. If all of S peels, those cells make a unit triangular block of Φ_S: it is injective, and
    going backwards through the block, with one correction to each cell, makes AᵀWB exactly sign(X) on S.

    If a core remains (heavy rows, or a sketch that is too small), a Cholesky factorization of Φ_SᵀΦ_S − s²I that
    succeeds, less Rump's bound on its rounding errors (BIT 46, 2006), gives σ ≤ σ_min(Φ_S), and with the residual r
    on S and c the largest column norm of A ⊗ B, the condition is o + c‖r‖₂/σ < 1 (spec §3, with ‖r‖₂ ≤ sqrt|S| max|r|).

    The W tried comes from alternating projections, with momentum, onto the operator's range and onto
    {sign(X) on S, |·| ≤ τ off S}, followed by the least change that corrects S.

    Args:
        matrix: X (d₁, d₂), any floating dtype, dense; its support is where it is not exactly 0.
        left: A (m₁, d₁) with entries 0 or 1, any layout; None is the identity.
        right: B (m₂, d₂), likewise.
        dual: where to start W (m₁, m₂), for instance a solver's dual iterate.
        max_iterations: largest number of iterations of the alternating projections.

    Raises:
        ValueError: shapes do not fit, or something is not finite.
    """
    if matrix.ndim != 2 or not bool(torch.isfinite(matrix).all()):
        raise ValueError(f"a certificate needs a finite matrix, got shape {tuple(matrix.shape)}")
    a, b = to_csr(left, matrix.shape[0]), to_csr(right, matrix.shape[1])
    operator = Kronecker(a, b, torch.float64, matrix.device)
    return certify_with(matrix, a, b, working_precision(operator), dual, max_iterations)


def working_precision(operator: Kronecker) -> Kronecker:
    """The operator in float32, or as it is if its conditioning asks for more."""
    return operator.cast(torch.float32) if operator.conditioning < 1e7 else operator


def certify_with(
    matrix: Tensor, a: Any, b: Any, operator: Kronecker, dual: Tensor | None, max_iterations: int
) -> Certificate:
    """As `certify`, with A and B as CSR arrays and their operator at hand."""
    dense = matrix.detach().double().cpu().numpy()
    rows, columns = np.nonzero(dense)
    signs = np.sign(dense[rows, columns])
    size = len(rows)
    if size == 0:
        return Certificate(True, "", 0.0, "empty", 0)
    if not (np.all(a.data == 1) and np.all(b.data == 1)):
        return _refuse("an exact certificate needs sketching matrices with entries 0 and 1")
    if np.any(np.diff(a.tocsc().indptr)[rows] == 0) or np.any(np.diff(b.tocsc().indptr)[columns] == 0):
        return _refuse("a nonzero lies where a column of the sketching matrix is empty")
    if size > operator.ranks[0] * operator.ranks[1]:
        return _refuse(f"{size} nonzeros exceed the sketch's rank {operator.ranks[0] * operator.ranks[1]}")
    restricted = restricted_columns(a, b, rows, columns)
    peeled = _peel(restricted)
    sigma = 0.0
    if peeled.core:
        sigma = _smallest_singular_value(restricted)
        if sigma == 0:
            return _refuse(
                f"the operator restricted to the support is not shown to be injective: {peeled.core} of {size} entries "
                f"do not peel" + (", too many to factorize" if size > _GRAM_LIMIT else "")
            )
    norm = math.sqrt(np.diff(a.tocsc().indptr).max() * np.diff(b.tocsc().indptr).max())
    proof = "cholesky" if peeled.core else "triangular"
    flat = torch.from_numpy(rows * dense.shape[1] + columns).to(operator.device)
    best = math.nan
    search = _DualSearch(operator, flat, torch.from_numpy(signs), dual)
    while search.iterations < max_iterations:
        search.advance(min(max_iterations, search.iterations + 120))
        corrected = _correct(restricted, signs, search.weights.double().cpu().numpy().ravel())
        bound = _exact_bound(corrected, a, b, restricted, signs, peeled, flat, sigma, norm)
        if bound < 1:
            return Certificate(True, "", bound, proof, search.iterations)
        best = bound if math.isnan(best) else min(best, bound)
        if not search.tighten():
            break
    reason = f"no dual certificate in {search.iterations} iterations: |AᵀWB| off the support reaches {best:.6g}"
    return Certificate(False, reason, best, proof, search.iterations)


def _refuse(reason: str) -> Certificate:
    return Certificate(False, reason, math.nan, "", 0)


class _DualSearch:
    """Accelerated projections towards W with AᵀWB = sign(X) on S and |AᵀWB| ≤ τ off S."""

    def __init__(self, operator: Kronecker, support: Tensor, signs: Tensor, dual: Tensor | None) -> None:
        self.operator, self.support = operator, support
        self.signs = signs.to(operator.device, operator.dtype)
        shape = operator.shape
        self.weights = torch.zeros(shape, dtype=operator.dtype, device=operator.device)
        if dual is not None:
            self.weights.copy_(dual)
        self.momentum, self.iterations, self.level, self.slack, self.met = 1.0, 0, 0.95, 0.05, False

    def advance(self, limit: int) -> None:
        """Iterate until AᵀWB nearly meets its conditions."""
        point, last = self.weights, math.inf
        while self.iterations < limit:
            image = self.operator.adjoint(point)
            on = image.view(-1)[self.support] - self.signs
            image.sub_(image.clamp(-self.level, self.level))
            if self.iterations % 3 == 0:
                image.view(-1)[self.support] = 0
                self.met = float(image.abs().amax()) + float(on.abs().amax()) < self.slack
                if self.met:
                    self.weights = point
                    break
            image.view(-1)[self.support] = on
            step = point - self.operator.whiten(self.operator.forward(image))
            violation = float(torch.linalg.vector_norm(image))
            if violation > last:
                self.momentum = 1.0
            last = violation
            following = (1 + math.sqrt(1 + 4 * self.momentum**2)) / 2
            point = step + (self.momentum - 1) / following * (step - self.weights)
            self.weights, self.momentum = step, following
            self.iterations += 1

    def tighten(self) -> bool:
        """Ask for more, after a correction on S has pushed AᵀWB to 1 elsewhere; False if it met all there is to ask."""
        self.slack /= 3 if self.met else 1
        self.momentum = 1.0
        return self.slack > 1e-3


@dataclass(frozen=True)
class _Peeling:
    """Rounds of (entries, the cell of each) in the order of removal, and how many entries remain."""

    rounds: list[tuple[NDArray[np.int64], NDArray[np.int64]]]
    core: int


def _peel(restricted: Any) -> _Peeling:
    cells, size = restricted.shape
    counts = np.diff(restricted.indptr)
    owner = np.repeat(np.arange(size), counts)
    load = np.bincount(restricted.indices, minlength=cells)
    heaviness = load.copy()
    identity = np.bincount(restricted.indices, weights=owner, minlength=cells)
    rounds, remaining = [], size
    while remaining:
        single = np.flatnonzero(load == 1)
        if not len(single):
            break
        # Of several cells take the one that the fewest entries share, so that corrections spread least.
        single = single[np.argsort(heaviness[single], kind="stable")]
        entries, first = np.unique(identity[single].astype(np.int64), return_index=True)
        rounds.append((entries, single[first]))
        remaining -= len(entries)
        touched = restricted[:, entries]
        load -= np.bincount(touched.indices, minlength=cells)
        identity -= np.bincount(touched.indices, weights=np.repeat(entries, np.diff(touched.indptr)), minlength=cells)
    return _Peeling(rounds, remaining)


def _smallest_singular_value(restricted: Any) -> float:
    """A proven lower bound on σ_min of a 0/1 matrix; 0 if none is found."""
    size = restricted.shape[1]
    if size > _GRAM_LIMIT:
        return 0.0
    gram = torch.from_numpy((restricted.T @ restricted).toarray())
    rounding = 4 * (size + 2) * 2.0**-53 * float(gram.diagonal().sum())
    shift = max(1e-5, 4 * rounding)
    gram.diagonal().sub_(shift)
    if int(torch.linalg.cholesky_ex(gram).info) != 0:
        return 0.0
    return math.sqrt((shift - rounding) / 2)


def _correct(restricted: Any, signs: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """The nearest W with (AᵀWB)_S = signs, up to rounding, by conjugate gradients on Φ_SᵀΦ_S."""
    transposed = restricted.T
    residual = signs - transposed @ weights
    direction, change = residual.copy(), np.zeros_like(weights)
    square = start = float(residual @ residual)
    for _ in range(200):
        if square <= 1e-24 * len(signs) or square <= 1e-30 * start:
            break
        image = restricted @ direction
        length = float(image @ image)
        if length == 0:
            break
        change += square / length * image
        residual -= square / length * (transposed @ image)
        square, old = float(residual @ residual), square
        direction = residual + square / old * direction
    return weights + change


def _exact_bound(
    weights: NDArray[np.float64],
    a: Any,
    b: Any,
    restricted: Any,
    signs: NDArray[np.float64],
    peeled: _Peeling,
    support: Tensor,
    sigma: float,
    norm: float,
) -> float:
    """O + c‖r‖₂/σ for W rounded to a grid; all that enters o and r is an exact integer multiple of the grid."""
    largest = float(np.abs(weights).max())
    if not math.isfinite(largest):
        return math.inf
    spread = float(np.diff(a.tocsc().indptr).max()) * float(np.diff(b.tocsc().indptr).max())
    bits = min(_GRID_BITS, 50 - math.ceil(math.log2(max(1.0, largest) * spread)))
    if bits < 20:
        return math.inf
    grid = 2.0**bits
    rounded = np.rint(weights * grid)
    for entries, cells in reversed(peeled.rounds):
        part = restricted[:, entries]
        rounded[cells] -= part.T @ rounded - grid * signs[entries]
        if np.abs(rounded[cells]).max() * spread >= 2.0**52:
            return math.inf
    image = a.T @ (rounded.reshape(a.shape[0], b.shape[0]) @ b)
    flat = image.ravel()
    where = support.cpu().numpy()
    difference = flat[where] - grid * signs
    flat[where] = 0
    bound = float(np.abs(flat).max()) / grid
    if not difference.any():
        return bound
    if sigma == 0:
        return math.inf
    # The factor covers the roundings of this last line.
    return (bound + norm * float(np.linalg.norm(difference)) / grid / sigma) * (1 + 1e-9)
