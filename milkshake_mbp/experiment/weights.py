"""The earlier place of `runs.weights`, for scripts that import from here."""

from milkshake_mbp.runs.weights import chain_from_state

__all__ = ["chain_from_state"]
