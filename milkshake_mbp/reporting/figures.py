"""Figures from result files: of one run, and the paper's two, in a size to print."""

import csv
import io
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    MultipleLocator,
    NullFormatter,
    NullLocator,
)

from milkshake_mbp.files import write_atomically
from milkshake_mbp.reporting.tables import DATASETS, PRINTED, Comparison, PaperRun, number
from milkshake_mbp.reporting.words import show_tick
from milkshake_mbp.theory.bounds import ROWS

__all__ = [
    "COLOURS",
    "MARKERS",
    "PRINT",
    "draw_comparison",
    "draw_epochs",
    "draw_training",
    "measured_epochs",
    "save_figure",
    "scale_log",
    "scale_margin",
    "scale_share",
]

# Okabe and Ito's colours, told apart by most colour-blind readers; markers tell them apart in grey.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
MARKERS = ["o", "s", "^", "D", "v", "P", "X"]

# Both columns of a paper, in inches, and type that stays readable in them.
_TWO_COLUMNS = 7.0
PRINT: Any = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "figure.titlesize": 8,
    "axes.linewidth": 0.6,
}
_SMALL = 7

Rows = list[dict[str, str]]


def draw_epochs(epochs: Path, folder: Path) -> list[Path]:
    """Bounds, errors, margin and searched strength against the epoch, as PDF and PNG.

    Args:
        epochs: a run's epochs.csv.
        folder: where to put the figure.

    Returns:
        The files written; none if no epoch was measured.
    """
    rows = measured_epochs(epochs)
    if not rows:
        return []
    figure = Figure(figsize=(11, 8.5), layout="constrained")
    (paper, leading), (errors, margins) = figure.subplots(2, 2)
    # The paper's own rows are of its own networks.
    if any(key.startswith("bounds/paper/") and value for key, value in rows[-1].items()):
        _draw_bounds(paper, rows, "paper", "Bounds as the paper's tables compute them")
    else:
        _draw_bounds(paper, rows, "rigorous", "Bounds on the test error, proved")
    _draw_bounds(leading, rows, "leading", "The smallest bounds, hidden constants set to 1")
    _draw_errors(errors, rows)
    _draw_margin(margins, rows)
    for axis in (paper, leading, errors, margins):
        axis.set_xlabel(axis.get_xlabel() or "epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    return save_figure(figure, folder / "epochs")


def measured_epochs(epochs: Path) -> Rows:
    """The rows of a run's epochs.csv in which the network was measured, by column."""
    with epochs.open(newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if row.get("margin")]


def _draw_bounds(axis: Axes, rows: Rows, convention: str, title: str) -> None:
    keys = {row.label: f"bounds/{convention}/{row.name}" for row in ROWS if row.convention == convention}
    columns = {label: _column(rows, key) for label, key in keys.items()}
    last = {
        label: column[-1]
        for label, column in columns.items()
        if not math.isnan(column[0]) and any(map(math.isfinite, column))
    }
    # As many of those measured throughout as can be told apart: the paper's theorem, and the smallest others.
    shown = sorted(last, key=lambda label: (label != "Theorem 5.2", last[label]))[: len(COLOURS)]
    axis.set_title(title)
    if not shown:
        axis.annotate("none for this network", (0.5, 0.5), xycoords="axes fraction", ha="center", color="grey")
        axis.set_axis_off()
        return
    _curves(axis, rows, {label: keys[label] for label in sorted(shown, key=last.__getitem__)})
    axis.set_ylabel("natural log of the bound")
    axis.axhline(0, color="grey", linewidth=0.8, linestyle="--")
    place: Any = {"xycoords": ("axes fraction", "data"), "ha": "right", "va": "top", "fontsize": 8, "color": "grey"}
    axis.annotate("error 100%: bounds above are vacuous", (0.99, 0), (0, -2), textcoords="offset points", **place)
    low, high = axis.get_ylim()
    # Room for that line's words.
    axis.set_ylim(min(low, -0.08 * high), high)
    if any(float(row["margin"]) <= 0 for row in rows) and convention == "paper":
        axis.set_xlabel("epoch (norm rows are infinite until every margin is positive)")


def _draw_errors(axis: Axes, rows: Rows) -> None:
    curves = {"as trained": "test_error", "pruned at prune_d": "pruned_test_error"}
    curves |= {"pruned at the searched d": "true_error"} if any(row.get("d") for row in rows) else {}
    _curves(axis, rows, {label: key for label, key in curves.items() if any(row.get(key) for row in rows)})
    # The searched d prunes so little that its curve would hide that of the network as trained.
    axis.lines[0].set(linewidth=3, markersize=6)
    axis.set(title="Test error", ylabel="share of the test set", ylim=(0, None))
    axis.yaxis.set_major_formatter(FuncFormatter(show_tick))


def _draw_margin(axis: Axes, rows: Rows) -> None:
    _curves(axis, rows, {"smallest training margin": "margin"})
    axis.axhline(0, color="grey", linewidth=0.8, linestyle="--")
    axis.set(title="Smallest training margin", ylabel="margin (network output)")
    scale_margin(axis)
    strengths = [d or math.nan for d in _column(rows, "d")]
    if not all(map(math.isnan, strengths)):
        right = axis.twinx()
        right.plot(_epochs(rows), strengths, color=COLOURS[1], marker="s", markersize=3, linewidth=1.2)
        right.set_ylabel("searched strength d", color=COLOURS[1])
        scale_log(right)
        axis.set_title("Smallest training margin, and searched strength d")


def scale_margin(axis: Axes) -> None:
    """A linear axis of margins, or one that is linear within ±1 and a log axis outside if they span decades."""
    reach = max(map(abs, axis.get_ylim()))
    if reach > 50:
        axis.set_yscale("symlog", linthresh=1.0)
        powers = [10.0**power for power in range(0, math.ceil(math.log10(reach)) + 1)]
        powers = powers[:: math.ceil(len(powers) / 4)]
        axis.yaxis.set_major_locator(FixedLocator([*(-power for power in reversed(powers)), 0.0, *powers]))
        axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def scale_log(axes: Axes, side: Literal["x", "y"] = "y") -> None:
    """A log axis whose numbers are round; without ticks where nothing is above 0."""
    axis = axes.yaxis if side == "y" else axes.xaxis
    drawn = [line.get_ydata() if side == "y" else line.get_xdata() for line in axes.get_lines()]
    if not any(np.any(np.asarray(values, dtype=float) > 0) for values in drawn):
        axis.set_ticks([])
        return
    axes.set(**{f"{side}scale": "log"})
    low, high = axes.get_ylim() if side == "y" else axes.get_xlim()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0e}" if value < 0.01 else f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def scale_share(axes: Axes, side: Literal["x", "y"] = "y") -> None:
    """A log axis of shares in percent, linear if it spans little; its numbers are round."""
    axis, (low, high) = (axes.yaxis, axes.get_ylim()) if side == "y" else (axes.xaxis, sorted(axes.get_xlim()))

    def between(*digits: int) -> list[float]:
        ticks = [digit * 10.0**power for power in range(-9, 1) for digit in digits]
        return [tick for tick in ticks if low <= tick <= min(high, 1.0)]

    inside = between(1, 2, 5)
    inside = inside if len(inside) > 3 else between(1, 2, 3, 4, 6, 8)
    if len(inside) < 2:
        axes.set(**{f"{side}scale": "linear"})
    else:
        axes.set(**{f"{side}scale": "log"})
        axis.set_ticks(inside if len(inside) <= 9 else between(1))
        axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(FuncFormatter(show_tick))


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


def draw_comparison(bars: Sequence[Comparison], widths: Comparison, title: str = "") -> Figure:
    """The paper's Figure 1: the bounds on each dataset as bars, and against the width as lines.

    Args:
        bars: a panel for each, of its first width.
        widths: the last panel.
        title: above all.
    """
    with mpl.rc_context(PRINT):
        figure = Figure(figsize=(_TWO_COLUMNS, 3.3 if title else 3.1), layout="constrained")
        axes = figure.subplots(1, len(bars) + 1, width_ratios=[*[1.0] * len(bars), 1.4])
        letters = "abc"
        for letter, axis, comparison in zip(letters, axes, bars, strict=False):
            _draw_bars(axis, comparison, letter)
            if axis is not axes[0]:
                axis.tick_params(labelleft=False)
        _draw_widths(axes[-1], widths, letters[len(bars)])
        figure.legend(*axes[-1].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
        if title:
            figure.suptitle(title)
        return figure


def _draw_bars(axis: Axes, comparison: Comparison, letter: str) -> None:
    width = comparison.widths[0]
    for index, quantity in enumerate(PRINTED):
        entry = comparison.entries[quantity.name, width]
        median, y = entry.median, len(PRINTED) - 1 - index
        texts = [number(median, quantity.form, "not run")]
        if median is not None and math.isfinite(median):
            axis.barh(y, median, height=0.5, color=_colour(index))
            seeds = entry.values if len(entry.values) > 1 else ()
            axis.plot(seeds, [y] * len(seeds), color="black", linewidth=1, marker="|", markersize=4)
        if entry.paper is not None:
            axis.plot(entry.paper, y, marker="D", markersize=4, linewidth=0, color="black", markerfacecolor="white")
            texts.append(f"(paper {number(entry.paper, '.2f')})")
        axis.annotate(" ".join(texts), (0, y + 0.3), xytext=(2, 0), textcoords="offset points", fontsize=_SMALL)
    axis.axvline(0, color="black", linewidth=0.6)
    d, margin, epochs = (comparison.entries[name, width].median for name in ("d", "margin", "epochs"))
    if runs := comparison.runs[width]:
        which = f"{len(runs)} seeds" if len(runs) > 1 else f"seed {runs[0].seed}"
        hidden = f"d = {number(d, '.0e')}, margin {number(margin, '.2g')},\nepoch {number(epochs, '.0f')}, {which}"
        axis.annotate(hidden, (0.98, 0.02), xycoords="axes fraction", ha="right", va="bottom", fontsize=_SMALL)
    axis.set(
        title=f"({letter}) {DATASETS[comparison.datamodule]}, width {width}",
        xlabel="natural log",
        ylim=(-0.75, len(PRINTED) - 0.3),
        yticks=range(len(PRINTED)),
        yticklabels=[quantity.label.replace(" (", "\n(") for quantity in reversed(PRINTED)],
    )
    axis.tick_params(axis="y", length=0)
    axis.margins(x=0.08)
    axis.xaxis.set_major_locator(MultipleLocator(10))
    axis.set_axisbelow(True)
    axis.grid(alpha=0.25, axis="x")


def _draw_widths(axis: Axes, comparison: Comparison, letter: str) -> None:
    for index, quantity in enumerate(PRINTED):
        entries = comparison.row(quantity.name)
        medians, lows, highs = (
            [math.nan if value is None or math.isinf(value) else value for value in values]
            for values in zip(*((entry.median, entry.low, entry.high) for entry in entries), strict=True)
        )
        style: dict[str, Any] = {"color": _colour(index), "marker": MARKERS[index]}
        axis.vlines(comparison.widths, lows, highs, color=_colour(index), linewidth=1)
        axis.plot(comparison.widths, medians, label=quantity.label, linewidth=1.2, markersize=3.5, **style)
        if comparison.has_paper:
            paper = [math.nan if entry.paper is None else entry.paper for entry in entries]
            label = "the paper's" if quantity is PRINTED[-1] else None
            hollow: dict[str, Any] = {
                "linestyle": ":",
                "linewidth": 0.9,
                "markersize": 6,
                "markerfacecolor": "none",
                "label": label,
            }
            axis.plot(comparison.widths, paper, **style, **hollow)
    axis.axhline(0, color="black", linewidth=0.6)
    hidden = [
        (number(d.median, ".0e", "not"), number(margin.median, ".2g", "run"))
        for d, margin in zip(comparison.row("d"), comparison.row("margin"), strict=True)
    ]
    axis.set(
        title=f"({letter}) {DATASETS[comparison.datamodule]}, against the width",
        xscale="log",
        xlabel="width, searched d, margin",
        ylabel="natural log",
    )
    axis.xaxis.set_major_locator(FixedLocator(list(comparison.widths)))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_xticklabels(
        [f"{width}\n{d}\n{margin}" for width, (d, margin) in zip(comparison.widths, hidden, strict=True)]
    )
    axis.grid(alpha=0.25)


def _colour(method: int) -> str:
    """Of a line of the tables; black for what is no bound."""
    return COLOURS[-1] if PRINTED[method].name == "true_error" else COLOURS[method]


def draw_training(runs: Sequence[PaperRun], title: str = "") -> Figure | None:
    """The paper's Figure 2: Theorem 5.2 and the true error against the epoch, each on its own scale, with margin and d.

    Args:
        runs: a curve for each; the bands are the epochs between which its smallest margin turned positive.
        title: above all.

    Returns:
        The figure; None if no run has measured an epoch.
    """
    curves = [(run, measured_epochs(run.files.epochs)) for run in runs if run.files.epochs.exists()]
    curves = [(run, rows) for run, rows in curves if rows]
    if not curves:
        return None
    with mpl.rc_context(PRINT):
        figure = Figure(figsize=(_TWO_COLUMNS, 4.4), layout="constrained")
        axes = figure.subplots(2, 2, sharex=True)
        (bound, margin), (error, strength) = axes
        for index, (run, rows) in enumerate(curves):
            style: dict[str, Any] = {
                "label": f"width {run.width}, seed {run.seed}",
                "color": COLOURS[index % len(COLOURS)],
                "marker": MARKERS[index % len(MARKERS)],
                "markersize": 3,
                "linewidth": 1.2,
                "markevery": max(1, len(rows) // 20),
            }
            epochs, logs = _epochs(rows), [_log(value) for value in _column(rows, "true_error")]
            bound.plot(epochs, _column(rows, "bounds/paper/theorem_5_2"), **style)
            error.plot(epochs, logs, **style)
            margin.plot(epochs, _column(rows, "margin"), **style)
            strength.plot(epochs, [d or math.nan for d in _column(rows, "d")], **style)
            _mark_sign_changes(list(axes.flat), rows, style["color"])
        unpruned = {run.numbers["unpruned"] for run, _ in curves if run.result}
        for value in unpruned:
            bound.axhline(value, color="black", linewidth=0.8, linestyle="--", label=f"nothing pruned: {value:.3f}")
        _title(bound, "(a) Theorem 5.2, not rescaled", "natural log of the bound")
        _title(margin, "(b) Smallest training margin", "margin (network output)")
        _title(error, "(c) True error, pruned at the searched d", "natural log of the test error")
        _title(strength, "(d) Searched d; 0 until the margin is positive", "strength d")
        bound.ticklabel_format(useOffset=False)
        scale_margin(margin)
        scale_log(strength)
        margin.axhline(0, color="black", linewidth=0.6)
        for axis in (error, strength):
            axis.set_xlabel("epoch")
            axis.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        band = Patch(color="grey", alpha=0.3, linewidth=0, label="the margin's sign changed between these epochs")
        handles = [*bound.get_legend_handles_labels()[0], band]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(3, len(handles)), frameon=False)
        if title:
            figure.suptitle(title)
        return figure


def _title(axis: Axes, title: str, label: str) -> None:
    axis.set(title=title, ylabel=label)
    axis.grid(alpha=0.25)


def _mark_sign_changes(axes: Sequence[Axes], rows: Rows, colour: str) -> None:
    signs = [float(row["margin"]) > 0 for row in rows]
    for (before, after), (first, last) in zip(pairwise(signs), pairwise(_epochs(rows)), strict=True):
        if before != after:
            for axis in axes:
                axis.axvspan(first, last, color=colour, alpha=0.15, linewidth=0)


def _log(value: float) -> float:
    return math.log(value) if value > 0 else math.nan


def save_figure(figure: Figure, path: Path, dpi: int = 150, formats: Sequence[str] = ("pdf", "png")) -> list[Path]:
    """Write a figure in these formats, each of which is the suffix of a file.

    Args:
        figure: to write.
        path: of the files, without suffix.
        dpi: dots per inch of what is made of dots.
        formats: as Matplotlib names them.

    Returns:
        The files.
    """
    files = [path.with_name(f"{path.name}.{suffix}") for suffix in formats]
    for file, suffix in zip(files, formats, strict=True):
        buffer = io.BytesIO()
        # Publishers take TrueType, not the default Type 3.
        with mpl.rc_context({"pdf.fonttype": 42}):
            figure.savefig(buffer, format=suffix, dpi=dpi)
        write_atomically(file, buffer.getvalue())
    return files
