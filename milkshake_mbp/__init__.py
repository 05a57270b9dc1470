"""Prune networks by magnitude, and compute generalization bounds and certificates of the pruned networks."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from milkshake_mbp.callbacks import (
        BoundsCallback,
        CertificateCallback,
        PruneCallback,
        RewindCallback,
        SketchCallback,
    )
    from milkshake_mbp.reading import PruneRule

__all__ = [
    "BoundsCallback",
    "CertificateCallback",
    "PruneCallback",
    "PruneRule",
    "RewindCallback",
    "SketchCallback",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Lazy, so that `milkshake_mbp.theory` can be imported without Lightning.
    if name == "PruneRule":
        return import_module("milkshake_mbp.reading").PruneRule
    if name in __all__:
        return getattr(import_module("milkshake_mbp.callbacks"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
