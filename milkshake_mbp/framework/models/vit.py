"""torchvision's vision transformers."""

from argparse import Namespace
from typing import Any

from torch import nn
from torchvision import models

from milkshake_mbp.errors import UserError
from milkshake_mbp.framework.models.model import Model
from milkshake_mbp.framework.models.pretrained import build, require_colour

__all__ = ["ViT"]

_PATCH = 16
_PRETRAINED_SIZE = 224
_BUILDERS = {"base": models.vit_b_16, "large": models.vit_l_16}


class ViT(Model):
    """torchvision's vision transformer with patches of 16 × 16 pixels, for images of `image_size`.

    Args:
        args: the configuration: input_channels, image_size, vit_version, vit_pretrained, dropout_prob, train_fc_only
            and num_classes, beside the keys of `Model`.

    Raises:
        UserError: images are not of three channels and of a size that it takes, or the pretrained weights cannot be
            downloaded.
    """

    def __init__(self, args: Namespace) -> None:
        super().__init__(args)
        require_colour(args)
        pretrained, size = args.vit_pretrained != "none", args.image_size
        if pretrained and size != _PRETRAINED_SIZE:
            raise UserError(
                f"image_size: expected {_PRETRAINED_SIZE} with vit_pretrained {args.vit_pretrained}, got {size}: give "
                f"--image_size {_PRETRAINED_SIZE}, or --vit_pretrained none"
            )
        if not size or size % _PATCH:
            raise UserError(
                f"image_size: expected a multiple of {_PATCH} for vit, got {size}: give the --image_size that images "
                "are to be resized to"
            )
        network: Any = build(
            args,
            "vit_pretrained",
            pretrained,
            _BUILDERS[args.vit_version],
            image_size=size,
            dropout=args.dropout_prob,
        )
        network.heads.head = nn.Linear(network.hidden_dim, args.num_classes)
        self.model = network
        self.train_only(network.heads)

    def load_msg(self) -> str:
        """One line that describes the model."""
        return f"{super().load_msg()}: {self.hparams['vit_version']}"
