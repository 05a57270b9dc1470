"""Recovering a sparse matrix from its sketch by ℓ1 minimization (paper §5, Equation 1)."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from milkshake_mbp.theory.kronecker import Kronecker, restricted_columns, to_csr
from milkshake_mbp.theory.uniqueness import Certificate, certify_with, working_precision

__all__ = ["Recovery", "recover"]

# The threshold starts at half the largest entry of the least-norm solution and shrinks by a factor an iteration, slower
# in a second run, down to a floor. Near the transition a fast decay stops at a dense point; see the benchmark.
_DECAYS = (0.96, 0.985)
_RELAXATION = 1.6
_FLOOR = 2e-4


@dataclass(frozen=True)
class Recovery:
    """Result of `recover`.

    Attributes:
        matrix: X̂ (d₁, d₂) float64.
        iterations: iterations of the first-order solver.
        residual: ‖A X̂ Bᵀ − Y‖_F / ‖Y‖_F in float64; 0 if Y is made of integers and certified.
        certified: whether two conditions are proved. In exact arithmetic, X̂ is the only minimiser of ‖X‖₁ among all
            real matrices with the sketch A X̂ Bᵀ. And this sketch is Y: exactly, with an integer X̂, if Y consists of
            integers (see `recover`); otherwise up to rounding in every entry, including the smallest ones.
        reason: why it is not certified, in one line; empty if it is.
        off_support: o of the certificate, the largest |AᵀWB| off the support; NaN if there is none.
    """

    matrix: Tensor
    iterations: int
    residual: float
    certified: bool
    reason: str
    off_support: float


def recover(
    sketched: Tensor,
    left: Tensor | None,
    right: Tensor | None,
    *,
    max_iterations: int = 500,
    tolerance: float | None = None,
    certificate: bool = True,
) -> Recovery:
    """Solve min ‖X‖₁ subject to A X Bᵀ = Y, and prove the solution if possible.

    The solver is over-relaxed Douglas–Rachford splitting in float32, whose projection onto {A X Bᵀ = Y} has a closed
    form with (AAᵀ)⁺ and (BBᵀ)⁺, and whose threshold shrinks geometrically. When it slows down, its largest entries are
    taken as the support; least squares on it, with entries added according to the residual, finish in float64. A
    solution is accepted only with a certificate (`certify`), since a zero residual is not a proof. Entries many orders
    of magnitude below the largest may be lost in float32; the sketch is then not matched, and nothing is certified.

    Y consists of integers if its dtype is an integer type, or if all its values are integers below the size up to
    which its dtype has every integer, 2⁵³ for float64 and 2²⁴ for float32. Then only an integer matrix whose sketch is
    exactly Y is certified, and no matrix if Y or ‖X̂‖₁ reaches 2⁵³. Any other Y is taken as rounded, and matched if in
    every entry |A X̂ Bᵀ − Y| is at most max(tolerance, k·u) times A |X̂| Bᵀ, where k is the number of nonzeros that are
    summed there and u the dtype's unit roundoff.

    Args:
        sketched: Y (m₁, m₂), any real dtype.
        left: A (m₁, d₁), entries 0 and 1, any layout; None is the identity, d₁ = m₁.
        right: B (m₂, d₂), likewise.
        max_iterations: largest number of iterations of the first-order solver.
        tolerance: relative error, in norm and in every entry, at which Y counts as matched unless it consists of
            integers; by default 1e-14, or 1e-6 if Y has a lower precision than float64.
        certificate: whether to prove the solution; if False, the first match that is unique on its support is taken.

    Returns:
        The recovery, its matrix on Y's device.

    Raises:
        ValueError: shapes do not fit, or an argument is not finite.
    """
    if sketched.ndim != 2 or sketched.is_complex() or not bool(torch.isfinite(sketched).all()):
        raise ValueError(f"recovery needs a finite, real sketch matrix, got {sketched.dtype} {tuple(sketched.shape)}")
    a = to_csr(left, sketched.shape[0] if left is None else left.shape[-1])
    b = to_csr(right, sketched.shape[1] if right is None else right.shape[-1])
    if (a.shape[0], b.shape[0]) != tuple(sketched.shape):
        raise ValueError(
            f"a sketch by {a.shape[0]} × {a.shape[1]} and {b.shape[0]} × {b.shape[1]} matrices has shape "
            f"({a.shape[0]}, {b.shape[0]}), got {tuple(sketched.shape)}"
        )
    integers = not sketched.is_floating_point()
    unit = 2.0**-53 if integers else torch.finfo(sketched.dtype).eps / 2
    if tolerance is None:
        tolerance = 1e-14 if unit <= 2.0**-53 else 1e-6
    target = sketched.detach().double()
    size = float(target.abs().amax()) if target.numel() else 0.0
    if size == 0:
        zero = torch.zeros(a.shape[1], b.shape[1], dtype=torch.float64, device=sketched.device)
        return Recovery(zero, 0, 0.0, True, "", 0.0)
    # A power of two keeps integers, and every bit, as they are.
    scale = math.ldexp(1.0, math.frexp(size)[1] - 1)
    solver = _Solver(a, b, target, scale, tolerance, unit, certificate)
    found = solver.run(max_iterations)
    if integers and size >= 2.0**53:
        return replace(found, certified=False, reason="the sketch holds integers from 2^53 on, which float64 rounds")
    return found


class _Solver:
    def __init__(
        self, a: Any, b: Any, target: Tensor, scale: float, tolerance: float, unit: float, certificate: bool
    ) -> None:
        self.a, self.b, self.target, self.scale = a, b, target / scale, scale
        self.tolerance, self.unit, self.certificate = tolerance, unit, certificate
        self.lossless = torch.equal(self.target * scale, target)
        self.exact = Kronecker(a, b, torch.float64, target.device)
        self.fast = working_precision(self.exact)
        self.cells = self.target.cpu().numpy().ravel()
        self.norm = float(torch.linalg.vector_norm(self.target))
        self.integers = bool((target == target.round()).all()) and float(target.abs().amax()) * unit < 1
        self.rank = self.exact.ranks[0] * self.exact.ranks[1]
        self.best: Recovery | None = None
        self.tried: set[bytes] = set()
        self.settled = False

    def run(self, max_iterations: int) -> Recovery:
        """Iterate, and polish whenever the iterate has come to rest."""
        y = self.target.to(self.fast.dtype)
        least_norm = self.fast.adjoint(self.fast.whiten(y))
        iterations = 0
        estimate = least_norm
        if not self._consistent():
            return self._give_up(least_norm, 0, "no matrix has this sketch: it is outside the operator's range")
        for decay in _DECAYS:
            z, q = least_norm.clone(), y
            threshold = start = 0.5 * float(z.abs().amax())
            before, moved, due = least_norm, math.inf, 0
            resting = 0
            for step in range(1, max_iterations - iterations + 1):
                estimate = torch.nn.functional.softshrink(z, threshold)
                image = self.fast.forward(estimate)
                correction = self.fast.adjoint(self.fast.whiten(2 * image - q - y))
                shrink = decay if threshold > _FLOOR * start else 1.0
                dual = z.sub_(estimate)
                weights = (q, image, threshold)
                z = dual.mul(shrink * (1 - _RELAXATION)).add_(correction, alpha=-shrink * _RELAXATION).add_(estimate)
                q = image + shrink * (q - image + _RELAXATION * (y - image))
                threshold *= shrink
                iterations += 1
                resting += shrink == 1
                if step % 4 == 0:
                    length = float(torch.linalg.vector_norm(estimate))
                    change = float(torch.linalg.vector_norm(estimate - before)) / max(length, 1e-30)
                    before = estimate
                    last = resting > 120 or iterations == max_iterations or change < 1e-7
                    if last or (change < min(0.06, moved / 1.5) and step >= due):
                        moved, due = change, step + max(8, step // 3)
                        self._attempt(estimate, weights, iterations, last)
                        if self.settled and self.best is not None:
                            return self.best
                    if last:
                        break
            if iterations >= max_iterations:
                break
        if self.best is not None:
            return self.best
        return self._give_up(estimate, iterations, f"no sparse matrix found in {iterations} iterations")

    def _consistent(self) -> bool:
        """Whether Y lies in the range of X ↦ A X Bᵀ, to a coarse tolerance."""
        image = self.exact.forward(self.exact.adjoint(self.exact.whiten(self.target)))
        return float(torch.linalg.vector_norm(image - self.target)) <= 1e-6 * self.norm

    def _give_up(self, estimate: Tensor, iterations: int, reason: str) -> Recovery:
        matrix = estimate.double()
        residual = float(torch.linalg.vector_norm(self.exact.forward(matrix) - self.target)) / self.norm
        return Recovery(matrix * self.scale, iterations, residual, False, reason, math.nan)

    def _attempt(self, estimate: Tensor, weights: tuple[Tensor, Tensor, float], iterations: int, last: bool) -> None:
        """Polish the estimate and certify what comes out, unless that was tried before."""
        for strictness in (0.0, 0.3):
            polished = self._polish(estimate, last, strictness)
            if polished is None:
                return
            matrix, residual = polished
            key = np.packbits((matrix != 0).cpu().numpy()).tobytes()
            if key in self.tried:
                continue
            self.tried.add(key)
            q, image, threshold = weights
            dual = self.fast.whiten((q - image) / threshold)
            proof = certify_with(matrix, self.a, self.b, self.fast, dual, 400 if self.certificate else 0)
            self._keep(matrix, residual, proof, iterations)
            # A support on which other matrices match as well was too large; choose its entries again, with more care.
            if proof.rank_proof:
                return

    def _keep(self, matrix: Tensor, residual: float, proof: Certificate, iterations: int) -> None:
        """Remember a matched matrix if it is the best so far."""
        certified, reason = proof.certified, proof.reason if self.certificate else "no certificate was asked for"
        if certified and not self.integers and (refined := self._refined(matrix)) is not None:
            matrix, residual = refined
        elif certified and not self.integers:
            certified, reason = False, "small numbers of the sketch are matched only to the precision of the large ones"
        self.settled = certified or (not self.certificate and proof.rank_proof != "")
        answer = matrix * self.scale
        if certified and self.integers and (residual or not torch.equal(answer, answer.round())):
            certified, reason = False, "the ℓ1 minimiser is not an integer matrix, or its integers sum to 2^53 or more"
        elif certified and not (self.lossless and torch.equal(answer / self.scale, matrix)):
            certified, reason = False, "numbers leave float64's range at the scale of the sketch"
        found = Recovery(answer, iterations, residual, certified, reason, proof.off_support)
        if self.settled or self.best is None or found.matrix.abs().sum() < self.best.matrix.abs().sum():
            self.best = found

    def _polish(self, estimate: Tensor, last: bool, strictness: float) -> tuple[Tensor, float] | None:
        """Least squares on the support, re-chosen by what stands out of the noise, until the sketch is matched."""
        shape = tuple(estimate.shape)
        cap = max(1, self.rank if last else int(0.25 * self.rank))
        density = self.rank / estimate.numel()
        current = estimate.double().reshape(-1)
        support = _largest(current, cap, 0.1 * strictness * float(current.abs().amax()))
        previous, goal, stalled, threshold = math.inf, 1e-4, 0, 0.0
        for _ in range(16):
            columns = self._columns(support, shape)
            values, residual = _least_squares(columns, self.cells, current[support].cpu().numpy(), 1e-15, 12)
            size = float(np.linalg.norm(residual)) / self.norm
            stalled += size > 0.6 * previous
            if size < goal or (last and stalled == 2):
                finished = self._finish(support, columns, values, shape)
                if finished is not None:
                    return finished
                goal = 1e-3 * size
            if stalled == 2 or size > 0.2:
                return None
            previous = size
            rest = torch.from_numpy(residual).to(estimate.device).reshape(self.target.shape)
            current = self.exact.adjoint(self.exact.whiten(rest)).reshape(-1) / density
            # A robust scale of the noise, from a sample: the entries sought must not count.
            noise = 1.5 * float(current[:: 1 + current.numel() // 50_000].abs().median())
            noise = max(noise, strictness / 7 * float(current.abs().amax()))
            current[support] += torch.from_numpy(values).to(current)
            # A true entry that came in above the last threshold stays near its size; a false one falls.
            threshold = max(7 * noise, 0.2 * threshold)
            support = _largest(current, cap, threshold)
        return None

    def _finish(
        self, support: Tensor, columns: Any, values: NDArray[np.float64], shape: tuple[int, ...]
    ) -> tuple[Tensor, float] | None:
        """Drop what is noise and solve to full precision; None if the sketch is then not matched."""
        if self.integers and (found := self._rounded(support, columns, values, shape)) is not None:
            return found
        values, residual = _least_squares(columns, self.cells, values, 1e-12, 100)
        if np.linalg.norm(residual) > max(1e-9, self.tolerance) * self.norm:
            return None
        match = None
        for cut in (1e-7, 1e-10, 1e-13, 0.0):
            keep = np.flatnonzero(np.abs(values) > cut * np.abs(values).max(initial=0.0))
            kept, part = support[torch.from_numpy(keep).to(support.device)], columns[:, keep]
            solved, _ = _least_squares(part, self.cells, values[keep], 1e-14, 100)
            solved, _ = _least_squares(part, self.cells, solved, 1e-16, 10)
            if self.integers and (found := self._rounded(kept, part, solved, shape)) is not None:
                return found
            residual = self.cells - part @ solved
            size = float(np.linalg.norm(residual)) / self.norm
            if size <= self.tolerance:
                found = self._matrix(kept, solved, shape), size
                match = match or found
                # What was cut may be all that some cells hold.
                if not self.integers and np.all(np.abs(residual) <= 1e-3 * (np.abs(part) @ np.abs(solved))):
                    return found
        return match

    def _rounded(
        self, support: Tensor, columns: Any, values: NDArray[np.float64], shape: tuple[int, ...]
    ) -> tuple[Tensor, float] | None:
        """The nearest integers, if they match the sketch exactly; large ones are corrected by what they leave of it."""
        integers, cells = np.rint(values * self.scale), self.cells * self.scale
        for _ in range(4):
            if np.abs(integers).sum() >= 2.0**53:
                return None
            rest = cells - columns @ integers
            if not rest.any():
                return self._matrix(support, integers / self.scale, shape), 0.0
            if np.abs(rest).max() > 1e-6 * np.abs(cells).max():
                return None
            integers += np.rint(_least_squares(columns, rest, np.zeros_like(values), 1e-12, 100)[0])
        return None

    def _refined(self, matrix: Tensor) -> tuple[Tensor, float] | None:
        """X̂ refined in units of what each cell sums, until each is matched to its own precision; None if not."""
        support = matrix.view(-1).nonzero().reshape(-1)
        values, columns = matrix.view(-1)[support].cpu().numpy(), self._columns(support, tuple(matrix.shape))
        allowed = np.maximum(self.tolerance, self.unit * np.diff(columns.tocsr().indptr))
        signs = np.sign(values)
        for _ in range(6):
            sums, rest = np.abs(columns) @ np.abs(values), self.cells - columns @ values
            size = float(np.linalg.norm(rest)) / self.norm
            if size <= self.tolerance and np.all(np.abs(rest) <= allowed * sums):
                return self._matrix(support, values, tuple(matrix.shape)), size
            if np.any(rest[sums == 0]):
                return None
            whole, shares = np.where(sums > 0, sums, 1.0), columns.copy()
            shares.data = shares.data * np.repeat(np.abs(values), np.diff(shares.indptr)) / whole[shares.indices]
            change, _ = _least_squares(shares, np.clip(rest / whole, -1, 1), np.zeros_like(values), 1e-6, 60)
            values = values + np.abs(values) * change
            if not np.array_equal(np.sign(values), signs):
                return None
        return None

    def _matrix(self, support: Tensor, values: NDArray[np.float64], shape: tuple[int, ...]) -> Tensor:
        matrix = torch.zeros(shape, dtype=torch.float64, device=support.device)
        matrix.view(-1)[support] = torch.from_numpy(values).to(matrix)
        return matrix

    def _columns(self, support: Tensor, shape: tuple[int, ...]) -> Any:
        rows, columns = np.divmod(support.cpu().numpy(), shape[1])
        return restricted_columns(self.a, self.b, rows, columns)


def _largest(values: Tensor, count: int, threshold: float) -> Tensor:
    """Flat positions, in order, of the magnitudes above a threshold; of the `count` largest if they are more."""
    support = (values.abs() > threshold).nonzero().reshape(-1)
    if len(support) > count:
        support = support[torch.topk(values[support].abs(), count, sorted=False).indices].sort().values
    return support


def _least_squares(
    columns: Any, target: NDArray[np.float64], start: NDArray[np.float64], tolerance: float, max_iterations: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """CGLS for min ‖Φx − y‖₂ from a start: x and the residual y − Φx."""
    x = start.copy()
    residual = target - columns @ x
    transposed = columns.T
    gradient = transposed @ residual
    direction = gradient.copy()
    square = float(gradient @ gradient)
    enough = tolerance**2 * float(np.square(transposed @ target).sum())
    for _ in range(max_iterations):
        if square <= enough:
            break
        image = columns @ direction
        length = float(image @ image)
        if length == 0:
            break
        x += square / length * direction
        residual -= square / length * image
        gradient = transposed @ residual
        square, old = float(gradient @ gradient), square
        direction = gradient + square / old * direction
    return x, target - columns @ x
