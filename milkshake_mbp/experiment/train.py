"""What a run computes: a network trained, bounded every epoch, pruned by Algorithm 1, and sketched."""

import time
from argparse import Namespace
from collections.abc import Mapping
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
from milkshake_mbp.framework.datamodules import load_datamodule
from milkshake_mbp.framework.models import Model, load_model
from milkshake_mbp.framework.stopping import UntilLoss
from milkshake_mbp.reading import registered_kernels
from milkshake_mbp.runs.files import RunFiles, write_tensors
from milkshake_mbp.runs.job import Job
from milkshake_mbp.runs.settings import prune_rule
from milkshake_mbp.runs.summary import summarize

__all__ = ["train_and_bound"]


def train_and_bound(job: Job, named: Mapping[str, str]) -> dict[str, Any]:
    """Train as the configuration says, and leave weights and masks in the job's folder.

    Args:
        job: the run.
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
    callbacks: list[Callback] = [bounds, pruning, sketching := SketchCallback()]
    if args.wandb:
        from milkshake_mbp.reporting.dashboard import Dashboard

        callbacks.append(Dashboard(files.epochs))
    hooks = [] if args.eval_only or args.resume_training else [partial(_keep_initial, files)]
    datamodule = load_datamodule(args.datamodule)(args)
    started = time.monotonic()
    model = job.train(args, load_model(args.model), datamodule, callbacks, hooks)
    if bounds.report is None or pruning.report is None or sketching.report is None:
        raise UserError("eval_only with no_test and val_split 0 leaves nothing to do: change one of the three")
    seconds = time.monotonic() - started
    trainer: Any = model.trainer
    stopping = next((part for part in trainer.callbacks if isinstance(part, UntilLoss)), None)
    _keep_weights(files, model, pruning, None if args.eval_only else bounds.initial)
    return summarize(
        args, args.run_name, model, datamodule, bounds.report, pruning.report, sketching.report, seconds, stopping
    )


def _initial_weights(args: Namespace) -> dict[str, Tensor] | None:
    """Those that lie beside the weights to evaluate; None to take those that training starts from."""
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
