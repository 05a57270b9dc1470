"""A ranking as tables: for the terminal, and as CSV, Markdown and LaTeX."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from milkshake_mbp.experiment.ranking.networks import TARGETS, Networks
from milkshake_mbp.experiment.ranking.study import Entry, Study
from milkshake_mbp.files import write_atomically, write_csv
from milkshake_mbp.reporting.ladder import escape_latex
from milkshake_mbp.reporting.terminal import Fitted
from milkshake_mbp.runs.names import shown
from milkshake_mbp.theory.bounds import CONVENTIONS
from milkshake_mbp.theory.ranking import Estimate

__all__ = ["HEADS", "axis_cells", "cells", "explanation", "export_rankings", "interval", "ranking_tables", "summary"]

HEADS = ("row", "tau", "tau, equal size", "tau − tau(size)", "Psi", "K", "worst sign error", "mean sign error")
# What goes first where the terminal is narrow.
_SPARE = ("K", "tau − tau(size)", "Psi", "mean sign error", "tau, equal size", "worst sign error")
_EXPLAINED = (
    "tau: Kendall's τ-b over all pairs; 1 if the row orders networks as the error does, 0 for noise, −1 if reversed.",
    "tau, equal size: τ-b over pairs with the same number of parameters, which a parameter count cannot order.",
    "tau − tau(size): the row's τ minus the τ of the parameter count.",
    "Psi: τ between networks that differ in one hyperparameter alone, averaged over hyperparameters.",
    "K: conditional mutual information, from 0 to 1; it does not distinguish an order from its reverse.",
    "Sign error: share of pairs in the wrong order, weighted by whether the difference of their test errors is "
    "significant; ½ for random guessing. Worst and mean are over environments; in each, one hyperparameter changes "
    "from one value to another.",
    "Brackets are 95% bootstrap intervals over trainings. – means undefined: the row is constant there, or the test "
    "set is too small to distinguish enough pairs; ranking.csv gives the reason.",
)


def interval(estimate: Estimate, digits: int = 2) -> str:
    """An estimate and its interval as text."""
    if not estimate.defined:
        return "–"
    value = _number(estimate.value, digits)
    if math.isnan(estimate.low):
        return value
    return f"{value} [{_number(estimate.low, digits)}, {_number(estimate.high, digits)}]"


def _number(value: float, digits: int) -> str:
    # Adding 0 makes 0.00 of -0.00.
    return f"{round(value, digits) + 0:.{digits}f}".replace("-", "−")


def cells(entry: Entry, intervals: bool = True) -> list[str]:
    """One row, a cell for each of `HEADS`; without intervals, that of tau remains."""
    ranking = entry.ranking
    estimates = [
        ranking.tau,
        ranking.tau_equal_size,
        ranking.tau_gain,
        ranking.mean_psi,
        ranking.information,
        ranking.worst_sign_error,
        ranking.mean_sign_error,
    ]
    if not intervals:
        estimates[1:] = [Estimate(estimate.value) for estimate in estimates[1:]]
    shown = [entry.label, *map(interval, estimates)]
    if ranking.sign_errors and ranking.worst_sign_error.defined:
        shown[HEADS.index("worst sign error")] += f" of {len(ranking.sign_errors)}"
    return shown


def axis_cells(entry: Entry, axes: Sequence[str]) -> list[str]:
    """One row's ψ on each axis."""
    return [entry.label, *(interval(entry.ranking.psi[axis]) for axis in axes)]


def summary(networks: Networks) -> list[str]:
    """What was compared, in sentences."""
    trainings = len({network.training for network in networks.kept})
    lines = [
        f"{len(networks.kept)} networks"
        + (f" of {trainings} trainings" if trainings < len(networks.kept) else "")
        + f" over {len(networks.design.axes)} hyperparameters: "
        + "; ".join(f"{axis} {', '.join(map(shown, values))}" for axis, values in networks.values.items())
        + "."
    ]
    if not any(math.isfinite((network.stopping or (0, math.inf))[1]) for network in networks.kept):
        lines.append("They were not trained to a common training loss (until_loss), so they may fit unequally well.")
    if networks.set_aside:
        lines.append(f"{len(networks.set_aside)} runs are set aside:")
        lines += [f"  {name}: {why}" for name, why in networks.set_aside]
    return lines


def explanation(study: Study) -> list[str]:
    """What the columns are."""
    kind = (
        "Each environment pools all settings of the other hyperparameters, since no single setting has a large enough "
        "effective sample."
        if study.pooled
        else "Each environment has one setting of the other hyperparameters."
    )
    return [*_EXPLAINED, kind]


def ranking_tables(study: Study) -> RenderableType:
    """The tables for the terminal, narrow enough for one: the files have every interval."""
    parts: list[RenderableType] = [
        Text(line, style="bold" if not number else "") for number, line in enumerate(summary(study.networks))
    ]
    for target in study.targets:
        rows: list[list[str | Text]] = []
        for convention in study.conventions:
            rows.append([Text(CONVENTIONS[convention].title, style="bold italic"), *[""] * (len(HEADS) - 1)])
            rows += [list[str | Text](cells(entry, intervals=False)) for entry in study.block(target, convention)]
        parts += [Text(), Fitted(HEADS, rows, HEADS[1:], (), _SPARE, TARGETS[target], "ranking.md has all columns")]
    parts += [Text(line, style="dim") for line in explanation(study)]
    return Group(*parts)


def export_rankings(study: Study, folder: Path) -> list[Path]:
    """Write ranking.csv, ranking.md and ranking.tex.

    Args:
        study: what to write.
        folder: where to.

    Returns:
        The files.
    """
    markdown, latex, table = (folder / f"ranking.{kind}" for kind in ("md", "tex", "csv"))
    write_atomically(markdown, "\n".join(_markdown(study)).encode())
    write_atomically(latex, "\n".join(_latex(study)).encode())
    write_csv(table, list(_records(study)))
    return [table, markdown, latex]


def _records(study: Study) -> Iterator[dict[str, Any]]:
    for entry in study.entries:
        ranking = entry.ranking
        known: list[tuple[str, str, Estimate]] = [
            ("tau", "", ranking.tau),
            ("tau_equal_size", "", ranking.tau_equal_size),
            ("tau_gain", "", ranking.tau_gain),
            ("psi", "", ranking.mean_psi),
            *(("psi", axis, estimate) for axis, estimate in ranking.psi.items()),
            ("information", "", ranking.information),
            ("worst_sign_error", "", ranking.worst_sign_error),
            ("mean_sign_error", "", ranking.mean_sign_error),
            *(("sign_error", axis, Estimate(error)) for axis, error in ranking.sign_errors),
        ]
        for estimator, axis, estimate in known:
            yield {
                "target": entry.target,
                "convention": entry.row[0],
                "name": entry.row[1],
                "networks": ranking.num_networks,
                "estimator": estimator,
                "axis": axis,
                "value": "" if math.isnan(estimate.value) else estimate.value,
                "low": "" if math.isnan(estimate.low) else estimate.low,
                "high": "" if math.isnan(estimate.high) else estimate.high,
                "reason": estimate.reason,
            }


def _markdown(study: Study) -> Iterator[str]:
    yield "# Which measure ranks these networks?\n"
    yield from (f"{line}  " for line in summary(study.networks))
    for target in study.targets:
        yield f"\n## {TARGETS[target]}\n"
        yield f"| {' | '.join(HEADS)} |"
        yield f"| --- |{' ---: |' * (len(HEADS) - 1)}"
        for convention in study.conventions:
            yield f"| **{CONVENTIONS[convention].title}** |{' |' * (len(HEADS) - 1)}"
            yield from (f"| {' | '.join(cells(entry))} |" for entry in study.block(target, convention))
        axes = study.networks.design.axes
        yield f"\n### {TARGETS[target]}: ψ by hyperparameter\n"
        yield f"| row | {' | '.join(axes)} |"
        yield f"| --- |{' ---: |' * len(axes)}"
        for convention in study.conventions:
            yield from (f"| {' | '.join(axis_cells(entry, axes))} |" for entry in study.block(target, convention))
    yield ""
    yield from (f"- {line}" for line in explanation(study))
    yield ""


def _latex(study: Study) -> Iterator[str]:
    yield r"% \usepackage{booktabs}"
    for target in study.targets:
        yield r"\begin{table*}"
        yield r"\centering\scriptsize\setlength{\tabcolsep}{3pt}"
        text = f"{TARGETS[target]}. {summary(study.networks)[0]} {' '.join(explanation(study))}"
        yield rf"\caption{{{_latex_text(text)}}}"
        yield rf"\begin{{tabular}}{{l{'r' * (len(HEADS) - 1)}}}"
        yield r"\toprule"
        yield " & ".join(map(_latex_text, HEADS)) + r" \\"
        for convention in study.conventions:
            yield r"\midrule"
            yield from (
                " & ".join(map(_latex_text, cells(entry))) + r" \\" for entry in study.block(target, convention)
            )
        yield r"\bottomrule"
        yield r"\end{tabular}"
        yield r"\end{table*}"
    yield ""


def _latex_text(text: str) -> str:
    return escape_latex(text).replace("τ", r"$\tau$").replace("ψ", r"$\psi$").replace("½", r"$\frac12$")
