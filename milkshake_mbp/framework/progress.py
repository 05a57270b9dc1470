"""One progress bar for a whole fit, with the time left."""

import time
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column

__all__ = ["FitProgress"]

_LINE_EVERY = 5.0


class FitProgress(ProgressBar):
    """Epochs done, time left, and what is logged with `prog_bar`; a line every few seconds where there is no terminal.

    Args:
        console: where to draw; by default standard error.
    """

    def __init__(self, console: Console | None = None) -> None:
        super().__init__()
        self.console = console or Console(stderr=True)
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._drawn = self._started = 0.0
        self._first_epoch = 0

    def disable(self) -> None:
        """Stay silent on other ranks."""
        self.console.quiet = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar."""
        self._started, self._first_epoch = time.monotonic(), trainer.current_epoch
        if not self.console.is_terminal or self.console.quiet:
            return
        epochs = _epochs(trainer)
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=20),
            TimeRemainingColumn(table_column=Column(no_wrap=True, min_width=7)),
            TextColumn("left  {task.fields[metrics]}"),
            console=self.console,
            refresh_per_second=2,
        )
        total = epochs * int(trainer.num_training_batches) if epochs else None
        self._task = self._progress.add_task("training", total=total, completed=trainer.global_step, metrics="")
        self._progress.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar, a few times a second."""
        now = time.monotonic()
        if self._progress is None or now - self._drawn < 0.25:
            return
        self._drawn = now
        done = trainer.current_epoch * int(trainer.num_training_batches) + batch_idx + 1
        self._progress.update(self._task, completed=done, description=_named(trainer.current_epoch + 1, trainer))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show what the last epoch logged."""
        if trainer.current_epoch > self._first_epoch:
            self._show_epoch(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the last epoch and close the bar."""
        self._show_epoch(trainer)
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the terminal as it was."""
        self._close()

    def _show_epoch(self, trainer: Trainer) -> None:
        values = trainer.progress_bar_metrics
        text = "  ".join(f"{name.rpartition('/')[2]} {float(value):.4g}" for name, value in values.items())
        done = trainer.fit_loop.epoch_progress.current.completed
        if self._progress is not None:
            self._progress.update(self._task, completed=done * int(trainer.num_training_batches), metrics=text)
        elif done == _epochs(trainer) or time.monotonic() - self._drawn >= _LINE_EVERY:
            self._drawn = time.monotonic()
            elapsed = time.monotonic() - self._started
            left = elapsed / max(1, done - self._first_epoch) * max(0, _epochs(trainer) - done)
            about = f", about {left:.0f} s left" if _epochs(trainer) else ""
            self.console.print(
                f"{_named(done, trainer)}  {text}  ({elapsed:.0f} s{about})",
                highlight=False,
                soft_wrap=True,
            )

    def _close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def _epochs(trainer: Trainer) -> int:
    """How many epochs the run may have; 0 where their number does not limit it."""
    return max(0, trainer.max_epochs or 0)


def _named(epoch: int, trainer: Trainer) -> str:
    return f"epoch {epoch}/{_epochs(trainer)}" if _epochs(trainer) else f"epoch {epoch}"
