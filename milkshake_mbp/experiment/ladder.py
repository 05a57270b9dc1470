"""The ladder as a table for the terminal: what each bound is, what it says, and why it may say nothing."""

import math
from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from milkshake_mbp.theory.bounds import ROWS

__all__ = ["ladder_table"]

_TITLES = {
    "paper": (
        "As the paper's tables compute it",
        "Only Theorem 5.2 is a bound on an error; the others are squared complexities, to be compared with themselves.",
    ),
    "leading": (
        "Like for like",
        "Each published bound on the test error, its hidden constants set to 1, so that none of them is proved.",
    ),
}
_LABELS: dict[tuple[str, str], str] = {(row.convention, row.name): row.label for row in ROWS}


def ladder_table(result: Mapping[str, Any]) -> Group:
    """A result.json's ladder, smallest bound first in each convention, under the errors it is about."""
    chance = 1 - 1 / result["num_classes"]
    note = Text(
        f"ln is the natural log. A bound says something only below chance, ln {chance:.0%} = {math.log(chance):.2f}.\n"
        "*  the source's own conditions do not hold for this network; result.json says which.",
        style="dim",
    )
    return Group(_facts(result), *(_convention(result, convention, chance) for convention in _TITLES), note)


def _facts(result: Mapping[str, Any]) -> Padding:
    prune, error, d = result["prune"], result["test_error"], result["d"]
    facts = Table.grid(padding=(0, 2))
    facts.add_row("Test error", _percent(error["unpruned"]), "as trained")
    facts.add_row(
        "", _percent(error["pruned"]), f"pruned at d = {prune['d']:.3g}, {prune['sparsity']:.1%} of the weights gone"
    )
    facts.add_row("", _percent(result["true_error"]), f"pruned at the d = {d:.3g} that the paper's search finds")
    facts.add_row(
        "Margin", f"{result['margin']:.4g}", f"the smallest of {result['n']:,}, after {result['epochs']} epochs"
    )
    return Padding(facts, (1, 0, 0, 0))


def _convention(result: Mapping[str, Any], convention: str, chance: float) -> Padding:
    title, caption = _TITLES[convention]
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        caption=caption,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("bound")
    table.add_column("ln", justify="right")
    table.add_column("value", justify="right")
    table.add_column("says")
    rows = [bound for bound in result["bounds"] if bound["convention"] == convention]
    for bound in sorted(rows, key=lambda bound: bound["log_value"]):
        table.add_row(
            _LABELS[convention, bound["name"]] + ("" if bound["applies"] else " *"),
            f"{bound['log_value']:.2f}",
            _magnitude(bound["log_value"]),
            _meaning(bound, chance),
        )
    return Padding(table, (1, 0, 0, 0))


def _meaning(bound: Mapping[str, Any], chance: float) -> str:
    if bound["vacuous"] is None:
        return "a complexity"
    if bound["trivial"]:
        return "nothing: above 100%"
    if bound["vacuous"]:
        return f"nothing: above chance, {chance:.0%}"
    return f"error ≤ {math.exp(bound['log_value']):.1%}"


def _magnitude(log_value: float) -> str:
    if math.isinf(log_value):
        return "∞" if log_value > 0 else "0"
    if log_value < math.log(1e4):
        return f"{math.exp(log_value):.3g}"
    return f"10^{log_value / math.log(10):.1f}"


def _percent(error: float | None) -> str:
    return "unknown" if error is None else f"{error:.2%}"
