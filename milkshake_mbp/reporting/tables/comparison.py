"""Finished runs beside the paper's Tables 1 and 2: each number and the paper's, and what the paper does not show."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from milkshake_mbp.errors import UserError
from milkshake_mbp.framework.settings import Data, Network, Optimization, TrainerFlags, keys_of
from milkshake_mbp.reporting.tables.paper import OURS, PAPER, PROBLEMS, layer_shapes
from milkshake_mbp.reporting.tables.runs import PaperRun, log_unpruned
from milkshake_mbp.theory.bounds import ROWS

__all__ = ["DATASETS", "HIDDEN", "PRINTED", "Comparison", "Entry", "Quantity", "compare", "remaining"]

DATASETS = {"mnist": "MNIST", "cifar10": "CIFAR-10", "digits": "scikit-learn's digits"}


@dataclass(frozen=True)
class Quantity:
    """What a line of a table is about.

    Attributes:
        name: in the CSV.
        label: for people.
        form: how its numbers are written.
    """

    name: str
    label: str
    form: str = ".2f"


# What the paper's tables print, natural logs; and what one must know to read them.
PRINTED = (
    *(
        Quantity(row.name, f"Ours ({row.label})", ".3f") if row.name == OURS else Quantity(row.name, row.label)
        for row in ROWS
        if row.convention == "paper"
    ),
    Quantity("true_error", "True error"),
)
HIDDEN = (
    Quantity("unpruned", "ln of Theorem 5.2, nothing pruned", ".3f"),
    Quantity("margin", "Smallest training margin", "#.3g"),
    Quantity("d", "Searched d", ".1e"),
    Quantity("sparsity", "Weights pruned at it", ".2%"),
    Quantity("epochs", "Epochs", ".0f"),
)


@dataclass(frozen=True)
class Entry:
    """One quantity at one width.

    Attributes:
        values: of the runs; none if none has finished, or their files do not tell.
        paper: the paper's number, if there is one.
    """

    values: tuple[float, ...]
    paper: float | None = None

    @property
    def median(self) -> float | None:
        """Of the values."""
        return statistics.median(self.values) if self.values else None

    @property
    def low(self) -> float | None:
        """The smallest value."""
        return min(self.values, default=None)

    @property
    def high(self) -> float | None:
        """The largest value."""
        return max(self.values, default=None)

    @property
    def difference(self) -> float | None:
        """The median less the paper's number."""
        return None if self.median is None or self.paper is None else self.median - self.paper


@dataclass(frozen=True)
class Comparison:
    """Networks of several widths on one dataset, beside the paper's.

    Attributes:
        datamodule: the dataset's name.
        widths: in the order of the columns.
        runs: the finished runs by width.
        entries: by (name of the quantity, width).
    """

    datamodule: str
    widths: tuple[int, ...]
    runs: Mapping[int, tuple[PaperRun, ...]]
    entries: Mapping[tuple[str, int], Entry]

    @property
    def has_paper(self) -> bool:
        """Whether the paper has something to compare with."""
        return any(entry.paper is not None for entry in self.entries.values())

    @property
    def has_runs(self) -> bool:
        """Whether any run has finished."""
        return any(self.runs.values())

    def row(self, name: str) -> list[Entry]:
        """One quantity at every width."""
        return [self.entries[name, width] for width in self.widths]

    def seeds(self, width: int) -> str:
        """Of the runs of one width."""
        return ", ".join(str(run.seed) for run in self.runs[width])


def compare(runs: Sequence[PaperRun], datamodule: str, widths: Sequence[int]) -> Comparison:
    """Gather what has finished on one dataset.

    Args:
        runs: any.
        datamodule: the dataset's name; the others' runs are left out.
        widths: in the order of the columns; other runs are left out.

    Raises:
        UserError: runs of one width were trained in different ways.
    """
    chosen = {}
    for width in widths:
        here = [run for run in runs if run.result and (run.datamodule, run.width) == (datamodule, width)]
        _check_recipe(here, f"width {width} on {datamodule}")
        # The same training twice, say with more epochs measured, counts once.
        by_seed = {run.seed: run for run in reversed(here)}
        chosen[width] = tuple(by_seed[seed] for seed in sorted(by_seed))
    entries = {}
    for width, trained in chosen.items():
        for index, quantity in enumerate((*PRINTED, *HIDDEN)):
            values = tuple(value for run in trained if not math.isnan(value := run.numbers[quantity.name]))
            paper = PAPER.get((datamodule, width), ())
            if quantity.name == "unpruned" and not values and paper:
                values = (log_unpruned(layer_shapes(datamodule, width), PROBLEMS[datamodule].num_samples),)
            entries[quantity.name, width] = Entry(values, paper[index] if index < len(paper) else None)
    return Comparison(datamodule, tuple(widths), chosen, entries)


def _check_recipe(runs: Sequence[PaperRun], which: str) -> None:
    for key in keys_of(Data, Network, Optimization, TrainerFlags, role="recipe"):
        if len(found := {str(run.config.get(key)) for run in runs}) > 1:
            raise UserError(
                f"runs of {which} differ in {key} ({' and '.join(sorted(found))}): name those of one recipe with --runs"
            )


def remaining(runs: Sequence[PaperRun], comparisons: Sequence[Comparison]) -> list[str]:
    """What is missing from these comparisons, in words: unfinished runs, and widths without any."""
    widths: dict[str, list[str]] = {}
    unfinished = []
    for comparison in comparisons:
        name = DATASETS[comparison.datamodule]
        for width in comparison.widths:
            here = [run for run in runs if (run.datamodule, run.width) == (comparison.datamodule, width)]
            unfinished += [f"{name}, width {width}, seed {run.seed}: {run.state}" for run in here if not run.result]
            if not here:
                widths.setdefault(name, []).append(str(width))
    return unfinished + [f"{name}, width {', '.join(these)}: not run" for name, these in widths.items()]
