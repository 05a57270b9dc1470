"""The files of one run, and how they are written and read."""

import hashlib
import json
import re
import secrets
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from safetensors.torch import save
from torch import Tensor

from milkshake_mbp.errors import UserError
from milkshake_mbp.files import is_temporary, sha256, write_atomically

__all__ = [
    "RunFiles",
    "check_kept",
    "complete",
    "finished_result",
    "read_json",
    "read_state",
    "write_state",
    "write_tensors",
]

# What a run leaves that follows neither from its numbers nor from its keys.
_SOURCES = {
    "epochs.csv",
    "initial.safetensors",
    "mask.safetensors",
    "model.safetensors",
    "rounds.csv",
    "search.json",
}


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
        if given and self.wandb.exists() and re.fullmatch(rb"[0-9a-f]{8}", kept := self.wandb.read_bytes()):
            return kept.decode()
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
            raise UserError(f"{self.result} has changed since the run wrote it")
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


def complete(files: RunFiles, console: Console, config: dict[str, Any], derive: Callable[[], object]) -> None:
    """Have what follows from a finished run's numbers made again if it is damaged or missing; say what cannot be.

    Args:
        files: of the run.
        console: where to say it.
        config: the run's configuration.
        derive: makes figures, tables and page of the files that are there.

    Raises:
        ValueError: they cannot be made, and that is not the damage's fault.
    """
    altered = files.altered()
    lost = {name: state for name, state in (altered or {}).items() if name in _SOURCES}
    for name, state in lost.items():
        console.print(f"{files.folder / name} is {state}: --rerun True makes it again")
    if altered is None or altered.keys() - lost.keys():
        if altered is None or files.config.name in altered:
            files.write_config(config)
        try:
            derive()
        except ValueError:
            if not lost:
                raise
            console.print(f"{files.folder}: figures and report cannot be written again without this file")
            return
        files.seal(lost)


def check_kept(finished: Iterable[RunFiles]) -> None:
    """See that no run has lost its result since it finished.

    Raises:
        UserError: a folder was removed meanwhile.
    """
    for files in finished:
        if not files.result.exists():
            raise UserError(
                f"{files.folder} was removed during the run, and what it held is lost: run the command again"
            )


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
    console.print(f"{path} is damaged: continuing without it")
    return None


def _state_digest(state: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def write_tensors(path: Path, tensors: Mapping[str, Tensor], mend: bool = False) -> None:
    """A safetensors file; tied tensors are all in it, and its metadata name the tie as safetensors' save_model does.

    Args:
        path: of the file.
        tensors: by name.
        mend: whether to leave a file alone that holds them already.
    """
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
    content = save(copies, ties or None)
    if not (mend and path.exists() and path.read_bytes() == content):
        write_atomically(path, content)
