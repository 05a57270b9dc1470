"""A pruned layer as a sketch: the sides to sketch, the lines to store separately, and the bits compared with naive."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from milkshake_mbp.theory.occam import elias_gamma_length, grid_code_length, scattered_code_length, sparse_code_length
from milkshake_mbp.theory.perturbation import default_step
from milkshake_mbp.theory.sketching import (
    SketchSearch,
    distributed_sparsity,
    ensemble_degree,
    ensemble_pair,
    sketch,
    sketch_dimension,
    smallest_sketch_dimension,
)

__all__ = ["LayerSketch", "predicted_spread", "sketch_layer"]

# Where recovery sets in: a sketch holds a little over 4 numbers for every nonzero, and a line with r nonzeros, which
# sees only one side's m numbers, needs about 4.5 r of them.
_NUMBERS_PER_NONZERO = 4.0
_NUMBERS_PER_LINE = 4.5
# Keeping apart is always cheaper than sketching, so a plan without a limit on it would keep everything apart.
_MOST_APART = 0.1


@dataclass(frozen=True)
class LayerSketch:
    """One pruned and rounded layer X = ρK, K integer, and the sketch Y = A K' Bᵀ of the part K' of K.

    K' is K without the rows and columns that are stored separately, because they have too many nonzeros.

    Attributes:
        shape: (out, in).
        nonzeros: α, the number of nonzeros of K.
        column_max: j_r, the largest number of nonzeros in a column.
        row_max: j_c, the largest number of nonzeros in a row.
        diagonal_full: whether every entry (i, i) of K is nonzero.
        predicted_spread: Lemma 5.1's 3χ·max(d_1, d_2), with λ = 1 and χ the share of entries that are not zero.
        theorem_dim: Theorem 5.1's m with constant 1; the theorem needs m ≤ min(d_1, d_2).
        degree: degree of the ensembles.
        sketch_shape: shape of the smallest Y found that provably determines K'; None if there is none.
        rows_apart: indices of the rows that are stored separately, by places and values.
        columns_apart: indices of the columns that are stored separately.
        certified: whether K' is proved to be the only ℓ1 minimiser with this sketch.
        reason: why it is not certified; empty if it is.
        sketch_bits: bits of Y and of everything else that a decoder of K needs; infinite if not certified.
        naive_bits: bits of K by places and values.
        dense_bits: bits of the layer as it is stored.
        seed: seed of the ensembles, which is part of a network's header.
    """

    shape: tuple[int, int]
    nonzeros: int
    column_max: int
    row_max: int
    diagonal_full: bool
    predicted_spread: float
    theorem_dim: int
    degree: int
    sketch_shape: tuple[int, int] | None
    rows_apart: tuple[int, ...]
    columns_apart: tuple[int, ...]
    certified: bool
    reason: str
    sketch_bits: float
    naive_bits: float
    dense_bits: float
    seed: int = 0

    @property
    def numbers(self) -> int | None:
        """Number of entries of the sketch."""
        return None if self.sketch_shape is None else math.prod(self.sketch_shape)

    @property
    def lemma_5_1_held(self) -> bool:
        """Whether no row or column has more nonzeros than predicted."""
        return max(self.column_max, self.row_max) <= self.predicted_spread


def predicted_spread(shape: tuple[int, int], chi: float, slack: float = 1.0) -> float:
    """3λχ·max(d_1, d_2), Lemma 5.1's bound on max(j_r, j_c) (errata E13, E20, E30).

    Args:
        shape: (out, in).
        chi: χ, the share of the entries kept.
        slack: λ ≥ 1; the lemma fails with probability at least 1/λ.
    """
    return 3 * slack * chi * max(shape)


def sketch_layer(
    weight: Tensor,
    step: float | None = None,
    *,
    seed: int = 0,
    layer: int = 0,
    degree: int | None = None,
    tolerance: float = 0.03,
) -> LayerSketch:
    """Sketch a pruned layer in the way that takes the fewest bits, and prove that the sketch determines it.

    Both sides are sketched, or only one, as for a layer of ten rows; rows and columns with too many nonzeros are stored
    separately. An estimate of the bits at the onset of recovery decides between these; the reported m is the smallest
    with a certified recovery.

    Args:
        weight: (out, in) pruned weights, any floating dtype.
        step: ρ; by default `default_step` of these weights.
        seed: seed of the ensembles.
        layer: number of the layer, which distinguishes its ensembles from those of other layers.
        degree: degree of the ensembles; by default ⌈ln p⌉.
        tolerance: relative width of the search's final bracket in m.

    Raises:
        ValueError: the weights are not a finite matrix, the step is not positive and finite, or the step is so small
            that the integers K sum to 2⁵³ or more.
    """
    exact = weight.detach().double()
    if exact.ndim != 2 or not bool(torch.isfinite(exact).all()):
        raise ValueError(f"only finite matrices are sketched, got shape {tuple(weight.shape)} or NaN or infinity")
    step = default_step(weight) if step is None else step
    if not 0 < step < math.inf:
        raise ValueError(f"the discretization step must be positive and finite, got {step}")
    if float(exact.abs().sum()) / step >= 2.0**53:
        raise ValueError(f"at a step of {step} the layer's integers sum to 2^53 or more, and no sketch would be exact")
    integers = torch.round(exact / step).long().cpu()
    shape = (integers.shape[0], integers.shape[1])
    spread = distributed_sparsity(integers)
    nonzeros = int(torch.count_nonzero(integers))
    alphabet = 2 * math.ceil(float(exact.abs().amax()) / step) + 1
    degree = degree or ensemble_degree(max(shape))
    naive = sparse_code_length(
        integers.numel(), nonzeros, alphabet, min(shape), int(torch.count_nonzero(integers.diagonal()))
    )
    plan = min(_plans(integers, alphabet), key=lambda plan: plan.estimate, default=None)
    found, reason, length = SketchSearch(None, 0, None, 0), "", math.inf
    if not nonzeros:
        rounded = "rounds to zero" if exact.any() else "is zero"
        reason = f"the layer {rounded}: there is nothing to sketch"
    elif plan is None:
        reason = "no sketch with fewer numbers than the layer holds its nonzeros: recovery needs about four for each"
    else:
        rest = plan.rest(integers)
        found = smallest_sketch_dimension(
            rest.double(), degree, seed=seed, layer=layer, sides=plan.sides, tolerance=tolerance
        )
        if found.sketch_dim is None:
            reason = f"nothing up to m = {found.fails_at} gives the layer back with a proof"
        else:
            length = plan.length(integers, found.sketch_dim, degree, alphabet, seed, layer)
    sketched = None
    if plan is not None and found.sketch_dim is not None:
        sketched = plan.sketch_shape(shape, found.sketch_dim)
    return LayerSketch(
        shape=shape,
        nonzeros=nonzeros,
        column_max=spread.column_max,
        row_max=spread.row_max,
        diagonal_full=spread.diagonal_full,
        predicted_spread=predicted_spread(shape, nonzeros / integers.numel()),
        theorem_dim=sketch_dimension(shape, spread),
        degree=degree,
        sketch_shape=sketched,
        rows_apart=tuple(plan.rows.nonzero().flatten().tolist()) if plan else (),
        columns_apart=tuple(plan.columns.nonzero().flatten().tolist()) if plan else (),
        certified=found.sketch_dim is not None,
        reason=reason,
        sketch_bits=length / math.log(2),
        naive_bits=naive / math.log(2),
        dense_bits=8.0 * weight.element_size() * integers.numel(),
        seed=seed,
    )


@dataclass(frozen=True)
class _Plan:
    """Which sides to sketch, and which rows and columns, as (d_1,) and (d_2,) bools, to keep apart."""

    sides: tuple[bool, bool]
    rows: Tensor
    columns: Tensor
    estimate: float

    def rest(self, integers: Tensor) -> Tensor:
        """What is sketched."""
        return integers * ~self.rows.unsqueeze(1) * ~self.columns

    def sketch_shape(self, shape: tuple[int, int], m: int) -> tuple[int, int]:
        """Of Y."""
        return (m if self.sides[0] else shape[0], m if self.sides[1] else shape[1])

    def apart_length(self, integers: Tensor, alphabet: int) -> float:
        """Nats for the lines kept apart: which, and their entries by places and values."""
        whole, beside = integers[self.rows], integers[~self.rows][:, self.columns]
        lines = sum(scattered_code_length(len(lines), int(lines.sum()), 2) for lines in (self.rows, self.columns))
        return lines + sum(
            scattered_code_length(part.numel(), int(torch.count_nonzero(part)), alphabet) for part in (whole, beside)
        )

    def length(self, integers: Tensor, m: int, degree: int, alphabet: int, seed: int, layer: int) -> float:
        """Nats for K: ln D for m, degree, ρ, r, R, Y at ln(2R+1) a number, the sides, and what is kept apart."""
        shape = (integers.shape[0], integers.shape[1])
        pair = ensemble_pair(shape, m, degree, seed=seed, layer=layer)
        left, right = (side if wanted else None for side, wanted in zip(pair, self.sides, strict=True))
        values = sketch(self.rest(integers), left, right)
        largest = int(values.abs().amax())
        header = math.log(max(shape)) + math.log(3) + elias_gamma_length([degree, largest]) + grid_code_length(alphabet)
        return header + values.numel() * math.log(2 * largest + 1) + self.apart_length(integers, alphabet)


def _plans(integers: Tensor, alphabet: int) -> Iterator[_Plan]:
    """The plan of fewest estimated nats for both sides, the rows alone and the columns alone, where there is one."""
    rows, columns = integers.shape
    there = integers != 0
    nonzeros = int(there.sum())
    for sides in ((True, True), (True, False), (False, True)):
        largest = math.isqrt(rows * columns - 1) if all(sides) else (rows if sides[0] else columns) - 1
        plans = []
        for m in sorted({round(largest * 0.95**power) for power in range(100)} - {0}):
            numbers = (m if sides[0] else rows) * (m if sides[1] else columns)
            if numbers < _NUMBERS_PER_NONZERO * (1 - _MOST_APART) * nonzeros:
                continue
            # Rows see the m numbers of a sketched column side, and columns those of a sketched row side.
            full_rows = there.sum(dim=1) > (m / _NUMBERS_PER_LINE if sides[1] else columns)
            kept = there & ~full_rows.unsqueeze(1)
            full_columns = kept.sum(dim=0) > (m / _NUMBERS_PER_LINE if sides[0] else rows)
            rest = int((kept & ~full_columns).sum())
            if rest >= (1 - _MOST_APART) * nonzeros and numbers >= _NUMBERS_PER_NONZERO * rest:
                plan = _Plan(sides, full_rows, full_columns, numbers * math.log(alphabet))
                plans.append(replace(plan, estimate=plan.estimate + plan.apart_length(integers, alphabet)))
        if nonzeros and plans:
            yield min(plans, key=lambda plan: plan.estimate)
