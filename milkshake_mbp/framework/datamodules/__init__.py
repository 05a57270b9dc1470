"""Datasets held in memory behind Milkshake's datamodule interface, each imported only when it is chosen."""

from typing import TYPE_CHECKING, Any

from milkshake_mbp.framework.registry import import_path, load_class

if TYPE_CHECKING:
    from milkshake_mbp.framework.datamodules.datamodule import DataModule

DATAMODULES: dict[str, str] = {
    "arrays": "milkshake_mbp.framework.datamodules.arrays:Arrays",
    "binary_mnist": "milkshake_mbp.framework.datamodules.binary_mnist:BinaryMNIST",
    "cifar10": "milkshake_mbp.framework.datamodules.cifar10:CIFAR10",
    "cifar100": "milkshake_mbp.framework.datamodules.cifar100:CIFAR100",
    "digits": "milkshake_mbp.framework.datamodules.digits:Digits",
    "fashion_mnist": "milkshake_mbp.framework.datamodules.mnist:FashionMNIST",
    "mnist": "milkshake_mbp.framework.datamodules.mnist:MNIST",
    "svhn": "milkshake_mbp.framework.datamodules.svhn:SVHN",
}

_EXPORTS = {path.rpartition(":")[2]: path for path in DATAMODULES.values()} | {
    "Dataset": "milkshake_mbp.framework.datamodules.dataset:Dataset",
    "DataModule": "milkshake_mbp.framework.datamodules.datamodule:DataModule",
    "EpochRandomSampler": "milkshake_mbp.framework.datamodules.sampler:EpochRandomSampler",
    "ImageDataset": "milkshake_mbp.framework.datamodules.dataset:ImageDataset",
    "Subset": "milkshake_mbp.framework.datamodules.dataset:Subset",
}


def load_datamodule(name: str) -> "type[DataModule]":
    """The datamodule class that a config names.

    Args:
        name: a key of `DATAMODULES`, or a class of the user's own, as "package.module:Class" or
            "package.module.Class".

    Raises:
        UserError: the name is unknown, cannot be imported, or is not a `DataModule`.
    """
    from milkshake_mbp.framework.datamodules.datamodule import DataModule

    return load_class("datamodule", name, DATAMODULES, DataModule)


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return import_path(_EXPORTS[name])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
