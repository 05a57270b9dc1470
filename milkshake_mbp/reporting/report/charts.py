"""Charts for a web page: SVG drawn here, whose text keeps its size on any screen; hover and toggles are page.html's.

Places are percentages of the drawing, because a drawing that is scaled as a whole has unreadable text on a phone.
"""

import itertools
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from milkshake_mbp.reporting.figures import COLOURS
from milkshake_mbp.reporting.report.markup import Markup, tag

__all__ = ["Curve", "Scale", "nice_ticks", "path", "plot", "rung", "rung_axis", "stack"]


@dataclass(frozen=True)
class Curve:
    """Values over the chart's x; where one is not finite, nothing is drawn and the readout says it.

    Attributes:
        label: in the legend.
        values: one for each x.
        shown: whether its box is ticked at first.
        show: a value in words, if not as the chart has it.
    """

    label: str
    values: Sequence[float]
    shown: bool = True
    show: Callable[[float], str] | None = None


@dataclass(frozen=True)
class Scale:
    """From values to percentages of a side."""

    low: float
    high: float
    log: bool = False

    def place(self, value: float) -> float:
        """Where `value` is, 0 at the low end; beyond the ends outside of 0 to 100."""
        low, high, value = map(math.log10, (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        return 100 * (value - low) / (high - low)

    def drawable(self, value: float) -> bool:
        """Whether it has a place."""
        return math.isfinite(value) and (value > 0 or not self.log)


def nice_ticks(low: float, high: float, *, log: bool = False, count: int = 5) -> list[float]:
    """At least two round numbers, about `count`, from about `low` or below to about `high` or above."""
    if log:
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        if last - first > 3:
            every = math.ceil((last - first) / count)
            return [10.0**power for power in range(first, last + every, every)]
        # From a string, so that 5e-05 is the number nearest to it.
        grid = [float(f"{digit}e{power}") for power in range(first - 1, last + 1) for digit in (1, 2, 5)]
        start = max(i for i, tick in enumerate(grid) if tick <= low)
        stop = min((i for i, tick in enumerate(grid) if tick >= high), default=len(grid) - 1)
        return grid[start : max(stop, start + 1) + 1]
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-9):
        around = max(0.5, 1e-3 * abs(low))
        low, high = low - around, high + around
    step = 10.0 ** math.floor(math.log10((high - low) / count))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= count)
    # A hair beyond a round number is no reason for a whole step more.
    steps = range(math.floor(low / step + 0.01), math.ceil(high / step - 0.01) + 1)
    return [float(f"{k * step:.12g}") for k in steps]


def plot(
    title: str,
    x: Sequence[float],
    curves: Sequence[Curve],
    *,
    x_label: str,
    y_label: str,
    show: Callable[[float], str] = "{:.4g}".format,
    show_tick: Callable[[float], str] = "{:g}".format,
    log: bool = False,
    log_x: bool = False,
    lines: dict[float, str] | None = None,
    show_x: Callable[[float], str] = "{:g}".format,
) -> Markup | None:
    """Curves over x: a dot for every value, a line through the medians of those at the same x.

    Args:
        title: of the chart.
        x: of every value, in any order and repeated where several runs share it.
        curves: what to draw, and to list in the legend with its last value.
        x_label: what x is.
        y_label: what the values are, with their unit.
        show: a value in words.
        show_tick: a tick in words.
        log: whether the values are on a log axis.
        log_x: whether x is.
        lines: heights to mark, and what to write there.
        show_x: an x in words.

    Returns:
        The chart; None if there is nothing to draw.
    """
    lines, places = lines or {}, sorted(set(x))
    finite = [value for curve in curves for value in curve.values if Scale(0, 1, log).drawable(value)]
    if not finite:
        return None
    y_ticks = nice_ticks(min([*finite, *lines]), max([*finite, *lines]), log=log)
    y_scale = Scale(y_ticks[0], y_ticks[-1], log)
    x_scale = Scale(places[0], places[-1], log_x) if len(places) > 1 else Scale(places[0] - 1, places[0] + 1)
    at = [x_scale.place(value) for value in places]
    grouped = [
        [[value for other, value in zip(x, curve.values, strict=True) if other == place] for place in places]
        for curve in curves
    ]
    drawn = [
        tag(
            "g",
            *_paths(at, groups, y_scale),
            class_=f"curve {_look(index)}{'' if curve.shown else ' off'}",
            data_values=json.dumps([_spread(group, curve.show or show) for group in groups], ensure_ascii=False),
        )
        for index, (curve, groups) in enumerate(zip(curves, grouped, strict=True))
    ]
    svg = tag(
        "svg",
        *(_horizontal(y_scale, tick, show_tick(tick)) for tick in y_ticks),
        *(_vertical(x_scale, tick, show_x(tick)) for tick in _x_ticks(places, x_scale)),
        *(_marked(y_scale, height, text) for height, text in lines.items()),
        tag("svg", *drawn, viewBox="0 0 100 100", preserveAspectRatio="none", width="100%", height="100%"),
        tag("line", class_="cursor", y1="0", y2="100%"),
        class_="plot",
        role="img",
        tabindex=0,
        aria_label=f"{title}: {y_label} against {x_label}. The values are listed below; arrow keys move along.",
    )
    entries = [
        (curve.shown, _entry(index, curve, _spread(groups[-1], curve.show or show)))
        for index, (curve, groups) in enumerate(zip(curves, grouped, strict=True))
    ]
    hidden = [entry for shown, entry in entries if not shown]
    return tag(
        "figure",
        tag("figcaption", tag("strong", title), " ", tag("span", y_label)),
        svg,
        tag("p", f"{x_label} ", tag("output", show_x(places[-1])), class_="at"),
        tag("ul", *(entry for shown, entry in entries if shown), class_="legend"),
        tag("details", tag("summary", f"{len(hidden)} more"), tag("ul", *hidden, class_="legend")) if hidden else None,
        class_="chart",
        data_x=json.dumps([show_x(place) for place in places], ensure_ascii=False),
        data_at=json.dumps([round(place, 2) for place in at]),
    )


def path(
    title: str,
    parts: Mapping[str, Sequence[tuple[str, float, float]]],
    *,
    x_label: str,
    y_label: str,
    show_x: Callable[[float], str],
    show_y: Callable[[float], str],
    show_tick: Callable[[float], str],
    lines: dict[float, str] | None = None,
) -> Markup | None:
    """Points joined in the order in which they came; the readout is of the point nearest to the pointer.

    An axis over more than a decade is a log axis.

    Args:
        title: of the chart.
        parts: by its name, each stretch of the path: the points' names, x and y. A stretch starts at the lowest
            point before it.
        x_label: what x is.
        y_label: what y is.
        show_x: an x in words.
        show_y: a y in words.
        show_tick: a tick of y in words.
        lines: heights to mark, and what to write there.

    Returns:
        The chart; None if there is no point that is positive.
    """
    lines, scale = lines or {}, Scale(0, 1, log=True)

    def axis(values: Sequence[float]) -> tuple[list[float], Scale]:
        log = max(values) > 10 * min(values)
        ticks = nice_ticks(min(values), max(values), log=log)
        return ticks, Scale(ticks[0], ticks[-1], log)

    kept = {
        name: [point for point in points if scale.drawable(point[1]) and scale.drawable(point[2])]
        for name, points in parts.items()
    }
    kept = {name: points for name, points in kept.items() if points}
    points = list(itertools.chain.from_iterable(kept.values()))
    if not points:
        return None
    x, y = [point[1] for point in points], [point[2] for point in points]
    (x_ticks, x_scale), (y_ticks, y_scale) = axis(x), axis([*y, *lines])
    at = [(round(x_scale.place(a), 2), round(100 - y_scale.place(b), 2)) for a, b in zip(x, y, strict=True)]
    drawn, entries, first = [], [], 0
    for index, (name, part) in enumerate(kept.items()):
        last = first + len(part)
        start = [at[min(range(first), key=y.__getitem__)]] if first else []
        line = "M" + "L".join(f"{a:.4g} {b:.4g}" for a, b in [*start, *at[first:last]])
        dots = "".join(f"M{a:.4g} {b:.4g}h0" for a, b in at[first:last])
        here = [f"{show_x(a)}, {show_y(b)}" for _, a, b in part]
        # Before a stretch there is nothing to read, after it where it ended.
        values = ["–"] * first + here + here[-1:] * (len(points) - last)
        drawn.append(
            tag(
                "g",
                tag("path", d=line, class_="line"),
                tag("path", d=dots, class_="dots"),
                class_=f"curve {_look(index)}",
                data_values=json.dumps(values, ensure_ascii=False),
            )
        )
        entries.append(_entry(index, Curve(name, []), here[-1]))
        first = last
    svg = tag(
        "svg",
        *(_horizontal(y_scale, tick, show_tick(tick)) for tick in y_ticks),
        *(_vertical(x_scale, tick, f"{tick:,g}") for tick in x_ticks),
        *(_marked(y_scale, height, text) for height, text in lines.items()),
        tag("svg", *drawn, viewBox="0 0 100 100", preserveAspectRatio="none", width="100%", height="100%"),
        tag("line", class_="cursor", y1="0", y2="100%"),
        tag("line", class_="cursor level", x1="0", x2="100%"),
        class_="plot",
        role="img",
        tabindex=0,
        aria_label=f"{title}: {y_label} against {x_label}. The values are listed below; arrow keys move along.",
    )
    return tag(
        "figure",
        tag("figcaption", tag("strong", title), " ", tag("span", f"{y_label} against {x_label}")),
        svg,
        tag("p", tag("output", points[-1][0]), class_="at"),
        tag("ul", *entries, class_="legend"),
        class_="chart",
        data_x=json.dumps([point[0] for point in points], ensure_ascii=False),
        data_at=json.dumps([a for a, _ in at]),
        data_up=json.dumps([b for _, b in at]),
    )


def stack(amounts: Mapping[str, float], whole: float) -> Markup:
    """Amounts end to end on a horizontal track, in colours by their order.

    Args:
        amounts: what is stacked, by its name.
        whole: what would fill the track.
    """
    drawn, start = [], 0.0
    for index, (name, amount) in enumerate(amounts.items()):
        place, width = _percent(100 * start / whole), _percent(100 * amount / whole)
        title = tag("title", f"{name}: {amount:,.0f}")
        drawn.append(tag("rect", title, x=place, width=width, height="100%", class_=f"part {_look(index)}"))
        start += amount
    return _track(*drawn)


def rung(value: float, scale: Scale, kind: str, lines: Sequence[tuple[float, str]]) -> Markup:
    """One value on a horizontal track: a dot, or an arrow where it is off the scale.

    Args:
        value: a natural log; infinite at the ends, and nothing at all for NaN.
        scale: of the track.
        kind: classes of the dot.
        lines: heights to mark, and their classes.
    """
    zero = scale.place(0)
    if math.isfinite(value):
        place = _percent(min(max(scale.place(value), 0), 100))
        mark = tag("line", x1=_percent(zero), x2=place, y1="50%", y2="50%", class_=f"stem {kind}")
        mark = Markup(mark + tag("circle", cx=place, cy="50%", r=5, class_=f"dot {kind}"))
    elif math.isnan(value):
        mark = tag("text", "not a number", x="50%", y="50%", dy="0.35em", class_="mute")
    else:
        sign, anchor, place = ("∞ →", "end", "100%") if value > 0 else ("← −∞", "start", "0%")
        mark = tag("text", sign, x=place, y="50%", dy="0.35em", text_anchor=anchor, class_="mute")
    return _track(
        tag(
            "rect",
            x=_percent(scale.place(lines[0][0])),
            width=_percent(100 - scale.place(lines[0][0])),
            height="100%",
            class_="nothing",
        ),
        *(
            tag("line", x1=_percent(scale.place(at)), x2=_percent(scale.place(at)), y2="100%", class_=look)
            for at, look in lines
        ),
        mark,
    )


def rung_axis(scale: Scale, ticks: Sequence[float]) -> Markup:
    """The numbers under a column of tracks."""
    texts = [tag("text", f"{tick:g}", x=_percent(scale.place(tick)), y="1em", text_anchor="middle") for tick in ticks]
    return _track(*texts)


def _track(*drawn: Markup) -> Markup:
    """A drawing that fills a box of any height."""
    return tag("span", tag("svg", *drawn, aria_hidden="true"), class_="track")


def _paths(at: Sequence[float], groups: Sequence[Sequence[float]], scale: Scale) -> list[Markup]:
    """The line through the medians, broken where there is none, and a dot for every value."""
    line, dots, pen = "", "", "M"
    for place, group in zip(at, groups, strict=True):
        heights = [100 - scale.place(value) for value in group if scale.drawable(value)]
        # A line of no length with round ends: a dot that stays round however the drawing is stretched.
        dots += "".join(f"M{place:.4g} {height:.4g}h0" for height in heights)
        if heights:
            line += f"{pen}{place:.4g} {statistics.median(heights):.4g}"
        pen = "L" if heights else "M"
    few = sum(map(len, groups)) <= 40
    alone = [tag("path", d=dots, class_="dots")] if few or "L" not in line else []
    return [tag("path", d=line, class_="line"), *alone]


def _entry(index: int, curve: Curve, last: str) -> Markup:
    swatch = tag(
        "svg",
        tag("path", d="M0 6h26", class_="line"),
        tag("path", d="M13 6h0", class_="dots"),
        class_=f"swatch {_look(index)}",
        aria_hidden="true",
    )
    box = tag("input", type="checkbox", checked=curve.shown, data_curve=index)
    return tag("li", tag("label", box, swatch, tag("span", curve.label)), tag("output", last))


def _spread(group: Sequence[float], show: Callable[[float], str]) -> str:
    """The values at one x in words: one, or the median with the smallest and the largest."""
    known = sorted(value for value in group if not math.isnan(value))
    if not known:
        return "–"
    if _word(known[0], show) == _word(known[-1], show):
        return _word(known[0], show)
    return " ".join([_word(statistics.median(known), show), f"({_word(known[0], show)} to {_word(known[-1], show)})"])


def _word(value: float, show: Callable[[float], str]) -> str:
    return show(value) if math.isfinite(value) else "∞" if value > 0 else "−∞"


def _x_ticks(places: Sequence[float], scale: Scale) -> list[float]:
    """The values themselves if there is room for all of them, else round numbers among them."""
    at = [scale.place(value) for value in places]
    if len(places) == 1 or min(right - left for left, right in itertools.pairwise(at)) > 9:
        return list(places)
    ticks = nice_ticks(places[0], places[-1], log=scale.log)
    return [tick for tick in ticks if places[0] <= tick <= places[-1]]


def _horizontal(scale: Scale, tick: float, text: str) -> Markup:
    y = _percent(100 - scale.place(tick))
    line = tag("line", x1="0", x2="100%", y1=y, y2=y, class_="grid")
    return Markup(line + tag("text", text, x="0", y=y, dx=-6, dy="0.32em", text_anchor="end"))


def _vertical(scale: Scale, tick: float, text: str) -> Markup:
    return tag("text", text, x=_percent(scale.place(tick)), y="100%", dy="1.4em", text_anchor="middle")


def _marked(scale: Scale, height: float, text: str) -> Markup:
    y = _percent(100 - scale.place(height))
    line = tag("line", x1="0", x2="100%", y1=y, y2=y, class_="marked")
    return Markup(line + tag("text", text, x="100%", y=y, dy=-4, text_anchor="end"))


def _look(index: int) -> str:
    return f"c{index % len(COLOURS)} d{index // len(COLOURS)}"


def _percent(place: float) -> str:
    return f"{place:.2f}%"
