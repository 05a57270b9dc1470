"""The main job: train a network, bound it every epoch, prune it by Algorithm 1, and test what is left.

python exps/mbp.py -c cfgs/mnist_784.yaml [--key value ...]

A list for a key that takes one value makes a grid, of which every combination is trained:

python exps/mbp.py -c cfgs/digits.yaml --seed 1 2 3 --ffn_hidden_dim 64 128 [--parallel 2]
"""

import os

# Threads that spin while they wait stall one another where cores are few or shared. Read once, when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from argparse import Namespace
from typing import TYPE_CHECKING

from milkshake_mbp.framework.args import parse_grid
from milkshake_mbp.framework.cli import run_cli
from milkshake_mbp.framework.console import make_console
from milkshake_mbp.reporting.ladder import ladder_table, next_step
from milkshake_mbp.runs.settings import Pruning, Shown, Sweep, prune_rule

if TYPE_CHECKING:
    from milkshake_mbp.experiment.train import Experiment

# What loads Lightning, which takes seconds, is imported where it is needed: help and refusals come without.


def experiment(args: Namespace) -> "Experiment":
    """A network and its data; its bounds in every epoch; Algorithm 1 when training ends; sketches of what is left."""
    from milkshake_mbp import BoundsCallback, PruneCallback, SketchCallback
    from milkshake_mbp.experiment.train import Experiment, initial_weights
    from milkshake_mbp.framework.datamodules import load_datamodule
    from milkshake_mbp.framework.models import load_model

    rule = prune_rule(args)
    return Experiment(
        model=load_model(args.model),
        data=load_datamodule(args.datamodule)(args),
        bounds=BoundsCallback(
            args.prune_d,
            args.prune_seed,
            args.bounds_every_n_epochs,
            args.failure,
            args.keep_diagonal,
            args.delta,
            initial_weights(args),
            rule=rule,
            magnitudes=args.magnitude_flatness,
        ),
        pruning=PruneCallback(args.prune_d, args.prune_seed, args.keep_diagonal, rule=rule),
        sketching=SketchCallback(),
    )


def main() -> int:
    """Run one configuration and show its ladder, or a grid of them and show their table; 1 if a trial failed."""
    grid = parse_grid(None, Pruning, Sweep, Shown)
    from milkshake_mbp.experiment.run import run
    from milkshake_mbp.sweep import plan_sweep, run_sweep, summary_table

    console, plan, everything = make_console(), plan_sweep(grid, experiment), grid.trials[0].all
    if plan.single:
        files, result = run(plan.trials[0].args, console, make=experiment)
        console.print(ladder_table(result, brief=not everything), soft_wrap=False)
        console.print(f"Results: {files.folder}")
        console.print(next_step(plan.trials[0].args), soft_wrap=False)
        return 0
    summary = run_sweep(plan, console)
    console.print(summary_table(summary), soft_wrap=False)
    console.print(f"Results: {plan.folder}")
    return int(any(trial["state"] == "failed" for trial in summary["trials"]))


if __name__ == "__main__":
    run_cli(main)
