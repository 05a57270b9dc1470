"""Training of a network whose every parameter is an integer, with a price on every weight that is not zero."""

import math
from argparse import Namespace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from milkshake_mbp.codec import CodedLayer, CodedNetwork, InputMap, scale_factor
from milkshake_mbp.errors import UserError
from milkshake_mbp.framework.models import Model

__all__ = ["CodedMLP", "input_map"]

# In units of a weight of size 1: where rounding to zero ends, and from where on a weight pays its full price.
_DEAD, _FULL_PRICE = 0.5, 1.2
# What a weight takes of the code, about; and nats of error that a nat of code is worth, near 4% and 4,000 bits.
_BITS_A_WEIGHT, _WORTH = 5.0, 0.88
# Biases are whole multiples of about a quarter of the largest input.
_BIAS_STEP = 0.25
_FREE, _RAMP = 0.1, 0.4


class CodedMLP(Model):
    """Latent real weights, rounded to integers by magnitude in the forward pass and straight through in the backward.

    Rounding is magnitude pruning: a weight below half a unit is zero. A price that rises through the first half of the
    training draws weights there, more and more of them; the latent weights go on learning, so those that the loss pulls
    hard come back. Rows have scales, 2^(k/2) or nearly so.

    Args:
        args: the configuration, with the keys of `Certificate`, those of `Model`, num_classes, and from the data
            `sample_shape` (channels, height, width), `num_samples` and `brightest`, the largest pixel.
    """

    def __init__(self, args: Namespace) -> None:
        super().__init__(args)
        self.inputs = input_map(args)
        self.unit = self.inputs.largest * args.brightest / 255
        widths = [self.inputs.num_inputs, *args.hidden, args.num_classes]
        generator = torch.Generator().manual_seed(args.seed)
        self._layers = [
            Rounded(i, o, levels, self.unit, generator)
            for (i, o), levels in zip(pairwise(widths), args.levels, strict=True)
        ]
        self.model = nn.ModuleList(self._layers)
        self.price = args.price * _BITS_A_WEIGHT * math.log(2) / args.num_samples * _WORTH

    def load_msg(self) -> str:
        """One line that describes the model."""
        widths = [self.inputs.num_inputs, *(layer.out_features for layer in self._layers)]
        return f"{type(self).__name__}: {' → '.join(map(str, widths))}, levels {self.hparams['levels']}"

    def forward(self, inputs: Tensor) -> Tensor:
        """(n, channels, height, width) pixels to (n, k) logits."""
        hidden = self.inputs(inputs).to(self.dtype) / self.unit
        for index, layer in enumerate(self._layers):
            hidden = layer(hidden, last=index == len(self._layers) - 1)
        return hidden

    def step(self, batch: tuple[Tensor, Tensor], idx: int) -> dict[str, Tensor]:
        """One batch: the probability of error, smoothed by some cross entropy, and the price of the weights."""
        inputs, targets = batch
        log_probs = self(inputs).log_softmax(dim=1)
        own = log_probs.gather(1, targets[:, None])[:, 0]
        share = self.hparams["cross_entropy"]
        loss = (share * -own + (1 - share) * (1 - own.exp())).mean()
        if self.training:
            loss = loss + self._price_now() * sum(layer.charge() for layer in self._layers)
        return {"loss": loss, "probs": log_probs.detach().exp(), "targets": targets}

    def _price_now(self) -> float:
        """Nothing in the first tenth of the steps; the whole price from the middle on."""
        done = self.global_step / max(1, self.trainer.estimated_stepping_batches)
        return self.price * min(1.0, max(0.0, (done - _FREE) / _RAMP))

    def on_train_batch_end(self, *unused: object) -> None:
        """Keep latent weights where they can still be felt."""
        with torch.no_grad():
            for layer in self._layers:
                layer.weight.clamp_(-layer.levels - 0.5, layer.levels + 0.5)

    def configure_optimizers(self) -> Any:
        """Adam, its rate falling along a cosine at every step; the latent weights need no decay."""
        optimizer = torch.optim.Adam(self.model.parameters(), lr=self.hparams["lr"])
        steps = int(self.trainer.estimated_stepping_batches)
        warmup = min(200, steps // 10)

        def rate(step: int) -> float:
            rise = min(1.0, (step + 1) / (warmup + 1))
            return rise * (0.5 + 0.5 * math.cos(math.pi * min(step, steps) / max(1, steps)) + 1e-3)

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @torch.no_grad()
    def coded(self) -> CodedNetwork:
        """The network that the forward pass computes, as integers, without its dead neurons."""
        layers, shift = [], 0
        for layer in self._layers:
            values, biases, k = layer.rounded()
            # The layers before multiply by 2^shift more than training does, where hidden units are of order 1.
            even = 2 * int(k.min() // 2)
            layers.append(CodedLayer(values.long(), biases.long(), (k - even).long(), layer.bias_exponent + shift))
            shift += 1 - even // 2
        return CodedNetwork(self.inputs, tuple(layers)).live()


def input_map(args: Namespace) -> InputMap:
    """What the network sees, from the keys and the data's `sample_shape`.

    Raises:
        UserError: nothing is left of the samples.
    """
    channels, height, width = args.sample_shape
    try:
        return InputMap(
            channels, height, width, crop=args.crop, pool=args.pool, stride=args.stride or args.pool, grey=args.grey
        )
    except ValueError as error:
        raise UserError(f"crop {args.crop} and pool {args.pool} are too large for {height} × {width} pixels") from error


class Rounded(nn.Module):
    """One layer: V round the latent weights, b in steps, and rows scaled by `scale_factor(k)`/2.

    Args:
        in_features: columns.
        out_features: rows.
        levels: the largest weight.
        unit: what the first layer's inputs were divided by.
        generator: of the first latent weights.
    """

    def __init__(
        self, in_features: int, out_features: int, levels: int, unit: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.levels = in_features, out_features, levels
        self.bias_exponent = round(math.log2(_BIAS_STEP * unit))
        self._step = 2.0**self.bias_exponent / unit
        # Below the full price, or an input that is always zero would keep its weights: nothing would move them.
        start = 0.6 * torch.randn(out_features, in_features, generator=generator)
        self.weight = nn.Parameter(start.clamp(-1, 1))
        self.bias = nn.Parameter(torch.zeros(out_features))
        self.log_scale = nn.Parameter(torch.full((out_features,), -0.5 * math.log2(max(1.0, 0.2 * in_features))))

    def rounded(self) -> tuple[Tensor, Tensor, Tensor]:
        """V, b and k of any sign."""
        size = self.weight.abs()
        size = torch.where(size < _DEAD, 0.0, (size + (1 - _DEAD)).floor().clamp(1, self.levels))
        return size * self.weight.sign(), (self.bias / self._step).round(), (2 * self.log_scale).round()

    def charge(self) -> Tensor:
        """How many weights pay, those on the way to zero in part."""
        return self.weight.abs().clamp(max=_FULL_PRICE).sum()

    def forward(self, hidden: Tensor, last: bool) -> Tensor:
        """(n, in) to (n, out)."""
        values, biases, k = self.rounded()
        factor = scale_factor(k).to(hidden.dtype) / 2
        # The slope of 2^x stands in for that of the rounded scale.
        scale = _straight_through(2**self.log_scale, factor)
        bias = _straight_through(self.bias, biases * self._step)
        sums = F.linear(hidden, _straight_through(self.weight, values), bias)
        return (sums if last else sums.relu()) * scale


def _straight_through(latent: Tensor, rounded: Tensor) -> Tensor:
    return latent + (rounded - latent).detach()
