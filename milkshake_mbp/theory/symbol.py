"""Fourier symbol of a zero-padded convolution: a certified upper bound on its spectral norm (spec §9)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby, product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from milkshake_mbp.theory.layers import Layer, Window

__all__ = [
    "UNIT",
    "Axis",
    "Tap",
    "absolute_mass",
    "axes",
    "bound_eigenvalues",
    "by_phase",
    "grid_norm",
    "symbol_norm",
    "taps",
]

UNIT = 2.0**-53  # u, half the distance from 1 to the next number
_TOLERANCE = 1e-3
_WORTHWHILE = 0.03
_POWER_STEPS = 8
_GOLDEN = (math.sqrt(5) - 1) / 2
_TINY = torch.finfo(torch.float64).tiny
_CHUNK = 2**22  # complex numbers at a time


@dataclass(frozen=True)
class Axis:
    """One dimension of a convolution as a convolution at stride 1 of the input's phases.

    With stride s, the input at t = s·n + r is entry n of phase r, and output p reads entry n = p + e of phase r with a
    tap at offset s·e + r. A tap that meets only padding is left out.

    Attributes:
        taps: (index in the kernel, phase r, shift e) of every tap that meets the input.
        torus: least T such that the zero-padded convolution is a submatrix of the circular one of period T.
        constant: whether the symbol's singular values are the same at all frequencies.
        whole: whether one output meets the input with all of these taps.
    """

    taps: tuple[tuple[int, int, int], ...]
    torus: int
    constant: bool
    whole: bool

    @classmethod
    def of(cls, inputs: int, kernel: int, stride: int, padding: int, dilation: int) -> "Axis":
        """The dimension in which `inputs` entries meet a kernel of so many taps."""
        outputs = (inputs + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        taps: list[tuple[int, int, int]] = []
        seen: list[tuple[int, int]] = []
        for tap in range(kernel):
            offset = dilation * tap - padding
            first, last = max(0, -(offset // stride)), min(outputs - 1, (inputs - 1 - offset) // stride)
            if first <= last:
                taps.append((tap, offset % stride, offset // stride))
                seen.append((first, last))
        if not taps:
            return cls((), 1, True, False)
        first, last = min(low for low, _ in seen), max(high for _, high in seen)
        torus, constant = last - first + 1, True
        for phase in {r for _, r, _ in taps}:
            shifts = [e for _, r, e in taps if r == phase]
            entries = [p + e for (_, r, e), ends in zip(taps, seen, strict=True) if r == phase for p in ends]
            constant &= len(shifts) == 1
            # Output p takes entry n where n − p is a shift; a period must not make any other n − p one.
            reach = max(max(entries) - first - min(shifts), max(shifts) - min(entries) + last)
            torus = max(torus, reach + 1, max(entries) - min(entries) + 1)
        whole = max(low for low, _ in seen) <= min(high for _, high in seen)
        return cls(tuple(taps), torus, constant, whole)

    def frequencies(self, twist: int) -> Tensor:
        """2j + twist for ω = π(2j + twist)/T; a single one if the symbol is constant."""
        return torch.zeros(1, dtype=torch.int64) if self.constant else 2 * torch.arange(self.torus) + twist


def axes(layer: Layer) -> tuple[Axis, ...]:
    """The dimensions of a convolution.

    Raises:
        ValueError: the sizes of the layer's input and output are not known.
    """
    window = _window(layer)
    layer.check_sizes()
    sizes = zip(layer.inputs[1:], window.size, window.stride, window.padding, window.dilation, strict=True)
    return tuple(Axis.of(*size) for size in sizes)


def taps(layer: Layer, dimensions: Sequence[Axis], kernel: Tensor) -> "list[Tap]":
    """The taps of a kernel of the layer's shape that meet the input."""
    window = _window(layer)
    filters = kernel.reshape(window.groups, len(kernel) // window.groups, -1, *window.size)
    found = []
    for indices in product(*(axis.taps for axis in dimensions)):
        place: Any = (..., *(index for index, _, _ in indices))
        phase = tuple(phase for _, phase, _ in indices)
        shift = tuple(0 if axis.constant else e for axis, (_, _, e) in zip(dimensions, indices, strict=True))
        found.append(Tap(phase, shift, filters[place]))
    return found


class Tap(NamedTuple):
    """One tap of a kernel: the phase of the input that it reads, its shift there, (groups, rows, columns) entries."""

    phase: tuple[int, ...]
    shift: tuple[int, ...]
    entries: Tensor


def by_phase(found: "Sequence[Tap]", combine: Callable[[list[Tensor]], Tensor]) -> Tensor:
    """The taps of each phase combined, one phase beside another: (groups, rows, phases·columns)."""
    order = sorted(found, key=lambda tap: tap.phase)
    return torch.cat(
        [combine([tap.entries for tap in group]) for _, group in groupby(order, key=lambda tap: tap.phase)], dim=-1
    )


def absolute_mass(found: "Sequence[Tap]") -> float:
    """‖Σ_e |K_e|‖_F over all groups, phases side by side: a bound on ‖|A|‖₂, and on ‖S(ω)‖_F."""
    return float(torch.linalg.vector_norm(by_phase(found, lambda entries: torch.stack(entries).abs().sum(dim=0))))


def symbol_norm(layer: Layer, least: float = 0.0) -> float:
    """A certified upper bound on ‖A‖₂ of a zero-padded convolution, gains included.

    A is a submatrix of the circular convolution of any period from `Axis.torus` on, and of the one whose entries change
    sign with each period; a Fourier transform makes either block diagonal, so that ‖A‖₂ ≤ max_ω ‖S(ω)‖₂ with
    S(ω) = Σ_e K_e exp(iωe), the phases of a stride side by side. The least of these maxima is returned. That no S Sᴴ
    has an eigenvalue above it is proved by Cholesky factorizations (`bound_eigenvalues`); the rounding of S Sᴴ is
    bounded a priori and added.

    Args:
        layer: a convolution; the size of its input is known.
        least: a lower bound on ‖A‖₂, from which the search starts.

    Raises:
        ValueError: the sizes of the input and the output are not known.
    """
    kernel = layer.effective_kernel
    scale = float(kernel.abs().amax())
    dimensions = axes(layer)
    found = taps(layer, dimensions, kernel / scale) if scale else []
    if not found:
        return 0.0
    mass = absolute_mass(found)
    grams = _Grams.of(found, dimensions)
    start = (least / scale) ** 2
    best = grams.bound((0,) * len(dimensions), start)
    for twists in product(*((0, 1) if not axis.constant else (0,) for axis in dimensions)):
        if any(twists) and best > start * (1 + _WORTHWHILE):
            best = min(best, grams.bound(twists, start, best / (1 + _WORTHWHILE)))
    # An entry of S Sᴴ sums, for each lag, at most taps·columns products; a wave is off by 64u, the scaled kernel by 2u.
    products = len(found) * max(grams.inner, 1) + len(grams.lags) + 64
    return scale * (math.sqrt(best + 3 * products * UNIT * mass**2) + 4 * UNIT * mass) * (1 + 8 * UNIT)


def grid_norm(layer: Layer, grid: Sequence[int], tolerance: float = 1e-4) -> float:
    """Max ‖S(ω)‖₂ of a convolution's symbol over the frequencies of one grid, gains included; no bound on ‖A‖₂.

    Stride, padding and dilation are ignored, as in public code that measures networks by it; taps beyond the grid too.
    As nothing is guaranteed by it, it is computed in single precision: the norm at a frequency that no other exceeds by
    more than the tolerance.

    Args:
        layer: a convolution.
        grid: sizes, as many as the convolution has spatial dimensions.
        tolerance: relative, by which the value may be too small.
    """
    window = _window(layer)
    dimensions = tuple(
        Axis(tuple((tap, 0, tap) for tap in range(min(size, period))), period, size == 1, True)
        for size, period in zip(window.size, grid, strict=True)
    )
    kernel = layer.effective_kernel
    scale = float(kernel.abs().amax())
    if not scale:
        return 0.0
    grams = _Grams.of(taps(layer, dimensions, (kernel / scale).float()), dimensions)
    bound = grams.bound((0,) * len(dimensions), 0.0, tolerance=2 * tolerance)
    return scale * math.sqrt(bound / (1 + 2 * tolerance))


def _window(layer: Layer) -> Window:
    assert layer.window is not None, "a convolution has a window"
    return layer.window


@dataclass(frozen=True)
class _Grams:
    """S Sᴴ, or SᴴS if that is smaller, as Σ_δ G_δ exp(iωδ) with G_{−δ} = G_δᵀ.

    Attributes:
        lags: (lags, dimensions) δ, one of each pair ±δ.
        even: (lags, groups, k, k): G_0, else G_δ + G_δᵀ.
        odd: G_δ − G_δᵀ.
        inner: products in an entry, for each tap.
        dimensions: dimensions of the convolution.
    """

    lags: Tensor
    even: Tensor
    odd: Tensor
    inner: int
    dimensions: Sequence[Axis]

    @classmethod
    def of(cls, found: Sequence[Tap], dimensions: Sequence[Axis]) -> "_Grams":
        groups, rows, columns = found[0].entries.shape
        order = sorted({tap.phase for tap in found})
        if rows <= columns * len(order):
            factors = [(tap.phase, tap.shift, tap.entries) for tap in found]
        else:
            factors = []
            for tap in found:
                wide = tap.entries.new_zeros(groups, len(order), columns, rows)
                wide[:, order.index(tap.phase)] = tap.entries.mT
                factors.append(((), tuple(-e for e in tap.shift), wide.flatten(1, 2)))
        pairs: dict[tuple[int, ...], list[tuple[int, int]]] = {}
        for (i, (phase, e, _)), (j, (other, f, _)) in product(enumerate(factors), repeat=2):
            lag = tuple(x - y for x, y in zip(e, f, strict=True))
            if phase == other and lag >= (0,) * len(lag):
                pairs.setdefault(lag, []).append((i, j))
        products = torch.stack(
            [
                torch.cat([factors[i][2] for i, _ in of_lag], dim=-1)
                @ torch.cat([factors[j][2] for _, j in of_lag], dim=-1).mT
                for of_lag in pairs.values()
            ]
        )
        lags = torch.tensor(list(pairs)).reshape(len(pairs), -1)
        halves = torch.where((lags == 0).all(dim=1), 0.5, 1.0).to(products)[:, None, None, None]
        even, odd = halves * (products + products.mT), products - products.mT
        return cls(lags, even, odd, factors[0][2].shape[-1], dimensions)

    def bound(
        self, twists: Sequence[int], least: float, enough: float = math.inf, tolerance: float = _TOLERANCE
    ) -> float:
        """A bound on the eigenvalues at all frequencies of one grid; infinity once it is seen to exceed `enough`."""
        frequencies = [axis.frequencies(twist) for axis, twist in zip(self.dimensions, twists, strict=True)]
        grid = torch.cartesian_prod(*frequencies).reshape(-1, len(self.dimensions))
        periods = torch.tensor([axis.torus for axis in self.dimensions])
        # S(−ω) is the conjugate of S(ω): one of the two.
        radix = (2 * periods).flip(0).cumprod(0).flip(0) // (2 * periods)
        grid = grid[(grid * radix).sum(dim=1) <= (-grid % (2 * periods) * radix).sum(dim=1)]
        # Neighbours are alike, so that frequencies from all over the grid find a bound which proves most of the others.
        grid = grid[(torch.arange(len(grid)) * _GOLDEN % 1).argsort()]
        # Two frequencies usually tell already that the grid is no better than one before.
        size = max(1, _CHUNK // self.even[0].numel())
        first, bounded = size if math.isinf(enough) else min(2, size), False
        for chunk in (grid[:first], *grid[first:].split(size)):
            if not len(chunk):
                continue
            # Reduced as integers, so that an angle's only error is its rounding.
            turns = (chunk[:, None, :] * self.lags) % (2 * periods)
            angles = (turns.double() * (math.pi / periods.double())).sum(dim=-1).to(self.even.device)
            cosines, sines = angles.cos().to(self.even.dtype), angles.sin().to(self.even.dtype)
            real, imaginary = cosines @ self.even.flatten(1), sines @ self.odd.flatten(1)
            grams = torch.complex(real, imaginary).reshape(-1, *self.even.shape[2:])
            # What was proved of one chunk is tried on the next as it is: tolerances must not add up.
            start = least / (1 + tolerance) if bounded else least
            least, bounded = max(least, bound_eigenvalues(grams, start, enough, tolerance)), True
            if math.isinf(least):
                break
        return least


def bound_eigenvalues(
    grams: Tensor, least: float = 0.0, enough: float = math.inf, tolerance: float = _TOLERANCE
) -> float:
    """An upper bound on every eigenvalue of some positive semidefinite matrices, and on `least`.

    (1 + tolerance)λI − G has a Cholesky factor for every G, or λ is raised to the largest eigenvalue of the one that a
    few power iterations choose. A factorization that succeeds in floating point proves it of a matrix within
    4(k + 2)u·tr of the one factored (Higham 2002, Thm. 10.3).

    Args:
        grams: (n, k, k), real or complex, taken to be Hermitian.
        least: known to bound other matrices.
        enough: infinity is returned once the bound is seen to exceed it.
        tolerance: relative distance from the largest eigenvalue that the bound may have.
    """
    size = grams.shape[-1]
    diagonals = grams.diagonal(dim1=-2, dim2=-1).real
    if size == 1:
        largest = max(least, float(diagonals.amax()))
        return largest if largest < enough else math.inf
    every = open_ = torch.arange(len(grams), device=grams.device)

    def exceeding(shift: float) -> Tensor:
        """Those of the open matrices that are not proved to have no eigenvalue above the shift."""
        shifted = -(grams if open_ is every else grams[open_])
        shifted.diagonal(dim1=-2, dim2=-1).copy_(shift - diagonals[open_])
        return open_[torch.linalg.cholesky_ex(shifted).info != 0]

    if enough < math.inf and len(exceeding(enough)):
        return math.inf
    shift = least * (1 + tolerance)
    open_ = exceeding(shift) if shift else open_
    estimates = grams.new_zeros(len(grams), dtype=torch.float64)
    if len(open_):
        start = torch.randn(size, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(size))
        likely, vectors = grams[open_], start.to(grams).expand(len(open_), -1, -1)
        for _ in range(_POWER_STEPS):
            vectors = likely @ (vectors / torch.linalg.vector_norm(vectors, dim=1, keepdim=True).clamp_min(_TINY))
        estimates[open_] = torch.linalg.vector_norm(vectors, dim=(1, 2)).double()
    while len(open_):
        likeliest = open_[estimates[open_].argmax()]
        shift = max(shift, float(torch.linalg.eigvalsh(grams[likeliest])[-1]), _TINY) * (1 + tolerance)
        open_ = exceeding(shift)
    return shift * (1 + 4 * (size + 3) * size * UNIT)
