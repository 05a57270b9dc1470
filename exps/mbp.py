"""The main job: train a network, bound it every epoch, prune it by Algorithm 1, and test what is left.

python exps/mbp.py -c cfgs/mnist_784.yaml [--key value ...]
"""

from rich.console import Console

from milkshake_mbp.experiment.ladder import ladder_table
from milkshake_mbp.experiment.run import run
from milkshake_mbp.experiment.settings import Pruning
from milkshake_mbp.framework.args import parse_args
from milkshake_mbp.framework.cli import run_cli


def main() -> None:
    """Run one configuration and show its ladder."""
    console = Console(highlight=False)
    files, result = run(parse_args(None, Pruning), console)
    console.print(ladder_table(result))
    console.print(f"Results: {files.folder}", soft_wrap=True)


if __name__ == "__main__":
    run_cli(main)
