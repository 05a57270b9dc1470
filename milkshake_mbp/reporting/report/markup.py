"""HTML and SVG as nested calls; text is escaped unless it is markup already, so that nothing can be forgotten."""

from collections.abc import Mapping, Sequence
from html import escape

__all__ = ["Markup", "cards", "fold", "keys", "table", "tag"]

_VOID = {"br", "input", "meta"}


class Markup(str):
    """Text that is HTML already."""


def tag(name: str, *children: str | float | None, **attributes: str | float | None) -> Markup:
    """One element.

    Args:
        name: of the element.
        *children: its content in order; None is left out.
        **attributes: a trailing underscore is dropped and others become hyphens; None and False leave the attribute
            out, True gives it no value.
    """
    given = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{escape(str(value))}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    if name in _VOID:
        return Markup(f"<{name}{given}>")
    return Markup(f"<{name}{given}>{_join(children)}</{name}>")


def table(
    caption: str, heads: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[str] = (), notes: str = ""
) -> Markup:
    """A table that scrolls in a box of its own; the first cell of a row is the row's head.

    Args:
        caption: above it, and what a screen reader calls it.
        heads: of the columns.
        rows: their cells.
        numbers: heads of the columns that are aligned to the right.
        notes: below it.
    """
    kinds = ["number" if head in numbers else None for head in heads]
    head = tag("tr", *(tag("th", text, scope="col", class_=kind) for text, kind in zip(heads, kinds, strict=True)))
    body = [
        tag(
            "tr",
            tag("th", cells[0], scope="row"),
            *(tag("td", cell, class_=kind) for cell, kind in zip(cells[1:], kinds[1:], strict=True)),
        )
        for cells in rows
    ]
    whole = tag("table", tag("thead", head), tag("tbody", *body), aria_label=caption)
    # A caption inside of the box would be cut off where it is wider than a phone.
    box = tag("div", whole, class_="scroll", tabindex=0, role="region", aria_label=caption)
    return tag("div", tag("p", caption, class_="caption"), box, notes or None)


def cards(*entries: tuple[str, str, str]) -> Markup:
    """Headline numbers side by side: of each its name, its value, and a note."""
    return tag(
        "dl",
        *(
            tag("div", tag("dt", name), tag("dd", value, class_="big"), tag("dd", note))
            for name, value, note in entries
        ),
        class_="cards",
    )


def keys(looks: Mapping[str, str]) -> Markup:
    """What the colours of a drawing stand for: of each its name, and the class that has the colour."""
    entries = [tag("li", tag("i", class_=look, aria_hidden="true"), name) for name, look in looks.items()]
    return tag("ul", *entries, class_="keys")


def fold(summary: str, *children: str | None, **attributes: str | None) -> Markup:
    """Content that shows when its summary is clicked."""
    return tag("details", tag("summary", summary), *children, **attributes)


def _join(children: Sequence[str | float | None]) -> str:
    return "".join(
        child if isinstance(child, Markup) else escape(str(child)) for child in children if child is not None
    )
