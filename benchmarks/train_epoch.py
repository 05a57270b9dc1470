"""Epoch time of `framework.main` beside a bare PyTorch loop, and beside upstream Milkshake where one is at hand.

    python benchmarks/train_epoch.py --data_dir data
    python benchmarks/train_epoch.py --data_dir data --upstream_repo DIR --upstream_python DIR/.venv/bin/python

FFNs and the CNN are on MNIST, ResNet-18 on CIFAR-10 at its own 32 × 32 pixels.

The bare loop does the same arithmetic on the same in-memory tensors: gather, normalize, forward, cross-entropy,
backward, SGD step, and nothing else. Ours is the whole of `main` with its default logging and checkpoints, from the
start of one epoch to the start of the next. The contestants take turns, and each one's fastest epoch counts.
"""

import argparse
import json
import os
import pickle
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F

from milkshake_mbp.framework.args import parse_args
from milkshake_mbp.framework.datamodules import DataModule, load_datamodule
from milkshake_mbp.framework.main import main as milkshake_main
from milkshake_mbp.framework.main import model_keys
from milkshake_mbp.framework.models import load_model

BATCHES = {128: 235, 784: 235, 2500: 40}


@dataclass(frozen=True)
class Contest:
    """What is trained: a network by its keys, on a data set, for some batches an epoch."""

    name: str
    batches: int
    keys: dict[str, Any]
    datamodule: str = "mnist"
    data_keys: dict[str, Any] = field(default_factory=lambda: {"image_size": 28, "input_channels": 1})


def contests(names: list[str]) -> list[Contest]:
    """Those of the names: a number is the width of five layers, cnn and resnet18 are what they say."""
    known = {
        "cnn": Contest("cnn", 60, {"model": "cnn", "cnn_initial_width": 16, "cnn_num_layers": 3}),
        "resnet18": Contest(
            "resnet18",
            6,
            {"model": "resnet", "resnet_version": 18, "resnet_pretrained": False},
            "cifar10",
            {"image_size": 32, "input_channels": 3},
        ),
    }
    return [
        known[name]
        if name in known
        else Contest(
            name,
            BATCHES.get(int(name), 235),
            {"model": "ffn", "ffn_hidden_dim": int(name), "ffn_num_layers": 5, "ffn_input_dim": 784, "bias": False},
        )
        for name in names
    ]


class EpochClock(Callback):
    """Seconds from the start of each epoch to the start of the next."""

    def __init__(self, cpu_time: bool) -> None:
        self.starts: list[float] = []
        self.cpu_time = cpu_time

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Note the time."""
        self.starts.append(_now(pl_module.device, self.cpu_time))

    def seconds(self) -> list[float]:
        """Epochs after the first, which warms up."""
        return [after - before for before, after in zip(self.starts[1:], self.starts[2:], strict=False)]


def ours(args: argparse.Namespace, datamodule: DataModule) -> list[float]:
    """Epoch times of `main`."""
    clock = EpochClock(args.cpu_time)
    milkshake_main(args, load_model(args.model), datamodule, callbacks=[clock], verbose=False)
    return clock.seconds()


def bare(args: argparse.Namespace, datamodule: DataModule) -> list[float]:
    """Epoch times of the loop that a reader would write by hand."""
    datamodule.setup("fit")
    data = datamodule.dataset_train
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pixels, targets = data.data.to(device), data.targets.to(device)
    torch.manual_seed(args.seed)
    model = load_model(args.model)(model_keys(args, datamodule))
    model.fit_to(data[0][0])
    network = model.model.to(device).train()
    if args.model == "ffn":
        network = torch.nn.Sequential(torch.nn.Flatten(), network)
    optimizer = torch.optim.SGD(
        network.parameters(), lr=args.lr, momentum=args.momentum, weight_decay=args.weight_decay
    )
    seconds = []
    for _ in range(args.max_epochs):
        started = _now(device, args.cpu_time)
        order = torch.randperm(len(targets), device=device).split(args.batch_size)[: args.limit_train_batches]
        total = torch.zeros((), device=device)
        for index in order:
            inputs = torch.rsub(pixels.index_select(0, index), -1.0, alpha=-1 / 127.5)
            loss = F.cross_entropy(network(inputs), targets.index_select(0, index))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach()
        seconds.append(_now(device, args.cpu_time) - started)
    return seconds[1:]


_UPSTREAM = """
import json, sys, time, types
# Packages of data sets and models that these do not need; upstream imports them all.
for name in ("wilds", "wget", "rfm"):
    sys.modules.setdefault(name, types.ModuleType(name))
sys.path.insert(0, sys.argv.pop(1))
report, clock = sys.argv.pop(1), sys.argv.pop(1)
from pytorch_lightning import Callback
from milkshake.args import parse_args
from milkshake.datamodules.cifar10 import CIFAR10Dataset
from milkshake.imports import valid_models_and_datamodules
from milkshake.main import main

class EpochClock(Callback):
    starts = []
    def on_train_epoch_start(self, trainer, pl_module):
        self.starts.append(getattr(time, clock)())

# The archive is written anew, so that its check sums are not the published ones.
CIFAR10Dataset._check_integrity = lambda self: True
CIFAR10Dataset._load_meta = lambda self: None

args = parse_args()
models, datamodules = valid_models_and_datamodules()

class Stored(datamodules[args.datamodule]):
    def prepare_data(self):
        pass

main(args, models[args.model], Stored, callbacks=[EpochClock()], verbose=False)
starts = EpochClock.starts
json.dump([b - a for a, b in zip(starts[1:], starts[2:])], open(report, "w"))
"""


def write_archive(folder: Path, datamodule: DataModule, batches: int) -> None:
    """Training samples as torchvision keeps CIFAR-10, as many as the contest needs, and some to hold out."""
    count = batches * datamodule.batch_size // 5 + datamodule.batch_size
    data = datamodule.dataset_train
    folder.mkdir()
    for index in range(6):
        part = slice(index * count, (index + 1) * count)
        entry = {"data": data.data[part].flatten(1).numpy(), "labels": data.targets[part].tolist()}
        name = f"data_batch_{index + 1}" if index < 5 else "test_batch"
        (folder / name).write_bytes(pickle.dumps(entry, protocol=2))


def upstream(args: argparse.Namespace, datamodule: DataModule, contest: Contest, python: str, repo: str) -> list[float]:
    """Epoch times of upstream Milkshake in its own environment, on the same configuration."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        if contest.datamodule == "mnist":
            # torchvision keeps a dataset under the name of its class, which upstream calls MNISTDataset.
            (home / "MNISTDataset").symlink_to((Path(args.data_dir) / "MNIST").resolve())
        else:
            write_archive(home / "cifar-10-batches-py", datamodule, contest.batches)
        (home / "run.py").write_text(_UPSTREAM)
        keys = {
            "accelerator": "auto", "devices": 1, "data_augmentation": False, "datamodule": contest.datamodule,
            "data_dir": folder, "out_dir": folder, "num_workers": 0, "val_split": 0.01, "no_test": True,
            "momentum": args.momentum, "lr": 1e-5, "batch_size": args.batch_size, "max_epochs": args.max_epochs,
            "limit_train_batches": args.limit_train_batches, "limit_val_batches": 0, "num_sanity_val_steps": 0,
            **contest.data_keys, **contest.keys,
        }  # fmt: skip
        (home / "cfg.yaml").write_text("".join(f"{key}: {value}\n" for key, value in keys.items()))
        clock = "process_time" if args.cpu_time else "perf_counter"
        threads = str(torch.get_num_threads())
        subprocess.run(
            [python, "run.py", str(Path(repo).resolve()), "times.json", clock, "-c", "cfg.yaml"],
            cwd=home,
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "WANDB_MODE": "disabled", "OMP_NUM_THREADS": threads},
        )
        return list(json.loads((home / "times.json").read_text()))


def _now(device: torch.device, cpu_time: bool) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.process_time() if cpu_time else time.perf_counter()


def benchmark() -> None:
    """Race the contestants at each width and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", default="data")
    parser.add_argument(
        "--networks", nargs="+", default=[*map(str, BATCHES), "cnn", "resnet18"], help="FFN widths, cnn, resnet18"
    )
    parser.add_argument("--batches", type=int, help="in an epoch, where not those of each contest")
    parser.add_argument("--epochs", type=int, default=2, help="counted in each turn, after one to warm up")
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch, and of upstream's")
    parser.add_argument("--cpu_time", action="store_true", help="rather than the clock's, where others use the machine")
    parser.add_argument("--upstream_python", help="interpreter with upstream Milkshake's dependencies")
    parser.add_argument("--upstream_repo", help="checkout of upstream Milkshake")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    seconds = "CPU seconds" if options.cpu_time else "Seconds"
    table = Table(title=f"{seconds} per epoch, {torch.get_num_threads()} threads")
    for column in ("network", "batches", "bare", "ours", "ours/bare", "upstream", "upstream/ours"):
        table.add_column(column, justify="right")
    with tempfile.TemporaryDirectory() as out:
        for contest in contests(options.networks):
            batches = options.batches or contest.batches
            size = 256 if contest.datamodule == "mnist" else 128
            words = f"--datamodule {contest.datamodule} --data_dir {options.data_dir} --out_dir {out}/{contest.name} "
            words += f"--val_split 0 --max_epochs {options.epochs + 2} --limit_train_batches {batches} --no_test true "
            words += f"--enable_progress_bar false --batch_size {size} --tensorboard false "
            words += " ".join(f"--{key} {value}" for key, value in contest.keys.items())
            args = parse_args(words.split())
            args.cpu_time = options.cpu_time
            datamodule = load_datamodule(contest.datamodule)(args)
            contestants = {"bare": partial(bare, args, datamodule), "ours": partial(ours, args, datamodule)}
            if options.upstream_python:
                place = options.upstream_python, options.upstream_repo
                contestants["upstream"] = partial(upstream, args, datamodule, contest, *place)
            times: dict[str, list[float]] = {name: [] for name in contestants}
            for _ in range(options.turns):
                for name, race in contestants.items():
                    times[name] += race()
            best = {name: min(values) for name, values in times.items()}
            theirs = best.get("upstream")
            table.add_row(
                contest.name, str(batches), f"{best['bare']:.3f}", f"{best['ours']:.3f}",
                f"{best['ours'] / best['bare']:.2f}",
                f"{theirs:.3f}" if theirs else "–", f"{theirs / best['ours']:.2f}" if theirs else "–",
            )  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    benchmark()
