"""Hugging Face's ConvNeXt V2 (Woo et al. 2023)."""

from argparse import Namespace
from operator import attrgetter

from milkshake_mbp.errors import UserError
from milkshake_mbp.framework.models.hub import HubNetwork, published, transformers_for
from milkshake_mbp.framework.models.model import Model
from milkshake_mbp.framework.models.pretrained import require_colour

__all__ = ["ConvNeXtV2"]

_WITH_22K = ("nano", "tiny", "base", "large")


class ConvNeXtV2(Model):
    """ConvNeXt V2 of a published size and weights, or of the given widths and depths with random ones.

    Args:
        args: the configuration: input_channels, the keys that start with convnextv2_, train_fc_only and num_classes,
            beside the keys of `Model`.

    Raises:
        UserError: transformers is not installed, images are not of three channels, or there are no such weights.
    """

    def __init__(self, args: Namespace) -> None:
        super().__init__(args)
        require_colour(args)
        library = transformers_for("model: convnextv2")
        kind = library.ConvNextV2ForImageClassification
        if args.convnextv2_pretrained == "none":
            outer, width = args.convnextv2_stage124_depth, args.convnextv2_initial_width
            configuration = library.ConvNextV2Config(
                hidden_sizes=[width, 2 * width, 4 * width, 8 * width],
                depths=[outer, outer, args.convnextv2_stage3_depth, outer],
                num_labels=args.num_classes,
            )
            network = kind(configuration)
        else:
            network = published("convnextv2_pretrained", "none", kind, _name(args), num_labels=args.num_classes)
        self.model = HubNetwork(network, attrgetter("logits"))
        self.train_only(self.model.head)

    def load_msg(self) -> str:
        """One line that describes the model."""
        keys = self.hparams
        pretrained = keys["convnextv2_pretrained"]
        size = keys["convnextv2_version"] if pretrained != "none" else f"width {keys['convnextv2_initial_width']}"
        return f"{super().load_msg()}: {size}, pretrained on {pretrained}"


def _name(args: Namespace) -> str:
    version = args.convnextv2_version
    if args.convnextv2_pretrained == "imagenet1k":
        return f"facebook/convnextv2-{version}-1k-224"
    if version not in _WITH_22K:
        raise UserError(
            f"convnextv2_pretrained: imagenet22k is published for {', '.join(_WITH_22K)}, not for {version}"
        )
    return f"facebook/convnextv2-{version}-22k-224"
