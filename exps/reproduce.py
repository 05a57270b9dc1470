"""Reproduce the paper's tables and figures next to the paper's numbers, from new or finished trainings.

python exps/reproduce.py table1|table2|figure1|figure2|d_curves [--quick] [-c cfg.yaml] [--key value ...]
python exps/reproduce.py table1 --runs FOLDER ...

The second form trains nothing. In the first, --seed [1,2,3] trains several seeds, and --ffn_hidden_dim [500,784] only
these widths. The table or figure is written again after every run; a rerun continues with the missing runs.
"""

import os

# Threads that spin while they wait stall one another where cores are few or shared. Read once, when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from milkshake_mbp.errors import UserError
from milkshake_mbp.experiment import reproduce
from milkshake_mbp.experiment.reproduce import Part, Target, make_plan, read_target
from milkshake_mbp.experiment.run import run
from milkshake_mbp.framework.cli import run_cli
from milkshake_mbp.framework.console import make_console

CONFIGS = Path(__file__).resolve().parents[1] / "cfgs"
WIDTHS, QUICK_WIDTHS = (500, 784, 1000, 1500, 2000, 2500), (32, 64, 128)

MNIST = Part(CONFIGS / "mnist_784.yaml", "mnist")
MNIST_WIDTHS = Part(CONFIGS / "mnist_784.yaml", "mnist", WIDTHS)
CIFAR10 = Part(CONFIGS / "cifar10_784.yaml", "cifar10")
DIGITS = Part(CONFIGS / "digits.yaml", "digits")
DIGITS_WIDTHS = Part(CONFIGS / "digits.yaml", "digits", QUICK_WIDTHS)

TARGETS = {
    "table1": Target([MNIST_WIDTHS], [DIGITS_WIDTHS], reproduce.write_table1),
    "table2": Target([CIFAR10], [DIGITS], reproduce.write_table2),
    "figure1": Target([MNIST_WIDTHS, CIFAR10], [DIGITS_WIDTHS], reproduce.write_figure1),
    "figure2": Target([MNIST], [DIGITS], reproduce.write_figure2),
    "d_curves": Target([MNIST], [DIGITS], reproduce.write_d_curves, one=True),
}


def train(trials: Sequence[Namespace], console: Console) -> Iterator[Namespace]:
    """Run the configurations one after another, and yield each when it is done: the place for a runner of grids."""
    for count, args in enumerate(trials):
        try:
            run(args, console)
        except UserError as error:
            if not count:
                raise  # the recipe or the data are at fault, and the others would fail alike
            console.print(f"error: {error}")
        yield args


def main() -> int:
    """Write what there is, and again after each run; 1 if one is missing in the end."""
    console = make_console()
    name, flags = read_target(sys.argv[1:], TARGETS)
    plan = make_plan(name, TARGETS[name], flags)
    evidence = plan.evidence(console)
    files = TARGETS[name].write(evidence)
    try:
        for _ in train(plan.unfinished, console):
            evidence = plan.evidence(console)
            files = TARGETS[name].write(evidence)
    finally:
        for missing in evidence.missing:
            console.print(f"still to do: {missing}")
    for path in files:
        if path.suffix == ".md":
            console.print(path.read_text(encoding="utf-8"), end="", markup=False)
    console.print(f"Results: {plan.folder}" if files else "There is nothing to draw, because no run has finished")
    return 1 if evidence.missing and not plan.keys.runs else 0


if __name__ == "__main__":
    run_cli(main)
