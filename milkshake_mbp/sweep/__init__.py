"""Many runs: the grid that lists of values span, what runs it, and the tables of what came of it."""

from milkshake_mbp.sweep.plan import Plan, plan_sweep
from milkshake_mbp.sweep.record import summary_table
from milkshake_mbp.sweep.runner import run_sweep

__all__ = ["Plan", "plan_sweep", "run_sweep", "summary_table"]
