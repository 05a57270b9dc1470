"""Small made-up data sets in the files that torchvision and upstream Milkshake read."""

import pickle
import struct

import numpy as np
import torch
from scipy.io import savemat
from torchvision.models import resnet18, vit_b_16


def write_mnist(folder, train=60_000, test=10_000, seed=0):
    """The four idx files of MNIST, in `folder`/MNIST/raw."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for part, count in (("train", train), ("t10k", test)):
        labels = (np.arange(count) % 10).astype(np.uint8)
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        head = struct.pack(">HBB3I", 0, 8, 3, count, 28, 28)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(head + images.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">HBBI", 0, 8, 1, count) + labels.tobytes())


def cifar_entry(count, classes, seed, labels):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
    return {"data": pixels, labels: (np.arange(count) % classes).tolist()}


def write_cifar10(folder, each=24):
    """The six batches of CIFAR-10, pickles of Python 2's protocol, in `folder`/cifar-10-batches-py."""
    batches = folder / "cifar-10-batches-py"
    batches.mkdir(parents=True)
    for index, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        (batches / name).write_bytes(pickle.dumps(cifar_entry(each, 10, index, "labels"), protocol=2))


def write_cifar100(folder, train=200, test=100):
    """The files train and test of CIFAR-100, in `folder`/cifar-100-python."""
    batches = folder / "cifar-100-python"
    batches.mkdir(parents=True)
    for index, (name, count) in enumerate({"train": train, "test": test}.items()):
        entry = cifar_entry(count, 100, index, "fine_labels") | {"coarse_labels": [0] * count}
        (batches / name).write_bytes(pickle.dumps(entry, protocol=4))


def write_svhn(folder, train=120, test=40):
    """MATLAB files of SVHN, whose digit 0 has the label 10, in `folder`/svhn."""
    (folder / "svhn").mkdir(parents=True)
    for index, (name, count) in enumerate({"train": train, "test": test}.items()):
        rng = np.random.default_rng(index)
        pixels = rng.integers(0, 256, (32, 32, 3, count), dtype=np.uint8)
        labels = (np.arange(count) % 10 + 1).astype(np.uint8)[:, None]
        savemat(folder / "svhn" / f"{name}_32x32.mat", {"X": pixels, "y": labels})


def write_pretrained(folder, *names):
    """Random weights where torch looks for the ones that torchvision publishes."""
    hub = folder / "hub" / "checkpoints"
    hub.mkdir(parents=True)
    files = {"resnet18": (resnet18, "resnet18-f37072fd.pth"), "vit": (vit_b_16, "vit_b_16-c867db91.pth")}
    for name in names:
        torch.manual_seed(0)
        make, file = files[name]
        torch.save(make().state_dict(), hub / file)
