"""Does sketching beat naive counting on a real network? Its layers as sketches, by strength, and a lottery ticket's.

    python benchmarks/sketch_layers.py --weights out/<run>/model.safetensors --data_dir data --rounds 6

Prints, per layer: how its nonzeros lie, Theorem 5.1's m, the smallest sketch that provably gives the layer back, and
bits as a sketch, by places and values, and dense. The ticket is the same architecture trained from initial.safetensors
beside the weights, its smallest weights removed over several rounds, each rewound to the start (Frankle and Carbin
2019).
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from milkshake_mbp.framework.args import parse_args
from milkshake_mbp.framework.checkpoints import read_weights
from milkshake_mbp.framework.datamodules.mnist import MNIST
from milkshake_mbp.reading import registered_kernels
from milkshake_mbp.runs.weights import chain_from_state
from milkshake_mbp.theory.layer_sketch import sketch_layer
from milkshake_mbp.theory.perturbation import default_step
from milkshake_mbp.theory.pruning import MaskDraw


def show(title: str, weights: Sequence[Tensor], steps: Sequence[float], console: Console) -> None:
    """Sketch every layer and print what came of it."""
    table = Table(title=title, title_justify="left")
    for name in ("layer", "nonzeros", "j_r", "j_c", "3χp", "theorem m", "sketch", "apart", "sketch bits"):
        table.add_column(name, justify="right")
    for name in ("naive bits", "× naive", "dense bits", "seconds"):
        table.add_column(name, justify="right")
    for index, (weight, step) in enumerate(zip(weights, steps, strict=True)):
        started = time.perf_counter()
        layer = sketch_layer(weight, step, layer=index)
        seconds = time.perf_counter() - started
        table.add_row(
            str(index),
            f"{layer.nonzeros:,}",
            str(layer.column_max),
            str(layer.row_max),
            f"{layer.predicted_spread:.0f}",
            str(layer.theorem_dim),
            "none" if layer.sketch_shape is None else f"{layer.sketch_shape[0]} × {layer.sketch_shape[1]}",
            f"{len(layer.rows_apart)} + {len(layer.columns_apart)}",
            f"{layer.sketch_bits:,.0f}",
            f"{layer.naive_bits:,.0f}",
            f"{layer.sketch_bits / layer.naive_bits:.1f}",
            f"{layer.dense_bits:,.0f}",
            f"{seconds:.1f}",
        )
    console.print(table)


def find_ticket(
    initial: dict[str, Tensor], data_dir: str, rounds: int, epochs: int, console: Console
) -> tuple[list[Tensor], float]:
    """The ticket's (out, in) weights, half of what was left removed in each round, and its test error."""
    args = parse_args(f"--datamodule mnist --data_dir {data_dir} --val_split 0 --num_workers 0".split())
    data = MNIST(args)
    data.setup("fit")
    data.setup("test")
    torch.manual_seed(0)
    module, _ = chain_from_state({name: weight.clone() for name, weight in initial.items()})
    parameters = [parameter.requires_grad_() for parameter in module.parameters()]
    start = [parameter.detach().clone() for parameter in parameters]
    masks = [torch.ones_like(parameter) for parameter in parameters]
    for turn in range(rounds + 1):
        for parameter, first, mask in zip(parameters, start, masks, strict=True):
            parameter.data.copy_(first * mask)
        optimizer = torch.optim.SGD(parameters, lr=0.02, momentum=0.9)
        for _ in range(epochs):
            for inputs, targets in data.train_dataloader():
                optimizer.zero_grad()
                F.cross_entropy(module(inputs), targets).backward()
                for parameter, mask in zip(parameters, masks, strict=True):
                    assert parameter.grad is not None
                    parameter.grad.mul_(mask)
                optimizer.step()
        with torch.no_grad():
            batches = data.test_dataloader()
            right = sum(int((module(x).argmax(dim=1) == y).sum()) for x, y in batches)
        error = 1 - right / len(data.dataset_test)
        kept = sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)
        console.print(f"round {turn}: {kept:.2%} of the weights, test error {error:.2%}")
        if turn < rounds:
            alive = torch.cat([p.detach().abs()[m.bool()] for p, m in zip(parameters, masks, strict=True)])
            threshold = float(alive.median())
            masks = [m * (p.detach().abs() > threshold) for p, m in zip(parameters, masks, strict=True)]
    return [parameter.detach() for parameter in parameters], error


def benchmark() -> None:
    """Print a table for each strength, and one for the ticket."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--strengths", type=float, nargs="*", default=[1.0, 20.0, 50.0, 100.0, 200.0])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--epochs", type=int, default=3, help="of each round")
    parser.add_argument("--data_dir", default="data")
    options = parser.parse_args()
    console = Console(width=150)
    module, _ = chain_from_state(read_weights(options.weights))
    weights = [kernel.matrix(module) for kernel in registered_kernels(module)]
    steps, draw = [default_step(weight) for weight in weights], MaskDraw(weights)
    for d in options.strengths:
        pruned = [weight * mask for weight, mask in zip(weights, draw.masks(d), strict=True)]
        show(f"Algorithm 1 at d = {d:g}", pruned, steps, console)
    if options.rounds:
        initial = read_weights(options.weights.parent / "initial.safetensors")
        ticket, error = find_ticket(initial, options.data_dir, options.rounds, options.epochs, console)
        show(f"Ticket, test error {error:.2%}", ticket, [default_step(weight) for weight in ticket], console)


if __name__ == "__main__":
    benchmark()
