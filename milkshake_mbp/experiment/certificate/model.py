"""Training of a network whose every parameter is an integer, with a price on every weight that is not zero."""

import math
from argparse import Namespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from milkshake_mbp.codec import CodedLayer, CodedNetwork, InputMap, Node, Pool, Window, row_factor, scale_factor
from milkshake_mbp.codec.banks import UNIT
from milkshake_mbp.codec.network import Grid, grid_after
from milkshake_mbp.errors import UserError
from milkshake_mbp.experiment.certificate.settings import read_node
from milkshake_mbp.framework.models import Model

__all__ = ["CodedNet", "input_map"]

# In units of a weight of size 1: where rounding to zero ends, and from where on a weight pays its full price.
_DEAD, _FULL_PRICE = 0.5, 1.2
# What a weight takes of the code, about; and nats of error that a nat of code is worth, near 4% and 4,000 bits.
_BITS_A_WEIGHT, _WORTH = 5.0, 0.88
# Shares of the training: when prices begin, when they fall, when the loss turns to errors, when damping begins.
_FREE, _FALL, _TURN, _DAMPED = 0.1, (0.35, 0.65), (0.25, 0.7), 0.6
# Of `row_factor`, about: it is 256 for a row of zeros.
_ROW_BITS = 8
_BANKS = {"none": 0, "grey": 1, "colour": 2}


class CodedNet(Model):
    """Latent real weights, rounded to integers by magnitude in the forward pass and straight through in the backward.

    Rounding is magnitude pruning: a weight below half a unit is zero. A price draws weights there; the latent weights
    go on learning, so those that the loss pulls hard come back. Towards the end each is drawn to its rounded value, so
    that those near a threshold do not go on crossing it.

    Args:
        args: the configuration, with the keys of `Certifying`, those of `Model`, num_classes, and from the data
            `sample_shape` (channels, height, width), `num_samples` and `brightest`, the largest pixel.
    """

    def __init__(self, args: Namespace) -> None:
        super().__init__(args)
        self.inputs = input_map(args)
        # What inputs are divided by; a bank's are in whole parts of the image's root mean square.
        self.unit = float(UNIT) if self.inputs.bank else self.inputs.largest * args.brightest / 255
        generator = torch.Generator().manual_seed(args.seed)
        levels, grid = iter(args.levels), self.inputs.grid
        self._nodes: list[Rounded | Pool] = []
        for shape in shapes(args):
            node: Rounded | Pool
            try:
                node = (
                    shape
                    if isinstance(shape, Pool)
                    else Rounded(*shape, grid, next(levels), self.unit, args, generator)
                )
                after = node.grid_after(grid)
            except ValueError as error:
                raise UserError(f"nodes: {error}") from error
            if min(after) < 1:
                raise UserError(f"nodes: {shape} leaves no outputs of {grid}: use smaller kernels")
            self._nodes.append(node)
            grid = after
        self._layers = [node for node in self._nodes if isinstance(node, Rounded)]
        self.model = nn.ModuleList(self._layers)
        # Of the softmax, where nothing else gives the logits a scale.
        self.log_temperature = nn.Parameter(torch.zeros(())) if args.free_scales else None
        self.price = args.price * _BITS_A_WEIGHT * math.log(2) / args.num_samples * _WORTH

    def load_msg(self) -> str:
        """One line that describes the model."""
        grids = [self.inputs.grid]
        for node in self._nodes:
            grids.append(node.grid_after(grids[-1]))
        shown = " → ".join("×".join(map(str, grid)).removesuffix("×1×1") for grid in grids)
        return f"{type(self).__name__}: {shown}, levels {self.hparams['levels']}"

    def forward(self, inputs: Tensor) -> Tensor:
        """(n, channels, height, width) pixels, or what `inputs` makes of them, to (n, k) logits."""
        if inputs.shape[1:] != self.inputs.grid:
            inputs = self.inputs(inputs).to(self.dtype)
        hidden = inputs.reshape(-1, *self.inputs.grid) / self.unit
        for node in self._nodes:
            last = node is self._nodes[-1]
            hidden = _pooled(node, hidden) if isinstance(node, Pool) else node(hidden, last)
        return hidden.flatten(1)

    def step(self, batch: tuple[Tensor, Tensor], idx: int) -> dict[str, Tensor]:
        """One batch: the probability of error, smoothed by some cross entropy, and the price of the weights.

        Targets are class numbers, or these and behind them a teacher's probabilities, which then are a share of what is
        to be learned.
        """
        inputs, targets = batch
        logits = self(inputs)
        if self.log_temperature is not None:
            logits = logits * self.log_temperature.exp()
        log_probs = logits.log_softmax(dim=1)
        keys, wanted = self.hparams, None
        if targets.ndim == 2:
            targets, wanted = targets[:, 0].long(), keys["distillation"] * targets[:, 1:]
        own = log_probs.gather(1, targets[:, None])[:, 0]
        log_loss, right = -own, own.exp()
        if wanted is not None and self.training:
            log_loss = (1 - keys["distillation"]) * log_loss - (wanted * log_probs).sum(dim=1)
            right = (1 - keys["distillation"]) * right + (wanted * log_probs.exp()).sum(dim=1)
        share = keys["cross_entropy"] + (keys["cross_entropy_first"] - keys["cross_entropy"]) * self._left(*_TURN)
        loss = (share * log_loss + (1 - share) * (1 - right)).mean()
        if self.training:
            loss = loss + self._price_now() * sum(layer.charge() for layer in self._layers)
        return {"loss": loss, "probs": log_probs.detach().exp(), "targets": targets}

    def _done(self) -> float:
        """The share of the training that is over."""
        return self.global_step / max(1, self.trainer.estimated_stepping_batches) if self._trainer else 1.0

    def _left(self, start: float, end: float) -> float:
        """1 before the start, 0 after the end, and a line between."""
        return min(1.0, max(0.0, (end - self._done()) / (end - start)))

    def _price_now(self) -> float:
        """Nothing in the first tenth of the steps; then it rises to the whole price, and may fall later."""
        rise = self.hparams["price_rise"]
        up = 1 - self._left(_FREE, _FREE + rise) if rise else float(self._done() >= _FREE)
        end = self.hparams["price_end"]
        return self.price * up * (end + (1 - end) * self._left(*_FALL))

    def on_train_batch_end(self, *unused: object) -> None:
        """Keep latent weights where they can still be felt; damp them."""
        pull = self.hparams["damping"] * (1 - self._left(_DAMPED, 1.0))
        with torch.no_grad():
            for layer in self._layers:
                layer.weight.clamp_(-layer.levels - 0.5, layer.levels + 0.5)
                if pull:
                    layer.damp(pull)

    def configure_optimizers(self) -> Any:
        """Adam, its rate falling along a cosine at every step; the latent weights need no decay."""
        optimizer = torch.optim.Adam(self.parameters(), lr=self.hparams["lr"], betas=(0.9, self.hparams["adam_decay"]))
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
        nodes: list[Node] = []
        shift = 0
        for node in self._nodes:
            if isinstance(node, Pool):
                nodes.append(node)
                shift += _pool_shift(node)
                continue
            values, biases, k = node.rounded()
            # The layers before multiply by 2^shift more than training does, where hidden units are of order 1.
            exponent = node.bias_exponent + shift
            scales, more = None, _ROW_BITS
            if k is not None:
                even = 2 * int(k.min() // 2)
                scales, more = (k - even).long(), 1 - even // 2
            nodes.append(CodedLayer(values.long(), biases.long(), scales, exponent, node.window))
            shift += more
        network = CodedNetwork(self.inputs, tuple(nodes)).live()
        return network.canonical() if self.hparams["free_scales"] else network


def input_map(args: Namespace) -> InputMap:
    """What the network sees, from the keys and the data's `sample_shape`.

    Raises:
        UserError: nothing is left of the samples, or the bank is not for them.
    """
    channels, height, width = args.sample_shape
    bank = _BANKS[args.bank]
    try:
        if bank:
            return InputMap(channels, height, width, crop=args.crop, bank=bank, cell=args.cell)
        return InputMap(
            channels, height, width, crop=args.crop, pool=args.pool, stride=args.stride or args.pool, grey=args.grey
        )
    except ValueError as error:
        if bank:
            raise UserError(
                f"bank: {args.bank} with cell {args.cell} does not fit samples of shape {args.sample_shape}: {error}"
            ) from error
        raise UserError(f"crop {args.crop} and pool {args.pool} are too large for {height} × {width} pixels") from error


def shapes(args: Namespace) -> list[Pool | tuple[int, Window | None]]:
    """Pooling, and layers as their outputs and windows, from `nodes`, `hidden` and the number of classes."""
    dense = [(width, None) for width in (*args.hidden, args.num_classes)]
    return [*map(read_node, args.nodes), *dense]


def _pool_shift(pool: Pool) -> int:
    """Sums are divided by about their number of terms in training: by a power of two, so that steps stay dyadic."""
    return round(2 * math.log2(pool.kernel)) if pool.kind == "sum" else 0


def _pooled(pool: Pool, hidden: Tensor) -> Tensor:
    """(n, c, h, w) to the same."""
    if pool.kind == "max":
        return F.max_pool2d(hidden, pool.kernel, pool.stride)
    return F.avg_pool2d(hidden, pool.kernel, pool.stride, divisor_override=2 ** _pool_shift(pool))


class Rounded(nn.Module):
    """One layer: V round the latent weights, b in steps, and rows scaled by `scale_factor(k)`/2 or `row_factor`/256.

    Args:
        outputs: rows.
        window: of a convolution.
        grid: channels, rows and columns that it reads.
        levels: the largest weight.
        unit: what the first layer's inputs were divided by.
        args: the configuration.
        generator: of the first latent weights.
    """

    def __init__(
        self,
        outputs: int,
        window: Window | None,
        grid: Grid,
        levels: int,
        unit: float,
        args: Namespace,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.out_features, self.window, self.levels = outputs, window, levels
        columns = window.columns(grid) if window else math.prod(grid)
        self.bias_exponent = round(math.log2(args.bias_step * unit))
        self._step = 2.0**self.bias_exponent / unit
        # Below the full price, or an input that is always zero would keep its weights: nothing would move them.
        start = 0.6 * torch.randn(outputs, columns, generator=generator)
        self.weight = nn.Parameter(start.clamp(-1, 1))
        self.bias = nn.Parameter(torch.zeros(outputs))
        scale = torch.full((outputs,), -0.5 * math.log2(max(1.0, 0.2 * columns)))
        self.log_scale = None if args.free_scales else nn.Parameter(scale)

    def grid_after(self, grid: Grid) -> Grid:
        """Channels, rows and columns of what it gives."""
        return grid_after(self.window, self.out_features, grid)

    def rounded(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """V, b, and k of any sign or None."""
        k = None if self.log_scale is None else (2 * self.log_scale).round()
        return self._whole(), (self.bias / self._step).round(), k

    def _whole(self) -> Tensor:
        size = self.weight.abs()
        size = torch.where(size < _DEAD, 0.0, (size + (1 - _DEAD)).floor().clamp(1, self.levels))
        return size * self.weight.sign()

    def charge(self) -> Tensor:
        """How many weights pay, those on the way to zero in part."""
        return self.weight.abs().clamp(max=_FULL_PRICE).sum()

    def damp(self, pull: float) -> None:
        """Draw weights and biases by a share of the way to what they are rounded to."""
        values, biases, _ = self.rounded()
        self.weight.lerp_(values, pull)
        self.bias.lerp_(biases * self._step, pull)

    def forward(self, hidden: Tensor, last: bool) -> Tensor:
        """(n, c, h, w) to (n, out, h', w')."""
        values, biases, k = self.rounded()
        if self.log_scale is None or k is None:
            scale = row_factor(values.detach()).to(hidden.dtype) / 2**_ROW_BITS
        else:
            # The slope of 2^x stands in for that of the rounded scale.
            scale = _straight_through(2**self.log_scale, scale_factor(k).to(hidden.dtype) / 2)
        weight = _straight_through(self.weight, values)
        bias = _straight_through(self.bias, biases * self._step)
        if self.window is None:
            sums = F.linear(hidden.flatten(1), weight, bias)
            return (sums if last else sums.relu()) * scale
        kernels = weight.reshape(len(weight), -1, self.window.kernel, self.window.kernel)
        sums = F.conv2d(hidden, kernels, bias, self.window.stride, self.window.padding, groups=self.window.groups)
        return (sums if last else sums.relu()) * scale[:, None, None]


def _straight_through(latent: Tensor, rounded: Tensor) -> Tensor:
    return latent + (rounded - latent).detach()
