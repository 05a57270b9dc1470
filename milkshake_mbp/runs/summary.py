"""The numbers of a result.json."""

import platform
from argparse import Namespace
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from torch import nn

from milkshake_mbp.callbacks import BoundsReport, PruneReport, SketchReport
from milkshake_mbp.framework.datamodules.datamodule import DataModule
from milkshake_mbp.framework.stopping import UntilLoss
from milkshake_mbp.reading import registered_kernels
from milkshake_mbp.runs.digest import samples_digest
from milkshake_mbp.theory.bounds import evaluate, left_out
from milkshake_mbp.theory.margins import error_rate
from milkshake_mbp.theory.measured import Measured
from milkshake_mbp.theory.pruning import keep_probability

__all__ = ["kernel_shapes", "ladder_numbers", "package_versions", "summarize"]

_PACKAGES = ("milkshake_mbp", "torch", "pytorch-lightning", "torchvision", "numpy", "scipy")


def summarize(
    args: Namespace,
    name: str,
    model: nn.Module,
    datamodule: DataModule,
    bounds: BoundsReport,
    pruning: PruneReport,
    sketching: SketchReport,
    seconds: float,
    stopping: UntilLoss | None = None,
) -> dict[str, Any]:
    """The content of result.json: errors are probabilities, bounds natural logs, infinity Python's `Infinity`."""
    result = {
        "run": name,
        "seed": args.seed,
        "epochs": bounds.epoch,
        "seconds": round(seconds, 1),
        **ladder_numbers(bounds.measured),
        "data": samples_digest(datamodule.dataset_train),
        "kernels": kernel_shapes(model),
        "prune": asdict(pruning),
        "sketch": asdict(sketching),
    }
    if stopping is not None:
        result["stopping"] = {"until_loss": stopping.until_loss, "train_loss": stopping.loss}
    result["test_error"]["pruned"] = pruning.pruned_test_error
    return result


def kernel_shapes(module: nn.Module) -> dict[str, list[int]]:
    """The shape of each layer's kernel as the module holds it, by the layer's name."""
    return {kernel.layer: list(module.get_parameter(kernel.parameter).shape) for kernel in registered_kernels(module)}


def ladder_numbers(measured: Measured) -> dict[str, Any]:
    """One network's part of a result.json."""
    search = measured.search
    return {
        "versions": package_versions(),
        "n": measured.num_samples,
        "distinct": measured.distinct,
        "num_classes": measured.num_classes,
        "layers": list(measured.layers),
        "input_norm": measured.input_norm,
        "margin": measured.margin,
        "d": None if search is None else search.d,
        "chi": None if search is None else keep_probability(search.d),
        "log_needed": None if search is None else search.log_needed,
        "prune_d": measured.d,
        "true_error": None if search is None else measured.true_error,
        "train_error": error_rate(measured.margins),
        "compressed_error": measured.compressed_error,
        "num_test": None if measured.test is None else measured.test.num_samples,
        "test_error": {"unpruned": measured.test_error} | ({"pruned": measured.pruned_error} if measured.d > 0 else {}),
        "bounds": [asdict(bound) for bound in evaluate(measured)],
        "left_out": {reason: list(labels) for reason, labels in left_out(measured).items()},
    }


def package_versions() -> dict[str, str | None]:
    """What a result was computed with."""
    return {"python": platform.python_version(), **{package: _version(package) for package in _PACKAGES}}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
