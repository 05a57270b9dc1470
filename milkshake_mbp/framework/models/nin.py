"""Network in network (Lin, Chen and Yan 2014), as upstream Milkshake has it."""

from argparse import Namespace
from itertools import pairwise

from torch import nn

from milkshake_mbp.framework.models.model import Model, image_channels

__all__ = ["NiN"]


class NiN(Model):
    """Blocks of a 3 × 3 convolution of stride 2, two of 1 × 1, pooling and dropout; last, the mean over a 1 × 1 one.

    `nin_padding` pads the 1 × 1 convolutions too, as upstream Milkshake's checkpoints expect.

    Args:
        args: the configuration: input_channels, nin_width, nin_num_layers, nin_padding, bias, dropout_prob,
            train_fc_only and num_classes, beside the keys of `Model`.

    Raises:
        UserError: input_channels is not known.
    """

    def __init__(self, args: Namespace) -> None:
        super().__init__(args)
        padded = {"padding": args.nin_padding, "bias": args.bias}
        modules: list[nn.Module] = []
        for inputs, width in pairwise([image_channels(args), *[args.nin_width] * args.nin_num_layers]):
            modules += [nn.Conv2d(inputs, width, 3, stride=2, **padded), nn.ReLU()]
            for _ in range(2):
                modules += [nn.Conv2d(width, width, 1, **padded), nn.ReLU()]
            modules += [
                nn.MaxPool2d(3, stride=2),
                nn.Dropout(args.dropout_prob) if args.dropout_prob else nn.Identity(),
            ]
        scores = nn.Conv2d(args.nin_width, args.num_classes, 1, **padded)
        self.model = nn.Sequential(*modules, scores, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.train_only(scores)

    def load_msg(self) -> str:
        """One line that describes the model."""
        keys = self.hparams
        return f"{super().load_msg()}: {keys['nin_num_layers']} blocks, width {keys['nin_width']}"
