"""The ladder: every bound, and one table of them (paper §5–7, spec §4).

A row is one function of what was `Measured` of a network, and one entry in the `ROWS` of its kind; callbacks, CSV
columns, dashboards and figures take their names from the table. Every value is a natural log, products of norms live in
log space, and everything is float64.
"""

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from milkshake_mbp.theory.cushions import Cushions
from milkshake_mbp.theory.flatness import Flatness
from milkshake_mbp.theory.layer_sketch import LayerSketch
from milkshake_mbp.theory.measured import Coded, HeldOut, InitialDistances, LayerNorms, Measured, PrunedLayer
from milkshake_mbp.theory.perturbation import (
    NeededMargin,
    affordable_strength,
    safe_log,
    subgaussian_factor,
)
from milkshake_mbp.theory.pruning import MaskDraw, StrengthSearch
from milkshake_mbp.theory.rows import graphs, leading, measures, paper, peers, rigorous
from milkshake_mbp.theory.rows.row import CONVENTIONS, Bound, Convention, Row

__all__ = [
    "CONVENTIONS",
    "ROWS",
    "Bound",
    "Coded",
    "Convention",
    "HeldOut",
    "InitialDistances",
    "LayerNorms",
    "Measured",
    "PrunedLayer",
    "Row",
    "bound_table",
    "evaluate",
    "left_out",
    "order_margins",
    "prune_layers",
    "search_paper_strength",
]

ROWS: tuple[Row, ...] = (
    *paper.ROWS,
    *leading.ROWS,
    *peers.ROWS,
    *graphs.ROWS,
    *rigorous.ROWS,
    *measures.ROWS,
)


def evaluate(measured: Measured, convention: str | None = None) -> list[Bound]:
    """Every row of one network, or of one convention, in the order of `ROWS`.

    A row is left out if a quantity that it needs was not measured, or its formula is not defined for this network.

    Raises:
        ValueError: unknown convention.
    """
    if convention is not None and convention not in CONVENTIONS:
        raise ValueError(f'unknown convention "{convention}": expected one of {", ".join(CONVENTIONS)}')
    rows = [row for row in ROWS if convention in (None, row.convention) and row.meaningful(measured)]
    return [row.bound(measured) for row in rows]


def left_out(measured: Measured) -> dict[str, tuple[str, ...]]:
    """The labels of the rows whose formulas are not defined for a network's structure, by the reason."""
    found: dict[str, list[str]] = {}
    for row in ROWS:
        if broken := [measured.broken[trait] for trait in row.structure if trait in measured.broken]:
            alike = any(other.label == row.label and other is not row for other in ROWS)
            label = f"{row.label} ({row.convention})" if alike else row.label
            found.setdefault(broken[0], []).append(label)
    return {reason: tuple(labels) for reason, labels in found.items()}


def bound_table(
    weights: Sequence[Tensor],
    *,
    convention: str,
    margins: Tensor,
    num_samples: int,
    input_norm: float,
    d: float | None = None,
    num_classes: int | None = None,
    draw: MaskDraw | None = None,
    keep_diagonal: bool = True,
    steps: Sequence[float | None] | None = None,
    norms: LayerNorms | None = None,
    search: StrengthSearch | None = None,
    pruned: Sequence[PrunedLayer] | None = None,
    initial: InitialDistances | Sequence[Tensor] | None = None,
    input_norms: Mapping[float, float] | None = None,
    compressed_margins: Tensor | None = None,
    cushions: Cushions | None = None,
    flatness: Flatness | None = None,
    sketches: Sequence[LayerSketch] | None = None,
    coded: Coded | None = None,
    biases: int = 0,
    failure: float = 0.05,
    delta: float = 0.05,
    violated: str = "",
    test: HeldOut | None = None,
    seed: int = 0,
) -> list[Bound]:
    """Every row of one convention for a chain of Linear layers, except those whose arguments are not given.

    This is a shortcut to `Measured` and `evaluate`; `milkshake_mbp.reading.measure` measures a module on data.

    Args:
        weights: (out, in) tensors in forward order, any floating dtype, any device.
        convention: `paper`, what the released routines computed for the tables; `leading`, each published
            leading-order expression on the risk scale with hidden constant 1; `rigorous`, bounds that hold as stated;
            or `measure`, quantities that were proposed to correlate with generalization.
        margins: (n,) margins of the unpruned network on the training samples.
        num_samples: n; a guarantee's n is the number of margins, whatever is given here.
        input_norm: B, the largest ‖x‖₂ among those samples.
        d: pruning strength; by default the paper's search in `paper`, 1 elsewhere.
        num_classes: k; by default the last layer's outputs.
        draw: draw of Algorithm 1's masks, if already made; by default one from the seed.
        keep_diagonal: whether the masks keep entries (i, i); those of `paper` never do.
        steps: ρ_l; by default max|A_l|·2⁻⁸.
        norms: norms of the weights, if already measured; missing ones are measured.
        search: result of the paper's search, if already done.
        pruned: the layers pruned at d, if already measured.
        initial: the initial weights, or the distances from them, for the rows that need them.
        input_norms: largest ‖x‖_p among the samples by p, for rows in other norms; by default bounded through B.
        compressed_margins: (n,) margins of the pruned and rounded network on the same samples, for `rigorous`.
        cushions: the noise stability measured on some samples, for Arora et al. 2018.
        flatness: the noise that the weights tolerate, for the PAC-Bayes measures.
        sketches: the pruned and rounded layers as sketches, for `rigorous`.
        coded: the length of a code that a decoder reads, and its network's error on the same samples, for `rigorous`.
        biases: number of bias parameters, which `rigorous` codes too.
        failure: η, the failure probability for which Theorem 5.2 is evaluated.
        delta: joint failure probability of the `rigorous` rows from training samples; each has a fixed share.
        violated: why the network is not bias-free with 0-preserving activations, if so; such rows do not apply.
        test: errors of the unpruned network on held-out samples, for `rigorous`.
        seed: seed of the masks' draw.

    Returns:
        One `Bound` per row of the convention, in the order of `ROWS`.

    Raises:
        ValueError: unknown convention, NaN weights, layers that do not chain, no samples, or fewer than two classes.
    """
    if convention not in CONVENTIONS:
        raise ValueError(f'unknown convention "{convention}": expected one of {", ".join(CONVENTIONS)}')
    if not margins.numel() or num_samples < 1:
        raise ValueError("no training samples: the margins are empty")
    if not 0 <= input_norm < math.inf:
        raise ValueError(f"the input norm must be finite and not negative, got {input_norm}")
    norms = LayerNorms.measure(weights) if norms is None else norms.completed(weights)
    num_classes = num_classes or norms.shapes[-1][0]
    if num_classes < 2:
        raise ValueError("a classifier has at least two classes: give num_classes if the last layer has one output")
    log_input_norm = safe_log(input_norm)
    ordered = order_margins(margins)
    if CONVENTIONS[convention].searched:
        search = search or search_paper_strength(
            weights, norms, float(ordered[0]), num_samples, log_input_norm, draw=draw, seed=seed, d=d
        )
    else:
        d = 1.0 if d is None else d
        if pruned is None and convention != "measure":
            pruned = prune_layers(weights, d, draw=draw, keep_diagonal=keep_diagonal, steps=steps, seed=seed)
    if initial is not None and not isinstance(initial, InitialDistances):
        initial = InitialDistances.measure(weights, initial)
    measured = Measured(
        norms=norms,
        margins=ordered,
        num_samples=num_samples,
        log_input_norm=log_input_norm,
        num_classes=num_classes,
        d=1.0 if d is None else d,
        broken=dict.fromkeys(("bias_free", "zero_preserving"), violated) if violated else {},
        input_norms=input_norms or {},
        search=search,
        pruned=tuple(pruned or ()),
        failure=failure,
        delta=delta,
        compressed_margins=compressed_margins,
        weight_bits=8 * max((weight.element_size() for weight in weights), default=4),
        plain=biases,
        biases=biases,
        initial=initial,
        cushions=cushions,
        flatness=flatness,
        coded=coded,
        test=test,
    )
    return evaluate(measured.with_sketches(sketches), convention)


def order_margins(margins: Tensor) -> Tensor:
    """(n,) margins as `Measured` holds them: sorted, float64, on the CPU, a NaN as −inf."""
    return margins.detach().double().cpu().nan_to_num(nan=-math.inf).sort().values


def prune_layers(
    weights: Sequence[Tensor],
    d: float,
    *,
    draw: MaskDraw | None = None,
    keep_diagonal: bool = True,
    steps: Sequence[float | None] | None = None,
    seed: int = 0,
) -> tuple[PrunedLayer, ...]:
    """The layers pruned by Algorithm 1 and rounded, measured; arguments as in `bound_table`."""
    masks = (draw or MaskDraw(weights, seed)).masks(d, keep_diagonal)
    return tuple(
        PrunedLayer.measure(weight, mask, step)
        for weight, mask, step in zip(weights, masks, steps or [None] * len(weights), strict=True)
    )


def search_paper_strength(
    weights: Sequence[Tensor],
    norms: LayerNorms,
    margin: float,
    num_samples: int,
    log_input_norm: float,
    *,
    draw: MaskDraw | None = None,
    seed: int = 0,
    d: float | None = None,
) -> StrengthSearch:
    """The paper's search for d, or its needed margin at a given d (`paper` convention, spec §4).

    Args:
        weights: (out, in) tensors in forward order.
        norms: norms of the weights.
        margin: γ, the smallest training margin.
        num_samples: n, for κ_l.
        log_input_norm: ln B.
        draw: draw of the masks, if already made.
        seed: seed of the draw, if not.
        d: evaluate here instead of searching.
    """
    if d is None and not margin > 0:
        return StrengthSearch(0.0, -math.inf, -math.inf, 0)
    factors = [subgaussian_factor(shape, num_samples) for shape in norms.shapes]
    needed = NeededMargin(weights, draw or MaskDraw(weights, seed), norms.log_spectral, log_input_norm, factors)
    if d is not None:
        return StrengthSearch(d, needed.log_needed(d), safe_log(margin), 1)
    return affordable_strength(needed, margin)
