"""The files of one run, and how they are written and read."""

import hashlib
import json
import platform
import re
import secrets
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, asdict, fields
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from safetensors.torch import save
from torch import Tensor, nn

from milkshake_mbp.callbacks import BoundsReport, PruneReport, SketchReport
from milkshake_mbp.errors import UserError
from milkshake_mbp.experiment.settings import Pruning
from milkshake_mbp.files import is_temporary, sha256, write_atomically
from milkshake_mbp.framework.args import config_dict
from milkshake_mbp.framework.datamodules.datamodule import DataModule
from milkshake_mbp.framework.settings import PATHS, SIZES, Data, Network, Optimization, Run, TrainerFlags, model_of
from milkshake_mbp.framework.stopping import UntilLoss
from milkshake_mbp.reading import registered_kernels
from milkshake_mbp.theory.bounds import evaluate, left_out
from milkshake_mbp.theory.margins import error_rate
from milkshake_mbp.theory.measured import Measured
from milkshake_mbp.theory.pruning import keep_probability

__all__ = [
    "RunFiles",
    "complete",
    "data_digest",
    "file_name",
    "finished_result",
    "kernel_shapes",
    "ladder_numbers",
    "package_versions",
    "read_json",
    "read_state",
    "relevant_keys",
    "run_name",
    "summarize",
    "write_state",
    "write_tensors",
]

_PACKAGES = ("milkshake_mbp", "torch", "pytorch-lightning", "torchvision", "numpy", "scipy")
# What can differ between two runs that compute the same thing.
_IRRELEVANT = {
    "ckpt_every_n_epochs",
    "ckpt_every_n_steps",
    "data_dir",
    "debug",
    "enable_model_summary",
    "enable_progress_bar",
    "engine",
    "experiment",
    "figures",
    "log_every_n_steps",
    "max_retries",
    "num_workers",
    "out_dir",
    "parallel",
    "persistent_workers",
    "profiler",
    "ray_address",
    "rerun",
    "resume_training",
    "tensorboard",
    "trial_cpus",
    "trial_gpus",
    "wandb",
    "wandb_dir",
    "wandb_project",
}
# Younger than the runs that have a name: they are part of one only where they are not at their defaults.
_YOUNG = {
    "balanced_sampler",
    "check_val_every_n_steps",
    "class_weights",
    "magnitude_flatness",
    "prune_exclude",
    "prune_include",
    "prune_layer_d",
    "strict",
    "train_fc_only",
    "train_samples",
    "until_loss",
}
_YOUNGER: dict[str, Any] = {
    item.name: item.default if item.default_factory is MISSING else item.default_factory()
    for item in (
        field for group in (Data, Network, Optimization, Run, TrainerFlags, Pruning) for field in fields(group)
    )
    if model_of(item.name) not in (None, "ffn") or item.name in _YOUNG
}

# What a run leaves that does not follow from its numbers.
_SOURCES = {
    "config.yaml",
    "epochs.csv",
    "initial.safetensors",
    "mask.safetensors",
    "model.safetensors",
    "rounds.csv",
    "search.json",
}


def run_name(args: Namespace) -> str:
    """A name that is a function of every key that affects the result, so that nothing is named by hand or run twice.

    A file that a key names counts by its content, so that other weights or samples at the same place are another run.
    The keys of other models do not count; those of all models do for a class of the user's own, which may read them.
    """
    relevant = relevant_keys(args)
    contents = {key: content for key in relevant if (content := _content(key, relevant[key]))}
    digest = hashlib.sha256(json.dumps(relevant | contents, sort_keys=True).encode()).hexdigest()[:8]
    size = [str(getattr(args, SIZES[args.model]))] if args.model in SIZES else []
    return file_name("-".join([args.datamodule, args.model, *size, f"seed{args.seed}", digest]))


def file_name(name: str) -> str:
    """The name of a file or folder that is no more than a name: no path, nothing hidden, nothing unprintable."""
    return re.sub(r"[^\w.-]", ".", name).lstrip(".") or "unnamed"


def _content(key: str, value: Any) -> str:
    """The digest of the file that a key names, of code or of numbers; "" if it names none."""
    path = (
        Path(value.rpartition(":")[0] if key in ("datamodule", "model") else value) if isinstance(value, str) else None
    )
    if key not in PATHS | {"datamodule", "model"} or path is None or not path.is_file():
        return ""
    stat = path.stat()
    return _digest(path, stat.st_mtime_ns, stat.st_size)


@lru_cache
def _digest(path: Path, changed: int, size: int) -> str:
    return sha256(path)


def relevant_keys(args: Namespace) -> dict[str, Any]:
    """The keys that can affect a run's result, with their values; paths count from the root."""
    return {key: value for key, value in config_dict(args).items() if _matters(key, value, args.model)}


def _matters(key: str, value: Any, model: str) -> bool:
    """Whether this value of a key can make a run of the model another run."""
    if key in _IRRELEVANT or (key in _YOUNGER and value == _YOUNGER[key]):
        return False
    return model not in SIZES or model_of(key) in (None, model)


class RunFiles:
    """The folder of one run: config.yaml, epochs.csv, result.json, ladder, weights, masks, figures/ and more.

    Args:
        folder: where they are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "config.yaml"
        self.epochs = folder / "epochs.csv"
        self.result = folder / "result.json"
        self.model = folder / "model.safetensors"
        self.mask = folder / "mask.safetensors"
        self.initial = folder / "initial.safetensors"
        self.figures = folder / "figures"
        self.report = folder / "report.html"
        self.wandb = folder / "wandb_id"
        self.manifest = folder / "manifest.json"

    def write_config(self, config: dict[str, Any]) -> None:
        """Everything needed to repeat the run."""
        write_atomically(self.config, yaml.safe_dump(config, sort_keys=True, allow_unicode=True).encode())

    def wandb_id(self, given: bool) -> str:
        """The run's id on Weights & Biases, so that one that goes on after an interrupt is still one run there.

        Args:
            given: whether to take the one that is there; otherwise it is a new run.
        """
        if given and self.wandb.exists():
            return self.wandb.read_text(encoding="utf-8")
        new = secrets.token_hex(4)
        write_atomically(self.wandb, new.encode())
        return new

    def write_weights(self, state: dict[str, Tensor], masks: dict[str, Tensor]) -> None:
        """The unpruned weights, and True where pruning kept one: the pruned network is their product."""
        write_tensors(self.model, state)
        write_tensors(self.mask, masks)

    def write_result(self, result: dict[str, Any]) -> None:
        """The final numbers; after the weights, so that its presence says that those are there."""
        write_atomically(self.result, (json.dumps(result, indent=2) + "\n").encode())

    def seal(self, lost: Iterable[str] = ()) -> None:
        """Write manifest.json, every file with its SHA-256; last, so that it says that the run is complete.

        Checkpoints are not in it: they have check sums of their own, and may be deleted.

        Args:
            lost: names of files that are not as the run left them and stay so; their digests stay too.
        """
        before = (read_json(self.manifest) or {}) if lost else {}
        kept = sorted(path for path in self.folder.rglob("*") if path.is_file() and self._listed(path))
        digests = {path.relative_to(self.folder).as_posix(): sha256(path) for path in kept}
        digests |= {name: before[name] for name in lost}
        write_atomically(self.manifest, (json.dumps(digests, indent=2) + "\n").encode())

    def _listed(self, path: Path) -> bool:
        return (
            path not in (self.manifest, self.wandb)
            and path.relative_to(self.folder).parts[0] != "checkpoints"
            and not is_temporary(path)
            and path.name != ".lock"
        )

    def altered(self, *names: str) -> dict[str, str] | None:
        """The files that are not as the run left them, each `missing` or `changed`; None without a manifest.

        Args:
            *names: the files to look at, as manifest.json names them; by default all.
        """
        try:
            digests = json.loads(self.manifest.read_text(encoding="utf-8"))
            wanted = {name: digests[name] for name in names or digests if name in digests}
        except (FileNotFoundError, ValueError, TypeError):
            return None
        found = {}
        for name, digest in wanted.items():
            path = self.folder / name
            if not path.is_file():
                found[name] = "missing"
            elif sha256(path) != digest:
                found[name] = "changed"
        return found

    def read_result(self) -> dict[str, Any] | None:
        """The final numbers; None if the run has not finished.

        Raises:
            UserError: the file is damaged.
        """
        if self.altered(self.result.name) == {self.result.name: "changed"}:
            raise UserError(f"{self.result} is not as the run wrote it")
        return read_json(self.result)


def finished_result(files: RunFiles, console: Console, *needed: str) -> dict[str, Any] | None:
    """The final numbers of a run that is complete and sound; None if it is to be done, or done again.

    Args:
        files: of the run.
        console: where to say that a file is not as the run left it.
        needed: names of files without which the run is done again, beside result.json.
    """
    try:
        result = files.read_result()
    except UserError as error:
        console.print(f"{error}: making it again")
        return None
    if result is None or not needed:
        return result
    for name, state in (files.altered(*needed) or {}).items():
        console.print(f"{files.folder / name} is {state}: making it again")
        result = None
    return result


def complete(files: RunFiles, console: Console, derive: Callable[[], object]) -> None:
    """Have what follows from a finished run's numbers made again if it is damaged or missing; say what cannot be."""
    altered = files.altered()
    lost = {name: state for name, state in (altered or {}).items() if name in _SOURCES}
    for name, state in lost.items():
        console.print(f"{files.folder / name} is {state}: --rerun True makes it again")
    if altered is None or altered.keys() - lost.keys():
        derive()
        files.seal(lost)


def read_json(path: Path) -> dict[str, Any] | None:
    """What a run keeps in a file; None if it is not there yet.

    Raises:
        UserError: the file is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): delete it and rerun") from error


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """What a computation can go on from, as JSON, with a check sum of its own because it changes while it runs."""
    write_atomically(path, json.dumps({"sha256": _state_digest(state), **state}).encode())


def read_state(path: Path, console: Console) -> dict[str, Any] | None:
    """What `write_state` wrote; None if there is none, or, with a word, if it is damaged."""
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        if state.pop("sha256") == _state_digest(state):
            return dict(state)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, AttributeError, TypeError):
        pass
    console.print(f"{path} is damaged: going on without it")
    return None


def _state_digest(state: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A safetensors file; tied tensors are all in it, and its metadata name the tie as safetensors' save_model does."""
    first: dict[tuple[Any, ...], str] = {}
    ties = {}
    for name, tensor in tensors.items():
        place = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if first.setdefault(place, name) != name and tensor.numel():
            ties[name] = first[place]
    # Copies, because safetensors refuses what shares memory.
    copies = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    write_atomically(path, save(copies, ties or None))


def data_digest(datamodule: DataModule) -> str | None:
    """SHA-256 of the training samples and their targets; None where they are not in memory."""
    samples, targets = (getattr(datamodule.dataset_train, name, None) for name in ("data", "targets"))
    if not isinstance(samples, Tensor) or not isinstance(targets, Tensor):
        return None
    digest = hashlib.sha256(f"{samples.dtype} {tuple(samples.shape)}".encode())
    for tensor in (samples, targets):
        digest.update(tensor.cpu().contiguous().numpy().data)
    return digest.hexdigest()


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
        "data": data_digest(datamodule),
        "kernels": kernel_shapes(model),
        "prune": asdict(pruning),
        "sketch": asdict(sketching),
    }
    if stopping is not None:
        result["stopping"] = {"until_loss": stopping.until_loss, "train_loss": stopping.loss}
    result["test_error"]["pruned"] = pruning.pruned_test_error
    # As it will be read back: lists for tuples.
    return dict(json.loads(json.dumps(result)))


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
        "test_error": {"unpruned": measured.test_error},
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
