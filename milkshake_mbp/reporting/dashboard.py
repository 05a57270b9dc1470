"""What a run shows on Weights & Biases without a click: charts against the epoch, the ladder, its figures and files."""

import math
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import wandb
from pytorch_lightning import Callback, LightningModule, Trainer
from wandb.plot.custom_chart import CustomChart

from milkshake_mbp.framework.logging import wandb_logger
from milkshake_mbp.reporting.figures import measured_epochs
from milkshake_mbp.reporting.ladder import sections
from milkshake_mbp.runs.files import RunFiles
from milkshake_mbp.theory.bounds import CONVENTIONS, ROWS

__all__ = ["Dashboard", "abandon_run", "close_run", "fill_dashboard", "replay"]

_ERRORS = {
    "test_error": "as trained",
    "pruned_test_error": "pruned at prune_d",
    "true_error": "pruned at the searched d",
    "compressed_error": "training error, pruned at prune_d and rounded",
}
# A chart of its own for each of these would bury the ones that matter; they can be added to any chart by name.
_HIDDEN = ("prune/*", "sketch/*", *(f"bounds/{row.convention}/{row.name}" for row in ROWS))


class Dashboard(Callback):
    """Keeps the charts of several lines up to date while training.

    Such a chart is sent whole every time, so it is sent when the epochs measured are 1, 2, 4, 8 and so on.

    Args:
        epochs: the run's epochs.csv.
    """

    def __init__(self, epochs: Path) -> None:
        self.epochs = epochs
        self._shown = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what is not to have a chart of its own."""
        if wandb.run is not None:
            _define_metrics()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw; the file has every epoch before this one."""
        if wandb.run is None or not self.epochs.exists():
            return
        rows = measured_epochs(self.epochs)
        if len(rows) >= max(1, 2 * self._shown):
            self._shown = len(rows)
            wandb.run.log(_charts(rows))


def replay(args: Namespace, files: RunFiles, result: Mapping[str, Any]) -> None:
    """Log a finished run, as training would have.

    Args:
        args: the configuration that it would be trained with.
        files: of the run.
        result: the content of its result.json.
    """
    wandb_logger(args)
    assert wandb.run is not None
    _define_metrics()
    for row in measured_epochs(files.epochs) if files.epochs.exists() else []:
        wandb.run.log({name: float(value) for name, value in row.items() if value} | {"epoch": int(row["epoch"])})
    fill_dashboard(files, result)


def abandon_run() -> None:
    """Close the current run as failed, so that the next trial of a sweep opens its own."""
    wandb.finish(exit_code=1)


def fill_dashboard(files: RunFiles, result: Mapping[str, Any]) -> None:
    """Put charts, final numbers, the ladder, figures and files into the current wandb run, if there is one; close it.

    Args:
        files: of a finished run.
        result: the content of its result.json.
    """
    if wandb.run is None:
        return
    rows = measured_epochs(files.epochs) if files.epochs.exists() else []
    figures = sorted(files.figures.glob("*.*"))
    wandb.run.log(
        _charts(rows)
        | {"ladder": _ladder(result), "sparsity": _sparsity(result)}
        | {f"figures/{path.stem}": wandb.Image(str(path)) for path in figures if path.suffix == ".png"}
    )
    kept = [*files.folder.glob("ladder.*"), files.report, files.result, files.config, files.epochs]
    close_run(_final_numbers(result), files.folder.name, files.folder, [*kept, *figures])


def close_run(numbers: Mapping[str, Any], name: str, folder: Path, files: Sequence[Path]) -> None:
    """Put final numbers and an artifact into the current wandb run, if there is one; close it.

    Args:
        numbers: what runs are compared by; those that are neither number nor text are left out.
        name: of the artifact.
        folder: the run's.
        files: in it; those that do not exist are left out.
    """
    if wandb.run is None:
        return
    named = {key: value for key, value in numbers.items() if isinstance(value, (int, float, str))}
    # An axis of numbers has no place for the text that infinity becomes.
    gone = {key: None for key, value in named.items() if isinstance(value, float) and not math.isfinite(value)}
    wandb.run.summary.update(named | gone)
    artifact = wandb.Artifact(name, "results", metadata={"experiment": wandb.run.group})
    for path in files:
        if path.exists():
            artifact.add_file(str(path), path.relative_to(folder).as_posix())
    wandb.run.log_artifact(artifact)
    wandb.finish()


def _define_metrics() -> None:
    assert wandb.run is not None
    for name in _HIDDEN:
        wandb.run.define_metric(name, step_metric="epoch", hidden=True)


def _charts(rows: Sequence[Mapping[str, str]]) -> dict[str, CustomChart]:
    """A chart for each convention, whose values are logs already, and one of the errors."""
    lines = {
        f"bounds/{convention}": {
            f"bounds/{convention}/{row.name}": row.label for row in ROWS if row.convention == convention
        }
        for convention in CONVENTIONS
    }
    titles = {f"bounds/{name}": convention.chart for name, convention in CONVENTIONS.items()} | {"errors": "Errors"}
    charts = {}
    for key, names in (lines | {"errors": _ERRORS}).items():
        points = {label: list(_points(rows, name)) for name, label in names.items()}
        points = {label: line for label, line in points.items() if line}
        if points:
            xs, ys = ([[point[axis] for point in line] for line in points.values()] for axis in (0, 1))
            charts[key] = wandb.plot.line_series(xs, ys, list(points), titles[key], "epoch", split_table=True)
    return charts


def _points(rows: Sequence[Mapping[str, str]], name: str) -> Iterator[tuple[int, float]]:
    for row in rows:
        # Where no d was searched, the error of the network as trained stands for that at the searched one.
        missing = name == "true_error" and not row.get("d")
        if row.get(name) and not missing and math.isfinite(value := float(row[name])):
            yield int(row["epoch"]), value


def _ladder(result: Mapping[str, Any]) -> wandb.Table:
    table = wandb.Table(["kind", "bound", "ln", "value", "holds", "meaning", "remark"])
    for section in sections(result):
        for line in section.lines:
            remark = section.notes[line.note - 1] if line.note else ""
            ln = float(line.log_value.replace("∞", "inf"))
            cells = (ln if math.isfinite(ln) else None, line.value, line.holds, line.meaning, remark)
            table.add_data(section.title, line.label, *cells)
    return table


def _sparsity(result: Mapping[str, Any]) -> CustomChart:
    table = wandb.Table(
        ["layer", "sparsity"], [[layer["name"], layer["sparsity"]] for layer in result["prune"]["layers"]]
    )
    return wandb.plot.bar(
        table, "layer", "sparsity", f"Share pruned at d = {result['prune']['d']:.3g}", split_table=True
    )


def _final_numbers(result: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **result,
        "test_error": result["test_error"]["unpruned"],
        "pruned_test_error": result["test_error"]["pruned"],
        "prune/sparsity": result["prune"]["sparsity"],
        **{f"bounds/{bound['convention']}/{bound['name']}": bound["log_value"] for bound in result["bounds"]},
    }
