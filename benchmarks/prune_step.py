"""One pruning step, a fifth of the weights, beside torch.nn.utils.prune and Lightning's ModelPruning.

    python benchmarks/prune_step.py --networks 300 784 2500 resnet18

Times the global and the layer-wise step on the same dense network, of three layers of a width or torchvision's
ResNet-18 for images of 32 × 32, in processor time, for shared machines, and says whether all keep the same weights, but
for ties. The peers keep a second copy of every weight and
multiply it by a float mask in every forward pass; RewindCallback multiplies the weights by a bool mask after every
step. So a training step is timed too.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.callbacks import ModelPruning
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune
from torchvision.models import resnet18

from milkshake_mbp.callbacks import RewindCallback
from milkshake_mbp.theory.lottery import magnitude_masks

RATE = 0.2


class Classifier(LightningModule):
    """784 inputs, two hidden layers of a width, 10 classes; or ResNet-18."""

    def __init__(self, network: str) -> None:
        super().__init__()
        if network == "resnet18":
            self.shape: tuple[int, ...] = (32, 3, 32, 32)
            self.model: nn.Module = resnet18(num_classes=10)
            return
        self.shape, width = (128, 784), int(network)
        self.model = nn.Sequential(
            nn.Linear(784, width, bias=False),
            nn.ReLU(),
            nn.Linear(width, width, bias=False),
            nn.ReLU(),
            nn.Linear(width, 10, bias=False),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Samples to (n, 10)."""
        return self.model(inputs)


def layers_of(module: Classifier) -> list[Any]:
    """Its layers with a kernel."""
    return [layer for layer in module.modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]


def seeded(network: str) -> Classifier:
    """The same weights every time."""
    torch.manual_seed(0)
    return Classifier(network)


def by_torch(module: Classifier, scope: str) -> list[Tensor]:
    """Masks after one step of torch's own pruning."""
    if scope == "global":
        prune.global_unstructured([(layer, "weight") for layer in layers_of(module)], prune.L1Unstructured, amount=RATE)
    else:
        for layer in layers_of(module):
            prune.l1_unstructured(layer, "weight", amount=RATE)
    return [layer.weight_mask.bool().flatten(1) for layer in layers_of(module)]


def by_lightning(module: Classifier, scope: str) -> list[Tensor]:
    """Masks after one step of Lightning's callback."""
    callback = ModelPruning(
        "l1_unstructured",
        [(layer, "weight") for layer in layers_of(module)],
        use_global_unstructured=scope == "global",
        use_lottery_ticket_hypothesis=False,
    )
    callback.setup(None, module, "fit")  # type: ignore[arg-type]
    callback.apply_pruning(RATE)
    return [layer.weight_mask.bool().flatten(1) for layer in layers_of(module)]


def by_us(module: Classifier, scope: str, masks: list[Tensor]) -> list[Tensor]:
    """Masks after one step of ours."""
    weights = [layer.weight.detach().flatten(1) for layer in layers_of(module)]
    return magnitude_masks(weights, masks, [RATE] * len(weights), scope)  # type: ignore[arg-type]


def step_of(module: Classifier, rewind: RewindCallback | None = None) -> Callable[[], None]:
    """One step of SGD."""
    inputs, targets = torch.randn(module.shape), torch.randint(10, module.shape[:1])
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=1e-4, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(module(inputs), targets).backward()
        optimizer.step()
        if rewind is not None:
            rewind.on_train_batch_end(None, module, None, None, 0)  # type: ignore[arg-type]

    return step


def timed(prepare: Callable[[], Callable[[], object]], repeats: int) -> float:
    """Median processor seconds of what `prepare` returns, after one call to warm up."""
    seconds = []
    for _ in range(repeats + 1):
        work = prepare()
        started = time.process_time()
        work()
        seconds.append(time.process_time() - started)
    return sorted(seconds[1:])[repeats // 2]


def benchmark() -> None:
    """Time the steps and print them, with ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["300", "784", "2500", "resnet18"])
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    table = Table(
        title=f"Milliseconds of processor time, medians of {options.repeats}, {torch.get_num_threads()} threads"
    )
    for name in ("network", "weights", "step", "ours", "torch", "× ours", "Lightning", "× ours", "same weights kept"):
        table.add_column(name, justify="right")
    for network in options.networks:
        add_rows(table, network, options.repeats)
    Console(width=130).print(table)


def add_rows(table: Table, network: str, repeats: int) -> None:
    """Time one network."""
    module = seeded(network)
    weights = sum(layer.weight.numel() for layer in layers_of(module))
    masks = [torch.ones_like(layer.weight, dtype=torch.bool).flatten(1) for layer in layers_of(module)]
    ours = partial(by_us, masks=masks)
    found = []
    for scope in ("global", "layer"):
        found = ours(seeded(network), scope)
        peers = [by_torch(seeded(network), scope), by_lightning(seeded(network), scope)]
        differ = sum(int((a != b).sum()) for peer in peers for a, b in zip(found, peer, strict=True))
        # A module of its own for every call, built off the clock.
        times = [
            timed(lambda work=work, scope=scope: partial(work, seeded(network), scope), repeats)  # type: ignore[misc]
            for work in (ours, by_torch, by_lightning)
        ]
        add_row(table, network, weights, f"prune, {scope}", times, "yes" if not differ else f"all but {differ}")
    pruned, rewind = seeded(network), RewindCallback(RATE)
    by_torch(pruned, "layer")
    rewind.round = 1
    rewind._pruned = [
        (layer.weight, mask.reshape(layer.weight.shape)) for layer, mask in zip(layers_of(module), found, strict=True)
    ]
    steps = [step_of(module, rewind), step_of(pruned)]
    times = [timed(lambda step=step: step, repeats) for step in steps]  # type: ignore[misc]
    # Lightning's callback leaves the forward pass to the same hooks of torch.
    add_row(table, network, weights, f"train, batch {module.shape[0]}", [*times, times[1]], "")


def add_row(table: Table, network: str, weights: int, step: str, times: list[float], alike: str) -> None:
    """Three times and two ratios."""
    ours, by_peer, by_callback = times
    table.add_row(
        network,
        f"{weights:,}",
        step,
        f"{1000 * ours:.2f}",
        f"{1000 * by_peer:.2f}",
        f"{by_peer / ours:.1f}",
        f"{1000 * by_callback:.2f}",
        f"{by_callback / ours:.1f}",
        alike,
    )


if __name__ == "__main__":
    benchmark()
