"""Which samples a run was trained on, as one number."""

import hashlib
from typing import Any

from torch import Tensor

__all__ = ["samples_digest"]


def samples_digest(samples: Any) -> str | None:
    """SHA-256 of the `data` and `targets` of a dataset; None where they are not in memory."""
    data, targets = (getattr(samples, name, None) for name in ("data", "targets"))
    if not isinstance(data, Tensor) or not isinstance(targets, Tensor):
        return None
    digest = hashlib.sha256(f"{data.dtype} {tuple(data.shape)}".encode())
    for tensor in (data, targets):
        digest.update(tensor.cpu().contiguous().numpy().data)
    return digest.hexdigest()
