"""One run: configuration to result files."""

import os
import time
from argparse import Namespace
from contextlib import nullcontext
from copy import copy
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from pytorch_lightning.utilities.rank_zero import rank_zero_only
from rich.console import Console
from torch import Tensor, nn

from milkshake_mbp.callbacks import BoundsCallback, PruneCallback, SketchCallback
from milkshake_mbp.errors import UserError
from milkshake_mbp.framework.args import config_dict
from milkshake_mbp.framework.console import first_process, make_console
from milkshake_mbp.framework.datamodules import load_datamodule
from milkshake_mbp.framework.logging import wandb_logger
from milkshake_mbp.framework.main import main, read_weights
from milkshake_mbp.framework.models import Model, load_model
from milkshake_mbp.framework.stopping import UntilLoss
from milkshake_mbp.reading import registered_kernels
from milkshake_mbp.reporting.figures import draw_epochs
from milkshake_mbp.reporting.ladder import export_ladder
from milkshake_mbp.reporting.report import write_report
from milkshake_mbp.runs.checkpoints import last_checkpoint, unsealed
from milkshake_mbp.runs.files import RunFiles, complete, finished_result, write_tensors
from milkshake_mbp.runs.lock import locked
from milkshake_mbp.runs.names import run_name
from milkshake_mbp.runs.settings import prune_rule
from milkshake_mbp.runs.summary import data_digest, summarize

__all__ = ["run"]


def run(args: Namespace, console: Console | None = None, group: str | None = None) -> tuple[RunFiles, dict[str, Any]]:
    """Train, bound and prune as the configuration says, and leave the result files.

    A finished run is not trained again but read, and a figure or table that is missing is made again; an interrupted
    one goes on from its last checkpoint, and so does one whose numbers or weights were damaged.

    Args:
        args: the configuration, with the keys of `runs.settings.Pruning`.
        console: where to say what happens; nothing is said while training either if it is quiet.
        group: what runs are grouped by on a dashboard; by default their experiment.

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
    group = group or args.experiment
    if finished := _finished(args, files, console, group):
        return files, finished
    # The first process of a distributed run stands for the others.
    with locked(files.folder) if first_process() else nullcontext():
        if finished := _finished(args, files, Console(quiet=True), group, holding=True):  # meanwhile, by another
            return files, finished
        files.manifest.unlink(missing_ok=True)
        try:
            return files, _run(args, files, console, group)
        except BaseException:
            if args.wandb:
                _abandon_wandb()
            raise


def _finished(
    args: Namespace, files: RunFiles, console: Console, group: str, holding: bool = False
) -> dict[str, Any] | None:
    """The numbers of a run that is complete and sound; `holding` says that its lock is this process's already."""
    again = args.rerun or unsealed(files)
    finished = None if again else finished_result(files, console, files.model.name, files.mask.name)
    if finished:
        console.print(f"{files.folder} is finished: showing its results (--rerun True trains it again)")
        _check_data(args, files, finished)
        if first_process() and files.altered() != {}:
            with nullcontext() if holding else locked(files.folder):
                complete(files, console, config_dict(args), partial(_derive, files, finished, args))
        # What wandb's agent starts has a run there already, which waits for the numbers.
        if args.wandb and "WANDB_SWEEP_ID" in os.environ and first_process():
            wandb_logger(_named(args, files, group))
            _dashboard().replay_epochs(files)
            _dashboard().fill_dashboard(files, finished)
    return finished


def _check_data(args: Namespace, files: RunFiles, result: dict[str, Any]) -> None:
    """Refuse to show the numbers of a run as those of samples that are not the ones it was trained on."""
    datamodule = load_datamodule(args.datamodule)(args)
    try:
        datamodule.setup("fit")
    except (UserError, OSError):
        return  # the results may be looked at where the data are not
    if result.get("data") not in (None, data_digest(datamodule)):
        raise UserError(
            f"{files.folder} is the run of other samples than {args.datamodule} has now: "
            "--rerun True trains on these, and --out_dir keeps both"
        )


def _derive(files: RunFiles, result: dict[str, Any], args: Namespace) -> None:
    """Figures, ladder and report, all of them functions of the files that are there."""
    if args.figures and files.epochs.exists():
        draw_epochs(files.epochs, files.figures)
    export_ladder(result, files.folder)
    if args.figures:
        write_report([files.folder], files.report)


def _run(args: Namespace, files: RunFiles, console: Console, group: str) -> dict[str, Any]:
    name = run_name(args)
    given, args = args, _inside(args, files, group)
    if console.quiet:
        args.enable_progress_bar = False
    if args.resume_training and not given.resume_training:
        console.print(f"{files.folder} was interrupted: going on from its last checkpoint")
    files.write_config(config_dict(given))
    if args.wandb and first_process():
        args.run_id = files.wandb_id(given=args.resume_training and not given.resume_training)

    console.print(f"{name}: results go to {files.folder}")
    rule = prune_rule(args)
    bounds = BoundsCallback(
        args.prune_d,
        args.prune_seed,
        args.bounds_every_n_epochs,
        args.failure,
        args.keep_diagonal,
        args.delta,
        _initial_weights(args),
        rule=rule,
        magnitudes=args.magnitude_flatness,
    )
    pruning = PruneCallback(args.prune_d, args.prune_seed, args.keep_diagonal, rule=rule)
    sketching = SketchCallback()
    charts = [_dashboard().Dashboard(files.epochs)] if args.wandb else []
    started = time.monotonic()
    try:
        model, _, _ = main(
            args,
            load_model(args.model),
            datamodule := load_datamodule(args.datamodule)(args),
            [bounds, pruning, sketching, *charts],
            [] if args.eval_only or args.resume_training else [partial(_keep_initial, files)],
            verbose=False,
        )
    except SystemExit as stopped:
        # What Lightning makes of Ctrl-C, once it has shut down.
        raise KeyboardInterrupt(
            f"{files.folder} holds what was computed, and the same command goes on from there"
        ) from stopped
    if bounds.report is None or pruning.report is None or sketching.report is None:
        raise UserError("eval_only with no_test and val_split 0 leaves nothing to do: change one of the three")
    seconds = time.monotonic() - started
    trainer: Any = model.trainer
    stopping = next((part for part in trainer.callbacks if isinstance(part, UntilLoss)), None)
    result = summarize(
        args, name, model, datamodule, bounds.report, pruning.report, sketching.report, seconds, stopping
    )
    _write(files, result, model, bounds, pruning, args)
    return result


def _named(args: Namespace, files: RunFiles, group: str) -> Namespace:
    """The configuration of one run: its own folder, and what it is called on a dashboard."""
    args = copy(args)
    args.out_dir, args.run_name, args.run_group = str(files.folder), run_name(args), group
    return args


def _inside(args: Namespace, files: RunFiles, group: str) -> Namespace:
    """The configuration to train with: that of the run, and its last checkpoint if it was interrupted."""
    args = _named(args, files, group)
    if args.rerun:
        files.result.unlink(missing_ok=True)
    elif not args.eval_only and not args.resume_training and (checkpoint := last_checkpoint(files)):
        args.resume_training, args.weights = True, checkpoint
    return args


def _initial_weights(args: Namespace) -> dict[str, Tensor] | None:
    """Those that lie beside the weights to evaluate; None to take those that training starts from."""
    beside = RunFiles(Path(args.weights).parent).initial
    return read_weights(beside) if args.eval_only and args.weights and beside.exists() else None


def _dashboard() -> ModuleType:
    """Wandb takes a while to load, and few runs need it."""
    return import_module("milkshake_mbp.reporting.dashboard")


def _abandon_wandb() -> None:
    """Close the current run as failed, so that the next trial of a sweep opens its own."""
    import wandb

    wandb.finish(exit_code=1)


@rank_zero_only
def _keep_initial(files: RunFiles, model: Model) -> None:
    state = model.state_dict(keep_vars=True)
    names = [kernel.parameter for kernel in registered_kernels(model)]
    # What the gains of normalizations are computed from.
    names += [
        name
        for prefix, part in model.named_modules()
        if isinstance(part, nn.modules.batchnorm._BatchNorm)
        for name in (f"{prefix}.weight", f"{prefix}.running_var")
        if name in state
    ]
    write_tensors(files.initial, {name: state[name].detach() for name in names})


@rank_zero_only
def _write(
    files: RunFiles,
    result: dict[str, Any],
    model: Model,
    bounds: BoundsCallback,
    pruning: PruneCallback,
    args: Namespace,
) -> None:
    parameters = {name: value for name, value in model.state_dict().items() if name.startswith("model.")}
    files.write_weights(parameters | pruning.weights, pruning.masks)
    if bounds.initial and not args.eval_only:
        # From the checkpoint if training went on from one: the file may have been damaged meanwhile.
        write_tensors(files.initial, bounds.initial, mend=True)
    files.write_result(result)
    _derive(files, result, args)
    files.seal()
    if args.wandb:
        _dashboard().fill_dashboard(files, result)
