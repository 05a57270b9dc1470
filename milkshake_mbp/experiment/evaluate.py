"""The ladder of a network that is already trained, from its weights and a dataset."""

from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from milkshake_mbp.callbacks import SketchCallback
from milkshake_mbp.callbacks.data import test_samples, train_samples
from milkshake_mbp.errors import UserError
from milkshake_mbp.experiment.assumptions import assumptions, doubt, set_up
from milkshake_mbp.framework.args import config_dict
from milkshake_mbp.framework.checkpoints import bystanders, load_weights, plain_weights, read_weights
from milkshake_mbp.framework.datamodules import load_datamodule
from milkshake_mbp.framework.main import model_keys
from milkshake_mbp.framework.models import load_model
from milkshake_mbp.reading import Kernel, measure, registered_kernels
from milkshake_mbp.reading.measure import read_samples
from milkshake_mbp.reporting.diagnostics import diagnose
from milkshake_mbp.reporting.ladder import export_ladder
from milkshake_mbp.runs.files import RunFiles
from milkshake_mbp.runs.names import file_name, run_name
from milkshake_mbp.runs.settings import prune_rule
from milkshake_mbp.runs.summary import kernel_shapes, ladder_numbers
from milkshake_mbp.runs.weights import chain_from_state

__all__ = ["evaluate"]


def evaluate(args: Namespace, console: Console) -> tuple[RunFiles, dict[str, Any]]:
    """Bound the network in `args.weights` on the dataset of the configuration.

    The network is rebuilt from its state dict, or is what `model` names if that is not ffn.

    Args:
        args: the configuration, with the keys of `runs.settings.Pruning` and `Ladder`.
        console: where to say what happens.

    Returns:
        The files written, under `out_dir`, and the ladder's numbers as in result.json.

    Raises:
        UserError: a key or a file is not as it must be, or the network does not take the data.
    """
    if not args.weights:
        raise UserError("weights: expected the file of a trained network, got none: give --weights FILE")
    path = Path(args.weights)
    read_weights(path)  # before the data are downloaded
    datamodule = load_datamodule(args.datamodule)(args)
    set_up(datamodule, args)
    console.print(assumptions(args, datamodule, activation=args.model == "ffn"))
    module, names = _network(args, path, datamodule, console)
    kernels, train = registered_kernels(module), train_samples(datamodule)
    shapes = [tuple(kernel.matrix(module).shape) for kernel in kernels]
    if args.model == "ffn" and (shapes[0][1] != datamodule.input_dim or shapes[-1][0] != datamodule.num_classes):
        raise UserError(
            f"weights: {path} has {shapes[0][1]} inputs and {shapes[-1][0]} outputs, but {args.datamodule} has "
            f"{datamodule.input_dim} inputs and {datamodule.num_classes} classes"
        )
    whole = [tuple(shape) for shape in kernel_shapes(module).values()]
    console.print(f"{path}: {', '.join(f'{name} {shape}' for name, shape in zip(names, whole, strict=True))}")
    if doubtful := doubt(module, datamodule):
        console.print(doubtful)
    rule = prune_rule(args)
    with console.status("measuring the network on the data"):
        measured = measure(
            module,
            train,
            test_samples(datamodule, module),
            prune_d=args.prune_d,
            seed=args.prune_seed,
            failure=args.failure,
            keep_diagonal=args.keep_diagonal,
            delta=args.delta,
            initial=_initial(args, path, kernels, names),
            rule=rule,
        )
    with console.status("sketching the pruned layers"):
        sketcher = SketchCallback(mask_seed=args.prune_seed, keep_diagonal=args.keep_diagonal, rule=rule)
        sketches = sketcher.measure(module, measured.d)
        measured = measured.with_sketches(list(sketches.layers.values()))
    result = {"weights": str(path), **ladder_numbers(measured), "layers": names, "sketch": asdict(sketches)}
    files = RunFiles(Path(args.out_dir) / _folder_name(args, path))
    files.write_config(config_dict(args))
    files.write_result(result)
    export_ladder(result, files.folder)
    reading = read_samples(module, train)
    if args.diagnostics and not reading.chain:
        console.print(f"no diagnostics over d, which need a chain of Linear layers: {reading.network.broken['chain']}")
    elif args.diagnostics:
        diagnose(
            module,
            train,
            files.folder,
            names=names,
            seed=args.prune_seed,
            keep_diagonal=args.keep_diagonal,
            console=console,
        )
    return files, result


def _folder_name(args: Namespace, path: Path) -> str:
    """Of the file, and of what else makes the numbers."""
    return file_name(f"ladder-{path.parent.name if path.stem == 'model' else path.stem}-{run_name(args)[-8:]}")


def _network(args: Namespace, path: Path, datamodule: Any, console: Console) -> tuple[nn.Module, list[str]]:
    """The network, and its layers' names in the file."""
    if args.model == "ffn":
        state = plain_weights(read_weights(path))
        module, names = chain_from_state(state, args.layers, args.ffn_activation)
        if aside := [name for name in bystanders(state) if name.rpartition(".")[0] not in names]:
            console.print(f"left out: {', '.join(aside)}, which belong to a loss or a metric, not to the network")
        if any(tensor.dtype == torch.float64 for tensor in state.values()):
            console.print("double precision: the weights are rounded to float32, and the bounds are for these")
        return module, names
    model = load_model(args.model)(model_keys(args, datamodule))
    model.fit_to(datamodule.dataset_train[0][0])
    load_weights(model, path)
    return model, [kernel.layer for kernel in registered_kernels(model)]


def _initial(args: Namespace, path: Path, kernels: list[Kernel], names: list[str]) -> dict[str, Tensor] | None:
    """The initial weights by the module's own parameter names."""
    beside = RunFiles(path.parent).initial
    if not args.initial_weights and not beside.exists():
        return None
    source = Path(args.initial_weights) if args.initial_weights else beside
    stored = plain_weights(read_weights(source, "initial_weights"))
    missing = [f"{name}.weight" for name in names if f"{name}.weight" not in stored]
    if missing:
        raise UserError(f"initial_weights: {source} does not contain {', '.join(missing)}")
    found = {kernel.parameter: stored[f"{name}.weight"] for kernel, name in zip(kernels, names, strict=True)}
    return stored | found  # what else is stored are the parts of normalizations
