"""Lottery tickets (paper §6): rounds of pruning and rewinding, their controls, and the untrained strong ticket.

python exps/lottery.py -c cfgs/lottery_mnist.yaml [--key value ...]

A rerun reads finished rounds and continues an interrupted one from its last checkpoint. More rounds, seeds or controls
can be added without repeating finished ones.
"""

import os

# Threads that spin while they wait stall one another where cores are few or shared. Read once, when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from milkshake_mbp.experiment.lottery.settings import Lottery, Strong
from milkshake_mbp.framework.args import Script, parse_args
from milkshake_mbp.framework.cli import run_cli
from milkshake_mbp.framework.console import make_console

SCRIPT = Script(
    unused=frozenset({"weights", "eval_only", "resume_training", "no_test"}),
    why="tickets start from new weights and are compared by their test error",
)


def main() -> None:
    """Train the rounds, look for the strong ticket, and draw both."""
    args = parse_args(None, Lottery, Strong, script=SCRIPT)
    # What follows loads Lightning, which takes seconds; help and refusals come without.
    from milkshake_mbp.experiment.lottery.figures import draw_rounds, draw_strong
    from milkshake_mbp.experiment.lottery.report import write_rounds_report, write_strong_report
    from milkshake_mbp.experiment.lottery.rounds import (
        export_rounds,
        lottery_folder,
        rounds_table,
        run_rounds,
        summarize_rounds,
    )
    from milkshake_mbp.experiment.lottery.strong import STRONG_NOTES, run_strong, strong_table

    console = make_console()
    if args.rounds:
        folder, results = lottery_folder(args), run_rounds(args, console)
        console.print(rounds_table(summarize_rounds(results), results), soft_wrap=False)
        export_rounds(results, folder)
        draw_rounds(results, folder)
        console.print(f"Report: {write_rounds_report(results, folder)}")
    if args.strong:
        folder, result = run_strong(args, console)
        console.print(strong_table(result), soft_wrap=False)
        console.print(STRONG_NOTES, soft_wrap=False)
        draw_strong(result, folder / "figures")
        console.print(f"Report: {write_strong_report(result, folder)}")


if __name__ == "__main__":
    run_cli(main)
