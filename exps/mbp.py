"""The main job: train a network, bound it every epoch, prune it by Algorithm 1, and test what is left.

python exps/mbp.py -c cfgs/mnist_784.yaml [--key value ...]
"""

import os

# Threads that spin while they wait stall one another where cores are few or shared. Read once, when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from milkshake_mbp.experiment.ladder import ladder_table
from milkshake_mbp.experiment.run import make_console, run
from milkshake_mbp.experiment.settings import Pruning
from milkshake_mbp.framework.args import parse_args
from milkshake_mbp.framework.cli import run_cli


def main() -> None:
    """Run one configuration and show its ladder."""
    console = make_console()
    files, result = run(parse_args(None, Pruning), console)
    console.print(ladder_table(result), soft_wrap=False)
    console.print(f"Results: {files.folder}")


if __name__ == "__main__":
    run_cli(main)
