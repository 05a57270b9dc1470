"""Small random networks with all that stands between layers."""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from milkshake_mbp.theory.constants import max_pool_lipschitz, mean_lipschitz
from milkshake_mbp.theory.layers import Layer
from milkshake_mbp.theory.network import Concat, Network, Node, Op, Sum, Through
from tests.theory.layer_instances import convolution, linear


def max_pool(kernel: int, stride: int) -> Through:
    return Through(
        "MaxPool2d",
        lambda x: F.max_pool2d(x, kernel, stride),
        lipschitz=max_pool_lipschitz((kernel,) * 2, (stride,) * 2),
        entrywise=False,
        paths=lambda sums, p: F.avg_pool2d(sums, kernel, stride, divisor_override=1),
        maximum_of=kernel**2,
    )


def global_mean(places: int) -> Through:
    return Through(
        "mean",
        lambda x: x.mean(dim=(2, 3)),
        lipschitz=mean_lipschitz(places),
        entrywise=False,
        paths=lambda sums, p: sums.sum(dim=(2, 3)) / places**p,
    )


RELU = Through("ReLU", torch.relu)
LEAKY = Through("LeakyReLU", lambda x: F.leaky_relu(x, -1.5), lipschitz=1.5)


def sigmoid(entries: int) -> Through:
    return Through(
        "Sigmoid",
        torch.sigmoid,
        lipschitz=0.25,
        zero_preserving=False,
        homogeneous=False,
        at_zero=0.5 * math.sqrt(entries),
    )


def residual(seed: int, *, bias: bool, smooth: bool = False, scale: float = 0.4) -> Network:
    """Convolution, max pooling, two branches that are added, a third put beside them, a mean and a Linear layer."""

    def conv(index: int, *args: object, **options: object) -> Layer:
        layer = convolution(*args, **options, bias=bias, gain=index % 2 == 0, seed=100 * seed + index)  # type: ignore[arg-type]
        return layer.with_kernel(scale * layer.kernel)

    stem = conv(0, (2, 4), (3, 3), (9, 9), padding=1)
    first = conv(1, (4, 4), (3, 3), (4, 4), padding=1)
    second = conv(2, (4, 4), (3, 3), (4, 4), padding=1, groups=2)
    beside = conv(3, (4, 3), (3, 3), (4, 4), padding=1)
    head = linear((3, 7), bias=bias, seed=100 * seed + 4)
    nodes: list[tuple[Op, tuple[int, ...]]] = [
        (stem, (-1,)),
        (RELU, (0,)),
        (max_pool(3, 2), (1,)),
        (first, (2,)),
        (sigmoid(64) if smooth else LEAKY, (3,)),
        (second, (4,)),
        (Sum(), (2, 5)),
        (beside, (2,)),
        (Concat(), (6, 7)),
        (RELU, (8,)),
        (global_mean(16), (9,)),
        (head, (10,)),
    ]
    return Network((stem, first, second, beside, head), tuple(Node(op, inputs) for op, inputs in nodes))


def inputs(network: Network, count: int, norm: float, seed: int = 0) -> Tensor:
    """(count, *inputs) of ‖x‖₂ = norm."""
    rng = np.random.default_rng(seed)
    x = torch.tensor(rng.standard_normal((count, *network.layers[0].inputs)))
    return norm * x / x.flatten(1).norm(dim=1).reshape(-1, *[1] * (x.ndim - 1))
