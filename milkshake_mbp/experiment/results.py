"""The earlier place of `runs.files`, `runs.names` and `runs.summary`, for scripts that import from here."""

from milkshake_mbp.runs.files import RunFiles, read_json, write_tensors
from milkshake_mbp.runs.names import run_name
from milkshake_mbp.runs.summary import ladder_numbers, summarize

__all__ = ["RunFiles", "ladder_numbers", "read_json", "run_name", "summarize", "write_tensors"]
