"""The ladder of a certified network: its code's row among the others."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from milkshake_mbp.callbacks import BoundsCallback
from milkshake_mbp.callbacks.certificate import Certificate
from milkshake_mbp.codec import CodedNetwork, InputMap, scale_factor
from milkshake_mbp.experiment.results import ladder_numbers
from milkshake_mbp.framework.datamodules import DataModule
from milkshake_mbp.framework.datamodules.datamodule import identity
from milkshake_mbp.framework.datamodules.dataset import ImageDataset

__all__ = ["as_module", "certificate_ladder"]


def certificate_ladder(made: Certificate, datamodule: DataModule) -> dict[str, Any]:
    """Every bound on the network that was read from the bytes, as in a run's result.json.

    The network is not pruned again (d = 0), and is bounded on what it sees, inputs from 0 to 1.

    Args:
        made: the certificate.
        datamodule: with pixels, set up for fitting and testing.
    """
    train, test = (_seen(made.network.inputs, part) for part in (datamodule.dataset_train, datamodule.dataset_test))
    seen = SimpleNamespace(
        dataset_train=train,
        dataset_test=test,
        train_dataloader=lambda: DataLoader(train, collate_fn=identity),
        test_dataloader=lambda: DataLoader(test, collate_fn=identity),
    )
    callback = BoundsCallback(prune_d=0.0, delta=made.delta)
    callback.report = callback.measure(as_module(made.network), seen)
    callback.add_code(made.bits, made.error)
    return ladder_numbers(callback.report)


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
