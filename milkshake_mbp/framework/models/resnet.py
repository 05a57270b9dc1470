"""torchvision's residual networks."""

from argparse import Namespace
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models

from milkshake_mbp.framework.models.model import Model, image_channels
from milkshake_mbp.framework.models.pretrained import build

__all__ = ["ResNet"]


class ResNet(Model):
    """torchvision's ResNet, whatever `bias` says, with dropout before a linear layer for these classes.

    Args:
        args: the configuration: input_channels, resnet_version, resnet_pretrained, resnet_small_input,
            resnet_l1_regularization, dropout_prob, train_fc_only and num_classes, beside the keys of `Model`.

    Raises:
        UserError: input_channels is not known, or the pretrained weights cannot be downloaded.
    """

    def __init__(self, args: Namespace) -> None:
        super().__init__(args)
        channels = image_channels(args)
        builder = getattr(models, f"resnet{args.resnet_version}")
        network: Any = build(args, "resnet_pretrained", args.resnet_pretrained, builder)
        if args.resnet_small_input:
            # As He et al. (2016) have it for CIFAR-10: the first stage sees the image at its full size.
            network.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
            network.maxpool = nn.Identity()
        elif channels != 3:
            network.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
        network.fc = nn.Sequential(nn.Dropout(args.dropout_prob), nn.Linear(network.fc.in_features, args.num_classes))
        self.model = network
        self.train_only(network.fc)

    def load_msg(self) -> str:
        """One line that describes the model."""
        return f"{super().load_msg()}: {self.hparams['resnet_version']} layers"

    def step(self, batch: tuple[Tensor, Tensor], idx: int) -> dict[str, Tensor]:
        """As `Model.step`, the loss with `resnet_l1_regularization` · ‖θ‖₁ of the parameters θ that are trained."""
        result = super().step(batch, idx)
        if strength := self.hparams["resnet_l1_regularization"]:
            trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
            result["loss"] = result["loss"] + strength * torch.stack([p.abs().sum() for p in trained]).sum()
        return result
