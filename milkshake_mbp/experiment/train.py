"""Training as an experiment says, and what it leaves in the run's folder."""

import time
from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch import Tensor, nn

from milkshake_mbp.callbacks import BoundsCallback, PruneCallback, SketchCallback
from milkshake_mbp.errors import UserError
from milkshake_mbp.framework.checkpoints import read_weights
from milkshake_mbp.framework.console import first_process
from milkshake_mbp.framework.datamodules import DataModule
from milkshake_mbp.framework.models import Model
from milkshake_mbp.framework.stopping import UntilLoss
from milkshake_mbp.reading import registered_kernels
from milkshake_mbp.runs.files import RunFiles, write_tensors
from milkshake_mbp.runs.job import Job
from milkshake_mbp.runs.summary import summarize

__all__ = ["Experiment", "initial_weights", "train_and_bound"]


@dataclass(frozen=True)
class Experiment:
    """What a run is made of.

    Attributes:
        model: the network, or its class, which is built with the configuration.
        data: what it is trained and tested on.
        bounds: measures it in every epoch.
        pruning: prunes it when training ends.
        sketching: sketches what is left.
        others: further callbacks, after these.
    """

    model: Model | type[Model]
    data: DataModule
    bounds: BoundsCallback
    pruning: PruneCallback
    sketching: SketchCallback
    others: tuple[Callback, ...] = ()


def train_and_bound(job: Job, make: Callable[[Namespace], Experiment], named: Mapping[str, str]) -> dict[str, Any]:
    """Train as an experiment says, and leave weights and masks in the job's folder.

    Args:
        job: the run.
        make: the experiment of a configuration.
        named: what it is called on a dashboard: run_name, run_group.

    Returns:
        The content of its result.json.

    Raises:
        UserError: a key, a file or the training is not as it must be.
        KeyboardInterrupt: the user interrupted; everything up to the last epoch is on disk.
    """
    args, files, console = job.inside(**named), job.files, job.console
    if console.quiet:
        args.enable_progress_bar = False
    if args.wandb and first_process():
        args.run_id = files.wandb_id(given=args.resume_training and not job.args.resume_training)
    console.print(f"{args.run_name}: results go to {files.folder}")
    experiment = make(args)
    bounds, pruning, sketching = experiment.bounds, experiment.pruning, experiment.sketching
    callbacks = [bounds, pruning, sketching, *experiment.others]
    if args.wandb:
        from milkshake_mbp.reporting.dashboard import Dashboard

        callbacks.append(Dashboard(files.epochs))
    hooks = [] if args.eval_only or args.resume_training else [partial(_keep_initial, files)]
    started = time.monotonic()
    model = job.train(args, experiment.model, experiment.data, callbacks, hooks)
    if bounds.report is None or pruning.report is None or sketching.report is None:
        raise UserError("eval_only with no_test and val_split 0 leaves nothing to do: change one of the three")
    seconds = time.monotonic() - started
    trainer: Any = model.trainer
    stopping = next((part for part in trainer.callbacks if isinstance(part, UntilLoss)), None)
    _keep_weights(files, model, pruning, None if args.eval_only else bounds.initial)
    return summarize(
        args, args.run_name, model, experiment.data, bounds.report, pruning.report, sketching.report, seconds, stopping
    )


def initial_weights(args: Namespace) -> dict[str, Tensor] | None:
    """Those beside the weights to evaluate, by parameter name; None to take those that training starts from."""
    beside = RunFiles(Path(args.weights).parent).initial
    return read_weights(beside) if args.eval_only and args.weights and beside.exists() else None


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
def _keep_weights(files: RunFiles, model: Model, pruning: PruneCallback, initial: Mapping[str, Tensor] | None) -> None:
    parameters = {name: value for name, value in model.state_dict().items() if name.startswith("model.")}
    files.write_weights(parameters | pruning.weights, pruning.masks)
    if initial:
        # From the checkpoint if training went on from one: the file may have been damaged meanwhile.
        write_tensors(files.initial, initial, mend=True)
