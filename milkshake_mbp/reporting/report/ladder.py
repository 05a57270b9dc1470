"""The ladder of a result: a chart whose rows open, and tables."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from milkshake_mbp.reporting.errata import explained
from milkshake_mbp.reporting.ladder import (
    CHARTED,
    NUMBERS,
    Line,
    Section,
    bounds_of,
    chance_level,
    error_bounds,
    left_out_lines,
    sections,
    telling,
    verdict,
)
from milkshake_mbp.reporting.report.charts import Scale, nice_ticks, rung, rung_axis
from milkshake_mbp.reporting.report.markup import Markup, fold, table, tag
from milkshake_mbp.reporting.words import show, show_log
from milkshake_mbp.runs.stored import ROW

__all__ = ["ladder"]


def ladder(result: Mapping[str, Any], heading: str) -> Iterator[Markup]:
    """Every bound of a result: a chart under headings of that level, and tables."""
    bounds = error_bounds(result)
    if bounds:
        yield tag("p", f"{verdict(result)} Hollow dots mark all other bounds. Open a row for its terms and source.")
        yield _rungs(result, heading)
        yield fold("The same bounds as tables", *(_section(section) for section in sections(result, tuple(CHARTED))))
    yield from (_section(section) for section in sections(result, ("paper",)))
    yield from (fold(section.title, _section(section)) for section in sections(result, ("measure",)))
    texts = [text for bound in result["bounds"] for text in (bound.get("reason", ""), _reference(bound))]
    if lines := [*left_out_lines(result), *explained(texts)]:
        yield tag("div", *(tag("p", line) for line in lines), class_="mute")


def _rungs(result: Mapping[str, Any], heading: str) -> Markup:
    """The ladder as a chart: rows of text and track, so that a phone can put one under the other."""
    chance, error = math.log(chance_level(result)), result.get("test_error") or {}
    measured = [("Test error, as trained", error.get("unpruned")), ("Test error, pruned", error.get("pruned"))]
    logs = {name: math.log(value) if value else -math.inf for name, value in measured if value is not None}
    values = [
        value
        for value in [*(bound["log_value"] for bound in error_bounds(result)), *logs.values()]
        if math.isfinite(value)
    ]
    ticks = nice_ticks(min([*values, chance - 1]), max([*values, 1]), count=7)
    scale, lines = Scale(ticks[0], ticks[-1]), [(chance, "chance"), (0.0, "whole")]
    legend = tag(
        "p",
        tag("span", "dashed", class_="key chance"),
        f" chance, ln {chance_level(result):.0%} = {chance:.2f} ",
        tag("span", "solid", class_="key whole"),
        " an error of 100%, ln 1 = 0. Bounds on the shaded side are vacuous. ln is the natural logarithm.",
        class_="mute",
    )
    blocks: list[Markup] = []
    if logs:
        blocks.append(tag(heading, "Measured"))
        for name, value in logs.items():
            blocks.append(_rung(name, value, f"{math.exp(value):.2%}", rung(value, scale, "measured", lines), True))
    for convention in CHARTED:
        ordered = sorted(bounds_of(result, convention), key=lambda bound: bound["log_value"])
        for section in sections(result, (convention,)):
            blocks += [tag(heading, section.title), tag("p", section.caption, class_="mute")]
            for bound, line in zip(ordered, section.lines, strict=True):
                tells = bool(telling([bound]))
                track = rung(bound["log_value"], scale, f"{convention}{' hollow' * (not tells)}", lines)
                details = _details(bound, line)
                blocks.append(_rung(line.label, bound["log_value"], line.meaning, track, tells, details))
    return tag("div", legend, *blocks, tag("div", rung_axis(scale, ticks), class_="rung foot"), class_="ladder")


def _rung(
    label: str, value: float, meaning: str, track: Markup, telling: bool, details: tuple[str, Markup] | None = None
) -> Markup:
    cells = [
        tag("span", label, class_="label"),
        track,
        tag("span", tag("b", show_log(value)), " ", tag("span", meaning), class_="says"),
    ]
    look = f"rung{'' if telling else ' mute'}"
    if details is None:
        return tag("div", *cells, class_=look)
    hover, body = details
    return tag("details", tag("summary", *cells, title=hover), body, class_=look, data_bound=label)


def _details(bound: Mapping[str, Any], line: Line) -> tuple[str, Markup]:
    """What a row stands on: for hovering, and at length."""
    reference = _reference(bound)
    failing = f"Its conditions fail: {bound['reason']}." if bound.get("reason") else ""
    facts = [f"From {reference}.", f"ln {show_log(bound['log_value'])}, that is {line.value}: {line.meaning}."]
    if line.holds:
        facts.append(f"Probability with which it holds: {line.holds}.")
    terms = [f"{name} = {show(value)}" for name, value in (bound.get("terms") or {}).items()]
    body = tag(
        "div", tag("p", " ".join([*facts, failing])), tag("p", ", ".join(terms), class_="name") if terms else None
    )
    return failing or f"{line.meaning}. {reference}", body


def _section(section: Section) -> Markup:
    """A ladder section as a table."""
    notes = tag("div", tag("p", section.caption), *(tag("p", remark) for remark in section.remarks), class_="mute")
    return table(section.title, section.heads, section.table(), NUMBERS, notes)


def _reference(bound: Mapping[str, Any]) -> str:
    return ROW[bound["convention"], bound["name"]].reference
