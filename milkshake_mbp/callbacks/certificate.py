"""CertificateCallback: write a network as bytes, and bound its error by their number."""

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor, nn

from milkshake_mbp.callbacks.after_fit import Remembering, fingerprint, log_once
from milkshake_mbp.callbacks.data import source_of, test_samples, train_samples
from milkshake_mbp.codec import (
    CodedLayer,
    CodedNetwork,
    InputMap,
    Node,
    Pool,
    Window,
    decode,
    encode,
    scale_factor,
    to_file_bytes,
)
from milkshake_mbp.codec.certificate import Certificate, certify
from milkshake_mbp.codec.network import grid_after
from milkshake_mbp.errors import UserError
from milkshake_mbp.files import write_atomically
from milkshake_mbp.reading.measure import read_samples
from milkshake_mbp.reading.samples import Samples, Unpack
from milkshake_mbp.theory.layers import Layer
from milkshake_mbp.theory.network import Through
from milkshake_mbp.theory.occam import occam_bound

__all__ = ["Certificate", "CertificateCallback", "RealLayer", "certify", "read_nodes", "round_by_magnitude"]

_KEPT = tuple(2.0**-power for power in range(1, 11))
_LEVELS = (1, 3, 7)
# Samples that choose how much to prune; every one judges what was chosen.
_CHOOSING = 2000
_BIAS_LEVELS = 64
# A row whose largest weight is this much smaller than the layer's is rounded to zero.
_SMALLEST_ROW = 2.0**-20
# What changes no number, or none in eval mode.
_NOTHING = ("Flatten", "Dropout", "Identity")


class CertificateCallback(Remembering):
    """Code the network at the end of fit, and optionally after every n-th epoch; keep the code with the smallest bound.

    A module with a method `coded()` returns its own integer network. Any other sequence of convolutions, linear
    layers, ReLUs, batch normalization and pooling is pruned by magnitude and rounded; the fraction kept and the number
    of levels are those with the smallest bound.
    The guarantee is about the coded network, on the datamodule's inputs, computed on the CPU in float64. It assumes
    that the training samples are independent draws, and that the scaling of the inputs does not depend on them.

    Args:
        every_n_epochs: epochs between two codings; 0 for the end of fit only.
        delta: δ, the failure probability of the guarantee, between 0 and 1.
        path: file for the best code, written whenever it changes and read by `milkshake_mbp.codec.from_file_bytes`;
            None for no file.
        unpack: function that extracts (inputs, targets) from a batch that is not a pair.

    Attributes:
        best: the certificate with the smallest bound; None before the first coding.
        last: the latest certificate; None before the first coding.

    Raises:
        UserError: an argument is out of range; before training, the module is not such a sequence, or the labels are
            noisy, or the samples change from one reading to the next.
    """

    def __init__(
        self, every_n_epochs: int = 0, delta: float = 0.05, path: str | Path | None = None, unpack: Unpack | None = None
    ) -> None:
        if every_n_epochs < 0 or not 0 < delta < 1:
            raise UserError(f"expected every_n_epochs ≥ 0 and delta in (0, 1), got {every_n_epochs} and {delta}")
        self.every_n_epochs, self.delta = every_n_epochs, delta
        self.path = Path(path) if path else None
        self.best: Certificate | None = None
        self.last: Certificate | None = None
        self.unpack = unpack
        self._data: tuple[Tensor, Tensor] | None = None
        self._distinct: int | None = None
        self._coded_weights = ""

    def state_dict(self) -> dict[str, Any]:
        """The best code, for a checkpoint."""
        return {"code": list(self.best.code)} if self.best else {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str | None = None) -> None:
        """Forget the certificates of an earlier fit."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self.best = self.last = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that the network can be certified, read the samples, and certify again the code of a resumed fit."""
        samples = train_samples(source_of(trainer), self.unpack)
        if not hasattr(pl_module, "coded"):
            read_nodes(pl_module, samples)
        self._read(samples)
        assert self._data is not None
        if code := bytes(self.remembered.get("code", [])):
            network, _ = decode(code)
            self._keep(certify(network, *self._data, self.delta, self._distinct))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Code the network if it is time."""
        if self.every_n_epochs and (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            made = self.make(pl_module, source_of(trainer))
            pl_module.log_dict(made.metrics(), rank_zero_only=True)
            assert self.best is not None
            pl_module.log("certificate/best_bound", self.best.bound, prog_bar=True, rank_zero_only=True)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Code the final network, unless its last epoch did and nobody has changed it since."""
        if fingerprint(pl_module) != self._coded_weights:
            made = self.make(pl_module, source_of(trainer))
            log_once(trainer, made.metrics())

    def make(self, module: nn.Module, data: Any) -> Certificate:
        """The certificate of a module as it is; it is kept if its bound is the smallest so far.

        Args:
            module: a sequence as above, or one with a method `coded()`.
            data: a datamodule that is set up, or training samples as a DataLoader, a Dataset or (inputs, targets).

        Raises:
            UserError: see above; or no candidate is within the limits of the format.
        """
        samples = train_samples(data, self.unpack)
        if self._data is None:
            self._read(samples)
        assert self._data is not None
        if coded := getattr(module, "coded", None):
            network = coded()
        else:
            network = _rounded_best(*read_nodes(module, samples), *self._data, self.delta)
        self.last = certify(network, *self._data, self.delta, self._distinct)
        self._coded_weights = fingerprint(module)
        self._keep(self.last)
        return self.last

    def _read(self, samples: Samples) -> None:
        if samples.label_noise > 0:
            raise UserError(
                f"label_noise is {samples.label_noise:g}: a certificate would bound only the error on equally noisy "
                "labels; train with label_noise 0, or without CertificateCallback"
            )
        if not samples.still:
            raise UserError(
                "the training samples change from one reading to the next, as under augmentation, but a certificate "
                "counts errors on fixed samples: make the datamodule's dataset_train return them without augmentation"
            )
        self._data, self._distinct = _stored(samples), samples.distinct

    def test_error(self, module: nn.Module, datamodule: Any) -> float | None:
        """The best network's error on the test set, a probability; None if the configuration says no_test."""
        samples = test_samples(datamodule, module, self.unpack)
        if samples is None or self.best is None:
            return None
        return self.best.network.errors(*_stored(samples)) / len(samples)

    def _keep(self, made: Certificate) -> None:
        if self.best is None or made.bound < self.best.bound:
            self.best = made
            if self.path:
                write_atomically(self.path, to_file_bytes(made.code))


@dataclass(frozen=True)
class RealLayer:
    """A layer before it is rounded.

    Attributes:
        weight: (out, in), of a convolution (out, channels/groups · kernel²).
        bias: (out,), or None.
        window: window of a convolution.
    """

    weight: Tensor
    bias: Tensor | None = None
    window: Window | None = None


def round_by_magnitude(nodes: Sequence[RealLayer | Pool], inputs: InputMap, kept: float, levels: int) -> CodedNetwork:
    """Prune each layer by magnitude and round what is left to integers, row by row.

    Args:
        nodes: in forward order, a ReLU behind every layer but the last; a "sum" stands for an average.
        inputs: what the network sees of a sample.
        kept: fraction of each layer's weights that may stay.
        levels: the largest integer.
    """
    # What the integers compute is 2^−shift · unit times what the real numbers do.
    made: list[Node] = []
    unit, shift = 1.0, 0
    for node in nodes:
        if isinstance(node, Pool):
            unit *= node.kernel**2 if node.kind == "sum" else 1
            made.append(node)
            continue
        weight = node.weight.detach().double().cpu()
        # At a scale of 2^exponent, so that neither tiny nor huge weights leave the range of a float.
        exponent = math.frexp(float(weight.abs().max()))[1]
        weight = torch.ldexp(weight, torch.tensor(-exponent))
        count = max(1, round(kept * weight.numel()))
        weight = weight * (weight.abs() >= weight.abs().flatten().topk(count).values[-1])
        # Rows of scale 2^{k/2} or a little more times that of the smallest, so that no weight exceeds the levels.
        steps = weight.abs().amax(dim=1) / levels
        there = steps > _SMALLEST_ROW * steps.max()
        smallest = float(steps[there].min()) if there.any() else 1.0
        k = (2 * (steps / smallest).clamp(min=1).log2() - 1e-9).ceil().clamp(min=0).long()
        steps = scale_factor(k) / 2 * smallest
        values = (weight / steps[:, None]).round().clamp(-levels, levels).long()
        shift += exponent
        bias = node.bias
        offsets = torch.zeros(len(weight)).double() if bias is None else bias.detach().double().cpu() / steps * unit
        largest = float(offsets.abs().max())
        bias_exponent = math.floor(math.log2(largest / _BIAS_LEVELS)) if largest else 0
        integers = torch.ldexp(offsets, torch.tensor(-bias_exponent)).round().long()
        made.append(CodedLayer(values, integers, k, bias_exponent - shift if largest else 0, node.window))
        unit *= 2 / smallest
    return CodedNetwork(inputs, tuple(made)).live()


def _rounded_best(
    nodes: Sequence[RealLayer | Pool], inputs: InputMap, data: Tensor, targets: Tensor, delta: float
) -> CodedNetwork:
    """The candidate with the smallest bound, by an estimate of its code's length and some of the samples.

    Raises:
        UserError: none is within the limits of the format, as where the weights are not finite.
    """
    layers = [node for node in nodes if isinstance(node, RealLayer)]
    if not all(bool(layer.weight.isfinite().all()) for layer in layers):
        raise UserError("the weights hold NaN or infinity; training diverged, try a smaller lr")
    chosen = torch.randperm(len(targets), generator=torch.Generator().manual_seed(0))[:_CHOOSING]
    candidates = [round_by_magnitude(nodes, inputs, kept, levels) for kept in _KEPT for levels in _LEVELS]

    def estimate(network: CodedNetwork) -> float:
        error = network.errors(data[chosen], targets[chosen]) / len(chosen)
        return occam_bound(error, sum(map(_rough_bits, network.layers)), len(targets), delta)

    for network in sorted(candidates, key=estimate):
        with suppress(ValueError):
            encode(network)
            return network
    raise UserError("no rounding of this network is within the limits of the certificate's format")


def _rough_bits(layer: CodedLayer) -> float:
    """The entropy of a layer's integers."""
    counts = layer.values.flatten().unique(return_counts=True)[1].double()
    shares = counts / counts.sum()
    return float(-(counts * shares.log2()).sum()) + 8 * len(layer.biases)


def read_nodes(module: nn.Module, samples: Samples) -> tuple[list[RealLayer | Pool], InputMap]:
    """The module as a certificate can say it, and what it sees of a sample.

    Batch normalization in eval mode is part of the layer before it. Where averages follow the last layer's ReLU, a
    linear layer that changes nothing is put behind them, since a code ends with a layer.

    Raises:
        UserError: it is something else than a sequence of layers and pooling, a ReLU behind every layer but the last.
    """
    network = read_samples(module, samples).network
    if reason := network.broken.get("sequence") or network.broken.get("coded") or network.broken.get("wired"):
        raise UserError(f"a certificate needs a sequence of layers, ReLUs and pooling, but {reason}")
    ops = [node.op for node in network.nodes if getattr(node.op, "name", "") not in _NOTHING]
    shape = network.layers[0].inputs
    inputs = InputMap(*shape, pixels=False) if len(shape) == 3 else InputMap(1, 1, math.prod(shape), pixels=False)
    grid, nodes, rectified = inputs.grid, list[RealLayer | Pool](), True
    for op in ops:
        if isinstance(op, Layer):
            if not rectified:
                raise UserError(f"a certificate needs a ReLU before layer {op.name}")
            nodes.append(RealLayer(op.effective_kernel, op.bias, _window(op)))
            grid = grid_after(nodes[-1].window, op.shape[0], grid)  # type: ignore[union-attr]
            rectified = False
            continue
        assert isinstance(op, Through)
        if op.name == "ReLU":
            rectified = True
            continue
        pool = _pool(op, grid)
        if pool.kind == "sum" and not rectified:
            raise UserError("a certificate needs a ReLU before average pooling")
        nodes.append(pool)
        grid = pool.grid_after(grid)
    if isinstance(nodes[-1], Pool):
        if not rectified or grid[1:] != (1, 1):
            raise UserError(f"a certificate needs a network that ends with a layer or a global average, got {grid}")
        nodes.append(RealLayer(torch.eye(grid[0])))
    return nodes, inputs


def _window(layer: Layer) -> Window | None:
    """How a convolution's kernel lies; raises UserError unless it is the same in both directions."""
    if (found := layer.window) is None:
        if len(layer.inputs) > 1:
            raise UserError(f"layer {layer.name}: a certificate needs linear layers on vectors, got {layer.inputs}")
        return None
    sides = {*zip(found.size, found.stride, found.padding, strict=True)}
    if len(found.size) != 2 or len(sides) != 1 or set(found.dilation) != {1}:
        raise UserError(f"layer {layer.name}: a certificate needs square kernels on images, got {found}")
    return Window(*sides.pop(), found.groups)


def _pool(op: Through, grid: tuple[int, int, int]) -> Pool:
    """Pooling of squares; raises UserError for anything else."""
    numbers, (_, height, width) = op.numbers, grid
    if op.name == "MaxPool" and len(numbers) == 9:
        down, across, stride, other, *padding = map(int, numbers[:6])
        rest = (*padding, *numbers[8:]) == (0, 0, 0) and numbers[6:8] == (1, 1)
        if rest and down == across and stride == other:
            return Pool("max", down, stride)
    if op.name == "AvgPool" and len(numbers) == 9:
        down, across, stride, other, *padding = map(int, numbers[:6])
        if (
            not any(padding)
            and not numbers[6]
            and numbers[8] in (0, down * across)
            and (down, stride) == (across, other)
        ):
            return Pool("sum", down, stride)
    if op.name == "mean" and height == width and numbers[0] == 2:
        return Pool("sum", height, height)
    if (
        op.name == "AdaptiveAvgPool"
        and numbers == (numbers[0],) * 2
        and height == width
        and not height % int(numbers[0])
    ):
        return Pool("sum", height // int(numbers[0]), height // int(numbers[0]))
    raise UserError(f"a certificate allows only ReLUs and square pooling without padding between layers, got {op.name}")


def _stored(samples: Samples) -> tuple[Tensor, Tensor]:
    """All samples on the CPU, as bytes if they are whole numbers below 256."""
    batches = [(_compact(inputs.cpu()), targets.cpu()) for inputs, targets in samples.batches()]
    return torch.cat([inputs for inputs, _ in batches]), torch.cat([targets for _, targets in batches])


def _compact(inputs: Tensor) -> Tensor:
    whole = inputs.to(torch.uint8)
    return whole if torch.equal(whole.to(inputs.dtype), inputs) else inputs
