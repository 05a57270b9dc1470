"""The ladder for people: what each bound is, what it means, with what probability it holds, why it may not apply.

The same lines go to the terminal, to Markdown and to LaTeX; the CSV has the numbers behind them.
"""

import json
import math
import re
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from milkshake_mbp.commands import called
from milkshake_mbp.files import write_atomically, write_csv
from milkshake_mbp.reporting.errata import explained
from milkshake_mbp.reporting.terminal import Fitted
from milkshake_mbp.reporting.words import at_most, show, show_log, show_percent, show_strength
from milkshake_mbp.theory.bounds import CONVENTIONS, ROWS, Row

__all__ = [
    "BOUNDS",
    "CHARTED",
    "NUMBERS",
    "Line",
    "Section",
    "bounds_of",
    "chance_level",
    "error_bounds",
    "escape_latex",
    "export_ladder",
    "ladder_table",
    "left_out_lines",
    "next_step",
    "sections",
    "telling",
    "verdict",
]

BOUNDS = tuple(name for name, convention in CONVENTIONS.items() if convention.bounds)
CHARTED = {"leading": "hidden constants set to 1", "rigorous": "no hidden constant"}
_HEADS = ("bound", "ln", "value", "holds", "meaning")
NUMBERS = ("ln", "value", "holds")
_ROWS: dict[tuple[str, str], Row] = {(row.convention, row.name): row for row in ROWS}
_FEW, _SMALLEST = 6, 3
# What the paper's tables compare.
_COMPARED = {row.name for row in ROWS if row.convention == "paper"}


@dataclass(frozen=True)
class Line:
    """One bound in words; `note` counts the section's notes from 1, 0 for none."""

    label: str
    log_value: str
    value: str
    holds: str
    meaning: str
    note: int

    @property
    def cells(self) -> dict[str, str]:
        """By the heads of their columns."""
        mark = f" [{self.note}]" if self.note else ""
        return dict(zip(_HEADS, (self.label + mark, self.log_value, self.value, self.holds, self.meaning), strict=True))


@dataclass(frozen=True)
class Section:
    """One convention in words, its smallest bound first; `hidden` counts the rows that are left out as minor."""

    title: str
    caption: str
    lines: list[Line] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    hidden: int = 0

    @property
    def heads(self) -> list[str]:
        """Of the columns that are not empty."""
        return [head for head in _HEADS if any(line.cells[head] for line in self.lines)]

    def table(self) -> list[list[str]]:
        """The cells under the heads."""
        return [[line.cells[head] for head in self.heads] for line in self.lines]

    @property
    def remarks(self) -> list[str]:
        """The notes, numbered, and the errata that they cite."""
        return [*(f"[{number}] {note}." for number, note in enumerate(self.notes, 1)), *explained(self.notes)]


def sections(
    result: Mapping[str, Any], conventions: Iterable[str] = CONVENTIONS, *, brief: bool = False
) -> Iterator[Section]:
    """A result.json's ladder, a section for each convention that it has rows of.

    Args:
        result: with `bounds` and `num_classes`.
        conventions: in this order.
        brief: whether to show, of a convention with many rows, the three smallest, those below chance and those that
            the paper's tables compare, and no other.
    """
    for convention in conventions:
        bounds = sorted(bounds_of(result, convention), key=lambda bound: bound["log_value"])
        if not bounds:
            continue
        shown = [
            bound
            for place, bound in enumerate(bounds)
            if not brief
            or len(bounds) <= _FEW
            or place < _SMALLEST
            or bound["vacuous"] is False
            or bound["name"] in _COMPARED
        ]
        title, caption = CONVENTIONS[convention].title, CONVENTIONS[convention].caption
        section = Section(title, caption, hidden=len(bounds) - len(shown))
        for bound in shown:
            remark = "; ".join(filter(None, (bound["reason"], bound.get("rests_on", ""))))
            if remark and remark not in section.notes:
                section.notes.append(remark)
            section.lines.append(
                Line(
                    label=_ROWS[convention, bound["name"]].label,
                    log_value=show_log(bound["log_value"]),
                    value=_magnitude(bound["log_value"]),
                    holds=_probability(bound),
                    meaning=_meaning(bound, chance_level(result)),
                    note=section.notes.index(remark) + 1 if remark else 0,
                )
            )
        yield section


def bounds_of(result: Mapping[str, Any], *conventions: str) -> list[Mapping[str, Any]]:
    """A result's bounds of these conventions."""
    return [bound for bound in result["bounds"] if bound["convention"] in conventions]


def error_bounds(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Those on the scale of the test error."""
    return bounds_of(result, *CHARTED) if result else []


def telling(bounds: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those below chance whose conditions hold."""
    return [bound for bound in bounds if bound["vacuous"] is False and bound.get("applies", True)]


def chance_level(result: Mapping[str, Any]) -> float:
    """The error of guessing, a probability."""
    return float(1 - 1 / result["num_classes"])


def verdict(result: Mapping[str, Any]) -> str:
    """How many of a result's bounds are not vacuous, the smallest, and the smallest that needs no test set."""
    bounds, chance = error_bounds(result), chance_level(result)
    below = telling(bounds)
    broken = sum(bound["vacuous"] is False for bound in bounds) - len(below)
    are, their = ("is", "its") if broken == 1 else ("are", "their")
    void = f" {broken} more {are} below it, but {their} conditions fail." if broken else ""
    if not below:
        if broken:
            return f"None of {len(bounds)} bounds on the test error is below {chance:.0%}, the error of guessing.{void}"
        return (
            f"All {len(bounds)} bounds on the test error are vacuous: at or above {chance:.0%}, the error of guessing."
        )
    count = f"{len(below)} of {len(bounds)} bounds on the test error {'is' if len(below) == 1 else 'are'} below"
    words = f"{count} {chance:.0%}, the error of guessing.{void} The smallest is {_quoted(below)}."
    trained = [bound for bound in below if bound["name"] != "test_set"]
    if not trained:
        rest = "all bounds computed from the training samples are vacuous" if not broken else "no other bound applies"
        return f"{words} It is computed from the test set; {rest}."
    return words if len(trained) == len(below) else f"{words} From the training samples alone: {_quoted(trained)}."


def _quoted(bounds: Sequence[Mapping[str, Any]]) -> str:
    """The smallest of these bounds, its value, and what that stands on."""
    best = min(bounds, key=lambda bound: bound["log_value"])
    label, most = _ROWS[best["convention"], best["name"]].label, at_most(math.exp(best["log_value"]))
    surely = f"with probability {_probability(best)}" if best["holds_with"] else "its hidden constant set to 1"
    return f"“{label}”: at most {most}, {surely}"


def ladder_table(result: Mapping[str, Any], *, brief: bool = True) -> Group:
    """The ladder for the terminal, under the errors that it is about; `brief` as in `sections`, without measures."""
    chance, conventions = chance_level(result), BOUNDS if brief else tuple(CONVENTIONS)
    shown = list(sections(result, conventions, brief=brief))
    notes = [
        "ln is the natural logarithm. A bound is vacuous if it is not below chance, the error of guessing: "
        f"ln {chance:.0%} = {show_log(math.log(chance))}."
    ]
    hidden = sum(section.hidden for section in shown)
    measures = len(bounds_of(result, *(name for name in CONVENTIONS if name not in conventions)))
    if hidden or measures:
        measured = [f"{measures} measures that are not bounds"] * (measures > 0)
        absent = " and ".join([f"{hidden} rows"] * (hidden > 0) + measured)
        notes.append(
            f"Not shown: {absent}. Of a long list, only the three smallest rows, the rows below chance and the rows "
            "that the paper's tables compare are shown. --all shows every row, as does ladder.md."
        )
    notes += left_out_lines(result, brief)
    dim = (Text(note, style="dim") for note in notes)
    return Group(_facts(result), *map(_render, shown), Text(), *dim, Text(), Text(verdict(result)), Text())


def left_out_lines(result: Mapping[str, Any], brief: bool = False) -> list[str]:
    """For each reason of the network's structure, how many rows it leaves out and, unless `brief`, which."""
    lines = []
    for reason, labels in (result.get("left_out") or {}).items():
        rows = f"{len(labels)} rows are" if len(labels) > 1 else "1 row is"
        lines.append(f"{rows} left out ({reason}){'' if brief else ': ' + '; '.join(labels)}.")
    return lines


def next_step(args: Namespace) -> str:
    """What gives a guarantee below chance on the same data, from the training samples alone."""
    if args.datamodule in ("digits", "mnist", "cifar10"):
        command = called("certificate", f"certificate_{args.datamodule}")
        what = (
            "trains and prunes another network on the same data and proves, from the training samples alone, that its "
        )
        what += f"error is below chance{' (under a minute)' if args.datamodule == 'digits' else ''}."
    else:
        command = f"{called('certificate')} --help"
        what = "shows how to train a network whose error is proved to be below chance."
    return f"What to do next:\n  {command}\n{what}"


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
    facts, error = Table.grid(padding=(0, 2)), result["test_error"]
    facts.add_row("Test error", show_percent(error["unpruned"]), "as trained")
    if prune := result.get("prune"):
        own = sum(layer.get("d", prune["d"]) != prune["d"] for layer in prune["layers"])
        apart = f" ({own} of {len(prune['layers'])} kernels at another d)" if own else ""
        removed = (
            f"pruned at d = {show_strength(prune['d'])}{apart}, which removes {prune['sparsity']:.1%} of the weights"
        )
        facts.add_row("", show_percent(error["pruned"]), removed)
        if spared := _not_pruned(prune):
            facts.add_row("", "", spared)
    elif error.get("pruned") is not None:
        facts.add_row("", show_percent(error["pruned"]), f"pruned at d = {show_strength(result['prune_d'])}")
    if result["d"] is not None:
        found = f"pruned at d = {show_strength(result['d'])}, found by the paper's search"
        facts.add_row("", show_percent(result["true_error"]), found)
    facts.add_row("Margin", show(result["margin"]), f"smallest margin of the {result['n']:,} training samples")
    return Padding(facts, (1, 0, 0, 0))


def _not_pruned(prune: Mapping[str, Any]) -> str:
    """The kernels and parameters that were not pruned."""
    spared, others = prune.get("kernels_left_alone", ()), prune.get("left_alone", ())
    words = [f"{len(spared)} of {len(spared) + len(prune['layers'])} kernels by the rule"] if spared else []
    if others:
        more = f" and {len(others) - 2} more" if len(others) > 2 else ""
        words.append(f"{len(others)} parameters that are not kernels ({', '.join(others[:2])}{more})")
    return f"not pruned: {' and '.join(words)}, {prune['numbers_left_alone']:,} numbers" if words else ""


def _render(section: Section) -> Padding:
    title = f"{section.title} ({len(section.lines)} of {len(section.lines) + section.hidden} rows)"
    table = Fitted(
        section.heads, section.table(), NUMBERS, ["meaning"], ["value", "holds"], title, "ladder.md has all columns"
    )
    notes = [Text(line) for line in (section.caption, *section.remarks)]
    return Padding(Group(table, *notes), (1, 0, 0, 0))


def _markdown(result: Mapping[str, Any]) -> str:
    blocks = []
    for section in sections(result):
        rule = ["--:" if head in NUMBERS else "---" for head in section.heads]
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
        columns = "".join("r" if head in NUMBERS else "l" for head in section.heads)
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
        return "vacuous (≥ 100%)"
    if bound["vacuous"]:
        return f"vacuous (≥ {chance:.0%})"
    if not bound.get("applies", True):
        return "no guarantee"
    return f"error ≤ {at_most(math.exp(bound['log_value']))}"


def _magnitude(log_value: float) -> str:
    if math.isinf(log_value):
        return "∞" if log_value > 0 else "0"
    if abs(log_value) < math.log(1e4):
        return f"{math.exp(log_value):.3g}"
    return f"10^{log_value / math.log(10):.1f}"
