"""A comparison as Markdown, LaTeX and CSV."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from milkshake_mbp.files import write_atomically, write_csv
from milkshake_mbp.reporting.ladder import escape_latex
from milkshake_mbp.reporting.tables.comparison import HIDDEN, PRINTED, Comparison, Quantity

__all__ = ["export_table", "number"]


def number(value: float | None, form: str, absent: str = "") -> str:
    """A number as people write it."""
    if value is None:
        return absent
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if form.endswith("e"):
        if value == 0:
            return "0"
        mantissa, exponent = f"{value:{form}}".split("e")
        return f"{mantissa}e{int(exponent)}".replace("-", "−")
    # Three digits that are significant may end in the point: "123."
    return f"{value:{form}}".removesuffix(".").replace("-", "−")


@dataclass(frozen=True)
class _Line:
    """One line of a table: what it is about, whose numbers they are, and a cell for each width."""

    label: str
    kind: str
    cells: list[str]


def _lines(comparison: Comparison, quantities: Sequence[Quantity]) -> Iterator[_Line]:
    for quantity in quantities:
        entries = comparison.row(quantity.name)
        absent = ["unknown" if comparison.runs[width] else "not run" for width in comparison.widths]
        form = quantity.form
        here = [number(entry.median, form, hole) for entry, hole in zip(entries, absent, strict=True)]
        yield _Line(quantity.label, "here", here)
        ends = [(number(entry.low, form), number(entry.high, form)) for entry in entries]
        if any(low != high for low, high in ends):
            yield _Line("", "range", [f"{low} to {high}" if low != high else "" for low, high in ends])
        if any(entry.paper is not None for entry in entries):
            yield _Line("", "paper", [number(entry.paper, ".2f") for entry in entries])
            yield _Line("", "difference", [number(entry.difference, "+.2f") for entry in entries])


def _blocks(comparison: Comparison) -> list[list[_Line]]:
    """The lines of the paper's table, and those that it does not have."""
    hidden = [
        *_lines(comparison, HIDDEN),
        _Line("Seeds", "here", [comparison.seeds(width) for width in comparison.widths]),
    ]
    return [list(_lines(comparison, PRINTED)), hidden]


def export_table(comparison: Comparison, folder: Path, *, label: str, title: str, remarks: Sequence[str]) -> list[Path]:
    """Write a table as Markdown, LaTeX and CSV.

    Args:
        comparison: its content.
        folder: where to.
        label: its name in the paper, such as Table 1; and table1.md's.
        title: after it; LaTeX counts its tables itself.
        remarks: below it, in LaTeX after the title.

    Returns:
        The files, Markdown first.
    """
    name = label.lower().replace(" ", "")
    markdown, latex, table = (folder / f"{name}.{kind}" for kind in ("md", "tex", "csv"))
    write_atomically(markdown, _markdown(comparison, f"{label}: {title}", remarks).encode())
    write_atomically(latex, _latex(comparison, f"{title[0].upper()}{title[1:]}", remarks).encode())
    write_csv(table, list(_records(comparison)))
    return [markdown, latex, table]


def _markdown(comparison: Comparison, title: str, remarks: Sequence[str]) -> str:
    heads = ("natural log", "not in the paper's table")
    blocks = [f"## {title}"]
    for head, lines in zip(heads, _blocks(comparison), strict=True):
        width = [f"width {width}" for width in comparison.widths]
        cells = [[head, "", *width], *([line.label, line.kind, *line.cells] for line in lines)]
        sizes = [max(map(len, column)) for column in zip(*cells, strict=True)]
        rule = ["-" * size if index < 2 else "-" * (size - 1) + ":" for index, size in enumerate(sizes)]
        blocks.append("\n".join(_aligned(line, sizes) for line in (cells[0], rule, *cells[1:])))
    return "\n\n".join([*blocks, "\n".join(f"- {remark}" for remark in remarks)]) + "\n"


def _aligned(cells: Sequence[str], sizes: Sequence[int]) -> str:
    padded = [
        cell.ljust(size) if index < 2 else cell.rjust(size)
        for index, (cell, size) in enumerate(zip(cells, sizes, strict=True))
    ]
    return f"| {' | '.join(padded)} |"


def _latex(comparison: Comparison, title: str, remarks: Sequence[str]) -> str:
    printed, hidden = (
        [" & ".join(map(_latex_cell, (line.label, line.kind, *line.cells))) + r" \\" for line in lines]
        for lines in _blocks(comparison)
    )
    heads = ("natural log", "", *(f"width {width}" for width in comparison.widths))
    lines = [
        r"% \usepackage{booktabs}",
        r"\begin{table*}",
        r"\centering\small\setlength{\tabcolsep}{4pt}",
        rf"\caption{{{escape_latex(' '.join([title + '.', *remarks]))}}}",
        rf"\begin{{tabular}}{{ll{'r' * len(comparison.widths)}}}",
        r"\toprule",
        " & ".join(heads) + r" \\",
        r"\midrule",
        *printed,
        r"\midrule",
        *hidden,
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table*}",
    ]
    return "\n".join(lines) + "\n"


def _latex_cell(text: str) -> str:
    return re.sub(r"([\d.]+)e\$-\$(\d+)", r"$\1\\cdot 10^{-\2}$", escape_latex(text))


def _records(comparison: Comparison) -> Iterator[dict[str, Any]]:
    for quantity in (*PRINTED, *HIDDEN):
        for width, entry in zip(comparison.widths, comparison.row(quantity.name), strict=True):
            yield {
                "quantity": quantity.name,
                "dataset": comparison.datamodule,
                "width": width,
                "median": entry.median,
                "low": entry.low,
                "high": entry.high,
                "paper": entry.paper,
                "difference": entry.difference,
                "runs": len(comparison.runs[width]),
                "seeds": comparison.seeds(width).replace(",", ""),
            }
