"""The ladder for people: what each bound is, what it says, with what probability it holds, why it may say nothing.

The same lines go to the terminal, to Markdown and to LaTeX; the CSV has the numbers behind them.
"""

import json
import math
import re
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import ROUND_CEILING, Decimal
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from milkshake_mbp.commands import called
from milkshake_mbp.files import write_atomically, write_csv
from milkshake_mbp.theory.bounds import CONVENTIONS, ROWS, Row

__all__ = [
    "BOUNDS",
    "Line",
    "Section",
    "at_most",
    "escape_latex",
    "export_ladder",
    "ladder_table",
    "left_out_lines",
    "next_step",
    "sections",
]

BOUNDS = tuple(name for name, convention in CONVENTIONS.items() if convention.bounds)
_HEADS = ("bound", "ln", "value", "holds", "says")
_NUMBERS = ("ln", "value", "holds")
_ROWS: dict[tuple[str, str], Row] = {(row.convention, row.name): row for row in ROWS}


@dataclass(frozen=True)
class Line:
    """One bound in words; `note` counts the section's notes from 1, 0 for none."""

    label: str
    log_value: str
    value: str
    holds: str
    says: str
    note: int

    @property
    def cells(self) -> dict[str, str]:
        """By the heads of their columns."""
        mark = f" [{self.note}]" if self.note else ""
        return dict(zip(_HEADS, (self.label + mark, self.log_value, self.value, self.holds, self.says), strict=True))


@dataclass(frozen=True)
class Section:
    """One convention in words, its smallest bound first."""

    title: str
    caption: str
    lines: list[Line] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def heads(self) -> list[str]:
        """Of the columns that are not empty."""
        return [head for head in _HEADS if any(line.cells[head] for line in self.lines)]

    def table(self) -> list[list[str]]:
        """The cells under the heads."""
        return [[line.cells[head] for head in self.heads] for line in self.lines]

    @property
    def remarks(self) -> list[str]:
        """The notes, numbered."""
        return [f"[{number}] {note}." for number, note in enumerate(self.notes, 1)]


def sections(result: Mapping[str, Any], conventions: Iterable[str] = CONVENTIONS) -> Iterator[Section]:
    """A result.json's ladder, a section for each convention that it has rows of."""
    chance = 1 - 1 / result["num_classes"]
    for convention in conventions:
        bounds = [bound for bound in result["bounds"] if bound["convention"] == convention]
        if not bounds:
            continue
        section = Section(CONVENTIONS[convention].title, CONVENTIONS[convention].caption)
        for bound in sorted(bounds, key=lambda bound: bound["log_value"]):
            remark = "; ".join(filter(None, (bound["reason"], bound.get("rests_on", ""))))
            if remark and remark not in section.notes:
                section.notes.append(remark)
            section.lines.append(
                Line(
                    label=_ROWS[convention, bound["name"]].label,
                    log_value=f"{bound['log_value']:.2f}",
                    value=_magnitude(bound["log_value"]),
                    holds=_probability(bound),
                    says=_meaning(bound, chance),
                    note=section.notes.index(remark) + 1 if remark else 0,
                )
            )
        yield section


def ladder_table(result: Mapping[str, Any], conventions: Iterable[str] = BOUNDS) -> Group:
    """The ladder for the terminal, under the errors that it is about."""
    chance = 1 - 1 / result["num_classes"]
    note = f"ln is the natural log. A bound says something only below chance, ln {chance:.0%} = {math.log(chance):.2f}."
    notes = [Text(line, style="dim") for line in (note, *left_out_lines(result))]
    return Group(_facts(result), *map(_render, sections(result, conventions)), *notes)


def left_out_lines(result: Mapping[str, Any]) -> list[str]:
    """For each reason of the network's structure, how many rows it leaves out and which."""
    lines = []
    for reason, labels in (result.get("left_out") or {}).items():
        rows = f"{len(labels)} rows are" if len(labels) > 1 else "1 row is"
        lines.append(f"{rows} left out ({reason}): {'; '.join(labels)}.")
    return lines


def next_step(args: Namespace) -> str:
    """What gives a guarantee that is not vacuous on the same data."""
    command = f"{called('certificate')}, see docs/certificate.md"
    if args.datamodule in ("digits", "mnist", "cifar10"):
        command = called("certificate", f"certificate_{args.datamodule}")
    return f"A guarantee that is not vacuous, from a network made for one: {command}"


def export_ladder(result: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write ladder.csv, ladder.md and ladder.tex.

    Args:
        result: with `bounds` and `num_classes`, as in result.json.
        folder: where to.

    Returns:
        The files.
    """
    numbers = []
    for bound in result["bounds"]:
        row = _ROWS[bound["convention"], bound["name"]]
        names = {"label": row.label, "reference": row.reference, "terms": json.dumps(bound["terms"])}
        numbers.append({**bound, **names})
    table, markdown, latex = (folder / f"ladder.{suffix}" for suffix in ("csv", "md", "tex"))
    write_csv(table, numbers)
    write_atomically(markdown, _markdown(result).encode())
    write_atomically(latex, _latex(result).encode())
    return [table, markdown, latex]


def _facts(result: Mapping[str, Any]) -> Padding:
    facts = Table.grid(padding=(0, 2))
    facts.add_row("Test error", _percent(result["test_error"]["unpruned"]), "as trained")
    if prune := result.get("prune"):
        own = sum(layer.get("d", prune["d"]) != prune["d"] for layer in prune["layers"])
        apart = f" ({own} of {len(prune['layers'])} kernels at another)" if own else ""
        gone = f"pruned at d = {prune['d']:.3g}{apart}, {prune['sparsity']:.1%} of the weights gone"
        facts.add_row("", _percent(result["test_error"]["pruned"]), gone)
        facts.add_row("", "", _left_alone(prune))
    if result["d"] is not None:
        found = f"pruned at the d = {result['d']:.3g} that the paper's search finds"
        facts.add_row("", _percent(result["true_error"]), found)
    facts.add_row("Margin", f"{result['margin']:.4g}", f"the smallest of {result['n']:,}")
    return Padding(facts, (1, 0, 0, 0))


def _left_alone(prune: Mapping[str, Any]) -> str:
    """What pruning left alone."""
    spared, others = prune.get("kernels_left_alone", ()), prune.get("left_alone", ())
    words = [f"{len(spared)} of {len(spared) + len(prune['layers'])} kernels by the rule"] if spared else []
    if others:
        more = f" and {len(others) - 2} more" if len(others) > 2 else ""
        words.append(f"{len(others)} parameters that are no kernels ({', '.join(others[:2])}{more})")
    return f"left alone: {' and '.join(words)}, {prune['numbers_left_alone']:,} numbers" if words else ""


def _render(section: Section) -> Padding:
    table = Table(
        title=section.title,
        title_justify="left",
        title_style="bold",
        caption="\n".join([section.caption, *section.remarks]),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
    )
    for head in section.heads:
        table.add_column(head, justify="right" if head in _NUMBERS else "left")
    for cells in section.table():
        table.add_row(*map(Text, cells))
    return Padding(table, (1, 0, 0, 0))


def _markdown(result: Mapping[str, Any]) -> str:
    blocks = []
    for section in sections(result):
        rule = ["--:" if head in _NUMBERS else "---" for head in section.heads]
        table = [f"| {' | '.join(cells)} |" for cells in (section.heads, rule, *section.table())]
        remarks = map(_escape_markdown, section.remarks)
        blocks.append("\n".join([f"### {section.title}", "", section.caption, "", *table, "", *remarks]))
    return "\n\n".join(block.strip() for block in [*blocks, *map(_escape_markdown, left_out_lines(result))]) + "\n"


def _escape_markdown(text: str) -> str:
    """Names of layers, which a file may have brought along, are text and not HTML or a link."""
    return re.sub(r"([<`\\]|\]\()", lambda found: "".join(f"\\{c}" for c in found[0]), text)


def _latex(result: Mapping[str, Any]) -> str:
    tables = []
    for section in sections(result):
        columns = "".join("r" if head in _NUMBERS else "l" for head in section.heads)
        caption = " ".join([f"{section.title}.", section.caption, *section.remarks])
        lines = [
            r"\begin{table}",
            rf"\caption{{{escape_latex(caption)}}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            " & ".join(section.heads) + r" \\",
            r"\midrule",
            *(" & ".join(map(escape_latex, cells)) + r" \\" for cells in section.table()),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
        tables.append("\n".join(lines))
    return "% \\usepackage{booktabs}\n" + "\n\n".join(tables) + "\n"


_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        **{character: f"\\{character}" for character in "%&_#${}"},
        "^": r"\^{}",
        "~": r"\~{}",
        **{
            symbol: f"${command}$"
            for symbol, command in {
                "≤": r"\le",
                "≥": r"\ge",
                "∞": r"\infty",
                "−": "-",
                "‖": r"\|",
                "√": r"\surd",
                "²": "^2",
                "ℓ": r"\ell",
                "φ": r"\varphi",
                "ρ": r"\rho",
                "σ": r"\sigma",
                "δ": r"\delta",
                "Σ": r"\Sigma",
                "λ": r"\lambda",
                "η": r"\eta",
                "≈": r"\approx",
                "×": r"\times",
                "·": r"\cdot",
            }.items()
        },
        "–": "--",
        "’": "'",
    }
)


def escape_latex(text: str) -> str:
    """Plain text as LaTeX source in ASCII, powers of ten as such."""
    return re.sub(r"10\\\^\{\}(-?[\d.]+)", r"$10^{\1}$", text.translate(_LATEX))


def at_most(bound: float, digits: int = 2) -> str:
    """A bound on a probability in percent, rounded up, so that what is said is proved."""
    return f"{100 * Decimal(bound).quantize(Decimal(1).scaleb(-digits - 2), ROUND_CEILING):.{digits}f}%"


def _probability(bound: Mapping[str, Any]) -> str:
    if bound["holds_with"] is not None:
        return f"{math.floor(1000 * bound['holds_with'] + 1e-9) / 10:.1f}%"
    return "" if bound["claimed"] is None else f"claims {bound['claimed']:.0%}"


def _meaning(bound: Mapping[str, Any], chance: float) -> str:
    if bound["vacuous"] is None:
        return "a complexity" if bound["convention"] != "measure" else ""
    if bound["convention"] == "rigorous" and not bound.get("applies", True):
        return "no guarantee"
    if bound["trivial"]:
        return "nothing: ≥ 100%"
    if bound["vacuous"]:
        return f"nothing: ≥ chance, {chance:.0%}"
    return f"error ≤ {at_most(math.exp(bound['log_value']), 1)}"


def _magnitude(log_value: float) -> str:
    if math.isinf(log_value):
        return "∞" if log_value > 0 else "0"
    if abs(log_value) < math.log(1e4):
        return f"{math.exp(log_value):.3g}"
    return f"10^{log_value / math.log(10):.1f}"


def _percent(error: float | None) -> str:
    return "unknown" if error is None else f"{error:.2%}"
