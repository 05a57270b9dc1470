"""What the ladder of a convolutional network costs, and a race against robust-generalization-measures.

    python benchmarks/networks.py [--peer DIR] [--handed DIR] [--width 200] [--samples 1000] [--skip-resnet]

Networks: torchvision's ResNet-18 at 3 × 32 × 32; with --handed, the Network-in-Network of nin_handed.npz; with --peer,
the peer's own Network-in-Network (2 blocks, usually 200 channels). --peer is a working tree of
https://github.com/nitarshan/robust-generalization-measures, whose `get_all_measures` is run with its two searches for σ
replaced by a constant: what is left is deterministic. Images are random, weights those of initialization with Gaussian
noise added, normalizations have statistics other than 0 and 1. Forward passes are counted apart.
"""

import argparse
import copy
import importlib
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from milkshake_mbp.reading import measure, read_network
from milkshake_mbp.reading.measure import Clock
from milkshake_mbp.theory.bounds import evaluate
from milkshake_mbp.theory.norms import operator_norm

SIGMA = 0.05  # in place of the peer's searches


class Block(nn.Module):
    """A 3 × 3 convolution of stride 2 and two of 1 × 1, each normalized."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 3, stride=2, padding=1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 1), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, width, 1), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, height, width)."""
        for conv, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            x = torch.relu(norm(conv(x)))
        return x


class NetworkInNetwork(nn.Module):
    """Two blocks, a 1 × 1 convolution to the classes, and the mean over places."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Block(3, width), Block(width, width))
        self.conv, self.bn = nn.Conv2d(width, 10, 1), nn.BatchNorm2d(10)

    def forward(self, x: Tensor) -> Tensor:
        """(n, classes)."""
        return torch.relu(self.bn(self.conv(self.blocks(x)))).mean(dim=(2, 3))


def trained(start: nn.Module, seed: int = 0) -> nn.Module:
    """The network with noise on its weights and statistics in its normalizations."""
    torch.manual_seed(seed)
    module = copy.deepcopy(start).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * parameter.std().nan_to_num(0) * torch.randn_like(parameter))
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
                part.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    return module


def images(module: nn.Module, count: int) -> tuple[Tensor, Tensor]:
    """Random images, nine tenths with the class that the network gives them."""
    x = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = torch.cat([module(part).argmax(dim=1) for part in x.split(250)])
    y[: count // 10] = (y[: count // 10] + 1) % 10
    return x, y


def timed(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """What it returns, CPU seconds and seconds on the wall."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = work()
    return result, time.process_time() - cpu, time.perf_counter() - wall


@contextmanager
def forward_passes(module: nn.Module) -> Iterator[list[float]]:
    """CPU seconds of each forward pass of the module, or of a copy of it, inside."""
    started: list[float] = []
    seconds: list[float] = []

    def stop(*_: Any) -> None:
        seconds.append(time.process_time() - started.pop())

    hooks = [
        module.register_forward_pre_hook(lambda *_: started.append(time.process_time())),
        module.register_forward_hook(stop),
    ]
    try:
        yield seconds
    finally:
        for hook in hooks:
            hook.remove()


def ladder(
    table: Table, name: str, module: nn.Module, start: nn.Module, data: tuple[Tensor, Tensor]
) -> tuple[float, float]:
    """Add a line of what a ladder costs to the table; CPU seconds of all of it, and of its forward passes."""
    clock = Clock()
    with forward_passes(module) as passes:
        measured, cpu, wall = timed(
            lambda: measure(module, data, initial=start.state_dict(), stability=False, clock=clock)
        )
    bounds, rows_cpu, _ = timed(lambda: evaluate(measured))
    widths = [high / low - 1 for low, high in map(operator_norm, read_network(module, data[0][:8]).layers) if low]
    counts = Counter(bound.convention for bound in bounds)
    table.add_row(
        name,
        f"{cpu + rows_cpu:.2f}",
        f"{wall:.2f}",
        f"{clock.seconds['forward']:.2f}",
        f"{clock.seconds['bounds']:.2f}",
        f"{rows_cpu:.3f}",
        f"{len(bounds)} ({', '.join(f'{count} {convention}' for convention, count in counts.items())})",
        f"{max(widths):.2%}",
    )
    return cpu + rows_cpu, sum(passes)


def race(console: Console, table: Table, peer: Path, width: int, count: int) -> None:
    """The peer's deterministic measures of its usual network beside our ladder of it."""
    sys.path.insert(0, str(peer / "data"))
    theirs: Any = importlib.import_module("generation.measures")
    config: Any = importlib.import_module("generation.experiment_config")
    models = importlib.import_module("generation.models")
    theirs._pacbayes_sigma = lambda *_: SIGMA
    torch.manual_seed(0)
    start = models.NiN(2, 1, width, config.DatasetType.CIFAR10).eval()
    module = trained(start)
    data = images(module, count)
    loader = DataLoader(TensorDataset(*data), batch_size=250)
    ours, forward = ladder(table, f"peer's NiN, 2 × {width}", module, start, data)
    with forward_passes(module) as passes:
        values, cpu, wall = timed(lambda: theirs.get_all_measures(module, start, loader, 0.9, 0))
    console.print(
        f"\nrobust-generalization-measures: {len(values)} measures in {cpu:.2f} s of CPU time ({wall:.2f} s on the "
        f"wall), {sum(passes):.2f} s in forward passes; {cpu / ours:.1f} times ours with passes over {count:,} images, "
        f"{(cpu - sum(passes)) / (ours - forward):.1f} times without, in this run"
    )
    measured = {
        bound.name: bound.log_value
        for bound in evaluate(measure(module, data, initial=start.state_dict(), stability=False), "measure")
    }
    for mine, name in (("prod_of_spec", "LOG_PROD_OF_SPEC"), ("prod_of_spec_fft", "LOG_PROD_OF_SPEC_FFT")):
        value = 2 * float(values[config.ComplexityType[name]]) + math.log(count)
        console.print(f"{name}: theirs {value:.5f}, ours {measured[mine]:.5f}")


def handed(table: Table, folder: Path) -> None:
    """The ladder of the Network-in-Network of nin_handed.npz."""
    data = np.load(folder / "nin_handed.npz")
    groups = [
        {name.removeprefix(group): torch.tensor(data[name]) for name in data if name.startswith(group)}
        for group in ("w/", "init/")
    ]
    networks = []
    for state in groups:
        networks.append(NetworkInNetwork(12).eval())
        networks[-1].load_state_dict(state, strict=False)
    x = torch.tensor(data["X"]).float() / 255 * 2 - 1
    ladder(table, "nin_handed", networks[0], networks[1], (x, torch.tensor(data["Y"]).long()))


def benchmark() -> None:
    """Time the ladders and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, help="working tree of robust-generalization-measures")
    parser.add_argument("--handed", type=Path, help="folder of nin_handed.npz")
    parser.add_argument("--width", type=int, default=200, help="channels of the peer's network")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--skip-resnet", action="store_true")
    options = parser.parse_args()
    console = Console()
    table = Table(title=f"Ladders, {torch.get_num_threads()} threads", title_justify="left")
    for column in ("network", "CPU s", "wall s", "forward s", "norms s", "rows s", "rows", "widest interval"):
        table.add_column(column, justify="left" if column in ("network", "rows") else "right")
    if options.handed:
        handed(table, options.handed)
    if options.peer:
        race(console, table, options.peer, options.width, options.samples)
    if not options.skip_resnet:
        torch.manual_seed(0)
        start = torchvision.models.resnet18(num_classes=10).eval()
        module = trained(start)
        ladder(table, "ResNet-18, 3 × 32 × 32", module, start, images(module, min(options.samples, 250)))
    console.print(table)


if __name__ == "__main__":
    benchmark()
