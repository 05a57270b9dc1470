"""The paper's Tables 1 and 2 from runs."""

from milkshake_mbp.reporting.tables.comparison import DATASETS, PRINTED, Comparison, compare, remaining
from milkshake_mbp.reporting.tables.export import export_table, number
from milkshake_mbp.reporting.tables.notes import notes
from milkshake_mbp.reporting.tables.runs import PaperRun, find_runs

__all__ = [
    "DATASETS",
    "PRINTED",
    "Comparison",
    "PaperRun",
    "compare",
    "export_table",
    "find_runs",
    "notes",
    "number",
    "remaining",
]
