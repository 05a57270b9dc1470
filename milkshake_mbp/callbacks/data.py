"""The samples of a Trainer, a datamodule or a loader."""

from typing import Any

from pytorch_lightning import Trainer
from torch import nn
from torch.utils.data import DataLoader

from milkshake_mbp.errors import UserError
from milkshake_mbp.reading.samples import Samples, Unpack

__all__ = ["source_of", "test_samples", "train_samples"]


def source_of(trainer: Trainer) -> Any:
    """A Trainer's datamodule, or the training loaders that it was given; None if it has neither."""
    datamodule = getattr(trainer, "datamodule", None)
    return trainer.train_dataloader if datamodule is None else datamodule


def train_samples(data: Any, unpack: Unpack | None = None) -> Samples:
    """The training samples of a datamodule that is set up, of a DataLoader, a Dataset or a pair of tensors.

    For a datamodule, these are its `dataset_train` if it has one, which avoids augmentation, else the samples of its
    `train_dataloader()`.

    Args:
        data: any of these.
        unpack: function that extracts (inputs, targets) from a batch that is not a pair.

    Raises:
        UserError: there is no data, or it is of another type.
    """
    if data is None:
        raise UserError("the callbacks need the training data: pass a datamodule or a dataloader to the Trainer")
    if not hasattr(data, "train_dataloader"):
        return Samples.of(_one(data, "training"), unpack=unpack)
    loader, dataset = _one(data.train_dataloader(), "training"), getattr(data, "dataset_train", None)
    return Samples(
        loader.dataset if dataset is None else dataset,
        loader.collate_fn,
        unpack=unpack,
        grouped=bool(getattr(data, "num_groups", 0)),
        label_noise=float(getattr(data, "label_noise", 0) or 0),
    )


def test_samples(data: Any, module: nn.Module | None = None, unpack: Unpack | None = None) -> Samples | None:
    """The test samples of a datamodule, set up for testing if it is not yet.

    Args:
        data: a datamodule; other data have no test samples.
        module: the module whose configuration may set `no_test`.
        unpack: function that extracts (inputs, targets) from a batch that is not a pair.

    Returns:
        The samples of the first test loader; None if there are none, or if the configuration sets no_test.
    """
    hparams = getattr(module, "hparams", None)
    if data is None or _get(hparams, "no_test") or not _defines(data, "test_dataloader"):
        return None
    if getattr(data, "dataset_test", None) is None:
        data.setup("test")
    loader = _one(data.test_dataloader(), "test", first=True)
    if loader is None:
        return None
    dataset = getattr(data, "dataset_test", None)
    return Samples(
        loader.dataset if dataset is None else dataset,
        loader.collate_fn,
        unpack=unpack,
        grouped=bool(getattr(data, "num_groups", 0)),
    )


def _one(loaders: Any, kind: str, first: bool = False) -> Any:
    """The loader in what may be a collection of loaders.

    Raises:
        UserError: there are several, of which none is the one to read.
    """
    loaders = getattr(loaders, "loaders", loaders)  # Lightning 1.9's CombinedLoader
    if isinstance(loaders, dict):
        loaders = list(loaders.values())
    if not isinstance(loaders, (list, tuple)) or not all(isinstance(part, DataLoader) for part in loaders):
        return loaders
    if len(loaders) == 1 or (first and loaders):
        return loaders[0]
    if first:
        return None
    raise UserError(f"expected one {kind} DataLoader, got {len(loaders)}: the bounds are for one set of samples")


def _defines(data: Any, method: str) -> bool:
    """Whether a datamodule's class has a method of its own, rather than Lightning's, which raises."""
    function = getattr(type(data), method, None) or getattr(data, method, None)
    return callable(function) and not getattr(function, "__module__", "").startswith(
        ("pytorch_lightning", "lightning.")
    )


def _get(hparams: Any, key: str) -> Any:
    return hparams.get(key) if isinstance(hparams, dict) else getattr(hparams, key, None)
