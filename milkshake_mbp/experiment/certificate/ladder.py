"""The ladder of a certified network: its code's row among the others."""

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from milkshake_mbp.callbacks.certificate import Certificate
from milkshake_mbp.codec import CodedLayer, CodedNetwork, Pool
from milkshake_mbp.experiment.certificate.coding import seen_by
from milkshake_mbp.framework.datamodules import DataModule
from milkshake_mbp.framework.datamodules.datamodule import identity
from milkshake_mbp.framework.datamodules.dataset import ImageDataset
from milkshake_mbp.reading import Samples, measure
from milkshake_mbp.runs.summary import ladder_numbers
from milkshake_mbp.theory.measured import Coded

__all__ = ["as_module", "certificate_ladder"]


def certificate_ladder(made: Certificate, datamodule: DataModule) -> dict[str, Any]:
    """Every bound on the network that was read from the bytes, as in a run's result.json.

    The network is not pruned again (d = 0), and is bounded on what it sees, inputs from 0 to 1. Where the theory does
    not know its layers there are no rows.

    Args:
        made: the certificate.
        datamodule: with pixels, set up for fitting and testing.
    """
    parts = (datamodule.dataset_train, datamodule.dataset_test)
    train, test = (Samples(_seen(made.network, part), identity) for part in parts)
    measured = measure(as_module(made.network), train, test, prune_d=0.0, delta=made.delta)
    return ladder_numbers(replace(measured, coded=Coded(made.bits, made.error)))


def as_module(network: CodedNetwork) -> nn.Sequential:
    """The same function of inputs divided by the largest, its logits divided too, as modules of torch.

    Each layer's scales are divided by the largest, so that the numbers stay of moderate size. A bank is left out: its
    features are the inputs.
    """
    parts: list[nn.Module] = []
    unit = float(network.inputs.largest) if network.inputs.pixels else 1.0
    for node, before in zip(network.nodes, network.grids, strict=False):
        if isinstance(node, Pool):
            parts.append(
                nn.MaxPool2d(node.kernel, node.stride) if node.kind == "max" else nn.AvgPool2d(node.kernel, node.stride)
            )
            unit *= node.kernel**2 if node.kind == "sum" else 1
            continue
        factors = node.factors / node.factors.max()
        biased = bool(node.biases.any())
        layer: nn.Linear | nn.Conv2d
        if window := node.window:
            layer = nn.Conv2d(
                before[0], len(factors), window.kernel, window.stride, window.padding, groups=window.groups, bias=biased
            )
        else:
            if before[1:] != (1, 1) and parts:
                parts.append(nn.Flatten())
            layer = nn.Linear(node.values.shape[1], len(factors), bias=biased)
        with torch.no_grad():
            layer.weight.copy_((node.values * factors[:, None]).reshape(layer.weight.shape))
            if layer.bias is not None:
                layer.bias.copy_(node.offsets * factors / unit)
        parts += [layer, nn.ReLU()]
        unit *= float(node.factors.max())
    return nn.Sequential(*parts[:-1])


def _seen(network: CodedNetwork, dataset: ImageDataset) -> ImageDataset:
    inputs, first = network.inputs, network.nodes[0]
    seen = seen_by(inputs, dataset.data) / float(inputs.largest)
    flat = isinstance(first, CodedLayer) and not first.window
    return ImageDataset(seen if flat else seen.reshape(-1, *inputs.grid), dataset.targets)
