"""The figure of a certificate, in a size to print."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from milkshake_mbp.experiment.certificate.files import CertificateFiles, history
from milkshake_mbp.reporting.figures import COLOURS, PRINT, save_figure, scale_share
from milkshake_mbp.reporting.words import show_tick

__all__ = ["ANCHORS", "draw_certificate"]

# Guarantees on MNIST in print; all but the second are for ten classes and one network.
ANCHORS = {
    0.46: "Zhou et al. 2019",
    0.161: "Dziugaite & Roy 2017, two classes",
    0.116: "Lotfi et al. 2022",
}

Rows = Sequence[Mapping[str, float]]


def draw_certificate(files: CertificateFiles) -> list[Path]:
    """Bound and training error through training and search, and the bound against the bits, as PDF and PNG.

    Args:
        files: the folder of a certificate.

    Returns:
        The files written; none if nothing was coded on the way.
    """
    epochs, rounds = history(files)
    if not epochs and not rounds:
        return []
    config = yaml.safe_load(files.config.read_text(encoding="utf-8")) if files.config.is_file() else {}
    anchors = ANCHORS if config.get("datamodule") == "mnist" else {}
    with mpl.rc_context(PRINT):
        figure = Figure(figsize=(7.0, 2.9), layout="constrained")
        left, right = figure.subfigures(1, 2, wspace=0.04, squeeze=False)[0]
        parts = [(label, rows) for label, rows in (("epoch", epochs), ("round of the search", rounds)) if rows]
        axes = left.subplots(1, len(parts), sharey=True, squeeze=False)[0]
        for axis, (label, rows) in zip(axes, parts, strict=True):
            _draw_history(axis, rows, label)
        axes[0].set_ylabel("share of the samples")
        left.suptitle("(a) During training and search")
        left.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
        _draw_path(right, epochs, rounds, anchors)
        return save_figure(figure, files.figures / "certificate", dpi=200)


def _draw_history(axis: Axes, rows: Rows, label: str) -> None:
    at = [row["at"] for row in rows]
    few = len(rows) < 30
    for name, key, style in (
        ("bound", "bound", {"color": COLOURS[0], "marker": "o" if few else None}),
        ("best so far", "best_bound", {"color": COLOURS[-1], "linestyle": ":"}),
        ("training error", "error", {"color": COLOURS[1], "marker": "s" if few else None}),
    ):
        options: dict[str, Any] = {"markersize": 3, "linewidth": 1.2, **style}
        axis.plot(at, [row[key] for row in rows], label=name, **options)
    axis.set(xlabel=label, yscale="log")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    scale_share(axis)
    axis.grid(alpha=0.25)


def _draw_path(figure: SubFigure, epochs: Rows, rounds: Rows, anchors: Mapping[float, str]) -> None:
    axis = figure.subplots()
    bits = [row["bits"] for row in (*epochs, *rounds)]
    # The search goes on from the best that the training found.
    start = sorted(epochs, key=lambda row: row["bound"])[:1]
    for label, rows, style in (
        ("training", epochs, {"color": COLOURS[0], "marker": "o"}),
        ("search", [*start, *rounds] if rounds else [], {"color": COLOURS[1], "marker": "s"}),
    ):
        if rows:
            options: dict[str, Any] = {"label": label, "markersize": 2.5, "linewidth": 1, **style}
            axis.plot([row["bits"] for row in rows], [row["bound"] for row in rows], **options)
    for height, source in anchors.items():
        axis.axhline(height, color="grey", linewidth=0.8, linestyle="--")
        place: Any = {"xycoords": ("axes fraction", "data"), "ha": "right", "va": "bottom", "fontsize": 7}
        place["bbox"] = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5}
        axis.annotate(f"{show_tick(height)}, {source}", (0.99, height), color="0.35", **place)
    axis.set(xlabel="bits", ylabel="bound", yscale="log", xscale="log" if max(bits) > 10 * min(bits) else "linear")
    if axis.get_xscale() == "linear":
        axis.xaxis.set_major_locator(MaxNLocator(5))
        axis.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    low, high = axis.get_ylim()
    axis.set_ylim(low, high * 1.2 if anchors else high)
    scale_share(axis)
    axis.grid(alpha=0.25)
    figure.suptitle("(b) Bound against bits")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
