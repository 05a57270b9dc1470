"""Assumptions about a network that a file of weights does not contain, and a check of these assumptions."""

import math
from argparse import Namespace

import torch
from torch import nn

from milkshake_mbp.errors import UserError
from milkshake_mbp.framework.datamodules import DataModule

__all__ = ["assumptions", "doubt", "set_up"]

_BATCH = 4096


def set_up(datamodule: DataModule, args: Namespace) -> None:
    """Set a datamodule up for fit; its inputs are (u − mean)/std of pixels u from 0 to 1 where the keys say so.

    Args:
        datamodule: one whose pixels become inputs from −1 to 1 otherwise.
        args: the configuration: `input_mean` and `input_std`, a number each or one for every channel; empty for none.

    Raises:
        UserError: one key without the other, a number of them that is not the channels', or the datamodule scales its
            inputs in a way of its own; and as the datamodule does.
    """
    if len(args.input_mean) != len(args.input_std):
        raise UserError(
            f"input_mean, input_std: expected as many of one as of the other, got {args.input_mean} "
            f"and {args.input_std}"
        )
    if args.input_mean:
        if not isinstance(datamodule.scale, float) or datamodule.shift != -1:
            raise UserError(f"input_mean, input_std: {args.datamodule} scales its own inputs; leave the two out")
        # Its brightest pixel, whatever was done so that rounding carries no input beyond 1.
        brightest = round(2 / datamodule.scale)
        scale = [1 / (brightest * std) for std in args.input_std]
        shift = [-mean / std for mean, std in zip(args.input_mean, args.input_std, strict=True)]
        datamodule.scale, datamodule.shift = (scale, shift) if len(scale) > 1 else (scale[0], shift[0])
    datamodule.prepare_data()
    try:
        datamodule.setup("fit")
    except UserError:
        raise
    except ValueError as error:  # the number of channels is known with the data
        raise UserError(f"input_mean, input_std: {error}") from error
    if args.input_mean and datamodule.dataset_train.data.is_floating_point():
        raise UserError(f"input_mean, input_std: {args.datamodule} has real inputs, not pixels; leave the two out")


def assumptions(args: Namespace, datamodule: DataModule, activation: bool) -> str:
    """One line with the assumptions about activation and inputs, and the keys that change them.

    Args:
        args: the configuration.
        datamodule: as `set_up` leaves it.
        activation: whether the activation is an assumption, rather than that of the user's own class.
    """
    pixels = not datamodule.dataset_train.data.is_floating_point()
    if not pixels:
        inputs = f"unscaled inputs of {args.datamodule}"
    elif args.input_mean:
        ends = [(end - m) / s for m, s in zip(args.input_mean, args.input_std, strict=True) for end in (0, 1)]
        inputs = f"inputs from {min(ends):.4g} to {max(ends):.4g}"
    else:
        inputs = f"inputs as {args.datamodule} scales them, from -1 to 1"
    between = [f"{args.ffn_activation} between the layers"] * activation
    keys = ["--ffn_activation"] * activation + ["--input_mean and --input_std"] * pixels
    change = f"; change with {', '.join(keys)}" if keys else ""
    return f"assumed: {', '.join([*between, inputs])}{change}"


@torch.no_grad()
def doubt(module: nn.Module, datamodule: DataModule) -> str:
    """A warning if the network is no better on the training samples than guessing the most frequent class; else "".

    "No better" means an error within three standard deviations of that of guessing.
    """
    data = datamodule.dataset_train
    wrong = 0
    dtype = next(module.parameters()).dtype
    module.eval()
    for start in range(0, len(data), _BATCH):
        inputs, targets = data.__getitems__(range(start, min(start + _BATCH, len(data))))
        wrong += int((module(inputs.to(dtype)).argmax(dim=1) != targets).sum())
    guess = 1 - float(data.targets.bincount().max()) / len(data)
    error = wrong / len(data)
    if error < guess - 3 * math.sqrt(guess * (1 - guess) / len(data)):
        return ""
    return f"the training error is {error:.0%}: no better than guessing; is this the right data, scaling or activation?"
