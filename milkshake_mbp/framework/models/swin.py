"""torchvision's Swin transformers."""

from argparse import Namespace
from typing import Any

from torch import nn
from torchvision import models

from milkshake_mbp.errors import UserError
from milkshake_mbp.framework.models.hub import image_network
from milkshake_mbp.framework.models.model import Model
from milkshake_mbp.framework.models.pretrained import build, require_colour

__all__ = ["Swin"]

_BUILDERS = {"tiny": models.swin_t, "small": models.swin_s, "base": models.swin_b}


class Swin(Model):
    """A Swin transformer, torchvision's, for images of any size.

    It is Hugging Face's where it is large or starts from the weights for ImageNet-21k. With `swin_type`
    feature_extractor it gives (n, places, width), the normalized last layer; a subclass makes a loss of them.

    Args:
        args: the configuration: input_channels, swin_version, swin_pretrained, swin_type, dropout_prob, train_fc_only
            and num_classes, beside the keys of `Model`.

    Raises:
        UserError: images are not of three channels, or the pretrained weights cannot be downloaded.
    """

    def __init__(self, args: Namespace) -> None:
        super().__init__(args)
        require_colour(args)
        self.gives_scores = args.swin_type == "classifier"
        if args.swin_version == "large" or args.swin_pretrained == "imagenet21k":
            self.model = image_network(args, "swin", _published(args), self.gives_scores)
            self.train_only(self.model.head)
            return
        network: Any = build(
            args,
            "swin_pretrained",
            args.swin_pretrained != "none",
            _BUILDERS[args.swin_version],
            dropout=args.dropout_prob,
        )
        network.head = nn.Linear(network.head.in_features, args.num_classes)
        self.model = network if self.gives_scores else nn.Sequential(network.features, network.norm, nn.Flatten(1, 2))
        self.train_only(network.head)

    def load_msg(self) -> str:
        """One line that describes the model."""
        return f"{super().load_msg()}: {self.hparams['swin_version']}"


def _published(args: Namespace) -> str | None:
    """The name under which the weights are published; None without them."""
    if args.swin_pretrained == "none":
        return None
    if args.swin_pretrained == "imagenet21k" and args.swin_version not in ("base", "large"):
        raise UserError(
            f"swin_pretrained: imagenet21k is published for base and large, got swin_version {args.swin_version}"
        )
    suffix = "-in22k" if args.swin_pretrained == "imagenet21k" else ""
    return f"microsoft/swin-{args.swin_version}-patch4-window7-224{suffix}"
