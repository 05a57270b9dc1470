"""Epoch time of `framework.main` beside a bare PyTorch loop, and beside upstream Milkshake where one is at hand.

    python benchmarks/train_epoch.py --data_dir data
    python benchmarks/train_epoch.py --data_dir data --upstream_repo DIR --upstream_python DIR/.venv/bin/python

The bare loop does the same arithmetic on the same in-memory tensors: gather, normalize, forward, cross-entropy,
backward, SGD step, and nothing else. Ours is the whole of `main` with its default logging and checkpoints, from the
start of one epoch to the start of the next. The contestants take turns, and each one's fastest epoch counts.
"""

import argparse
import json
import os
import subprocess
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F

from milkshake_mbp.framework.args import parse_args
from milkshake_mbp.framework.datamodules.mnist import MNIST
from milkshake_mbp.framework.main import main as milkshake_main
from milkshake_mbp.framework.models import FFN

BATCHES = {128: 235, 784: 235, 2500: 40}


class EpochClock(Callback):
    """Seconds from the start of each epoch to the start of the next."""

    def __init__(self) -> None:
        self.starts: list[float] = []

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Note the time."""
        self.starts.append(_now(pl_module.device))

    def seconds(self) -> list[float]:
        """Epochs after the first, which warms up."""
        return [after - before for before, after in zip(self.starts[1:], self.starts[2:], strict=False)]


def ours(args: argparse.Namespace, datamodule: MNIST) -> list[float]:
    """Epoch times of `main`."""
    clock = EpochClock()
    milkshake_main(args, FFN, datamodule, callbacks=[clock], verbose=False)
    return clock.seconds()


def bare(args: argparse.Namespace, datamodule: MNIST) -> list[float]:
    """Epoch times of the loop that a reader would write by hand."""
    datamodule.setup("fit")
    data = datamodule.dataset_train
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pixels, targets = data.data.to(device), data.targets.to(device)
    torch.manual_seed(args.seed)
    network = FFN(argparse.Namespace(**vars(args), num_classes=10)).model.to(device)
    optimizer = torch.optim.SGD(
        network.parameters(), lr=args.lr, momentum=args.momentum, weight_decay=args.weight_decay
    )
    seconds = []
    for _ in range(args.max_epochs):
        started = _now(device)
        order = torch.randperm(len(targets), device=device).split(args.batch_size)[: args.limit_train_batches]
        total = torch.zeros((), device=device)
        for index in order:
            inputs = torch.rsub(pixels.index_select(0, index), -1.0, alpha=-1 / 127.5)
            loss = F.cross_entropy(network(inputs.flatten(1)), targets.index_select(0, index))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach()
        seconds.append(_now(device) - started)
    return seconds[1:]


_UPSTREAM = """
import json, sys, time, types
# Packages of datasets and models that MNIST and an FFN do not need; upstream imports them all.
for name in ("wilds", "wget", "rfm"):
    sys.modules.setdefault(name, types.ModuleType(name))
sys.path.insert(0, sys.argv.pop(1))
report = sys.argv.pop(1)
from pytorch_lightning import Callback
from milkshake.args import parse_args
from milkshake.datamodules.mnist import MNIST
from milkshake.main import main
from milkshake.models.ffn import FFN

class EpochClock(Callback):
    starts = []
    def on_train_epoch_start(self, trainer, pl_module):
        self.starts.append(time.perf_counter())

class Stored(MNIST):
    def prepare_data(self):
        pass

main(parse_args(), FFN, Stored, callbacks=[EpochClock()], verbose=False)
starts = EpochClock.starts
json.dump([b - a for a, b in zip(starts[1:], starts[2:])], open(report, "w"))
"""


def upstream(args: argparse.Namespace, python: str, repo: str) -> list[float]:
    """Epoch times of upstream Milkshake in its own environment, on the same configuration."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        # torchvision keeps a dataset under the name of its class, which upstream calls MNISTDataset.
        (home / "MNISTDataset").symlink_to((Path(args.data_dir) / "MNIST").resolve())
        (home / "run.py").write_text(_UPSTREAM)
        keys = {
            "accelerator": "auto", "devices": 1, "data_augmentation": False, "image_size": 28, "input_channels": 1,
            "datamodule": "mnist", "model": "ffn", "data_dir": folder, "out_dir": folder, "num_workers": 0,
            "val_split": 0.01, "no_test": True, "momentum": args.momentum, "lr": 1e-5, "bias": False,
            "batch_size": args.batch_size, "ffn_input_dim": 784, "ffn_hidden_dim": args.ffn_hidden_dim,
            "ffn_num_layers": args.ffn_num_layers, "max_epochs": args.max_epochs,
            "limit_train_batches": args.limit_train_batches, "limit_val_batches": 0, "num_sanity_val_steps": 0,
        }  # fmt: skip
        (home / "cfg.yaml").write_text("".join(f"{key}: {value}\n" for key, value in keys.items()))
        threads = str(torch.get_num_threads())
        subprocess.run(
            [python, "run.py", str(Path(repo).resolve()), "times.json", "-c", "cfg.yaml"],
            cwd=home,
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "WANDB_MODE": "disabled", "OMP_NUM_THREADS": threads},
        )
        return list(json.loads((home / "times.json").read_text()))


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def benchmark() -> None:
    """Race the contestants at each width and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--widths", type=int, nargs="+", default=list(BATCHES))
    parser.add_argument("--epochs", type=int, default=2, help="counted in each turn, after one to warm up")
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch, and of upstream's")
    parser.add_argument("--upstream_python", help="interpreter with upstream Milkshake's dependencies")
    parser.add_argument("--upstream_repo", help="checkout of upstream Milkshake")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    table = Table(title=f"Seconds per epoch, MNIST, batch 256, {torch.get_num_threads()} threads")
    for column in ("width", "batches", "bare", "ours", "ours/bare", "upstream", "upstream/ours"):
        table.add_column(column, justify="right")
    with tempfile.TemporaryDirectory() as out:
        for width in options.widths:
            batches = BATCHES.get(width, 235)
            args = parse_args(
                f"--datamodule mnist --data_dir {options.data_dir} --out_dir {out}/{width} --ffn_hidden_dim {width} "
                f"--ffn_num_layers 5 --ffn_input_dim 784 --bias false --val_split 0 --max_epochs {options.epochs + 2} "
                f"--limit_train_batches {batches} --no_test true --enable_progress_bar false".split()
            )
            datamodule = MNIST(args)
            contestants = {"bare": partial(bare, args, datamodule), "ours": partial(ours, args, datamodule)}
            if options.upstream_python:
                contestants["upstream"] = partial(upstream, args, options.upstream_python, options.upstream_repo)
            times: dict[str, list[float]] = {name: [] for name in contestants}
            for _ in range(options.turns):
                for name, race in contestants.items():
                    times[name] += race()
            best = {name: min(values) for name, values in times.items()}
            theirs = best.get("upstream")
            table.add_row(
                str(width), str(batches), f"{best['bare']:.3f}", f"{best['ours']:.3f}",
                f"{best['ours'] / best['bare']:.2f}",
                f"{theirs:.3f}" if theirs else "–", f"{theirs / best['ours']:.2f}" if theirs else "–",
            )  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    benchmark()
