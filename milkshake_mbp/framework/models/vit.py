"""torchvision's vision transformers."""

from argparse import Namespace
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models

from milkshake_mbp.errors import UserError
from milkshake_mbp.framework.models.hub import image_network
from milkshake_mbp.framework.models.model import Model
from milkshake_mbp.framework.models.pretrained import build, require_colour
from milkshake_mbp.framework.settings import PRETRAINED_SIZE

__all__ = ["ViT"]

_PATCH = 16
_BUILDERS = {"base": models.vit_b_16, "large": models.vit_l_16}


class ViT(Model):
    """A vision transformer with patches of 16 × 16 pixels, for images of `image_size`.

    It is torchvision's, or Hugging Face's where it starts from the weights for ImageNet-21k. With `vit_type`
    feature_extractor it gives (n, tokens, width), the normalized last layer; a subclass makes a loss of them.

    Args:
        args: the configuration: input_channels, image_size, vit_version, vit_pretrained, vit_type, dropout_prob,
            train_fc_only and num_classes, beside the keys of `Model`.

    Raises:
        UserError: images are not of three channels and of a size that it takes, or the pretrained weights cannot be
            downloaded.
    """

    def __init__(self, args: Namespace) -> None:
        super().__init__(args)
        require_colour(args)
        pretrained, size = args.vit_pretrained != "none", args.image_size
        if pretrained and size != PRETRAINED_SIZE:
            raise UserError(
                f"image_size: expected {PRETRAINED_SIZE} with vit_pretrained {args.vit_pretrained}, got {size}: give "
                f"--image_size {PRETRAINED_SIZE}, or --vit_pretrained none"
            )
        if not size or size % _PATCH:
            raise UserError(
                f"image_size: expected a multiple of {_PATCH} for vit, got {size}: give the --image_size that images "
                "are to be resized to"
            )
        self.gives_scores = args.vit_type == "classifier"
        if args.vit_pretrained == "imagenet21k":
            self.model = image_network(
                args, "vit", f"google/vit-{args.vit_version}-patch16-224-in21k", self.gives_scores
            )
            self.train_only(self.model.head)
            return
        network: Any = build(
            args,
            "vit_pretrained",
            pretrained,
            _BUILDERS[args.vit_version],
            image_size=size,
            dropout=args.dropout_prob,
        )
        network.heads.head = nn.Linear(network.hidden_dim, args.num_classes)
        self.model = network if self.gives_scores else _Tokens(network)
        self.train_only(network.heads)

    def load_msg(self) -> str:
        """One line that describes the model."""
        return f"{super().load_msg()}: {self.hparams['vit_version']}"


class _Tokens(nn.Module):
    """torchvision's vision transformer without its head."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        network.heads = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        patches = self.network._process_input(images)
        first = self.network.class_token.expand(len(patches), -1, -1)
        return self.network.encoder(torch.cat([first, patches], dim=1))
