"""What a whole ladder costs, part by part, beside full SVDs of the same layers.

    python benchmarks/ladder.py --width 784 [--weights model.safetensors]

Five layers, 784 → w → w → w → w → 10, Gaussian unless weights are given, and n = 60,000 positive margins, the smallest
of them such that the search for d ends near --strength, by default where it ends on MNIST. Forward passes are not part
of it. The peer is torch.linalg.svdvals on the same weights, in float64, which is what the spectral norms of the weights
would cost without Lanczos and its certificate.
"""

import argparse
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.benchmark import Timer

from milkshake_mbp.framework.checkpoints import read_weights
from milkshake_mbp.theory.bounds import CONVENTIONS, bound_table, prune_layers, search_paper_strength
from milkshake_mbp.theory.cushions import Cushions
from milkshake_mbp.theory.flatness import Flatness
from milkshake_mbp.theory.measured import InitialDistances, LayerNorms
from milkshake_mbp.theory.norms import spectral_norm
from milkshake_mbp.theory.pruning import MaskDraw

SAMPLES = 60_000
LOG_INPUT_NORM = 3.2


def gaussian(width: int, seed: int, device: str) -> list[Tensor]:
    """Weights of PyTorch's default scale."""
    generator = torch.Generator().manual_seed(seed)
    widths = [784, *[width] * 4, 10]
    return [
        (torch.randn(rows, columns, generator=generator) / (3 * columns) ** 0.5).to(device)
        for columns, rows in pairwise(widths)
    ]


def whole_ladder(weights: Sequence[Tensor], initial: Sequence[Tensor], margins: Tensor) -> int:
    """Everything that BoundsCallback does between its forward passes; the number of rows."""
    norms = LayerNorms.measure(weights)
    draw = MaskDraw(weights)
    search = search_paper_strength(weights, norms, float(margins.amin()), SAMPLES, LOG_INPUT_NORM, draw=draw)
    shared: dict[str, Any] = {
        "margins": margins,
        "num_samples": SAMPLES,
        "input_norm": 25.0,
        "norms": norms,
        "d": 1.0,
        "pruned": prune_layers(weights, 1.0, draw=draw),
        "initial": InitialDistances.measure(weights, initial),
        "compressed_margins": margins,
        "cushions": Cushions((0.1,) * 5, (0.1,) * 5, 2.0, 3.0, 60.0, 256),
        "flatness": Flatness(0.02, 0.1, 0.0, 0.1, 10, 2000),
    }
    return sum(len(bound_table(weights, convention=convention, search=search, **shared)) for convention in CONVENTIONS)


def benchmark() -> None:
    """Time the parts and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=784)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--strength", type=float, default=4e-5)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    weights = gaussian(options.width, 0, options.device)
    if options.weights:
        state = read_weights(options.weights)
        names = sorted(state, key=lambda name: [int(part) for part in name.split(".") if part.isdigit()])
        weights = [state[name].to(options.device) for name in names if name.endswith("weight")]
    initial = gaussian(weights[0].shape[0], 1, options.device)
    norms, draw = LayerNorms.measure(weights), MaskDraw(weights)
    at = search_paper_strength(weights, norms, 0.0, SAMPLES, LOG_INPUT_NORM, draw=draw, d=options.strength)
    smallest = math.exp(at.log_needed)
    margins = torch.rand(SAMPLES, generator=torch.Generator().manual_seed(2)).double() * 20 * smallest + smallest
    rows = whole_ladder(weights, initial, margins)
    parts = {
        f"whole ladder, {rows} rows": lambda: whole_ladder(weights, initial, margins),
        "  norms of the weights, certified": lambda: LayerNorms.measure(weights),
        "    of which spectral": lambda: [spectral_norm(weight) for weight in weights],
        "  masks": lambda: MaskDraw(weights),
        "  search for d": lambda: search_paper_strength(weights, norms, smallest, SAMPLES, LOG_INPUT_NORM, draw=draw),
        "  pruned and rounded layers": lambda: prune_layers(weights, 1.0, draw=draw),
        "  distances from the initial weights": lambda: InitialDistances.measure(weights, initial),
        "peer: svdvals of the weights": lambda: [torch.linalg.svdvals(weight.double()) for weight in weights],
    }
    threads = torch.get_num_threads()
    seconds = {
        name: Timer("work()", globals={"work": work}, num_threads=threads).timeit(options.repeats).mean
        for name, work in parts.items()
    }
    whole = next(iter(seconds.values()))
    table = Table(title=f"Width {weights[0].shape[0]}, {threads} threads, {options.device}", title_justify="left")
    for column in ("part", "seconds", "share"):
        table.add_column(column, justify="left" if column == "part" else "right")
    for name, value in seconds.items():
        table.add_row(name, f"{value:.4f}", f"{value / whole:.1%}")
    Console().print(table)


if __name__ == "__main__":
    benchmark()
