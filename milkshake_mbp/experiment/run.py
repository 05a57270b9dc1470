"""One run: configuration to result files. Nothing here loads Lightning, which a finished run is shown without."""

import os
import sys
from argparse import Namespace
from collections.abc import Callable
from functools import cache, partial
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from rich.console import Console

from milkshake_mbp.commands import folder
from milkshake_mbp.errors import UserError
from milkshake_mbp.framework.console import first_process, make_console
from milkshake_mbp.framework.datamodules import load_datamodule
from milkshake_mbp.framework.datamodules.files import stored_training_set
from milkshake_mbp.reporting.ladder import export_ladder
from milkshake_mbp.runs.digest import samples_digest
from milkshake_mbp.runs.files import RunFiles
from milkshake_mbp.runs.job import Job
from milkshake_mbp.runs.names import run_name

if TYPE_CHECKING:
    from milkshake_mbp.experiment.train import Experiment

__all__ = ["MakeExperiment", "main_experiment", "run", "script_experiment"]

# The experiment of a configuration.
MakeExperiment = Callable[[Namespace], "Experiment"]


def run(
    args: Namespace, console: Console | None = None, group: str | None = None, make: MakeExperiment | None = None
) -> tuple[RunFiles, dict[str, Any]]:
    """Train, bound and prune as the experiment of the configuration says, and leave the result files.

    A finished run is not trained again but read, and a figure or table that is missing is made again; an interrupted
    one continues from its last checkpoint, and so does one whose numbers or weights were damaged.

    Args:
        args: the configuration, with the keys of `runs.settings.Pruning`.
        console: where to say what happens; nothing is said while training either if it is quiet.
        group: what runs are grouped by on a dashboard; by default their experiment.
        make: called for the experiment if it has not finished; by default `experiment` in exps/mbp.py.

    Returns:
        The run's files, and the content of its result.json.

    Raises:
        UserError: a key, a file or the training is not as it must be.
        BusyError: another process does this run; a UserError.
        KeyboardInterrupt: the user interrupted; everything up to the last epoch is on disk.
    """
    if any(way in args.strategy for way in ("spawn", "fork", "notebook")):
        raise UserError(f"strategy: {args.strategy} keeps the results in processes that are gone afterwards: use ddp")
    console = console or make_console()
    files = RunFiles(Path(args.out_dir) / run_name(args))
    named = {"run_name": files.folder.name, "run_group": group or args.experiment}
    publish = (lambda result: _dashboard().fill_dashboard(files, result)) if args.wandb else None
    job = Job(args, files, (files.model, files.mask), partial(_derive, files, args.figures), console, publish)

    def compute() -> dict[str, Any]:
        from milkshake_mbp.experiment.train import train_and_bound

        return train_and_bound(job, make or main_experiment(), named)

    def check(result: dict[str, Any]) -> dict[str, Any]:
        _check_data(args, files, result)
        # What wandb's agent starts has a run there already, which waits for the numbers.
        if args.wandb and "WANDB_SWEEP_ID" in os.environ and first_process():
            _dashboard().replay(Namespace(**vars(args) | named | {"out_dir": str(files.folder)}), files, result)
        return result

    try:
        result = job.do(compute, check)
    except BaseException:
        if args.wandb:
            _dashboard().abandon_run()
        raise
    return files, result


@cache
def script_experiment(path: Path, name: str = "experiment") -> MakeExperiment:
    """The function of a script that makes its experiment; the script is loaded as a module, not run.

    Args:
        path: the script's.
        name: the function's.
    """
    spec = spec_from_file_location(f"{path.stem}_experiment", path)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # by which what it defines is found when pickled
    spec.loader.exec_module(module)
    return getattr(module, name)


def main_experiment() -> MakeExperiment:
    """The main job's."""
    return script_experiment(folder("exps") / "mbp.py")


def _dashboard() -> ModuleType:
    """Wandb takes a while to load, and few runs need it."""
    return import_module("milkshake_mbp.reporting.dashboard")


def _derive(files: RunFiles, figures: bool, result: dict[str, Any]) -> None:
    """Figures, ladder and report, all of them functions of the files that are there."""
    export_ladder(result, files.folder)
    if figures:
        from milkshake_mbp.reporting.figures import draw_epochs
        from milkshake_mbp.reporting.report import write_report

        if files.epochs.exists():
            draw_epochs(files.epochs, files.figures)
        write_report([files.folder], files.report)


def _check_data(args: Namespace, files: RunFiles, result: dict[str, Any]) -> None:
    """Refuse to show the numbers of a run as those of samples that are not the ones it was trained on."""
    try:
        samples = stored_training_set(args)
        if samples is None:
            datamodule = load_datamodule(args.datamodule)(args)
            datamodule.setup("fit")
            samples = datamodule.dataset_train
    except (UserError, OSError):
        return  # the results may be looked at where the data are not
    if result.get("data") not in (None, samples_digest(samples)):
        raise UserError(
            f"{files.folder} is the run of other samples than {args.datamodule} has now: "
            "--rerun True trains on these, and --out_dir keeps both"
        )
