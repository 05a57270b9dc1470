"""The paper's two diagnostics over the strength d, and a check of its assumption that weights are normal."""

import math
from argparse import Namespace
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from torch.func import functional_call

from milkshake_mbp.callbacks.data import train_samples
from milkshake_mbp.errors import UserError
from milkshake_mbp.files import write_csv
from milkshake_mbp.framework.checkpoints import read_weights
from milkshake_mbp.framework.datamodules import load_datamodule
from milkshake_mbp.reading import Samples, read, registered_kernels
from milkshake_mbp.reporting.figures import COLOURS, MARKERS, PRINT, save_figure, scale_log
from milkshake_mbp.reporting.tables import PaperRun
from milkshake_mbp.reporting.words import show_tick
from milkshake_mbp.runs.weights import chain_from_state
from milkshake_mbp.theory.diagnostics import Normality, normal_quantiles, spread_over_strengths
from milkshake_mbp.theory.layer_sketch import predicted_spread
from milkshake_mbp.theory.measured import LayerNorms
from milkshake_mbp.theory.norms import spectral_norm_estimate
from milkshake_mbp.theory.perturbation import (
    expected_difference_norm,
    log_output_perturbation,
    log_telescoping_perturbation,
    logsumexp,
    perturbation_condition,
    safe_log,
)
from milkshake_mbp.theory.pruning import MaskDraw, keep_probability

__all__ = ["LayerAtStrength", "NetworkAtStrength", "diagnose", "draw_d_curves", "export_d_curves", "strength_curves"]

STRENGTHS: tuple[float, ...] = tuple(map(float, np.linspace(0, 10, 100)))
_SAMPLES = 2000
_READ = 16


@dataclass(frozen=True)
class NetworkAtStrength:
    """The output's error at one strength; norms of output vectors, and natural logs of the bounds on them.

    Attributes:
        d: the strength.
        chi: χ(d).
        pruning_error: the largest ‖f̂(x) − f(x)‖₂ over the samples.
        log_lemma_4_3: ln of e·B·Π‖A_l‖₂·Σ‖Δ_l‖₂/‖A_l‖₂, measured ‖Δ_l‖₂.
        log_predicted: the same with Γ_l for ‖Δ_l‖₂ (Lemma 4.2 with ε_l = C = 1).
        log_telescoping: ln of the telescoping bound, which needs no condition.
        condition_holds: whether Lemma 4.3's ‖Δ_l‖₂ ≤ ‖A_l‖₂/L holds in every layer.
        sparsity: share of all weights pruned.
        predicted_sparsity: the same under Assumption 3.1.
    """

    d: float
    chi: float
    pruning_error: float
    log_lemma_4_3: float
    log_predicted: float
    log_telescoping: float
    condition_holds: bool
    sparsity: float
    predicted_sparsity: float


@dataclass(frozen=True)
class LayerAtStrength:
    """One layer's spread at one strength.

    Attributes:
        d: the strength.
        layer: its name.
        column_max: j_r measured.
        row_max: j_c measured.
        predicted: 3λχ·max(d_in, d_out) with λ = 1 (Lemma 5.1).
        sparsity: share of its weights pruned.
        predicted_sparsity: the same under Assumption 3.1.
    """

    d: float
    layer: str
    column_max: int
    row_max: int
    predicted: float
    sparsity: float
    predicted_sparsity: float


def diagnose(
    module: nn.Module,
    samples: Samples,
    folder: Path,
    *,
    names: Sequence[str],
    seed: int = 0,
    keep_diagonal: bool = True,
    console: Console,
) -> list[Path]:
    """Measure both diagnostics and normality, and write them as CSV and figures.

    Args:
        module: a network whose Linear layers chain.
        samples: to measure the pruning error on; some of them are used.
        folder: where the files go.
        names: what to call the layers.
        seed: of the masks.
        keep_diagonal: whether the masks spare entries (i, i).
        console: where progress is shown.

    Returns:
        The files.
    """
    weights = [kernel.matrix(module) for kernel in registered_kernels(module)]
    whole, layers = _measure(module, samples, names, seed, keep_diagonal, console)
    normality = [
        {"layer": name, "d": d, **asdict(Normality.measure(weight, d))}
        for name, weight in zip(names, weights, strict=True)
        for d in (0.1, 1.0, 10.0)
    ]
    tables = {
        "strengths": [asdict(row) for row in whole],
        "strengths_by_layer": [asdict(row) for row in layers],
        "normality": normality,
    }
    figures = {"strengths": _draw_strengths(whole, layers), "normality": _draw_normality(names, weights)}
    return [
        *(write_csv(folder / f"{name}.csv", rows) for name, rows in tables.items()),
        *(path for name, figure in figures.items() for path in save_figure(figure, folder / name)),
    ]


def export_d_curves(run: PaperRun, data_dir: str, folder: Path, *, title: str, console: Console) -> list[Path]:
    """Measure both diagnostics of a finished run's network, and write them as CSV and as a figure to print.

    Args:
        run: the run, its weights at hand.
        data_dir: folder that holds its dataset here.
        folder: where the files go.
        title: above the figure.
        console: where progress is shown.

    Returns:
        The files, the figure first.
    """
    module, names = chain_from_state(read_weights(run.files.model), activation=run.config["ffn_activation"])
    args = Namespace(**{**run.config, "data_dir": data_dir})
    datamodule = load_datamodule(args.datamodule)(args)
    datamodule.prepare_data()
    datamodule.setup("fit")
    whole, layers = _measure(
        module, train_samples(datamodule), names, args.prune_seed, args.keep_diagonal, console=console
    )
    figure = draw_d_curves(whole, layers, title)
    return [
        *save_figure(figure, folder / "d_curves", dpi=300),
        write_csv(folder / "strengths.csv", [asdict(row) for row in whole]),
        write_csv(folder / "strengths_by_layer.csv", [asdict(row) for row in layers]),
    ]


def _measure(
    module: nn.Module, samples: Samples, names: Sequence[str], seed: int, keep_diagonal: bool, console: Console
) -> tuple[list[NetworkAtStrength], list[LayerAtStrength]]:
    """`strength_curves` on some of the samples, with a bar of progress."""
    inputs = torch.cat([batch for batch, _ in samples.some(_SAMPLES).batches(next(module.parameters()))])
    return strength_curves(
        module,
        inputs,
        STRENGTHS,
        names=names,
        seed=seed,
        keep_diagonal=keep_diagonal,
        track=lambda strengths: track(strengths, "pruning at 100 strengths", console=console, transient=True),
    )


@torch.no_grad()
def strength_curves(
    module: nn.Module,
    inputs: Tensor,
    strengths: Sequence[float],
    *,
    names: Sequence[str],
    seed: int = 0,
    keep_diagonal: bool = True,
    track: Callable[[Sequence[float]], Iterable[float]] = iter,
) -> tuple[list[NetworkAtStrength], list[LayerAtStrength]]:
    """True pruning error beside its bounds, and spread beside its prediction, for one draw of Algorithm 1.

    Args:
        module: a network whose Linear layers chain.
        inputs: (m, …) samples on its device.
        strengths: d, increasing.
        names: what to call the layers.
        seed: of the masks.
        keep_diagonal: whether the masks spare entries (i, i).
        track: wraps the strengths, to show progress.
    """
    reading = read(module, inputs[:_READ])
    if not reading.chain:
        raise UserError(
            f"diagnostics over d need the paper's network, a chain of Linear layers, but {reading.not_a_chain}"
        )
    weights = [weight.double() for weight in reading.matrices(module)]
    norms = LayerNorms.measure(weights)
    draw = MaskDraw(weights, seed)
    log_input_norm = safe_log(float(torch.linalg.vector_norm(inputs.flatten(1), dim=1).amax()))
    original = module(inputs)
    layers = [
        row
        for name, weight, thresholds in zip(names, weights, draw.thresholds, strict=True)
        for row in _spread(name, weight, thresholds, strengths, keep_diagonal)
    ]
    total = sum(weight.numel() for weight in weights)
    whole = []
    for index, d in enumerate(track(strengths)):
        masks = draw.masks(d, keep_diagonal)
        kept = [weight * mask for weight, mask in zip(weights, masks, strict=True)]
        pruned = functional_call(module, reading.replaced(module, kept), (inputs,))
        spectral = list(norms.log_spectral)
        moved = [
            safe_log(float(spectral_norm_estimate(weight * ~mask))) for weight, mask in zip(weights, masks, strict=True)
        ]
        predicted = [
            safe_log(expected_difference_norm(shape, d, float(weight.var(correction=0))))
            for shape, weight in zip(norms.shapes, weights, strict=True)
        ]
        perturbed = [logsumexp(pair) for pair in zip(spectral, moved, strict=True)]
        here = layers[index :: len(strengths)]
        whole.append(
            NetworkAtStrength(
                d=d,
                chi=keep_probability(d),
                pruning_error=float(torch.linalg.vector_norm((pruned - original).double(), dim=1).amax()),
                log_lemma_4_3=log_output_perturbation(spectral, moved, log_input_norm),
                log_predicted=log_output_perturbation(spectral, predicted, log_input_norm),
                log_telescoping=log_telescoping_perturbation(spectral, perturbed, moved, log_input_norm),
                condition_holds=all(perturbation_condition(spectral, moved)),
                sparsity=sum(row.sparsity * w.numel() for row, w in zip(here, weights, strict=True)) / total,
                predicted_sparsity=sum(row.predicted_sparsity * w.numel() for row, w in zip(here, weights, strict=True))
                / total,
            )
        )
    return whole, layers


def _spread(
    name: str, weight: Tensor, thresholds: Tensor, strengths: Sequence[float], keep_diagonal: bool
) -> list[LayerAtStrength]:
    size, exempt = weight.numel(), min(weight.shape) if keep_diagonal else 0
    spread = spread_over_strengths(thresholds, strengths, keep_diagonal)
    return [
        LayerAtStrength(
            d=d,
            layer=name,
            column_max=column_max,
            row_max=row_max,
            predicted=predicted_spread((weight.shape[0], weight.shape[1]), keep_probability(d)),
            sparsity=1 - kept / size,
            predicted_sparsity=1 - (keep_probability(d) * (size - exempt) + exempt) / size,
        )
        for d, column_max, row_max, kept in zip(
            strengths, spread.column_max.tolist(), spread.row_max.tolist(), spread.kept.tolist(), strict=True
        )
    ]


def _draw_strengths(whole: Sequence[NetworkAtStrength], layers: Sequence[LayerAtStrength]) -> Figure:
    figure = Figure(figsize=(11, 8.5), layout="constrained")
    (error, lines), (sparsity, condition) = figure.subplots(2, 2)
    _draw_error(error, whole)
    names = list(dict.fromkeys(row.layer for row in layers))
    _draw_spread(lines, layers)
    for index, name in enumerate(names):
        rows = [row for row in layers if row.layer == name]
        style = {"color": COLOURS[index % len(COLOURS)], "linewidth": 1.2}
        d = [row.d for row in rows]
        sparsity.plot(d, [row.sparsity for row in rows], label=_literal(name), **style)
        sparsity.plot(d, [row.predicted_sparsity for row in rows], linestyle=":", **style)
        condition.plot(
            d, [row.predicted / max(row.column_max, row.row_max) for row in rows], label=_literal(name), **style
        )
    sparsity.set(title="Sparsity; dotted: predicted by Assumption 3.1", ylabel="share of the weights pruned")
    condition.set(title="Lemma 5.1: predicted over measured spread", ylabel="above 1: the lemma holds")
    sparsity.yaxis.set_major_formatter(FuncFormatter(show_tick))
    condition.axhline(1, color="grey", linewidth=0.8, linestyle="--")
    for axis in (error, lines, sparsity, condition):
        axis.set_xlabel("strength d")
        axis.grid(alpha=0.25)
        columns = 2 if axis is error else 3
        axis.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=columns, frameon=False)
    return figure


def draw_d_curves(whole: Sequence[NetworkAtStrength], layers: Sequence[LayerAtStrength], title: str = "") -> Figure:
    """The paper's two diagnostics in a size to print: the output's error, and the nonzeros in the fullest line.

    Args:
        whole: as `strength_curves` measures them.
        layers: the same.
        title: above both.
    """
    with mpl.rc_context(PRINT):
        figure = Figure(figsize=(7.0, 4.2), layout="constrained")
        error, lines = figure.subplots(1, 2)
        _draw_error(error, whole)
        _draw_spread(lines, layers)
        lines.set_title("Fullest row or column; dotted: Lemma 5.1")
        for axis in (error, lines):
            axis.set_xlabel("strength d")
            axis.grid(alpha=0.25)
            axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), frameon=False)
        if title:
            figure.suptitle(title)
        return figure


def _literal(name: str) -> str:
    """A layer's name as it is: Matplotlib takes what stands between two dollar signs for a formula."""
    return name.replace("$", r"\$")


def _draw_error(axis: Axes, whole: Sequence[NetworkAtStrength]) -> None:
    pruned = [row for row in whole if row.d > 0]
    strengths = [row.d for row in pruned]
    curves = {
        "measured, largest over the samples": [safe_log(row.pruning_error) for row in pruned],
        "Lemma 4.3, measured ‖Δ‖": [row.log_lemma_4_3 for row in pruned],
        "Lemma 4.3, predicted Γ": [row.log_predicted for row in pruned],
        "telescoping bound, unconditional": [row.log_telescoping for row in pruned],
    }
    for index, (label, values) in enumerate(curves.items()):
        style: dict[str, Any] = {"color": COLOURS[index], "marker": MARKERS[index], "markersize": 4, "markevery": 10}
        axis.plot(strengths, values, label=label, linewidth=1.2, **style)
    valid = [row.d for row in pruned if row.condition_holds]
    axis.set(title="Pruning error of the output, and its bounds", ylabel="natural log of ‖f̂(x) − f(x)‖")
    axis.annotate(
        f"Lemma 4.3's condition holds up to d = {max(valid):.2g}"
        if valid
        else "Lemma 4.3's condition holds at no d > 0",
        (0.98, 0.02),
        xycoords="axes fraction",
        ha="right",
        va="bottom",
        fontsize=7.5,
    )


def _draw_spread(axis: Axes, layers: Sequence[LayerAtStrength]) -> None:
    for index, name in enumerate(dict.fromkeys(row.layer for row in layers)):
        rows = [row for row in layers if row.layer == name]
        style: dict[str, Any] = {"color": COLOURS[index % len(COLOURS)], "linewidth": 1.2}
        marks: dict[str, Any] = {"marker": MARKERS[index % len(MARKERS)], "markersize": 4, "markevery": (2 * index, 12)}
        d = [row.d for row in rows]
        axis.plot(d, [max(row.column_max, row.row_max) for row in rows], label=_literal(name), **style, **marks)
        axis.plot(d, [row.predicted for row in rows], linestyle=":", **style)
    axis.set(title="max(j_r, j_c); dotted: 3χ·max(d_in, d_out)", ylabel="nonzeros in the fullest row or column")
    scale_log(axis)


def _draw_normality(names: Sequence[str], weights: Sequence[Tensor]) -> Figure:
    columns = min(3, len(names))
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(3.6 * columns, 3.4 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for (name, weight), axis in zip(zip(names, weights, strict=True), axes, strict=False):
        normal, found = normal_quantiles(weight)
        here = Normality.measure(weight, 1.0)
        reach = float(normal[-1])
        axis.plot([-reach, reach], [-reach, reach], color="grey", linewidth=0.8, linestyle="--")
        axis.plot(normal, found, color=COLOURS[0], marker=".", markersize=3, linewidth=0)
        axis.set(title=_literal(name), xlabel="quantile of N(0, 1)", ylabel="quantile of the layer, over √Ψ")
        chi = f"χ(1) = {here.expected_chi:.3f}, if normal {here.predicted_chi:.3f}"
        text = f"excess kurtosis {here.excess_kurtosis:.2g}\n{chi}"
        axis.annotate(text, (0.03, 0.97), xycoords="axes fraction", va="top", fontsize=8)
        axis.grid(alpha=0.25)
    for axis in axes:
        axis.set_visible(False)
    return figure
