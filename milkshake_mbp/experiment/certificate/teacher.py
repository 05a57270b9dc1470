"""A trained network that a certified one learns from: free in the theorem, which holds however a network was found."""

import re
from argparse import Namespace
from copy import copy
from pathlib import Path

import torch
import yaml
from torch import Tensor, nn

from milkshake_mbp.errors import UserError
from milkshake_mbp.framework.checkpoints import load_weights, read_weights
from milkshake_mbp.framework.datamodules import DataModule, load_datamodule
from milkshake_mbp.framework.main import model_keys
from milkshake_mbp.framework.models import load_model
from milkshake_mbp.framework.registry import import_path
from milkshake_mbp.runs.weights import chain_from_state

__all__ = ["load_teacher", "taught"]

_BATCH = 1024


def load_teacher(name: str, args: Namespace, datamodule: DataModule) -> nn.Module:
    """The trained network that the key `teacher` names, in eval mode.

    Args:
        name: a TorchScript file; a run's weights, with its config.yaml beside them; a state dict of Linear layers with
            ReLUs between them; or "package.module:Class", a module or something that makes one when called.
        args: the configuration.
        datamodule: of the samples, set up, with inputs as trained networks get them.

    Raises:
        UserError: there is no such thing, or it is not told what network the file's weights are of.
    """
    path = Path(name).expanduser()
    if not path.is_file():
        if re.fullmatch(r"[\w.]+:[\w.]+", name):
            return _imported(name)
        raise UserError(f"teacher: {name} is neither a file nor package.module:Class")
    script = _scripted(path)
    if script is not None:
        return script
    config = path.parent / "config.yaml"
    if config.is_file():
        keys = copy(args)
        try:
            vars(keys).update(yaml.safe_load(config.read_text(encoding="utf-8")))
        except (yaml.YAMLError, TypeError, ValueError, UnicodeDecodeError) as error:
            raise UserError(f"teacher: {config} is not a configuration: {' '.join(str(error).split())}") from error
        keys.input_channels = keys.image_size = None
        model = load_model(keys.model)(model_keys(keys, datamodule))
        model.fit_to(datamodule.dataset_train[0][0])
        load_weights(model, path)
        return model.eval()
    try:
        return chain_from_state(read_weights(path, "teacher"))[0].eval()
    except UserError as error:
        raise UserError(
            f"teacher: {path} does not tell its network: give TorchScript (torch.jit.trace(model, inputs).save), "
            f"a run's weights with its config.yaml beside them, or package.module:Class ({error})"
        ) from error


def _imported(name: str) -> nn.Module:
    try:
        found = import_path(name)
        made = found if isinstance(found, nn.Module) else found()
    except (AttributeError, ImportError, TypeError, ValueError) as error:
        raise UserError(f"teacher: {name} cannot be made without arguments: {' '.join(str(error).split())}") from error
    if not isinstance(made, nn.Module):
        raise UserError(f"teacher: {name} gives {type(made).__name__}, expected a torch.nn.Module that is trained")
    return made.eval()


def _scripted(path: Path) -> nn.Module | None:
    try:
        return torch.jit.load(path, map_location="cpu").eval()
    except RuntimeError:
        return None


@torch.no_grad()
def taught(name: str, args: Namespace) -> tuple[Tensor, float]:
    """What a teacher thinks of the training samples.

    Args:
        name: as `load_teacher` takes it.
        args: the configuration, which names the data.

    Returns:
        (n, k) probabilities, in the order of the samples, and the share of these that it misclassifies.

    Raises:
        UserError: as `load_teacher`; or it does not take the samples, or gives no number for each class.
    """
    datamodule = load_datamodule(args.datamodule)(args)
    datamodule.prepare_data()
    datamodule.setup("fit")
    samples = datamodule.dataset_train
    teacher, classes = load_teacher(name, args, datamodule), datamodule.num_classes
    found = []
    for indices in torch.arange(len(samples)).split(_BATCH):
        inputs = samples.__getitems__(indices.tolist())[0]
        try:
            logits = teacher(inputs)
        except (RuntimeError, TypeError, ValueError, AssertionError) as error:
            raise UserError(
                f"teacher: {name} does not take samples of shape {tuple(inputs.shape[1:])}: "
                f"{' '.join(str(error).split())[-300:]}"
            ) from error
        if not isinstance(logits, Tensor) or logits.shape != (len(inputs), classes) or not logits.isfinite().all():
            shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise UserError(
                f"teacher: {name} gives {shape} for {len(inputs)} samples, expected {classes} finite logits for each"
            )
        found.append(logits.float().softmax(dim=1))
    probabilities = torch.cat(found)
    return probabilities, float((probabilities.argmax(dim=1) != samples.targets).double().mean())
