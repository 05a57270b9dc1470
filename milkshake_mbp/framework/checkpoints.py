"""Files of weights as people save them, read without running anything that a file brings along."""

import re
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from milkshake_mbp.errors import UserError

__all__ = ["LAST_CHECKPOINT", "bystanders", "check_resumable", "load_weights", "plain_weights", "read_weights"]

# In a run's folder.
LAST_CHECKPOINT = "checkpoints/last.ckpt"

# Under what people file a network's weights, those before the others where a file has several.
_USUAL_KEYS = (
    *("state_dict", "model_state_dict", "model_state", "model", "net", "network", "module"),
    *("weights", "params", "parameters", "model_ema", "ema", "ema_state_dict", "state_dict_ema", "params_ema"),
)
_NOT_A_NETWORK = re.compile(r"opt|sched|lr_|scaler|callback|loop|hyper|config|args", re.IGNORECASE)
# What DataParallel, torch.compile and the like put before the names of the modules that they wrap.
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_forward_module"}
_BYSTANDER = re.compile(r"(^|_)(loss(es)?|criteri(on|a)|metrics?|acc|accuracy|confmat)(_|$)")
_CLASS_WEIGHTS = re.compile(r"(^|\.)(class|loss|pos)_weights?$")
_SHOWN, _LONGEST_NAME = 8, 500
# Bytes of a safetensors file's header; bytes that a tensor may have however few are stored of it; and how deep, and of
# how many parts, a pickled module or dictionary may be.
_MAX_HEADER, _ALWAYS, _MAX_DEPTH, _MAX_PARTS = 1 << 24, 1 << 26, 64, 1 << 16


def read_weights(path: Path, key: str = "weights") -> dict[str, Tensor]:
    """The state dict in a `.safetensors` file, a checkpoint, or what else `torch.save` writes, under any usual key.

    Objects of classes that are not torch's own are replaced by empty stand-ins: neither their code nor any other
    that the file names is run. Tensors that are tied are one tensor, in a `.safetensors` file that says so too.

    Args:
        path: the file.
        key: the configuration's key that names it, for the message.

    Returns:
        Tensors by name, on the CPU, in the file's order (a `.safetensors` file has none: by name); the framework's own
        metrics left out.

    Raises:
        UserError: the file is missing, damaged, or holds no weights or several networks; in one line with its keys. Or
            it is beyond the limits in docs/faults.md, such as a name that cannot be printed.
    """
    return _weights_in(_read(path, key), path, key)


def plain_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict as the bare network would have it, in the same order.

    The names lose what wrappers put before them (`module.`, `_orig_mod.`), and the parts that
    `torch.nn.utils.prune` and weight normalization split a tensor into become the one that the network computes with.
    """
    named = {".".join(part for part in name.split(".") if part not in _WRAPPERS): name for name in state}
    plain = {short: state[name] for short, name in named.items()} if len(named) == len(state) else dict(state)
    return dict(_recomputed(plain))


def bystanders(names: Iterable[str]) -> list[str]:
    """The names that are not of the network but of a loss or a metric beside it, such as its class weights."""
    return [
        name
        for name in names
        if _CLASS_WEIGHTS.search(name) or any(_BYSTANDER.search(part.lower()) for part in name.split(".")[:-1])
    ]


def load_weights(model: nn.Module, path: Path, strict: bool = True) -> None:
    """Load a file that `read_weights` reads, whatever wrappers and prefixes its names have.

    Args:
        model: what they are loaded into.
        path: the file.
        strict: whether all must fit; if not, what does not fit in name or shape is left out, and named on a line.

    Raises:
        UserError: as `read_weights`, or the weights do not fit the model, none of them if not `strict`.
    """
    state, own = read_weights(path), model.state_dict()
    if state.keys() != own.keys():
        state = _renamed(state, own, path)
    if not strict:
        fitting = {name: value for name, value in state.items() if name in own and value.shape == own[name].shape}
        if fitting:
            _say_left_out(state, own, fitting, path)
            model.load_state_dict(fitting, strict=False)
            return
    _check_fit(state, own, path)
    model.load_state_dict(state)


def _say_left_out(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], fitting: Mapping[str, Tensor], path: Path
) -> None:
    left, new = [name for name in state if name not in fitting], [name for name in own if name not in fitting]
    if left or new:
        parts = [f"{_listed(left)} of the file left out"] * bool(left) + [f"{_listed(new)} as they were"] * bool(new)
        print(f"weights: {path}: {len(fitting)} tensors loaded; {'; '.join(parts)}")


def check_resumable(model: nn.Module, path: Path) -> None:
    """See that a training of this model can go on from the checkpoint.

    Raises:
        UserError: the file is not a checkpoint of a training, or of one of another network.
    """
    stored = _read(path, "weights")
    state = _weights_in(stored, path, "weights")
    if not isinstance(stored, Mapping) or not {"loops", "optimizer_states"} <= set(stored):
        raise UserError(
            f"resume_training: {path} has weights but no training state: leave resume_training out to start from these "
            "weights"
        )
    _check_fit(state, model.state_dict(), path)


class _UnreadableError(Exception):
    """A file that holds no weights that can be read; why, and what to do."""


class _StandIn:
    """In place of an object of a class that is not torch's: it holds what was stored and does nothing."""

    stored: Any = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.stored = state

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        pass

    def extend(self, values: Any) -> None:
        pass


def _read(path: Path, key: str) -> Any:
    try:
        return _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    except FileNotFoundError as error:
        raise UserError(f"{key}: {path} does not exist") from error
    except OSError as error:
        raise UserError(f"{key}: {path} cannot be read: {error.strerror or 'it is not a file of weights'}") from error
    except _UnreadableError as error:
        raise UserError(f"{key}: {path} {error}") from error


def _weights_in(stored: Any, path: Path, key: str) -> dict[str, Tensor]:
    try:
        state = _find_state(stored, _Walk())
    except _UnreadableError as error:
        raise UserError(f"{key}: {path} {error}") from error
    if not state:
        raise UserError(
            f"{key}: expected {path} to have the weights of one network, as a state dict, alone or under a key such as "
            f"state_dict or model, found {_listed(_keys(stored)) or type(stored).__name__}"
        )
    for name, value in state.items():
        if not name.isprintable() or len(name) > _LONGEST_NAME:
            raise UserError(f"{key}: {path} calls a tensor {name[:40]!a}, which is no name: rename it")
        if value.layout != torch.strided or value.is_meta or not _stored(value):
            raise UserError(f"{key}: {path} does not contain every number of {name}: save it dense and contiguous")
    return {name: value for name, value in state.items() if not name.startswith("_sums.")}


def _stored(tensor: Tensor) -> bool:
    """Whether its numbers are in the file, or few: a view can claim any size of a stored number, repeated."""
    return tensor.nbytes <= max(_ALWAYS, tensor.untyped_storage().nbytes())


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    with path.open("rb") as file:
        if int.from_bytes(file.read(8), "little") > _MAX_HEADER:
            raise _UnreadableError(f"has a header of more than {_MAX_HEADER:,} bytes, or is not a safetensors file")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            ties = file.metadata() or {}
    except SafetensorError as error:
        raise _UnreadableError("cannot be read as weights: it is damaged, or not a safetensors file") from error
    # As safetensors' save_model notes them, beside other remarks perhaps: the name left out, and the one it shares.
    for name, kept in ties.items():
        if kept in state and (name not in state or torch.equal(state[name], state[kept])):
            state[name] = state[kept]
    return {name: state[name] for name in sorted(state)}


def _read_torch(path: Path) -> Any:
    """What `torch.save` wrote, with stand-ins for what torch does not load unless told to trust it.

    Raises:
        OSError: as the file system reports it.
        _UnreadableError: it cannot be read like this.
    """
    with path.open("rb"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if zipfile.is_zipfile(path) and _inflates(path):
            raise _UnreadableError("is compressed, which torch.save never does: save model.state_dict()")
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as first:
            try:
                foreign = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
                known: list[Any] = [(type(name.rpartition(".")[2], (_StandIn,), {}), name) for name in foreign]
                with torch.serialization.safe_globals(known):
                    return torch.load(path, map_location="cpu", weights_only=True)
            except Exception:
                raise _UnreadableError(_why_unreadable(path)) from first


def _inflates(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(member.file_size > member.compress_size for member in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return False  # which torch says in its own way


def _why_unreadable(path: Path) -> str:
    if not zipfile.is_zipfile(path):
        return "is damaged, or not in the format that torch.save writes today: save model.state_dict()"
    with zipfile.ZipFile(path) as archive:
        if any(name.endswith("constants.pkl") for name in archive.namelist()):
            return "is a TorchScript archive, which contains code: save model.state_dict()"
    try:
        code = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except Exception:  # a damaged archive
        code = []
    named = f" ({_listed(sorted(code))})" if code else ""
    return f"is damaged or holds more than tensors{named}: save model.state_dict()"


class _Walk:
    """How much of what a file holds has been looked at: what refers to itself, or to one thing often, has no end."""

    def __init__(self) -> None:
        self._parts = self._depth = 0

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Look at one part more.

        Raises:
            _UnreadableError: it is one too many, or too deep.
        """
        self._parts, self._depth = self._parts + 1, self._depth + 1
        if self._parts > _MAX_PARTS or self._depth > _MAX_DEPTH:
            raise _UnreadableError(
                f"has more than {_MAX_PARTS:,} parts, or {_MAX_DEPTH} within one another: save a state dict"
            )
        yield
        self._depth -= 1


def _find_state(stored: Any, walk: _Walk) -> dict[str, Tensor] | None:
    """The one state dict in what a file holds; None if there is none, or several that are alike."""
    if not isinstance(stored, (_StandIn, list, tuple, Mapping)):
        return None
    with walk.inside():
        return _state_in(stored, walk)


def _state_in(stored: _StandIn | Sequence[Any] | Mapping[Any, Any], walk: _Walk) -> dict[str, Tensor] | None:
    if isinstance(stored, _StandIn):
        return dict(_module_state(stored, walk)) or None
    if not isinstance(stored, Mapping):
        stored = {str(index): value for index, value in enumerate(stored)}
    own = {name: value for name, value in stored.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if own and (len(own) == len(stored) or any("." in name for name in own)):
        return own
    nested = {str(key): found for key, value in stored.items() if (found := _find_state(value, walk))}
    for key in _USUAL_KEYS:
        if key in nested:
            return nested[key]
    nested = {key: found for key, found in nested.items() if not _NOT_A_NETWORK.search(key)}
    if len(nested) == 1:
        return next(iter(nested.values()))
    if not any("." in name for found in nested.values() for name in found):
        # A dictionary of layers, each with its weight and bias.
        return {f"{key}.{name}": value for key, found in nested.items() for name, value in found.items()} or own or None
    return None


def _module_state(stand_in: _StandIn, walk: _Walk, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """The state dict of a whole module that was pickled."""
    stored = stand_in.stored if isinstance(stand_in.stored, Mapping) else {}
    hidden = stored.get("_non_persistent_buffers_set") or ()
    for kind in ("_parameters", "_buffers"):
        for name, value in (stored.get(kind) or {}).items():
            if isinstance(value, Tensor) and name not in hidden:
                yield f"{prefix}{name}", value.detach()
    for name, part in (stored.get("_modules") or {}).items():
        if isinstance(part, _StandIn):
            with walk.inside():
                yield from _module_state(part, walk, f"{prefix}{name}.")


def _recomputed(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name, value in state.items():
        whole = name.removesuffix("_orig")
        if whole != name and f"{whole}_mask" in state:
            yield whole, value * state[f"{whole}_mask"].to(value.dtype)
        elif name.endswith("_mask") and f"{name.removesuffix('_mask')}_orig" in state:
            continue
        elif (direction := _direction(name)) and direction in state:
            yield _normalized(name), _with_length(state[direction], value)
        elif any(_direction(other) == name for other in state):
            continue
        else:
            yield name, value


def _direction(length: str) -> str | None:
    """The name of v, given that of g, where weight = g · v/‖v‖; in the new and in the old style."""
    if re.search(r"parametrizations\.\w+\.original0$", length):
        return f"{length[:-1]}1"
    return f"{length[:-2]}_v" if length.endswith("_g") else None


def _normalized(length: str) -> str:
    return re.sub(r"parametrizations\.(\w+)\.original0$", r"\1", length).removesuffix("_g")


def _with_length(direction: Tensor, length: Tensor) -> Tensor:
    """Weight g · v/‖v‖, the norm over those dimensions in which g is one number."""
    over = [index for index in range(direction.ndim) if length.ndim == 0 or length.shape[index] == 1]
    return direction * (length / torch.linalg.vector_norm(direction, dim=over, keepdim=True))


def _renamed(state: Mapping[str, Tensor], own: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The file's tensors by the model's own names, where both differ by wrappers and a common prefix alone."""
    plain = plain_weights(state)
    foreign = set(bystanders(plain)) - own.keys()
    if foreign:
        print(f"{path}: left out {_listed(sorted(foreign))}, which belong to a loss or a metric, not to the network")
    kept = {name: value for name, value in plain.items() if name not in foreign}
    bare = plain_weights(own)
    if len(bare) < len(own):
        return kept  # a model that is itself pruned or normalized computes its weights from other tensors
    ours = dict(zip(_without_common_prefix(bare), own, strict=True))
    theirs = dict(zip(_without_common_prefix(kept), kept.values(), strict=True))
    return {ours[name]: value for name, value in theirs.items()} if theirs.keys() == ours.keys() else kept


def _without_common_prefix(names: Iterable[str]) -> list[str]:
    parts = [name.split(".") for name in names]
    common = 0
    for level in zip(*(part[:-1] for part in parts), strict=False):
        if len(set(level)) > 1:
            break
        common += 1
    return [".".join(part[common:]) for part in parts]


def _check_fit(state: Mapping[str, Tensor], own: Mapping[str, Tensor], path: Path) -> None:
    where = f"weights: {path} does not fit this model"
    for name, value in own.items():
        if name in state and state[name].shape != value.shape:
            raise UserError(
                f"{where}: {name} is {tuple(state[name].shape)} in the file and {tuple(value.shape)} in the model"
            )
    missing, more = [name for name in own if name not in state], [name for name in state if name not in own]
    if missing or more:
        parts = [f"the file lacks {_listed(missing)}"] * bool(missing) + [
            f"the file has {_listed(more)}, which the model lacks"
        ] * bool(more)
        raise UserError(f"{where}: {'; '.join(parts)}")


def _keys(stored: Any, prefix: str = "") -> list[str]:
    """Names of what a file holds, two levels deep."""
    if not isinstance(stored, Mapping):
        return []
    found: list[str] = []
    for key, value in islice(stored.items(), 100):
        deeper = _keys(value, f"{prefix}{key}.") if prefix.count(".") < 1 else []
        found += deeper or [f"{prefix}{key} ({type(value).__name__})"]
    return found


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more}"
