"""Upstream Milkshake's convolutional network: widths that double, pooling, one linear layer."""

from argparse import Namespace
from itertools import pairwise

from torch import nn

from milkshake_mbp.framework.models.model import Model, image_channels

__all__ = ["CNN"]


class CNN(Model):
    """`cnn_num_layers` − 1 convolutions with ReLUs, pooled by 2 from the second on and by 4 at the end; a linear layer.

    The linear layer's width is that of the first sample seen. Module names are upstream Milkshake's: checkpoints load.

    Args:
        args: the configuration: input_channels, cnn_initial_width, cnn_num_layers, cnn_kernel_size, cnn_padding,
            cnn_batchnorm, bias, train_fc_only and num_classes, beside the keys of `Model`.

    Raises:
        UserError: input_channels is not known.
    """

    def __init__(self, args: Namespace) -> None:
        super().__init__(args)
        widths = [args.cnn_initial_width * 2**index for index in range(args.cnn_num_layers - 1)]
        modules: list[nn.Module] = []
        for index, (inputs, outputs) in enumerate(pairwise([image_channels(args), *widths])):
            modules.append(nn.Conv2d(inputs, outputs, args.cnn_kernel_size, padding=args.cnn_padding, bias=args.bias))
            if args.cnn_batchnorm:
                modules.append(nn.BatchNorm2d(outputs))
            modules.append(nn.ReLU())
            if index:
                modules.append(nn.MaxPool2d(2))
        modules += [nn.MaxPool2d(4), nn.Flatten(), nn.LazyLinear(args.num_classes, bias=args.bias)]
        self.model = nn.Sequential(*modules)
        self.train_only(self.model[-1])

    def load_msg(self) -> str:
        """One line that describes the model."""
        keys = self.hparams
        return f"{super().load_msg()}: {keys['cnn_num_layers']} layers, initial width {keys['cnn_initial_width']}"
