"""report.html: one self-contained page for a run or a sweep."""

from milkshake_mbp.reporting.report.page import write_report

__all__ = ["write_report"]
