"""From configurations or run folders to one of the paper's tables or figures."""

from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

from matplotlib.figure import Figure
from rich.console import Console

from milkshake_mbp.errors import UserError
from milkshake_mbp.framework.args import Script, parse_grid
from milkshake_mbp.framework.settings import Data, Network, Optimization, TrainerFlags, keys_of
from milkshake_mbp.framework.settings import Run as RunKeys
from milkshake_mbp.reporting.diagnostics import export_d_curves
from milkshake_mbp.reporting.figures import draw_comparison, draw_training, save_figure
from milkshake_mbp.reporting.tables import (
    DATASETS,
    Comparison,
    PaperRun,
    compare,
    export_table,
    find_runs,
    notes,
    number,
    remaining,
)
from milkshake_mbp.runs.settings import Pruning

__all__ = [
    "Evidence",
    "Part",
    "Plan",
    "Reproduction",
    "Target",
    "make_plan",
    "read_target",
    "write_d_curves",
    "write_figure1",
    "write_figure2",
    "write_table1",
    "write_table2",
]

_MAIN_WIDTH = 784


@dataclass(frozen=True)
class Reproduction:
    """Reproduction: where the networks behind a table or figure come from.

    Attributes:
        quick: Whether to show the same on scikit-learn's digits, in a minute and without the paper's numbers.
        runs: Folders of runs, or folders that hold them, to use instead of training.
    """

    quick: bool = False
    runs: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Part:
    """Networks on one dataset.

    Attributes:
        config: the YAML file that the user's own keys go over.
        datamodule: the dataset's name.
        widths: of the hidden layers; that in the file if none is given.
    """

    config: Path
    datamodule: str
    widths: Sequence[int] = ()


@dataclass(frozen=True)
class Evidence:
    """What a table or figure is made of.

    Attributes:
        runs: finished or not.
        comparisons: of the finished ones, for each dataset.
        folder: where the table or figure goes.
        quick: whether it is the quick version.
        data_dir: folder that holds the datasets.
        console: where progress is shown.
    """

    runs: Sequence[PaperRun]
    comparisons: Sequence[Comparison]
    folder: Path
    quick: bool
    data_dir: str
    console: Console

    @property
    def data(self) -> str:
        """The first dataset, for people."""
        return DATASETS[self.comparisons[0].datamodule]

    @property
    def finished(self) -> list[PaperRun]:
        """The finished runs on the first dataset."""
        return [run for runs in self.comparisons[0].runs.values() for run in runs]

    @property
    def missing(self) -> list[str]:
        """The runs that remain, in words."""
        return remaining(self.runs, self.comparisons)

    @property
    def warning(self) -> str:
        """The title of a figure that must not be taken for the paper's."""
        return f"Quick version on {self.data}: not comparable with the paper" if self.quick else ""


@dataclass(frozen=True)
class Target:
    """A table or figure.

    Attributes:
        parts: what it is about, the first dataset being the main one.
        quick: the same in small.
        write: makes it of the runs; returns its files, the one to look at first.
        one: whether it is about one network.
    """

    parts: Sequence[Part]
    quick: Sequence[Part]
    write: Callable[[Evidence], list[Path]]
    one: bool = False


@dataclass(frozen=True)
class Plan:
    """What to train for a target, or which runs to read, and where the outcome goes.

    Attributes:
        keys: the user's choice between the two.
        trials: the configurations, by dataset.
        folder: of the outcome.
    """

    keys: Reproduction
    trials: Mapping[str, Sequence[Namespace]]
    folder: Path

    @property
    def unfinished(self) -> list[Namespace]:
        """The configurations that are to be trained."""
        trials = [] if self.keys.runs else [args for part in self.trials.values() for args in part]
        return [args for args in trials if args.rerun or not PaperRun.planned(args).result]

    def evidence(self, console: Console) -> Evidence:
        """What there is by now.

        Raises:
            UserError: a folder of runs is none, a file is damaged, or runs of one width are of different recipes.
        """
        trials = [args for part in self.trials.values() for args in part]
        runs = find_runs(self.keys.runs) if self.keys.runs else [PaperRun.planned(args) for args in trials]
        comparisons = [
            compare(runs, datamodule, list(dict.fromkeys(args.ffn_hidden_dim for args in part)))
            for datamodule, part in self.trials.items()
        ]
        return Evidence(runs, comparisons, self.folder, self.keys.quick, trials[0].data_dir, console)


def read_target(argv: Sequence[str], targets: Mapping[str, Target]) -> tuple[str, list[str]]:
    """The target's name, and the flags after it.

    Raises:
        UserError: there is no such target, or more than one.
        SystemExit: after printing the help, if asked for.
    """
    if {"-h", "--help"} & set(argv):
        parse_grid(["--help"], Pruning, Reproduction, script=_script(targets))
    name, flags = (argv[0], list(argv[1:])) if argv else ("nothing", [])
    if name not in targets or (flags and not flags[0].startswith("-")):
        got = flags[0] if name in targets else name
        raise UserError(f"expected one of {', '.join(targets)} as the first word, then flags; got {got}")
    return name, flags


def _script(targets: Mapping[str, Target]) -> Script:
    names = "|".join(targets)
    return Script(
        usage=f"{names} [--quick] [--runs FOLDER ...] [-c FILE.yaml] [--key value ...]",
        notes="The first word is one of "
        f"{', '.join(targets)}. seed and ffn_hidden_dim take several values. With --runs nothing is trained, "
        "and of the other keys out_dir, data_dir and ffn_hidden_dim alone are read.",
    )


_READ_RUNS = Script(
    unused=frozenset(
        keys_of(Data, Network, Optimization, RunKeys, Pruning, TrainerFlags)
        - {"datamodule", "ffn_hidden_dim", "out_dir", "data_dir", "debug"}
    ),
    why="with --runs nothing is trained",
)


def make_plan(name: str, target: Target, flags: Sequence[str]) -> Plan:
    """Read the configurations of a target: of each part the file's, the user's keys over it.

    Raises:
        UserError: as `parse_grid`, and for a dataset or a list of values that does not belong here.
    """
    keys, trials = _read_parts(target.parts, flags)
    if keys.quick:
        keys, trials = _read_parts(target.quick, flags)
    every = [args for part in trials.values() for args in part]
    if target.one and len(every) > 1 and not keys.runs:
        raise UserError(f"{name}: expected one network, got {len(every)}: give one seed and one ffn_hidden_dim")
    return Plan(keys, trials, Path(every[0].out_dir) / (f"{name}-quick" if keys.quick else name))


def _read_parts(parts: Sequence[Part], flags: Sequence[str]) -> tuple[Reproduction, dict[str, list[Namespace]]]:
    trials = {}
    for part in parts:
        widths = ["--ffn_hidden_dim", str(list(part.widths))] if part.widths else []
        words = ["-c", str(part.config), "--datamodule", part.datamodule, *widths, *flags]
        script = _READ_RUNS if any(flag.partition("=")[0] == "--runs" for flag in flags) else Script()
        axes, trials[part.datamodule] = parse_grid(words, Pruning, Reproduction, script=script)
        if odd := sorted(set(axes) - {"seed", "ffn_hidden_dim"}):
            raise UserError(f"{odd[0]}: expected one value; only seed and ffn_hidden_dim take several values here")
        for args in trials[part.datamodule]:
            if args.datamodule != part.datamodule:
                raise UserError(f"datamodule: expected {part.datamodule}, got {args.datamodule}; leave the key out")
            # Not of the run, whose name and config.yaml are those of exps/mbp.py.
            keys = Reproduction(**{key.name: vars(args).pop(key.name) for key in fields(Reproduction)})
    return keys, trials


def write_table1(evidence: Evidence) -> list[Path]:
    """Table 1, with what is missing."""
    return _write_table("Table 1", "bounds and true error on MNIST", evidence)


def write_table2(evidence: Evidence) -> list[Path]:
    """Table 2, with what is missing."""
    return _write_table("Table 2", "bounds and true error on CIFAR-10", evidence)


def _write_table(label: str, title: str, evidence: Evidence) -> list[Path]:
    comparison, missing = evidence.comparisons[0], evidence.missing
    if evidence.quick:
        title = f"quick version on {evidence.data}, not comparable with the paper"
    remarks = [*notes(comparison), *([f"Not finished: {'; '.join(missing)}."] if missing else [])]
    return export_table(comparison, evidence.folder, label=label, title=title, remarks=remarks)


def write_figure1(evidence: Evidence) -> list[Path]:
    """Figure 1: bounds on each dataset, at the paper's main width or the largest, and against the width."""
    widths = evidence.comparisons[0]
    width = _MAIN_WIDTH if _MAIN_WIDTH in widths.widths else max(widths.widths)
    bars = [compare(evidence.runs, comparison.datamodule, [width]) for comparison in evidence.comparisons]
    found = any(comparison.has_runs for comparison in evidence.comparisons)
    return _save("figure1", draw_comparison(bars, widths, evidence.warning), evidence) if found else []


def write_figure2(evidence: Evidence) -> list[Path]:
    """Figure 2: bound and true error against the epoch, with margin and d."""
    figure = draw_training(evidence.finished, evidence.warning)
    return _save("figure2", figure, evidence) if figure else []


def _save(name: str, figure: Figure, evidence: Evidence) -> list[Path]:
    return save_figure(figure, evidence.folder / name, dpi=300)


def write_d_curves(evidence: Evidence) -> list[Path]:
    """The two diagnostics over d, of the first network that is finished."""
    if not evidence.finished:
        return []
    run = evidence.finished[0]
    margin, searched = number(run.numbers["margin"], "#.3g"), number(run.numbers["d"], ".1e")
    title = f"{evidence.data}, width {run.width}, seed {run.seed}, epoch {run.numbers['epochs']}"
    title = f"{title}: margin {margin}, which affords d = {searched} by the paper's search"
    title = f"{evidence.warning}\n{title}" if evidence.quick else title
    return export_d_curves(run, evidence.data_dir, evidence.folder, title=title, console=evidence.console)
