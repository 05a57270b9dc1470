"""Every bound of a network that is already trained: a checkpoint of ours, or any state dict of Linear layers.

python exps/ladder.py --weights model.safetensors -c cfgs/mnist_784.yaml [--key value ...]
"""

import os

# Threads that spin while they wait stall one another where cores are few or shared. Read once, when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from milkshake_mbp.experiment.evaluate import evaluate
from milkshake_mbp.experiment.ladder import ladder_table
from milkshake_mbp.experiment.run import make_console
from milkshake_mbp.experiment.settings import Ladder, Pruning
from milkshake_mbp.framework.args import parse_args
from milkshake_mbp.framework.cli import run_cli
from milkshake_mbp.theory.bounds import CONVENTIONS


def main() -> None:
    """Bound one network and show its whole ladder."""
    console = make_console()
    files, result = evaluate(parse_args(None, Pruning, Ladder), console)
    console.print(ladder_table(result, CONVENTIONS), soft_wrap=False)
    console.print(f"Tables, figures and numbers: {files.folder}")


if __name__ == "__main__":
    run_cli(main)
