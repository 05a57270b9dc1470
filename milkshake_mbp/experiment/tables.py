"""The paper's Tables 1 and 2 from runs: each number beside the paper's, and what the paper does not show."""

import math
import re
import statistics
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import yaml

from milkshake_mbp.errors import UserError
from milkshake_mbp.experiment.ladder import escape_latex
from milkshake_mbp.experiment.results import RunFiles, run_name
from milkshake_mbp.experiment.weights import chain_from_state
from milkshake_mbp.files import write_atomically, write_csv
from milkshake_mbp.framework.args import config_dict
from milkshake_mbp.framework.main import read_weights
from milkshake_mbp.theory.bounds import ROWS
from milkshake_mbp.theory.pruning import MaskDraw

__all__ = [
    "DATASETS",
    "HIDDEN",
    "PRINTED",
    "Comparison",
    "Entry",
    "Quantity",
    "Run",
    "compare",
    "export_table",
    "find_runs",
    "notes",
    "number",
    "remaining",
]

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


_OURS = "theorem_5_2"
_NORMS = ("neyshabur_2015", "neyshabur_2017", "bartlett_2017")
# What the paper's tables print, natural logs; and what one must know to read them.
PRINTED = (
    *(
        Quantity(row.name, f"Ours ({row.label})", ".3f") if row.name == _OURS else Quantity(row.name, row.label)
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

# Tables 1 and 2, in the order of `PRINTED`.
_PAPER = {
    ("mnist", 500): (22.29, 17.91, 11.51, 3.36, -3.76),
    ("mnist", 784): (23.56, 18.34, 11.68, 3.77, -3.84),
    ("mnist", 1000): (24.42, 18.70, 11.87, 4.00, -3.80),
    ("mnist", 1500): (25.12, 18.81, 11.70, 4.40, -3.85),
    ("mnist", 2000): (27.03, 21.50, 13.96, 4.73, -3.86),
    ("mnist", 2500): (27.72, 21.57, 13.81, 4.96, -3.87),
    ("cifar10", 784): (33.19, 30.10, 22.40, 4.68, -2.41),
}
# Inputs, classes and training samples of the paper's five-layer networks.
_PROBLEMS = {"mnist": (784, 10, 60_000), "cifar10": (3072, 10, 50_000)}
_NUM_LAYERS = 5
_OPTIMIZERS = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW"}
# Two runs that differ in one of these are no two samples of the same thing.
_RECIPE = (
    "model",
    "ffn_num_layers",
    "ffn_activation",
    "bias",
    "dropout_prob",
    "optimizer",
    "lr",
    "momentum",
    "weight_decay",
    "lr_scheduler",
    "lr_steps",
    "lr_drop",
    "lr_warmup_epochs",
    "batch_size",
    "loss",
    "label_smoothing",
    "label_noise",
    "data_augmentation",
    "val_split",
    "max_epochs",
    "limit_train_batches",
    "precision",
)


@dataclass(frozen=True)
class Run:
    """One run, finished or not.

    Attributes:
        files: its files.
        config: its configuration.
        result: the content of its result.json; None if it has not finished.
    """

    files: RunFiles
    config: Mapping[str, Any]
    result: Mapping[str, Any] | None

    @classmethod
    def planned(cls, args: Namespace) -> "Run":
        """What is there of the run of a configuration."""
        files = RunFiles(Path(args.out_dir) / run_name(args))
        return cls(files, config_dict(args), files.read_result())

    @classmethod
    def stored(cls, folder: Path) -> "Run":
        """What is there in a run's folder.

        Raises:
            UserError: its config.yaml or its result.json is damaged.
        """
        files = RunFiles(folder)
        try:
            config = yaml.safe_load(files.config.read_text(encoding="utf-8"))
            if not isinstance(config, dict) or not {"datamodule", "ffn_hidden_dim", "seed"} <= set(config):
                raise UserError(f"{files.config} is not the configuration of a run")
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"{files.config} is damaged: {' '.join(str(error).split())}") from error
        return cls(files, config, files.read_result())

    @property
    def datamodule(self) -> str:
        """The dataset's name."""
        return str(self.config["datamodule"])

    @property
    def width(self) -> int:
        """Of the hidden layers."""
        return int(self.config["ffn_hidden_dim"])

    @property
    def seed(self) -> int:
        """Of the training."""
        return int(self.config["seed"])

    @property
    def state(self) -> str:
        """How far it is, in words."""
        if self.result:
            return "finished"
        if not self.files.epochs.exists():
            return "not started"
        epochs = len(self.files.epochs.read_text(encoding="utf-8").splitlines()) - 1
        return f"unfinished after {max(epochs, 0)} of {self.config['max_epochs']} epochs"

    @cached_property
    def numbers(self) -> dict[str, float]:
        """A finished run's value of each quantity; NaN if its files do not tell."""
        assert self.result is not None
        bounds = {bound["name"]: bound for bound in self.result["bounds"] if bound["convention"] == "paper"}
        shapes = [tuple(layer["shape"]) for layer in self.result["prune"]["layers"]]
        error, d = self.result["true_error"], self.result["d"]
        return {
            **{name: bound["log_value"] for name, bound in bounds.items()},
            "true_error": math.nan if error is None else _log(error),
            "unpruned": _log(_complexity(shapes, self.result["n"])),
            "margin": self.result["margin"],
            "d": d,
            "sparsity": _sparsity(self.files.model, self.config.get("prune_seed", 0), d),
            "epochs": self.result["epochs"],
        }


@cache
def _sparsity(weights: Path, seed: int, d: float) -> float:
    """Share of the weights that the paper's masks prune at its searched d, where they spare no diagonal."""
    if not weights.exists():
        return math.nan
    network, _ = chain_from_state(read_weights(weights))
    layers = [parameter for parameter in network.parameters() if parameter.ndim == 2]
    masks = MaskDraw(layers, seed).masks(d, keep_diagonal=False)
    return 1 - sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)


def _complexity(shapes: Sequence[Sequence[int]], num_samples: int) -> float:
    """Theorem 5.2's sqrt(Σ N_l χ ln²(p_l) / n) at d = 0, where χ = 1."""
    return math.sqrt(sum(math.prod(shape) * math.log(max(shape)) ** 2 for shape in shapes) / num_samples)


def _shapes(inputs: int, width: int, classes: int) -> list[tuple[int, int]]:
    sides = [inputs, *[width] * (_NUM_LAYERS - 1), classes]
    return list(zip(sides[1:], sides[:-1], strict=True))


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf


def find_runs(folders: Sequence[str]) -> list[Run]:
    """The runs in these folders: each is a run's own, or holds those of runs.

    Raises:
        UserError: a folder does not exist or holds no run.
    """
    found: dict[str, Run] = {}
    for folder in map(Path, folders):
        # Only training leaves both; so that the ladder of a file of weights is not taken for a run.
        inside = [folder, *sorted(folder.glob("*/"))]
        runs = [path for path in inside if (path / "config.yaml").exists() and (path / "epochs.csv").exists()]
        if not runs:
            raise UserError(f"runs: {folder} {'holds no run' if folder.is_dir() else 'is no folder'}")
        for path in runs:
            name = path.resolve().name
            if name not in found or not found[name].result:
                found[name] = Run.stored(path)
    return list(found.values())


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
    runs: Mapping[int, tuple[Run, ...]]
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


def compare(runs: Sequence[Run], datamodule: str, widths: Sequence[int]) -> Comparison:
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
            paper = _PAPER.get((datamodule, width), ())
            if quantity.name == "unpruned" and not values and paper:
                inputs, classes, num_samples = _PROBLEMS[datamodule]
                values = (_log(_complexity(_shapes(inputs, width, classes), num_samples)),)
            entries[quantity.name, width] = Entry(values, paper[index] if index < len(paper) else None)
    return Comparison(datamodule, tuple(widths), chosen, entries)


def _check_recipe(runs: Sequence[Run], which: str) -> None:
    for key in _RECIPE:
        if len(found := {str(run.config.get(key)) for run in runs}) > 1:
            raise UserError(
                f"runs of {which} differ in {key} ({' and '.join(sorted(found))}): name those of one recipe with --runs"
            )


def remaining(runs: Sequence[Run], comparisons: Sequence[Comparison]) -> list[str]:
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


def notes(comparison: Comparison) -> list[str]:
    """What a reader of a table must know, computed from its numbers."""
    found = []
    if any(len(runs) > 1 for runs in comparison.runs.values()):
        found.append("Here: the median over the seeds, and their range.")
    found += _recipes(comparison)
    found.append(
        "Only Theorem 5.2 bounds an error; the norm rows are squared complexities, without the input's norm and 1/n."
    )
    if any(math.inf in entry.values for entry in comparison.entries.values()):
        found.append("∞: a training sample is misclassified, so that there is no positive margin to divide by.")
    if comparison.has_paper:
        found += _unpruned(comparison)
        found += _implied_margins(comparison)
    if comparison.datamodule == "cifar10":
        found += _cifar10(comparison)
    return found


def _recipes(comparison: Comparison) -> Iterator[str]:
    recipes: dict[str, list[int]] = {}
    for width, runs in comparison.runs.items():
        for run in runs[:1]:
            config = run.config
            momentum = f", momentum {config['momentum']:g}" if config["optimizer"] == "sgd" else ""
            steps = (
                f"{_OPTIMIZERS[config['optimizer']]}{momentum}, learning rate {config['lr']:g}, weight decay "
                f"{config['weight_decay']:g}, batch {config['batch_size']}, {config['max_epochs']} epochs"
            )
            if config.get("precision"):
                steps += f", precision {config['precision']}"
            recipes.setdefault(steps, []).append(width)
    for steps, widths in recipes.items():
        where = f"Width {', '.join(map(str, widths))}: " if len(recipes) > 1 else "Trained with "
        yield f"{where}{steps}."
    if recipes and comparison.has_paper:
        yield "The paper's text says Adam at learning rate 0.02 for 300 epochs, which stays at chance on MNIST."


def _unpruned(comparison: Comparison) -> Iterator[str]:
    """How far Theorem 5.2's rows are from pruning nothing."""
    ours, unpruned = comparison.row(_OURS), comparison.row("unpruned")
    printed = [abs(e.paper - u.values[0]) for e, u in zip(ours, unpruned, strict=True) if e.paper and u.values]
    here = [abs(e.median - u.values[0]) for e, u in zip(ours, unpruned, strict=True) if e.median is not None]
    text = (
        "With nothing pruned and every margin kept, Theorem 5.2 is ln √(Σ N_l ln² p_l / n). The paper's row is within "
        f"{max(printed):.2f} of that"
    )
    yield f"{text}, the one here within {max(here):.3f}." if here else f"{text}."


def _implied_margins(comparison: Comparison) -> Iterator[str]:
    """What the norm rows' differences have in common, as the margin that all of them divide by, squared."""
    implied, left = {}, [0.0]
    for width in comparison.widths:
        margin = comparison.entries["margin", width].median
        found = [comparison.entries[name, width].difference for name in _NORMS]
        differences = [value for value in found if value is not None and math.isfinite(value)]
        if margin is not None and len(differences) == len(_NORMS):
            shift = statistics.mean(differences)
            implied[width] = margin * math.exp(shift / 2)
            left += [abs(value - shift) for value in differences]
    if implied:
        margins = ", ".join(f"{margin:#.2g} at width {width}" for width, margin in implied.items())
        yield (
            "The norm rows all divide by the square of one sample's margin, the smallest. Had it been "
            f"{margins} in the paper's networks, every norm row here would be within {max(left):.2f} of the paper's."
        )


def _cifar10(comparison: Comparison) -> Iterator[str]:
    inputs, classes, num_samples = _PROBLEMS["cifar10"]
    for width in comparison.widths:
        runs, entry = comparison.runs[width], comparison.entries[_OURS, width]
        n = runs[0].result["n"] if runs and runs[0].result else num_samples
        shapes = _shapes(inputs, width, classes)
        ceiling, held_out = (math.log1p(_complexity(shapes, count)) for count in (n, num_samples * 4 // 5))
        if entry.paper is not None:
            yield (
                f"The formula cannot exceed ln(1 + √(Σ N_l ln² p_l / n)) = {ceiling:.2f} at width {width} with "
                f"n = {n:,}, whatever is pruned and however bad the margins (with a fifth of the samples held out, "
                f"{held_out:.2f}); the paper's {entry.paper:.2f} is not its value there."
            )
        error = comparison.entries["true_error", width]
        if error.paper is not None:
            here = "" if error.median is None else f"; here it is {math.exp(error.median):.1%}"
            yield (
                f"The paper's true error is {math.exp(error.paper):.1%} of the test set, far below what fully "
                f"connected layers reach{here}."
            )
    used = {run.config["batch_size"] for runs in comparison.runs.values() for run in runs}
    batches = f"; batch {', '.join(map(str, sorted(used)))} is used here" if used else ""
    yield f"The authors' batch of 4 makes an epoch of {num_samples // 4:,} steps{batches}."


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
