"""How far pruning moves the outputs of a run's network, beside what the composition rules allow.

    python benchmarks/perturbation.py RUN [--data_dir data] [--strengths 0 0.01 0.1 1 10] [--samples 1000]

RUN is the folder of a finished run, of any model that is read as a graph. Prints a Markdown table.
"""

import argparse
import math
from argparse import Namespace
from pathlib import Path

import torch
import yaml
from torch import nn

from milkshake_mbp.callbacks.data import test_samples, train_samples
from milkshake_mbp.framework.checkpoints import load_weights
from milkshake_mbp.framework.datamodules import load_datamodule
from milkshake_mbp.framework.main import model_keys
from milkshake_mbp.framework.models import load_model
from milkshake_mbp.reading import Samples, measure, measure_outputs
from milkshake_mbp.reading.measure import read_samples
from milkshake_mbp.runs.files import RunFiles
from milkshake_mbp.theory.measured import PrunedLayer
from milkshake_mbp.theory.pruning import MaskDraw


def stored_network(run: Path, data_dir: str) -> tuple[nn.Module, Samples, Samples | None]:
    """A run's network, its training and its test samples."""
    files = RunFiles(run)
    args = Namespace(**{**yaml.safe_load(files.config.read_text(encoding="utf-8")), "data_dir": data_dir})
    datamodule = load_datamodule(args.datamodule)(args)
    datamodule.setup("fit")
    datamodule.setup("test")
    model = load_model(args.model)(model_keys(args, datamodule))
    model.fit_to(datamodule.dataset_train[0][0])
    load_weights(model, files.model)
    return model.eval(), train_samples(datamodule), test_samples(datamodule, model)


@torch.no_grad()
def benchmark() -> None:
    """Print a line for each strength."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--strengths", type=float, nargs="+", default=[0, 0.01, 0.1, 1, 10])
    parser.add_argument("--samples", type=int, default=1000)
    options = parser.parse_args()
    model, train, test = stored_network(options.run, options.data_dir)
    few = train.some(options.samples, 0)
    inputs, targets = few.first(options.samples)
    reading, before = read_samples(model, few), model(inputs)
    weights = reading.matrices(model)
    print(f"{len(inputs):,} training samples; outputs have a median norm of {float(before.norm(dim=1).median()):.3g}")
    print("\n| d | kept | test error | bound M | largest seen | median seen |\n|---|---|---|---|---|---|")
    for d in options.strengths:
        masks = list(MaskDraw(weights, 0).masks([d] * len(weights), keep_diagonal=True))
        rounded = [PrunedLayer.compress(weight, mask)[1] for weight, mask in zip(weights, masks, strict=True)]
        state = reading.replaced(model, rounded)
        moved = (torch.func.functional_call(model, state, (inputs,)) - before).norm(dim=1)
        bound = measure(model, (inputs, targets), prune_d=d, stability=False).log_moved
        kept = sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)
        error = measure_outputs(model, test or few, state, norms=()).error
        print(
            f"| {d:g} | {kept:.1%} | {error:.1%} | {math.exp(bound or -math.inf):,.3g} "
            f"| {float(moved.max()):.3g} | {float(moved.median()):.3g} |"
        )


if __name__ == "__main__":
    benchmark()
