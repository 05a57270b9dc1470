"""One point of a grid: its configuration, its files, and an attempt at it."""

import time
import traceback
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rich.console import Console

from milkshake_mbp.experiment.run import MakeExperiment, run
from milkshake_mbp.framework.cli import disk_full, verdict
from milkshake_mbp.runs.files import RunFiles
from milkshake_mbp.runs.lock import BusyError
from milkshake_mbp.runs.names import run_name, shown
from milkshake_mbp.runs.settings import Sweep

__all__ = ["Engine", "Outcome", "Report", "State", "Trial", "attempt"]

State = Literal["waiting", "running", "finished", "failed", "skipped", "interrupted"]


class Outcome(NamedTuple):
    """What came of an attempt, and in one line why it did not finish.

    It is `waiting` if another process does the trial, and `interrupted` if nothing is wrong with it, but no other can
    be done either.
    """

    state: State
    cause: str = ""


@dataclass(frozen=True, eq=False)
class Trial:
    """One point of a grid.

    Attributes:
        args: its configuration.
        values: its values on the grid's axes.
        make: its experiment, of its configuration.
    """

    args: Namespace
    values: Mapping[str, Any]
    make: MakeExperiment

    @cached_property
    def name(self) -> str:
        """Its run's name, a function of all that affects its result."""
        return run_name(self.args)

    @cached_property
    def files(self) -> RunFiles:
        """Its run's files."""
        return RunFiles(Path(self.args.out_dir) / self.name)

    @property
    def finished(self) -> bool:
        """Whether its run is complete, and every file as the run left it."""
        return not self.args.rerun and self.files.result.exists() and self.files.altered() == {}

    @cached_property
    def processes(self) -> int | None:
        """How many Lightning makes of it, one for each device; None where `devices` leaves that to Lightning."""
        devices = self.args.devices
        if isinstance(devices, list):
            return len(devices)
        named = [name for name in str(devices).split(",") if name.strip()]
        if "," in str(devices):
            return len(named)
        return int(devices) if str(devices).isdigit() else None

    @property
    def cells(self) -> list[str]:
        """Its values on the axes, as they are shown."""
        return [shown(value) for value in self.values.values()]

    def __str__(self) -> str:
        return " ".join(f"{key}={cell}" for key, cell in zip(self.values, self.cells, strict=True)) or self.name


# Told when a trial starts, and what came of it.
Report = Callable[[Trial, Outcome], None]
# What runs trials, given the keys of the sweep and its folder.
Engine = Callable[[Sequence[Trial], Sweep, Path, Report], None]


def attempt(args: Namespace, make: MakeExperiment, group: str, console: Console) -> Outcome:
    """Do a run, or go on with it; an interrupt is the only exception that comes out."""
    try:
        run(args, console, group, make)
    except BusyError as error:
        time.sleep(1)
        return Outcome("waiting", str(error))
    except Exception as error:
        if args.debug:
            traceback.print_exc()
        return Outcome("interrupted" if disk_full(error) else "failed", verdict(error)[0].removeprefix("error: "))
    return Outcome("finished")
