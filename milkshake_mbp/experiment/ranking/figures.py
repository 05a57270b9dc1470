"""Figures of a ranking, in a size to print: sign errors of every row, and every row against every target."""

import math
import textwrap
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from milkshake_mbp.experiment.ranking.networks import TARGETS
from milkshake_mbp.experiment.ranking.study import Entry, Study
from milkshake_mbp.experiment.ranking.table import interval
from milkshake_mbp.reporting.figures import COLOURS, PRINT, save_figure
from milkshake_mbp.reporting.words import show_tick
from milkshake_mbp.theory.ranking import Estimate

__all__ = ["draw_scatter", "draw_sign_errors", "off_scale"]

_ACROSS = 5
# In characters of a panel's title.
_TITLE_WIDTH = 34


def draw_sign_errors(study: Study, folder: Path) -> list[Path]:
    """The sign error of every environment by row, a panel for each target; a bar marks the mean, a ring the worst.

    Args:
        study: what to draw.
        folder: where to put the figure.

    Returns:
        The files, PDF and PNG; none if no environment has an effective sample.
    """
    panels = {target: _with_errors(study, target) for target in study.targets}
    panels = {target: entries for target, entries in panels.items() if entries}
    if not panels:
        return []
    colours = dict(zip(study.networks.design.axes, COLOURS * 3, strict=False))
    rows = max(map(len, panels.values()))
    with rc_context(PRINT):
        figure = Figure(figsize=(3.6 * len(panels) + 1, 0.15 * rows + 1.2), layout="constrained")
        for axis, (target, entries) in zip(
            figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
        ):
            for height, entry in enumerate(reversed(entries)):
                for name, error in entry.ranking.sign_errors:
                    axis.plot(error, height, "o", color=colours[name], markersize=3, alpha=0.6, markeredgewidth=0)
                axis.plot(entry.ranking.mean_sign_error.value, height, "|", color="black", markersize=7)
                axis.plot(entry.ranking.worst_sign_error.value, height, "o", mfc="none", color="black", markersize=5)
            axis.axvline(0.5, color="grey", linewidth=0.6, linestyle="--")
            axis.set(title=TARGETS[target], xlabel="sign error", xlim=(-0.03, 1.03), ylim=(-0.7, len(entries) - 0.3))
            axis.set_yticks(
                range(len(entries)), [f"{entry.label} ({entry.row[0]})" for entry in reversed(entries)], fontsize=5
            )
        used = dict.fromkeys(
            n for entries in panels.values() for entry in entries for n, _ in entry.ranking.sign_errors
        )
        handles = [axis.plot([], [], "o", color=colours[name], markersize=4, label=name)[0] for name in used]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)), frameon=False)
        return save_figure(figure, folder / "sign_errors", dpi=200)


def draw_scatter(study: Study, target: str, folder: Path) -> Path:
    """One target against every row, a dot for each network in the colour of its size; infinities at the right edge.

    Args:
        study: what to draw.
        target: by its name in `TARGETS`.
        folder: where to put the figure.

    Returns:
        The PDF.
    """
    entries = [entry for convention in study.conventions for entry in study.block(target, convention)]
    lines = math.ceil(len(entries) / _ACROSS)
    with rc_context({**PRINT, "axes.titlesize": 5, "xtick.labelsize": 5, "ytick.labelsize": 5}):
        figure = Figure(figsize=(7.5, 1.35 * lines + 0.5))
        axes = figure.subplots(lines, _ACROSS, squeeze=False, sharey=True).flat
        for axis, entry in zip(axes, entries, strict=False):
            _scatter(axis, entry)
        for axis in list(axes)[len(entries) :]:
            axis.set_axis_off()
        figure.subplots_adjust(left=0.07, right=0.99, bottom=0.02, top=0.96, hspace=0.8, wspace=0.1)
        figure.suptitle(f"{TARGETS[target]} against each row's natural log", y=0.99)
        return save_figure(figure, folder / f"scatter_{target}", formats=["pdf"])[0]


def off_scale(values: list[float]) -> list[float]:
    """The values with infinities moved a little beyond the finite ones, so that they can be drawn."""
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    margin = 0.1 * (high - low) or 1.0
    return [value if math.isfinite(value) else high + margin if value > 0 else low - margin for value in values]


def _scatter(axis: Axes, entry: Entry) -> None:
    colour = entry.sizes or "black"
    axis.scatter(off_scale(list(entry.values)), entry.errors, s=3, c=colour, cmap="viridis", alpha=0.6, linewidths=0)
    tau = entry.ranking.tau
    title = f"{entry.row[0]}: {entry.label}" + (f", τ {interval(Estimate(tau.value))}" if tau.defined else "")
    axis.set_title(textwrap.fill(title, _TITLE_WIDTH), pad=2)
    axis.yaxis.set_major_formatter(FuncFormatter(show_tick))
    axis.tick_params(length=1, pad=1)


def _with_errors(study: Study, target: str) -> list[Entry]:
    entries = [entry for entry in study.entries if entry.target == target and entry.ranking.worst_sign_error.defined]
    return sorted(entries, key=lambda entry: entry.ranking.mean_sign_error.value)
