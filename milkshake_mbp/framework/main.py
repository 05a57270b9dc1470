"""The main function: seed, build, fit, validate and test, all with the same callbacks."""

import logging
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
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from milkshake_mbp.errors import UserError
from milkshake_mbp.framework.args import trainer_kwargs
from milkshake_mbp.framework.datamodules.datamodule import DataModule
from milkshake_mbp.framework.logging import EpochCSV, RecordTraining, wandb_logger
from milkshake_mbp.framework.models.model import Model
from milkshake_mbp.framework.progress import FitProgress

__all__ = ["LAST_CHECKPOINT", "load_weights", "main", "read_weights"]

LAST_CHECKPOINT = "checkpoints/last.ckpt"

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
        callbacks: any beside checkpoints and progress; they see fit, validate and test.
        model_hooks: functions run on the model before training.
        verbose: whether Lightning prints the validation and test metrics.

    Returns:
        The model, its validation metrics (None without a validation set) and its test metrics (None with `no_test`).

    Raises:
        UserError: a key or a file does not fit; the message says which.
    """
    args = copy(args)
    _quieten_lightning()
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
    args.num_classes, args.num_groups = datamodule.num_classes, datamodule.num_groups
    args.ffn_input_dim = _input_dim(args, datamodule)

    model = model_or_model_class
    if isclass(model):
        model = model(args)
        if args.weights and not args.resume_training:
            load_weights(model, Path(args.weights))
    for hook in model_hooks or ():
        hook(model)
    if verbose:
        print(f"{datamodule.load_msg()}\n{model.load_msg()}")

    trainer = _trainer(args, callbacks or (), has_validation=len(datamodule.dataset_val) > 0)
    if not args.eval_only:
        checkpoint = _checkpoint_to_resume(args)
        trainer.fit(model, datamodule=datamodule, ckpt_path=checkpoint, weights_only=True if checkpoint else None)
    validated = tested = None
    if len(datamodule.dataset_val):
        validated = trainer.validate(model, datamodule=datamodule, verbose=verbose)
    if not args.no_test:
        tested = trainer.test(model, datamodule=datamodule, verbose=verbose)
    return model, validated, tested


def load_weights(model: Model, path: Path) -> None:
    """Load a file that `read_weights` reads.

    Raises:
        UserError: the file is missing, is no such file, or does not fit the model.
    """
    state = read_weights(path)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"weights: {path} does not fit this model: {_first_line(error)}") from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """A state dict from a `.safetensors` file or a (Lightning) checkpoint, unpickling nothing but tensors.

    Args:
        path: the file.

    Returns:
        Tensors by name, on the CPU, in the file's order; the framework's own metrics left out.

    Raises:
        UserError: the file is missing, or is no such file.
    """
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            stored = torch.load(path, map_location="cpu", weights_only=True)
            state = stored.get("state_dict", stored)
        return {name: value for name, value in state.items() if not name.startswith("_sums.")}
    except FileNotFoundError as error:
        raise UserError(f"weights: {path} does not exist") from error
    except (SafetensorError, OSError, EOFError, AttributeError) as error:
        raise UserError(f"weights: {path} cannot be read as weights: {_first_line(error)}") from error
    except Exception as error:  # torch.load raises what its unpickler raises
        raise UserError(f"weights: {path} is damaged or holds more than tensors: {_first_line(error)}") from error


class _LastCheckpoint(ModelCheckpoint):
    """Of every epoch, over the one before; a class of its own because Lightning tells callbacks apart by class and key.

    ModelCheckpoint's save_last renews its file only together with the best.
    """


def _trainer(args: Namespace, callbacks: Sequence[Callback], has_validation: bool) -> Trainer:
    out = Path(args.out_dir)
    table = EpochCSV(out / "epochs.csv", resume=args.resume_training)
    every = ModelCheckpoint(
        dirpath=out / "checkpoints",
        filename="epoch={epoch:03d}",
        auto_insert_metric_name=False,
        every_n_epochs=args.ckpt_every_n_epochs,
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
    kwargs = trainer_kwargs(args)
    if not has_validation:
        kwargs["limit_val_batches"] = 0
    if kwargs.get("enable_progress_bar") is not False:
        extra.append(FitProgress())
    loggers = [table, wandb_logger(args)] if args.wandb else [table]
    return Trainer(**kwargs, logger=loggers, callbacks=[*extra, *callbacks], default_root_dir=out)


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


def _checkpoint_to_resume(args: Namespace) -> Path | None:
    if not args.resume_training:
        return None
    path = Path(args.weights) if args.weights else Path(args.out_dir) / LAST_CHECKPOINT
    if not path.exists():
        raise UserError(f"resume_training: there is no checkpoint {path}; train first, or name one with weights")
    return path


def _input_dim(args: Namespace, datamodule: DataModule) -> int:
    given = getattr(args, "ffn_input_dim", None)
    if given not in (None, datamodule.input_dim):
        raise UserError(
            f"ffn_input_dim is {given}, but a sample of {type(datamodule).__name__} has {datamodule.input_dim} "
            "numbers; leave the key out to take it from the data"
        )
    return datamodule.input_dim


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
