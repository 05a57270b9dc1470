"""Figures of one run, from its epochs.csv."""

import csv
import math
from pathlib import Path

import matplotlib

from milkshake_mbp.theory.bounds import ROWS

matplotlib.use("Agg")
from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["draw_epochs"]

# Okabe and Ito's colours, told apart by most colour-blind readers; markers tell them apart in grey.
_COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
_MARKERS = ["o", "s", "^", "D", "v", "P", "X"]


def draw_epochs(epochs: Path, folder: Path) -> list[Path]:
    """Bounds, errors and margin against the epoch, as PDF and PNG.

    Args:
        epochs: a run's epochs.csv.
        folder: where to put the figure.

    Returns:
        The files written; none if no epoch was measured.
    """
    with epochs.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row.get("margin")]
    if not rows:
        return []
    figure = Figure(figsize=(10, 7.5), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True)
    measured = [int(row["epoch"]) + 1 for row in rows]
    for axis, convention, title in (
        (axes[0, 0], "paper", "Bounds as the paper's tables compute them"),
        (axes[0, 1], "leading", "The same on the risk scale, constants 1"),
    ):
        named = [(row.label, f"bounds/{convention}/{row.name}") for row in ROWS if row.convention == convention]
        _curves(axis, measured, {label: _column(rows, key) for label, key in named})
        axis.set(title=title, ylabel="natural log of the bound")
        axis.axhline(0, color="grey", linewidth=0.8, linestyle="--")
        axis.annotate(
            "1: says nothing above",
            (0.99, 0),
            xycoords=("axes fraction", "data"),
            ha="right",
            va="bottom",
            fontsize=7,
            color="grey",
        )
    errors = {"as trained": "test_error", "pruned at the searched d": "true_error"}
    _curves(axes[1, 0], measured, {label: _column(rows, key) for label, key in errors.items()})
    axes[1, 0].set(title="Test error", ylabel="probability", xlabel="epoch", yscale="log")
    margin = _column(rows, "margin")
    _curves(axes[1, 1], measured, {"smallest training margin": margin})
    axes[1, 1].axhline(0, color="grey", linewidth=0.8, linestyle="--")
    axes[1, 1].set(title="Margin and searched strength", ylabel="margin (network output)", xlabel="epoch")
    axes[1, 1].set_yscale("symlog", linthresh=1.0)
    if any(d > 0 for d in _column(rows, "d")):
        strength = axes[1, 1].twinx()
        strength.plot(
            measured,
            [d or math.nan for d in _column(rows, "d")],
            color=_COLOURS[1],
            marker="s",
            markersize=3,
            label="d",
        )
        strength.set(ylabel="searched d", yscale="log")
        strength.legend(loc="lower right", fontsize=8)
    written = [folder / f"epochs.{suffix}" for suffix in ("pdf", "png")]
    folder.mkdir(parents=True, exist_ok=True)
    for path in written:
        figure.savefig(path, dpi=150)
    return written


def _column(rows: list[dict[str, str]], key: str) -> list[float]:
    return [float(row.get(key) or "nan") for row in rows]


def _curves(axis: Axes, epochs: list[int], curves: dict[str, list[float]]) -> None:
    for index, (label, values) in enumerate(curves.items()):
        finite = [value if math.isfinite(value) else math.nan for value in values]
        axis.plot(
            epochs,
            finite,
            label=label,
            color=_COLOURS[index % 7],
            marker=_MARKERS[index % 7],
            markersize=3,
            markevery=max(1, len(epochs) // 20),
            linewidth=1.2,
        )
    axis.legend(fontsize=8)
    axis.grid(alpha=0.25)
