"""torchvision's Swin transformers."""

from argparse import Namespace
from typing import Any

from torch import nn
from torchvision import models

from milkshake_mbp.framework.models.model import Model
from milkshake_mbp.framework.models.pretrained import build, require_colour

__all__ = ["Swin"]

_BUILDERS = {"tiny": models.swin_t, "small": models.swin_s, "base": models.swin_b}


class Swin(Model):
    """torchvision's Swin transformer, for images of any size.

    Args:
        args: the configuration: input_channels, swin_version, swin_pretrained, dropout_prob, train_fc_only and
            num_classes, beside the keys of `Model`.

    Raises:
        UserError: images are not of three channels, or the pretrained weights cannot be downloaded.
    """

    def __init__(self, args: Namespace) -> None:
        super().__init__(args)
        require_colour(args)
        network: Any = build(
            args,
            "swin_pretrained",
            args.swin_pretrained != "none",
            _BUILDERS[args.swin_version],
            dropout=args.dropout_prob,
        )
        network.head = nn.Linear(network.head.in_features, args.num_classes)
        self.model = network
        self.train_only(network.head)

    def load_msg(self) -> str:
        """One line that describes the model."""
        return f"{super().load_msg()}: {self.hparams['swin_version']}"
