"""The ladder of a certified network: its code's row among the others."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from milkshake_mbp.callbacks.certificate import Certificate
from milkshake_mbp.codec import CodedNetwork, InputMap, scale_factor
from milkshake_mbp.experiment.results import ladder_numbers
from milkshake_mbp.framework.datamodules import DataModule
from milkshake_mbp.framework.datamodules.datamodule import identity
from milkshake_mbp.framework.datamodules.dataset import ImageDataset
from milkshake_mbp.reading import Samples, measure
from milkshake_mbp.theory.measured import Coded

__all__ = ["as_module", "certificate_ladder"]


def certificate_ladder(made: Certificate, datamodule: DataModule) -> dict[str, Any]:
    """Every bound on the network that was read from the bytes, as in a run's result.json.

    The network is not pruned again (d = 0), and is bounded on what it sees, inputs from 0 to 1.

    Args:
        made: the certificate.
        datamodule: with pixels, set up for fitting and testing.
    """
    parts = (datamodule.dataset_train, datamodule.dataset_test)
    train, test = (Samples(_seen(made.network.inputs, part), identity) for part in parts)
    measured = measure(as_module(made.network), train, test, prune_d=0.0, delta=made.delta)
    return ladder_numbers(replace(measured, coded=Coded(made.bits, made.error)))


def as_module(network: CodedNetwork) -> nn.Sequential:
    """The same function of inputs divided by the largest, its logits divided too, as Linear layers and ReLUs.

    Each layer's scales are divided by the largest, so that the numbers stay of moderate size.
    """
    parts: list[nn.Module] = []
    unit = float(network.inputs.largest) if network.inputs.pixels else 1.0
    for layer in network.layers:
        factors = scale_factor(layer.scales)
        factors = factors / factors.max()
        linear = nn.Linear(layer.values.shape[1], layer.values.shape[0], bias=bool(layer.biases.any()))
        with torch.no_grad():
            linear.weight.copy_(layer.values * factors[:, None])
            if linear.bias is not None:
                linear.bias.copy_(layer.biases * factors * (2.0**layer.bias_exponent / unit))
        parts += [linear, nn.ReLU()]
        unit *= float(scale_factor(layer.scales).max())
    return nn.Sequential(*parts[:-1])


def _seen(inputs: InputMap, dataset: ImageDataset) -> ImageDataset:
    unit = inputs.largest if inputs.pixels else 1
    seen: Tensor = torch.cat([(inputs(some) / unit).float() for some in dataset.data.split(8192)])
    return ImageDataset(seen, dataset.targets)
