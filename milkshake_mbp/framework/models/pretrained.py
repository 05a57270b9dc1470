"""torchvision's networks for images, with their published weights or without."""

from argparse import Namespace
from collections.abc import Callable
from typing import Any

from torch import nn

from milkshake_mbp.errors import UserError
from milkshake_mbp.framework.models.model import image_channels

__all__ = ["build", "require_colour"]


def build(args: Namespace, key: str, pretrained: bool, builder: Callable[..., nn.Module], **keys: Any) -> nn.Module:
    """A network of torchvision's, from its first weights for ImageNet if `pretrained`.

    They are not fetched where a file of weights replaces them anyhow.

    Args:
        args: the configuration, of which `weights` and `resume_training` are read.
        key: the configuration's key that asks for pretrained weights, for the message.
        pretrained: whether it does.
        builder: torchvision's function.
        keys: for it.

    Raises:
        UserError: the weights cannot be downloaded.
    """
    weights = "IMAGENET1K_V1" if pretrained and not (args.weights or args.resume_training) else None
    try:
        return builder(weights=weights, **keys)
    except (OSError, RuntimeError) as error:
        if weights is None:
            raise
        off = "false" if key == "resnet_pretrained" else "none"
        raise UserError(
            f"{key}: the weights cannot be downloaded ({' '.join(str(error).split())}): give --{key} {off} to start "
            "from random ones, or --weights FILE"
        ) from error


def require_colour(args: Namespace) -> None:
    """See that images have the three channels that a transformer of torchvision's takes.

    Raises:
        UserError: they have not.
    """
    if (channels := image_channels(args)) != 3:
        raise UserError(
            f"input_channels: expected 3 with model {args.model}, got {channels}: give --input_channels 3, which "
            "repeats a grey image"
        )
