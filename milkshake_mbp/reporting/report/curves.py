"""Margin, d, errors and bounds against the epoch, or against what a sweep varies."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from milkshake_mbp.reporting.figures import COLOURS
from milkshake_mbp.reporting.ladder import CHARTED
from milkshake_mbp.reporting.report.charts import Curve, plot
from milkshake_mbp.reporting.report.markup import Markup, tag
from milkshake_mbp.reporting.words import show_log
from milkshake_mbp.theory.bounds import ROWS

__all__ = ["as_row", "draw_curves"]


def draw_curves(rows: Sequence[Mapping[str, float]], key: str) -> Iterator[Markup]:
    """Margin, d, errors and bounds against one of the rows' columns."""
    x = [row[key] for row in rows]
    spread = len(set(x)) > 1 and min(x) > 0 and key != "epoch" and max(x) / min(x) > 50

    def column(name: str) -> list[float]:
        return [row.get(name, math.nan) for row in rows]

    searched = [
        math.nan if math.isnan(d) else error for d, error in zip(column("d"), column("true_error"), strict=True)
    ]

    def chart(title: str, curves: Sequence[Curve], y_label: str, **options: Any) -> Markup | None:
        return plot(title, x, curves, x_label=key, y_label=y_label, log_x=spread, **options)

    errors = {
        "as trained": column("test_error"),
        "pruned at prune_d": column("pruned_test_error"),
        "pruned at the searched d": searched,
        "training error, pruned at prune_d and rounded": column("compressed_error"),
    }
    logs: dict[str, Any] = {"show": show_log, "lines": {0.0: "an error of 100%"}}
    charts = [
        chart("Margin", [Curve("smallest training margin", column("margin"))], "network output", lines={0.0: ""}),
        chart(
            "Searched d",
            [Curve("d found by the paper's search", column("d"))],
            "log axis, 0 not drawn",
            show="{:.3g}".format,
            show_tick="{:.0e}".format,
            log=True,
        ),
        chart(
            "Errors",
            [Curve(name, values) for name, values in errors.items() if not all(map(math.isnan, values))],
            "share of the samples, log axis, 0 not drawn",
            show="{:.2%}".format,
            show_tick=lambda tick: f"{100 * tick:g}%",
            log=True,
        ),
        chart("As the paper's tables compute it", _bound_curves(column, ["paper"]), "natural log", **logs),
        chart("Bounds on the test error", _bound_curves(column, list(CHARTED)), "natural log", **logs),
    ]
    yield tag("div", *charts, class_="charts")
    if len(set(x)) < len(x):
        yield tag("p", "Each dot is a run; the line connects the medians.", class_="mute")


def _bound_curves(column: Callable[[str], list[float]], conventions: Sequence[str]) -> list[Curve]:
    """Those ever measured; shown are Theorem 5.2 and the smallest of those measured throughout, as colours last."""
    found = [(row, column(f"bounds/{row.convention}/{row.name}")) for row in ROWS if row.convention in conventions]
    found = [(row, values) for row, values in found if not all(map(math.isnan, values))]
    found.sort(key=lambda item: (item[0].name != "theorem_5_2", math.isnan(item[1][0]), _last(item[1])))
    return [
        Curve(
            row.label if row.convention != "rigorous" else f"{row.label} ({CHARTED['rigorous']})",
            values,
            shown=row.convention == "paper"
            or (place < len(COLOURS) and not math.isnan(values[0]) and _last(values) < math.inf),
        )
        for place, (row, values) in enumerate(found)
    ]


def _last(values: Sequence[float]) -> float:
    return next((value for value in reversed(values) if not math.isnan(value)), math.inf)


def as_row(result: Mapping[str, Any]) -> dict[str, float]:
    """A result under the names that epochs.csv has for it."""
    error = result.get("test_error") or {}
    given = {
        **{name: result.get(name) for name in ("margin", "d", "true_error", "compressed_error")},
        "test_error": error.get("unpruned"),
        "pruned_test_error": error.get("pruned"),
        **{f"bounds/{bound['convention']}/{bound['name']}": bound["log_value"] for bound in result["bounds"]},
    }
    return {name: value for name, value in given.items() if value is not None}
