"""Prune a network by magnitude, and find out what can honestly be said about its generalization."""

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

__all__ = ["BoundsCallback", "CertificateCallback", "PruneCallback", "RewindCallback", "SketchCallback"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Lazy, so that `milkshake_mbp.theory` can be imported without Lightning.
    if name in __all__:
        return getattr(import_module("milkshake_mbp.callbacks"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
