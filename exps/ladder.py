"""Evaluate every bound of a trained network: a run's checkpoint, or any state dict of Linear layers.

python exps/ladder.py --weights model.safetensors -c cfgs/mnist_784.yaml [--key value ...]
"""

import os

# Threads that spin while they wait stall one another where cores are few or shared. Read once, when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from milkshake_mbp.framework.args import Script, parse_args
from milkshake_mbp.framework.cli import run_cli
from milkshake_mbp.framework.console import make_console
from milkshake_mbp.framework.settings import Optimization, Run, TrainerFlags, keys_of
from milkshake_mbp.reporting.ladder import ladder_table, next_step
from milkshake_mbp.runs.settings import Ladder, Pruning, Shown

_TRAINING = keys_of(Optimization, Run, TrainerFlags) - {"seed", "out_dir", "debug"}
SCRIPT = Script(
    usage="--weights FILE [-c FILE.yaml] [--key value ...]",
    notes="A state dict does not tell its activation nor how its inputs were scaled: ffn_activation, input_mean and "
    "input_std do. The other keys of the network are for a model of your own.",
    unused=frozenset(
        _TRAINING
        | {"batch_size", "num_workers", "data_augmentation"}
        | {"bounds_every_n_epochs", "experiment", "rerun"}
    ),
    why="it trains nothing",
    tolerant=True,
)


def main() -> None:
    """Bound one network and show the rows of its ladder that matter."""
    args = parse_args(None, Pruning, Ladder, Shown, script=SCRIPT)
    # What follows loads Lightning, which takes seconds; help and refusals come without.
    from milkshake_mbp.experiment.evaluate import evaluate

    console, everything = make_console(), vars(args).pop("all")
    files, result = evaluate(args, console)
    console.print(ladder_table(result, brief=not everything), soft_wrap=False)
    console.print(f"Results: {files.folder}")
    console.print(next_step(args), soft_wrap=False)


if __name__ == "__main__":
    run_cli(main)
