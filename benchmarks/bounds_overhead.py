"""What a bounds step costs beside an epoch of training, and beside the search as the paper describes it.

    python benchmarks/bounds_overhead.py --data_dir data --width 784

Trains the paper's network for two epochs on MNIST, then times, on the same weights: an epoch, the forward passes that
measure margins and errors, the bounds step (spectral norms, the search for d, every row), Algorithm 1 on all layers,
and a training step. The network is too young for a positive margin, so the margins are shifted to make the smallest
one 1 and the search does its work. The peer bisects d on [0, 10] to 1e-3 with a fresh mask and full SVDs at every step.
"""

import argparse
import math
import tempfile
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from milkshake_mbp.callbacks.data import test_samples, train_samples
from milkshake_mbp.framework.args import parse_args
from milkshake_mbp.framework.datamodules.mnist import MNIST
from milkshake_mbp.framework.main import main as milkshake_main
from milkshake_mbp.framework.models import FFN, Model
from milkshake_mbp.reading import measure_outputs, registered_kernels
from milkshake_mbp.theory.bounds import LayerNorms, bound_table, search_paper_strength
from milkshake_mbp.theory.perturbation import safe_log
from milkshake_mbp.theory.pruning import MaskDraw, sample_mask


def bounds_step(weights: list[Tensor], margins: Tensor, input_norm: float) -> None:
    """What BoundsCallback does between its forward passes."""
    norms = LayerNorms.measure(weights)
    draw = MaskDraw(weights)
    count = len(margins)
    search = search_paper_strength(weights, norms, float(margins.amin()), count, safe_log(input_norm), draw=draw)
    common = {"margins": margins, "num_samples": count, "input_norm": input_norm, "norms": norms, "draw": draw}
    bound_table(weights, convention="paper", search=search, **common)  # type: ignore[arg-type]
    bound_table(weights, convention="leading", **common)  # type: ignore[arg-type]
    draw.masks(search.d, keep_diagonal=False)


def paper_search(weights: list[Tensor], margin: float, input_norm: float) -> float:
    """Bisection to 1e-3 with a fresh mask and full SVDs at every step, as the paper describes its search."""
    low, high = 0.0, 10.0
    while high - low > 1e-3:
        d = (low + high) / 2
        norms = [torch.linalg.matrix_norm(weight, 2) for weight in weights]
        pruned = [weight * sample_mask(weight, d, keep_diagonal=False) for weight in weights]
        ratios = [
            torch.linalg.matrix_norm(weight - hat, 2) / norm
            for weight, hat, norm in zip(weights, pruned, norms, strict=True)
        ]
        needed = math.e * input_norm * float(torch.stack(norms).prod() * torch.stack(ratios).sum())
        low, high = (d, high) if needed <= margin else (low, d)
    return low


def training_step(model: Model, batch: tuple[Tensor, Tensor], optimizer: torch.optim.Optimizer) -> None:
    """One step of SGD."""
    loss = F.cross_entropy(model(batch[0]), batch[1])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def timed(work: Callable[[], object], repeats: int) -> float:
    """Median seconds, after one call to warm up."""
    seconds = []
    for _ in range(repeats + 1):
        _synchronize()
        started = time.perf_counter()
        work()
        _synchronize()
        seconds.append(time.perf_counter() - started)
    return sorted(seconds[1:])[repeats // 2]


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def benchmark() -> None:
    """Time the parts and print them as shares of an epoch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--width", type=int, default=784)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as out:
        args = parse_args(
            f"--datamodule mnist --data_dir {options.data_dir} --out_dir {out} --ffn_hidden_dim {options.width} "
            "--ffn_num_layers 5 --bias false --val_split 0 --max_epochs 2 --enable_progress_bar false".split()
        )
        datamodule = MNIST(args)
        model, _, _ = milkshake_main(args, FFN, datamodule, verbose=False)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    weights = [kernel.matrix(model) for kernel in registered_kernels(model)]
    train, test = train_samples(datamodule), test_samples(datamodule, model)
    assert test is not None
    outputs = measure_outputs(model, train)
    margins = outputs.margins - outputs.margins.amin() + 1.0
    batch = next(iter(datamodule.train_dataloader()))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    bounds = timed(lambda: bounds_step(weights, margins, outputs.input_norm), options.repeats)
    rows = {
        "forward passes: margins twice on train, two errors on test": timed(
            lambda: [
                measure_outputs(model, train),
                *(measure_outputs(model, samples, norms=()) for samples in (train, test, test)),
            ],
            3,
        ),
        "bounds step, search included": bounds,
        "  of which spectral and other norms": timed(lambda: LayerNorms.measure(weights), options.repeats),
        "Algorithm 1 on all layers": timed(lambda: MaskDraw(weights).masks(1.0), options.repeats),
        "training step": timed(lambda: training_step(model, batch, optimizer), 50),
        "the paper's search alone": timed(lambda: paper_search(weights, 1.0, outputs.input_norm), 1),
    }

    def epoch() -> None:
        for batch in datamodule.train_dataloader():
            training_step(model, batch, optimizer)

    rows = {"epoch of training": (whole := timed(epoch, 3)), **rows}
    table = Table(title=f"Width {options.width}, n = {len(margins):,}, {torch.get_num_threads()} threads, {device}")
    table.add_column("part")
    for column in ("seconds", "share of epoch", "× bounds step"):
        table.add_column(column, justify="right")
    for name, seconds in rows.items():
        table.add_row(name, f"{seconds:.4f}", f"{seconds / whole:.1%}", f"{seconds / bounds:.2f}")
    Console().print(table)


if __name__ == "__main__":
    benchmark()
