"""The page of a ranking: tables, the sign errors of every row, and every row against every target."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from milkshake_mbp.experiment.ranking.figures import off_scale
from milkshake_mbp.experiment.ranking.networks import TARGETS
from milkshake_mbp.experiment.ranking.study import Entry, Study
from milkshake_mbp.experiment.ranking.table import HEADS, axis_cells, cells, explanation, interval, summary
from milkshake_mbp.reporting.report.markup import Markup, cards, fold, table, tag
from milkshake_mbp.reporting.report.page import header, write_page
from milkshake_mbp.theory.bounds import CONVENTIONS
from milkshake_mbp.theory.ranking import Estimate

__all__ = ["write_ranking_report"]

_TITLE = "Which measure ranks these networks?"


def write_ranking_report(study: Study, target: Path) -> Path:
    """Write the page, and give the file back."""
    return write_page(target, _TITLE, _body(study))


def _body(study: Study) -> Iterator[Markup]:
    networks = study.networks
    first, *others = summary(networks)
    yield header(_TITLE, lead=first)
    if networks.set_aside:
        names = [tag("li", f"{name}: {why}") for name, why in networks.set_aside]
        yield fold(f"{len(names)} runs are set aside", tag("ul", *names))
        others = others[: len(others) - len(names) - 1]
    yield from (tag("p", line) for line in others)
    yield fold("Explanation of the columns", *(tag("p", line, class_="mute") for line in explanation(study)))
    for name in study.targets:
        yield tag("h2", TARGETS[name])
        yield _best(study, name)
        for convention in study.conventions:
            entries = study.block(name, convention)
            if not entries:
                continue
            title = CONVENTIONS[convention].title
            yield table(title, HEADS, [cells(entry) for entry in entries], HEADS[1:])
            axes = study.networks.design.axes
            heads = ["row", *axes]
            inside = table(f"{title}: ψ by hyperparameter", heads, [axis_cells(e, axes) for e in entries], axes)
            yield fold("ψ by hyperparameter", inside)
            if any(entry.ranking.worst_sign_error.defined for entry in entries):
                yield fold("Sign error in every environment, 0 at the left and 1 at the right", _strips(entries))
            yield fold("Every network", tag("div", *map(_scatter, entries), class_="charts"))


def _best(study: Study, target: str) -> Markup:
    entries = [entry for entry in study.entries if entry.target == target]
    ranked = [entry for entry in entries if entry.ranking.tau.defined]
    best = max(ranked, key=lambda entry: entry.ranking.tau.value, default=None)
    equal = [entry for entry in entries if entry.ranking.tau_equal_size.defined]
    at_size = max(equal, key=lambda entry: entry.ranking.tau_equal_size.value, default=None)
    robust = [entry for entry in entries if entry.ranking.worst_sign_error.defined]
    worst = min(robust, key=lambda entry: entry.ranking.worst_sign_error.value, default=None)
    chosen = [
        ("Largest tau", best, None if best is None else best.ranking.tau),
        ("At equal size", at_size, None if at_size is None else at_size.ranking.tau_equal_size),
        ("Smallest worst-case sign error", worst, None if worst is None else worst.ranking.worst_sign_error),
    ]
    shown = [
        (
            title,
            interval(Estimate(estimate.value)),
            f"{interval(estimate)}: {entry.label}, the best of {len(entries)} rows",
        )
        for title, entry, estimate in chosen
        if entry is not None and estimate is not None
    ]
    return cards(*shown)


def _strips(entries: Sequence[Entry]) -> Markup:
    """A track for each row, on which a dot is an environment."""
    return tag("div", *(_strip(entry) for entry in entries if entry.ranking.worst_sign_error.defined))


def _strip(entry: Entry) -> Markup:
    ranking = entry.ranking
    dots = [
        tag("circle", tag("title", f"{axis}: {error:.2f}"), cx=_place(error), cy="50%", r=4, class_="dot measured")
        for axis, error in ranking.sign_errors
    ]
    mean = _place(ranking.mean_sign_error.value)
    track = tag(
        "svg",
        tag("line", x1=_place(0.5), x2=_place(0.5), y1="0", y2="100%", stroke="currentColor", stroke_dasharray="3"),
        *dots,
        tag("line", x1=mean, x2=mean, y1="10%", y2="90%", stroke="currentColor", stroke_width="2"),
        width="100%",
        height="22",
    )
    return tag("div", tag("span", entry.label, class_="label"), tag("div", track, class_="track"), class_="rung")


def _place(share: float) -> str:
    return f"{1 + 98 * share:.2f}%"


def _scatter(entry: Entry) -> Markup:
    """The target, upwards, against the row's natural log."""
    across, up = off_scale(list(entry.values)), list(entry.errors)
    left, bottom = min(across), min(up)
    width, height = max(across) - left or 1.0, max(up) - bottom or 1.0
    # Lines of no length with round ends are dots, in a few bytes each.
    dots = "".join(
        f"M{4 + 192 * (x - left) / width:.1f} {116 - 112 * (y - bottom) / height:.1f}h0"
        for x, y in zip(across, up, strict=True)
    )
    text = f"{TARGETS[entry.target]} from {bottom:.1%} to {max(up):.1%} against ln {entry.label}"
    svg = tag(
        "svg",
        tag("title", text),
        tag("path", d=dots, stroke="currentColor", stroke_width="4", stroke_linecap="round", opacity="0.5"),
        viewBox="0 0 200 120",
        width="200",
        height="120",
        role="img",
    )
    label = f"{entry.label}: tau {interval(entry.ranking.tau)}"
    return tag("figure", svg, tag("figcaption", label, class_="mute"))
