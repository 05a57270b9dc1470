"""Running a plan: whatever is not finished, on the engine asked for, with a record and a live table of it."""

import json
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from rich.console import Console

from milkshake_mbp.errors import UserError
from milkshake_mbp.framework.args import trainer_kwargs
from milkshake_mbp.runs.files import check_kept
from milkshake_mbp.runs.settings import Sweep
from milkshake_mbp.sweep.board import Board
from milkshake_mbp.sweep.local_engine import run_here, run_in_processes
from milkshake_mbp.sweep.plan import Plan
from milkshake_mbp.sweep.record import Record
from milkshake_mbp.sweep.trials import Engine, Outcome, Trial

__all__ = ["run_sweep"]


def run_sweep(plan: Plan, console: Console) -> dict[str, Any]:
    """Run every trial that is not finished, showing how it goes, and leave sweep.json, sweep.csv and report.html.

    Args:
        plan: the trials.
        console: where to show them.

    Returns:
        The content of sweep.json.

    Raises:
        UserError: the engine cannot start, Lightning refuses a flag on this machine, the disk is full, or a trial's
            folder was removed after it had finished.
        KeyboardInterrupt: the user interrupted; everything up to the last epoch of each trial is on disk.
    """
    # These load Lightning and matplotlib, which a single run that is finished is shown without.
    from milkshake_mbp.framework.main import check_trainer_flags
    from milkshake_mbp.reporting.report import write_report

    if plan.how.engine == "local":  # on a cluster it is another machine's devices that count
        flags = {json.dumps(trainer_kwargs(trial.args), sort_keys=True): trial.args for trial in plan.trials}
        for args in flags.values():
            check_trainer_flags(args)
    console.print(plan.table())
    record = Record(plan)
    record.write()
    board = Board(plan.name, plan.trials, console)

    def report(trial: Trial, outcome: Outcome) -> None:
        record.report(trial, outcome)
        board.report(trial, outcome)
        if outcome.state == "interrupted":
            raise UserError(outcome.cause)

    try:
        with board:
            todo = []
            for trial in plan.trials:
                outcome = _beforehand(trial)
                if outcome.state == "waiting":
                    todo.append(trial)
                else:
                    report(trial, outcome)
            if todo:
                _engine(plan.how, todo)(todo, plan.how, plan.folder, report)
    except BaseException as error:
        record.interrupt()
        with suppress(OSError):  # on a full disk, which is what is said then or comes second
            record.write()
        if isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(
                f"{plan.folder} lists what finished, and the same command continues from there"
            ) from error
        raise
    record.write()
    if begun := [trial.files.folder for trial in plan.trials if trial.files.config.exists()]:
        write_report(begun, plan.folder / "report.html")
    check_kept(trial.files for trial in record.finished)
    return record.content()


def _beforehand(trial: Trial) -> Outcome:
    """What is known of a trial before it runs."""
    return Outcome("skipped" if trial.finished else "waiting")


def _engine(how: Sweep, trials: Sequence[Trial]) -> Engine:
    if how.engine == "ray":
        from milkshake_mbp.sweep.ray_engine import run_on_ray

        return run_on_ray
    here = how.parallel == 1 and all(trial.processes == 1 for trial in trials)
    return run_here if here else run_in_processes
