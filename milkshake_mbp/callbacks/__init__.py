"""Thin Lightning callbacks: each reads a model and a datamodule, calls theory, and records.

They rely on nothing but Milkshake's public names, so they also run inside upstream Milkshake under Lightning 1.9.
"""

from milkshake_mbp.callbacks.bounds import BoundsCallback, BoundsReport
from milkshake_mbp.callbacks.certificate import Certificate, CertificateCallback
from milkshake_mbp.callbacks.prune import PruneCallback, PruneReport
from milkshake_mbp.callbacks.rewind import RewindCallback, TicketReport
from milkshake_mbp.callbacks.sketch import SketchCallback, SketchReport

__all__ = [
    "BoundsCallback",
    "BoundsReport",
    "Certificate",
    "CertificateCallback",
    "PruneCallback",
    "PruneReport",
    "RewindCallback",
    "SketchCallback",
    "SketchReport",
    "TicketReport",
]
