"""The live table of a sweep; lines where there is no terminal."""

import csv
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from threading import Event, Thread
from types import TracebackType
from typing import Any

from rich import box
from rich.console import Console, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from milkshake_mbp.sweep.trials import Outcome, State, Trial
from milkshake_mbp.theory.bounds import ROWS

__all__ = ["Board"]

_LINE_EVERY = 30.0
_STYLES = {"running": "bold cyan", "finished": "green", "skipped": "dim green", "failed": "red", "waiting": "dim"}
# Where not all trials fit the screen.
_ORDER: list[State] = ["running", "failed", "interrupted", "finished", "waiting", "skipped"]
(_BOUND,) = (row for row in ROWS if (row.convention, row.name) == ("paper", "theorem_5_2"))


@dataclass
class _Progress:
    """Of one trial: what came of it so far, and the rows of its epochs.csv."""

    outcome: Outcome = field(default_factory=lambda: Outcome("waiting"))
    started: float = 0.0
    first: int = 0
    changed: int = 0
    rows: list[dict[str, str]] = field(default_factory=list)


class Board:
    """Shows every trial's state, epoch, time left, latest bound and margin, read from its files.

    Args:
        name: the sweep's name.
        trials: in the order of the grid.
        console: where to.
    """

    def __init__(self, name: str, trials: Sequence[Trial], console: Console) -> None:
        self.name = name
        self.trials = trials
        self.console = console
        self._progress = {trial: _Progress() for trial in trials}
        self._over = Event()
        self._live: Live | None = None
        self._lines: Thread | None = None

    def __enter__(self) -> "Board":
        if self.console.is_terminal:
            # The user's console does not wrap, which tables must.
            console = Console(file=self.console.file, highlight=False, markup=False, quiet=self.console.quiet)
            self._live = Live(get_renderable=self.render, console=console, refresh_per_second=1)
            self._live.start()
        else:
            self._lines = Thread(target=self._print_running, daemon=True)
            self._lines.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._live is not None:
            self._live.stop()
        if self._lines is not None:
            self._lines.join()

    def report(self, trial: Trial, outcome: Outcome) -> None:
        """A trial has changed its state."""
        progress = self._progress[trial]
        progress.outcome = outcome
        if outcome.state == "running":
            self._read(trial)
            progress.started, progress.first = time.monotonic(), len(progress.rows)
        if self._live is None:
            self._print(trial, f"{outcome.state}{': ' * bool(outcome.cause)}{outcome.cause}")

    def render(self) -> RenderableType:
        """The table, no higher than the screen: what runs and what failed first."""
        table = Table(title=self._title(), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
        for axis in self.trials[0].values:
            table.add_column(axis, overflow="fold")
        for head in ("state", "epoch", "left", _BOUND.label, "margin"):
            table.add_column(head, no_wrap=True, justify="left" if head == "state" else "right")
        shown = sorted(self.trials, key=lambda trial: _ORDER.index(self._progress[trial].outcome.state))
        kept = set(shown[: max(1, self.console.height - 7)])
        for trial in self.trials:
            if trial in kept:
                state = self._progress[trial].outcome.state
                cells = self._cells(trial)
                table.add_row(*trial.cells, Text(state, style=_STYLES.get(state, "")), *cells.values())
        if hidden := len(self.trials) - len(kept):
            table.caption = f"and {hidden} more"
        return table

    def _title(self) -> str:
        counts = Counter(progress.outcome.state for progress in self._progress.values())
        states = ", ".join(f"{counts[state]} {state}" for state in _ORDER if counts[state])
        return f"{self.name}: {states}{self._time_left()}"

    def _time_left(self) -> str:
        """Of the whole sweep, from the seconds that an epoch took so far."""
        paces, left = [], 0.0
        for trial, progress in self._progress.items():
            pace, remaining = self._pace(trial), self._epochs_left(trial)
            if pace and remaining is not None and progress.outcome.state == "running":
                paces.append(pace)
                left += pace * remaining
        if not paces:
            return ""
        epochs = sum(
            self._epochs_left(trial) or 0
            for trial, progress in self._progress.items()
            if progress.outcome.state == "waiting"
        )
        left += epochs * sum(paces) / len(paces)
        return f", about {_clock(left / len(paces))} left"

    def _cells(self, trial: Trial) -> dict[str, str]:
        """Epoch, time left, bound and margin."""
        self._read(trial)
        rows, total = self._progress[trial].rows, trial.args.max_epochs
        running = self._progress[trial].outcome.state == "running"
        pace, remaining = self._pace(trial), self._epochs_left(trial)
        return {
            "epoch": f"{len(rows)}/{total if total and total > 0 else '?'}",
            "left": _clock(pace * remaining) if running and pace and remaining is not None else "",
            _BOUND.label: _latest(rows, f"bounds/paper/{_BOUND.name}"),
            "margin": _latest(rows, "margin"),
        }

    def _read(self, trial: Trial) -> None:
        """Look at a trial's epochs.csv, if it has changed."""
        progress, path = self._progress[trial], trial.files.epochs
        try:
            changed = path.stat().st_mtime_ns
            if changed != progress.changed:
                with path.open(newline="", encoding="utf-8") as file:
                    progress.rows = list(csv.DictReader(file))
                progress.changed = changed
        except FileNotFoundError:
            progress.rows = []

    def _pace(self, trial: Trial) -> float | None:
        """Seconds that an epoch takes; None before the first has ended."""
        progress = self._progress[trial]
        done = len(progress.rows) - progress.first
        if done <= 0 or not progress.started:
            return None
        return (time.monotonic() - progress.started) / done

    def _epochs_left(self, trial: Trial) -> int | None:
        total: Any = trial.args.max_epochs
        return max(0, total - len(self._progress[trial].rows)) if total and total > 0 else None

    def _print(self, trial: Trial, what: str) -> None:
        cells = [f"{head} {cell}" for head, cell in self._cells(trial).items() if cell and head != "left"]
        left = self._cells(trial)["left"]
        facts = "  ".join([*cells, *([f"about {left} left"] if left else [])])
        place = f"[{self.trials.index(trial) + 1}/{len(self.trials)}]"
        self.console.print(Text(f"{place} {trial}  {what}  ({facts})"), soft_wrap=True)

    def _print_running(self) -> None:
        while not self._over.wait(_LINE_EVERY):
            for trial, progress in self._progress.items():
                if progress.outcome.state == "running":
                    self._print(trial, "running")


def _latest(rows: Sequence[dict[str, str]], column: str) -> str:
    values = [row[column] for row in rows if row.get(column)]
    return f"{float(values[-1]):.4g}" if values else ""


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
