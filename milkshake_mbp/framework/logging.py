"""Where metrics go: a CSV with a row per epoch, always; wandb on request; a progress bar for the whole fit."""

import csv
import os
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.loggers import Logger, WandbLogger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from milkshake_mbp.files import write_csv

__all__ = ["EpochCSV", "RecordTraining", "finish_wandb", "wandb_logger"]


class EpochCSV(Logger):
    """`epochs.csv`: everything logged while training, a row per epoch, rewritten whole so that it is never torn.

    Attributes:
        recording: whether metrics are taken; `RecordTraining` sets it, so that testing adds no rows.

    Args:
        path: the file; rows of an interrupted run are kept, and those of an epoch that is trained again replaced.
        resume: whether to start from the rows that are there.
    """

    def __init__(self, path: Path, resume: bool = False) -> None:
        super().__init__()
        self.path = path
        self.recording = False
        self.rows: dict[int, dict[str, Any]] = {}
        if resume and path.exists():
            with path.open(newline="", encoding="utf-8") as file:
                self.rows = {int(row["epoch"]): dict(row) for row in csv.DictReader(file)}

    @property
    def name(self) -> str:
        """The logger's name."""
        return "epochs"

    @property
    def version(self) -> str:
        """There is one file."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the configuration has its own file."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Merge the metrics into the row of their epoch."""
        values = dict(metrics)
        epoch = int(values.pop("epoch", len(self.rows)))
        if self.recording and values:
            self.rows.setdefault(epoch, {"epoch": epoch}).update(values)
            self.save()

    @rank_zero_only
    def save(self) -> None:
        """Write the file."""
        if self.rows:
            write_csv(self.path, [self.rows[epoch] for epoch in sorted(self.rows)])


class RecordTraining(Checkpoint):
    """Opens an `EpochCSV` for the time of the training, and has every epoch in it before a checkpoint says it is done.

    Lightning logs an epoch after its checkpoints are saved, so that a run killed in between would go on without its
    row. A `Checkpoint` because those come after all else has logged; to be given before the ones that save.
    """

    def __init__(self, table: EpochCSV) -> None:
        self.table = table

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open."""
        self.table.recording = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the row."""
        # Not trainer.callback_metrics, which keeps what earlier epochs logged.
        metrics = trainer._logger_connector.metrics["log"]
        self.table.log_metrics(
            {name: float(value) for name, value in metrics.items()} | {"epoch": trainer.current_epoch}
        )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close."""
        self.table.recording = False


@rank_zero_only
def _say(message: str) -> None:
    print(message, file=sys.stderr)


def wandb_logger(args: Namespace) -> WandbLogger:
    """Wandb's logger, offline when there is no account, with epoch as the x axis of every chart.

    Args:
        args: the configuration: wandb_dir, wandb_project, run_name and run_group where an experiment sets them.
    """
    import wandb

    os.environ.setdefault("WANDB_SILENT", "true")
    offline = os.environ.get("WANDB_MODE") in ("offline", "dryrun")  # the latter is what Lightning makes of the former
    if not offline and not wandb.login(prompt=False, verify=False):
        offline = True
        _say(
            f"wandb: no account found, so this run stays in {args.wandb_dir}; `wandb login` and `wandb sync` upload it"
        )
    # Said twice: looking for an account makes wandb deaf to the variable that Lightning sets for `offline`.
    mode: dict[str, Any] = {"mode": "offline"} if offline else {}
    Path(args.wandb_dir).mkdir(parents=True, exist_ok=True)
    logger = WandbLogger(
        project=args.wandb_project,
        name=getattr(args, "run_name", None),
        group=getattr(args, "run_group", None),
        save_dir=args.wandb_dir,
        offline=offline,
        config=vars(args),
        **mode,
    )
    logger.experiment.define_metric("epoch")
    logger.experiment.define_metric("*", step_metric="epoch")
    return logger


def finish_wandb(result: Mapping[str, Any], figures: Sequence[Path] = ()) -> None:
    """Put final numbers, tables (lists of mappings) and figures into the current run, and close it."""
    import wandb

    if wandb.run is None:
        return
    for key, value in result.items():
        if isinstance(value, (int, float, str)):
            wandb.run.summary[key] = value
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            columns = [name for name, cell in value[0].items() if not isinstance(cell, Mapping)]
            wandb.run.log({key: wandb.Table(columns, [[row[name] for name in columns] for row in value])})
    for path in figures:
        if path.suffix == ".png":
            wandb.run.log({f"figures/{path.stem}": wandb.Image(str(path))})
    wandb.finish()
