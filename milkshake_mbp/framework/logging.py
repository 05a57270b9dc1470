"""Where metrics go: a CSV with a row per epoch, always; wandb on request; a progress bar for the whole fit."""

import os
import sys
from argparse import Namespace
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from milkshake_mbp.errors import UserError
from milkshake_mbp.files import write_csv

__all__ = ["EpochCSV", "RecordTraining", "tensorboard_logger", "wandb_logger"]


class EpochCSV(Logger):
    """`epochs.csv`: everything logged while training, a row per epoch, rewritten whole so that it is never torn.

    Attributes:
        recording: whether metrics are taken; `RecordTraining` sets it, so that testing adds no rows.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.recording = False
        self.rows: dict[int, dict[str, Any]] = {}

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
    """Opens an `EpochCSV` for the time of the training, and puts its rows into every checkpoint.

    Lightning logs an epoch after its checkpoints are saved, so that a run killed in between would go on without its
    row; and the file may be damaged when the run goes on. A `Checkpoint` because those come after all else has logged;
    to be given before the ones that save.
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

    def state_dict(self) -> dict[str, Any]:
        """The rows so far."""
        return {"rows": self.table.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Those of the run that goes on; nothing may be left of it to train, and its file may be gone."""
        self.table.rows = dict(state_dict["rows"])
        self.table.save()


def tensorboard_logger(args: Namespace) -> list[Logger]:
    """TensorBoard's logger, its files in `out_dir`/tensorboard, or none.

    Args:
        args: the configuration: out_dir, wandb, and tensorboard, which is true, false, or None for true where it is
            installed and wandb is not asked for.

    Raises:
        UserError: it is asked for and not installed.
    """
    asked = getattr(args, "tensorboard", None)
    if asked is False or (asked is None and args.wandb):
        return []
    if find_spec("tensorboard") is None and find_spec("tensorboardX") is None:
        if asked is None:
            return []
        raise UserError(
            "tensorboard: true needs the package tensorboard, which is not installed: pip install tensorboard"
        )
    return [TensorBoardLogger(args.out_dir, name="", version="tensorboard")]


def wandb_logger(args: Namespace) -> WandbLogger:
    """Wandb's logger, offline without an account or an answer from the server, with epoch as the x axis of every chart.

    Args:
        args: the configuration: wandb_dir, wandb_project; run_name, run_group and run_id where an experiment sets them.
    """
    import wandb

    os.environ.setdefault("WANDB_SILENT", "true")
    folder = Path(args.wandb_dir).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    # What an offline run has yet to upload would otherwise lie in the user's home.
    os.environ.setdefault("WANDB_DATA_DIR", str(folder))
    offline = os.environ.get("WANDB_MODE") in ("offline", "dryrun")  # the latter is what Lightning makes of the former
    if not offline and not wandb.login(prompt=False, verify=False):
        offline = True
        _say_offline("no account found", folder)
    logger = _open(args, offline)
    try:
        run = logger.experiment
    except wandb.errors.CommError as error:
        _say_offline(str(error).strip().splitlines()[0], folder)
        wandb.teardown()  # which still holds what could not be opened
        logger = _open(args, offline=True)
        run = logger.experiment
    # Over what Lightning has said, which draws everything against its count of steps.
    run.define_metric("*", step_metric="epoch", overwrite=True)
    for clutter in ("epoch", "trainer/global_step"):
        run.define_metric(clutter, hidden=True, overwrite=True)
    for stage in ("train", "val", "test"):
        run.define_metric(f"{stage}_acc_class*", step_metric="epoch", hidden=True)
    return logger


def _open(args: Namespace, offline: bool) -> WandbLogger:
    # Said twice: looking for an account makes wandb deaf to the variable that Lightning sets for `offline`.
    mode: dict[str, Any] = {"mode": "offline"} if offline else {}
    return WandbLogger(
        project=args.wandb_project,
        name=getattr(args, "run_name", None),
        group=getattr(args, "run_group", None),
        id=getattr(args, "run_id", None),
        save_dir=args.wandb_dir,
        offline=offline,
        config=vars(args),
        **mode,
    )


@cache
@rank_zero_only
def _say_offline(why: str, folder: Path) -> None:
    print(
        f"wandb: {why}, so runs are kept here: `wandb sync {folder}/wandb/offline-run-*` uploads them", file=sys.stderr
    )
