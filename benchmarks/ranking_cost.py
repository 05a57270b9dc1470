"""What the rows of the ladder cost beside the training of the networks that exps/rank.py ranks, in CPU time.

    python benchmarks/ranking_cost.py [-c cfgs/rank_digits.yaml] [--networks 6]

Trains some networks of the sweep, evenly spread over it, in this process.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from copy import copy
from typing import Any

import pytorch_lightning as pl
from rich.console import Console

from milkshake_mbp.callbacks import bounds
from milkshake_mbp.experiment.run import run
from milkshake_mbp.framework.args import parse_grid
from milkshake_mbp.runs.settings import Pruning, Sweep
from milkshake_mbp.sweep import plan_sweep


class Stopwatch:
    """CPU seconds spent in a function."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its time counted."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.process_time() - started

        return timed


def benchmark() -> None:
    """Train the networks and print both times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-c", default="cfgs/rank_digits.yaml")
    parser.add_argument("--networks", type=int, default=6)
    options = parser.parse_args()
    trials = plan_sweep(parse_grid(["-c", options.c], Pruning, Sweep)).trials
    fit, rows = Stopwatch(), Stopwatch()
    pl.Trainer.fit = fit.around(pl.Trainer.fit)  # type: ignore[method-assign]
    bounds.measure = rows.around(bounds.measure)
    bounds.evaluate = rows.around(bounds.evaluate)
    bounds.measure_stability = rows.around(bounds.measure_stability)
    with tempfile.TemporaryDirectory() as out:
        for trial in trials[:: max(1, len(trials) // options.networks)][: options.networks]:
            args = copy(trial.args)
            args.out_dir = out
            run(args, Console(quiet=True))
    training = fit.seconds - rows.seconds
    print(
        f"{options.networks} networks: training {training:.1f} s of CPU time; all rows {rows.seconds:.2f} s, "
        f"{rows.seconds / training:.1%} of it"
    )


if __name__ == "__main__":
    benchmark()
