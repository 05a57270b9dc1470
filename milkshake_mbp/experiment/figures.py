"""Figures of one run, from its epochs.csv."""

import csv
import io
import math
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from milkshake_mbp.files import write_atomically
from milkshake_mbp.theory.bounds import ROWS, Convention

__all__ = ["COLOURS", "MARKERS", "draw_epochs", "save_figure"]

# Okabe and Ito's colours, told apart by most colour-blind readers; markers tell them apart in grey.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
MARKERS = ["o", "s", "^", "D", "v", "P", "X"]

Rows = list[dict[str, str]]


def draw_epochs(epochs: Path, folder: Path) -> list[Path]:
    """Bounds, errors, margin and searched strength against the epoch, as PDF and PNG.

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
    figure = Figure(figsize=(11, 8.5), layout="constrained")
    (paper, leading), (errors, margins) = figure.subplots(2, 2)
    _draw_bounds(paper, rows, "paper", "Bounds as the paper's tables compute them")
    _draw_bounds(leading, rows, "leading", "Bounds on the test error, hidden constants 1: the smallest")
    _draw_errors(errors, rows)
    _draw_margin(margins, rows)
    for axis in (paper, leading, errors, margins):
        axis.set_xlabel("epoch")
    return [save_figure(figure, folder / f"epochs.{suffix}") for suffix in ("pdf", "png")]


def _draw_bounds(axis: Axes, rows: Rows, convention: Convention, title: str) -> None:
    keys = {row.label: f"bounds/{convention}/{row.name}" for row in ROWS if row.convention == convention}
    columns = {label: _column(rows, key) for label, key in keys.items()}
    last = {label: column[-1] for label, column in columns.items() if not math.isnan(column[0])}
    # As many of those measured throughout as can be told apart: the paper's theorem, and the smallest others.
    shown = sorted(last, key=lambda label: (label != "Theorem 5.2", last[label]))[: len(COLOURS)]
    _curves(axis, rows, {label: keys[label] for label in sorted(shown, key=last.__getitem__)})
    axis.set(title=title, ylabel="natural log of the bound")
    axis.axhline(0, color="grey", linewidth=0.8, linestyle="--")
    place = {"xycoords": ("axes fraction", "data"), "ha": "right", "va": "bottom", "fontsize": 8, "color": "grey"}
    axis.annotate("an error of 1: no bound above says anything", (0.99, 0), **place)  # type: ignore[arg-type]
    if any(float(row["margin"]) <= 0 for row in rows) and convention == "paper":
        axis.annotate(
            "norm rows: infinite until every margin is positive", (0.02, 0.95), xycoords="axes fraction", fontsize=8
        )


def _draw_errors(axis: Axes, rows: Rows) -> None:
    _curves(axis, rows, {"as trained": "test_error", "pruned at the searched d": "true_error"})
    axis.set(title="Test error", ylabel="share of the test set", ylim=(0, None))
    axis.yaxis.set_major_formatter(PercentFormatter(1))


def _draw_margin(axis: Axes, rows: Rows) -> None:
    _curves(axis, rows, {"smallest training margin": "margin"})
    axis.axhline(0, color="grey", linewidth=0.8, linestyle="--")
    axis.set(title="Margin, and the strength d that it affords", ylabel="margin (network output)")
    axis.set_yscale("symlog", linthresh=1.0)
    strengths = [d or math.nan for d in _column(rows, "d")]
    if not all(map(math.isnan, strengths)):
        right = axis.twinx()
        right.plot(_epochs(rows), strengths, color=COLOURS[1], marker="s", markersize=3, linewidth=1.2)
        right.set(ylabel="searched strength d", yscale="log")
        right.yaxis.label.set_color(COLOURS[1])


def _curves(axis: Axes, rows: Rows, curves: dict[str, str]) -> None:
    for index, (label, key) in enumerate(curves.items()):
        axis.plot(
            _epochs(rows),
            [value if math.isfinite(value) else math.nan for value in _column(rows, key)],
            label=label,
            color=COLOURS[index % len(COLOURS)],
            marker=MARKERS[index % len(MARKERS)],
            markersize=3,
            markevery=max(1, len(rows) // 20),
            linewidth=1.2,
        )
    axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, frameon=False)
    axis.grid(alpha=0.25)


def _epochs(rows: Rows) -> list[int]:
    return [int(row["epoch"]) + 1 for row in rows]


def _column(rows: Rows, key: str) -> list[float]:
    return [float(row.get(key) or "nan") for row in rows]


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a figure in the format that the file's name asks for."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix[1:], dpi=150)
    write_atomically(path, buffer.getvalue())
    return path
