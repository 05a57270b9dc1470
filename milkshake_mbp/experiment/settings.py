"""The earlier place of `runs.settings`, for scripts that import from here."""

from milkshake_mbp.runs.settings import Ladder, Pruning, Sweep

__all__ = ["Ladder", "Pruning", "Sweep"]
