"""The main function: seed, build, fit, validate and test, all with the same callbacks."""

import logging
import pickle
import warnings
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from inspect import isclass
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, Trainer, seed_everything
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from milkshake_mbp.errors import UserError
from milkshake_mbp.framework.args import trainer_kwargs
from milkshake_mbp.framework.checkpoints import LAST_CHECKPOINT, check_resumable, load_weights, read_weights
from milkshake_mbp.framework.datamodules.datamodule import DataModule
from milkshake_mbp.framework.logging import EpochCSV, RecordTraining, tensorboard_logger, wandb_logger
from milkshake_mbp.framework.models.model import Model
from milkshake_mbp.framework.progress import FitProgress
from milkshake_mbp.framework.settings import TrainerFlags
from milkshake_mbp.framework.stopping import UntilLoss

__all__ = ["check_trainer_flags", "load_weights", "main", "model_keys", "read_weights"]

_REFUSALS = (MisconfigurationException, ModuleNotFoundError, RuntimeError, TypeError, ValueError)

Metrics = list[Mapping[str, float]]


def main(
    args: Namespace,
    model_or_model_class: Model | type[Model],
    datamodule_or_datamodule_class: DataModule | type[DataModule],
    callbacks: Sequence[Callback] | None = None,
    model_hooks: Sequence[Callable[[Model], Any]] | None = None,
    verbose: bool = True,
) -> tuple[Model, Metrics | None, Metrics | None]:
    """Fit a model (unless `eval_only`), validate it (if there is a validation set), test it (unless `no_test`).

    Args:
        args: the configuration, as `parse_args` gives it; not changed.
        model_or_model_class: a model, or a class to be built with the configuration.
        datamodule_or_datamodule_class: likewise.
        callbacks: callbacks in addition to those for checkpoints and progress; used in fit, validate and test.
        model_hooks: functions that are called with the model before training.
        verbose: whether Lightning prints the validation and test metrics.

    Returns:
        The model, its validation metrics (None without a validation set) and its test metrics (None with `no_test`).

    Raises:
        UserError: a key or a file is not valid; the message names it.
    """
    args = copy(args)
    _check_files(args)
    check_trainer_flags(args)
    seed_everything(args.seed, workers=True, verbose=False)
    # Tensor cores; on a CPU this changes nothing.
    torch.set_float32_matmul_precision("high")
    # `deterministic` would first fill every new tensor with NaN, at 5% of an epoch, to expose reads of fresh memory.
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010 (mypy does not know it)

    datamodule = datamodule_or_datamodule_class
    if isclass(datamodule):
        datamodule = datamodule(args)
    datamodule.prepare_data()
    datamodule.setup("fit")
    args = model_keys(args, datamodule)

    model = model_or_model_class
    if isclass(model):
        model = model(args)
        model.fit_to(datamodule.dataset_train[0][0])
        if args.weights and not args.resume_training:
            load_weights(model, Path(args.weights), strict=getattr(args, "strict", True))
    checkpoint = None if args.eval_only else _checkpoint_to_resume(args)
    if checkpoint is not None:
        check_resumable(model, checkpoint)
    for hook in model_hooks or ():
        hook(model)
    if verbose:
        print(f"{datamodule.load_msg()}\n{model.load_msg()}")

    trainer = _trainer(args, callbacks or (), has_validation=len(datamodule.dataset_val) > 0)
    if not args.eval_only:
        try:
            trainer.fit(model, datamodule=datamodule, ckpt_path=checkpoint, weights_only=True if checkpoint else None)
        except pickle.UnpicklingError as error:
            raise UserError(
                f"resume_training: {checkpoint} refers to code, which is never run: start from its weights with "
                "--weights, or remove it"
            ) from error
    validated = tested = None
    if len(datamodule.dataset_val):
        validated = trainer.validate(model, datamodule=datamodule, verbose=verbose)
    if not args.no_test:
        tested = trainer.test(model, datamodule=datamodule, verbose=verbose)
    return model, validated, tested


class _LastCheckpoint(ModelCheckpoint):
    """Of every epoch, over the one before; a class of its own because Lightning tells callbacks apart by class and key.

    ModelCheckpoint's save_last renews its file only together with the best.
    """


def _trainer(args: Namespace, callbacks: Sequence[Callback], has_validation: bool) -> Trainer:
    out = Path(args.out_dir)
    table = EpochCSV(out / "epochs.csv")
    steps = getattr(args, "ckpt_every_n_steps", None)
    every = ModelCheckpoint(
        dirpath=out / "checkpoints",
        filename="epoch={epoch:03d}-step={step:06d}" if steps else "epoch={epoch:03d}",
        auto_insert_metric_name=False,
        every_n_epochs=None if steps else args.ckpt_every_n_epochs,
        every_n_train_steps=steps,
        save_top_k=-1,
    )
    measure = next((name for name in ("loss", "acc") if name in args.metrics), None)
    best = ModelCheckpoint(
        dirpath=out / "checkpoints",
        filename="best",
        monitor=f"{'val' if has_validation else 'train'}_{measure}" if measure else None,
        mode="max" if measure == "acc" else "min",
        save_top_k=1 if measure else 0,
        enable_version_counter=False,
        save_on_train_epoch_end=True,
    )
    last = _LastCheckpoint(
        dirpath=out / "checkpoints", filename="last", enable_version_counter=False, save_on_train_epoch_end=True
    )
    extra: list[Callback] = [RecordTraining(table), every, best, last]
    if getattr(args, "until_loss", None) is not None:
        extra.append(UntilLoss(args.until_loss))
    kwargs = trainer_kwargs(args)
    if not has_validation:
        kwargs["limit_val_batches"] = 0
    if kwargs.get("enable_progress_bar") is not False:
        extra.append(FitProgress())
    loggers = [table, *tensorboard_logger(args), *([wandb_logger(args)] if args.wandb else [])]
    return _build_trainer(kwargs, logger=loggers, callbacks=[*extra, *callbacks], default_root_dir=out)


def check_trainer_flags(args: Namespace) -> None:
    """Check first that Lightning accepts the Trainer's flags on this machine.

    Raises:
        UserError: Lightning refuses them; the message names the flags that are not at their defaults.
    """
    _quieten_lightning()
    _build_trainer(trainer_kwargs(args), logger=False, callbacks=None, default_root_dir=Path(args.out_dir))


def _build_trainer(flags: Mapping[str, Any], **parts: Any) -> Trainer:
    try:
        return Trainer(**flags, **parts)
    except _REFUSALS as error:
        defaults = vars(TrainerFlags())
        changed = [key for key, value in flags.items() if value != defaults[key]]
        guilty = [key for key in changed if _builds({**flags, key: defaults[key]}, parts)] or changed
        named = ", ".join(f"{key} {flags[key]}" for key in guilty)
        raise UserError(f"{named or 'Trainer'}: refused by Lightning: {error}") from error


def _builds(flags: Mapping[str, Any], parts: Mapping[str, Any]) -> bool:
    try:
        Trainer(**flags, **parts)
    except _REFUSALS:
        return False
    return True


def _quieten_lightning() -> None:
    """Hide what a user of this framework can do nothing about: device lists, tips, deprecations inside Lightning."""
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    logging.getLogger("pytorch_lightning.callbacks.model_summary").setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers",  # the data are in memory
        ".*isinstance\\(treespec, LeafSpec\\)",
        ".*Checkpoint directory .* exists and is not empty",  # a resumed run
        ".*It is recommended to use `self.log.*sync_dist=True",  # every rank logs the same, already reduced, numbers
        "The number of training batches .* is smaller than the logging interval",  # logged once an epoch
    ):
        warnings.filterwarnings("ignore", message)


def _check_files(args: Namespace) -> None:
    """Before the data are read or downloaded, see that the weights are there."""
    if args.weights and not Path(args.weights).exists():
        raise UserError(f"weights: {args.weights} does not exist")
    if not args.eval_only:
        _checkpoint_to_resume(args)


def _checkpoint_to_resume(args: Namespace) -> Path | None:
    if not args.resume_training:
        return None
    path = Path(args.weights) if args.weights else Path(args.out_dir) / LAST_CHECKPOINT
    if not path.exists():
        raise UserError(f"resume_training: there is no checkpoint {path}; train first, or name one with weights")
    return path


def model_keys(args: Namespace, datamodule: DataModule) -> Namespace:
    """The configuration for building a model, with keys that were not given taken from the data.

    Args:
        args: the configuration; not changed.
        datamodule: after `setup`.

    Returns:
        The configuration with num_classes, num_groups and ffn_input_dim; for images, (channels, height, width), also
        input_channels and, if they are square, image_size.

    Raises:
        UserError: ffn_input_dim is not that of the data.
    """
    args = copy(args)
    args.num_classes, args.num_groups = datamodule.num_classes, datamodule.num_groups
    given = getattr(args, "ffn_input_dim", None)
    if given not in (None, datamodule.input_dim):
        raise UserError(
            f"ffn_input_dim is {given}, but a sample of {type(datamodule).__name__} has {datamodule.input_dim} "
            "numbers; leave the key out to take it from the data"
        )
    args.ffn_input_dim = datamodule.input_dim
    if len(datamodule.sample_shape) == 3:
        args.input_channels, height, width = datamodule.sample_shape
        args.image_size = height if height == width else None
    return args
