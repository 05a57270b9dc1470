"""The coding step: a network as bytes, and what their number guarantees about its error."""

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
from milkshake_mbp.codec import CodedLayer, CodedNetwork, InputMap, decode, encode, scale_factor, to_file_bytes
from milkshake_mbp.errors import UserError
from milkshake_mbp.files import write_atomically
from milkshake_mbp.reading.measure import read_samples
from milkshake_mbp.reading.network import Reading
from milkshake_mbp.reading.samples import Samples, Unpack
from milkshake_mbp.theory.layers import Layer
from milkshake_mbp.theory.network import Through
from milkshake_mbp.theory.occam import occam_bound

__all__ = ["Certificate", "CertificateCallback", "certify", "round_by_magnitude"]

_KEPT = tuple(2.0**-power for power in range(1, 11))
_LEVELS = (1, 3, 7)
# Samples that choose how much to prune; every one judges what was chosen.
_CHOOSING = 2000
_BIAS_LEVELS = 64
# A row whose largest weight is this much smaller than the layer's is rounded to zero.
_SMALLEST_ROW = 2.0**-20


@dataclass(frozen=True)
class Certificate:
    """A network that was read back from its code, and the guarantee on its test error.

    Attributes:
        code: its bytes.
        network: what they decode to.
        errors: samples that it gets wrong, of those that the guarantee rests on.
        num_samples: n.
        delta: δ.
        distinct: how many of the samples (x, y) differ from one another; None if that was not counted.
    """

    code: bytes
    network: CodedNetwork
    errors: int
    num_samples: int
    delta: float
    distinct: int | None = None

    @property
    def bits(self) -> int:
        """C/ln 2: the bytes that the decoder consumes, as bits."""
        return 8 * len(self.code)

    @property
    def error(self) -> float:
        """R̂, a probability."""
        return self.errors / self.num_samples

    @property
    def bound(self) -> float:
        """kl⁻¹(R̂, (C + ln 1/δ)/n), a probability: the test error is below it with probability at least 1 − δ."""
        return occam_bound(self.error, self.bits, self.num_samples, self.delta)

    def metrics(self) -> dict[str, float]:
        """What is logged, by its key in every log."""
        return {
            "certificate/bound": self.bound,
            "certificate/bits": float(self.bits),
            "certificate/train_error": self.error,
            "certificate/nonzeros": float(self.network.nonzeros),
        }


def certify(
    network: CodedNetwork, data: Tensor, targets: Tensor, delta: float, distinct: int | None = None
) -> Certificate:
    """Encode, decode, and judge what came back.

    Args:
        network: what to encode.
        data: (n, ...) samples, independent draws, that no choice of the code was made by.
        targets: (n,) class indices.
        delta: δ.
        distinct: how many of the samples differ from one another, if that was counted.

    Raises:
        ValueError: the network is beyond the limits of the format.
    """
    code = encode(network)
    decoded, _ = decode(code)
    return Certificate(code, decoded, decoded.errors(data, targets), len(targets), delta, distinct)


class CertificateCallback(Remembering):
    """Code the network when fit ends, and every so many epochs if asked; keep the code with the best guarantee.

    A module with a method `coded()` says itself what its network of integers is. Any other multilayer perceptron with
    ReLUs is pruned by magnitude and rounded, to the fraction kept and the number of levels with the best guarantee.
    The guarantee is about the coded network, on the datamodule's inputs, computed on the CPU in float64. It rests on
    the training samples being independent draws, whose inputs were prepared without looking at them as a whole.

    Args:
        every_n_epochs: 0 for the end of fit only.
        delta: δ, between 0 and 1.
        path: where to write the best code whenever it changes, as `milkshake_mbp.codec.from_file_bytes` reads it; None
            for nowhere.
        unpack: takes inputs and targets out of a batch that is not a pair.

    Attributes:
        best: the certificate with the smallest bound; None before the first.
        last: the newest.

    Raises:
        UserError: an argument is out of range; before training, the module is not a chain of Linear layers and ReLUs,
            or the labels are noisy, or the samples change from one reading to the next.
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
        """A fit that begins anew has certificates of its own."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self.best = self.last = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse what cannot be certified; read the samples; judge again what an interrupted fit had found."""
        samples = train_samples(source_of(trainer), self.unpack)
        if not hasattr(pl_module, "coded"):
            _read_relu_chain(pl_module, samples)
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
            module: a chain of Linear layers and ReLUs, or one with a method `coded()`.
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
            network = _rounded_best(module, _read_relu_chain(module, samples), *self._data, self.delta)
        self.last = certify(network, *self._data, self.delta, self._distinct)
        self._coded_weights = fingerprint(module)
        self._keep(self.last)
        return self.last

    def _read(self, samples: Samples) -> None:
        if samples.label_noise > 0:
            raise UserError(
                f"label_noise is {samples.label_noise:g}: a certificate would bound the error on labels as noisy as "
                "these; train with label_noise 0, or without CertificateCallback"
            )
        if not samples.still:
            raise UserError(
                "the training samples change from one reading to the next, as under augmentation: a certificate counts "
                "errors on samples that stay as they are; give them without it, as the datamodule's dataset_train"
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


def round_by_magnitude(
    weights: Sequence[Tensor], biases: Sequence[Tensor | None], kept: float, levels: int
) -> CodedNetwork:
    """Prune each layer by magnitude and round what is left to integers, row by row.

    Args:
        weights: (out, in) tensors in forward order.
        biases: (out,) tensors, or None.
        kept: fraction of each layer's weights that may stay.
        levels: the largest integer.
    """
    layers, unit, shift = [], 1.0, 0
    for weight, bias in zip((w.detach().double().cpu() for w in weights), biases, strict=True):
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
        offsets = torch.zeros(len(weight)).double() if bias is None else bias.detach().double().cpu() / steps * unit
        largest = float(offsets.abs().max())
        bias_exponent = math.floor(math.log2(largest / _BIAS_LEVELS)) if largest else 0
        integers = torch.ldexp(offsets, torch.tensor(-bias_exponent)).round().long()
        layers.append(CodedLayer(values, integers, k, bias_exponent - shift if largest else 0))
        unit *= 2 / smallest
    inputs = InputMap(1, 1, weights[0].shape[1], pixels=False)
    return CodedNetwork(inputs, tuple(layers)).live()


def _rounded_best(module: nn.Module, reading: Reading, data: Tensor, targets: Tensor, delta: float) -> CodedNetwork:
    """The candidate with the smallest bound, by an estimate of its code's length and some of the samples.

    Raises:
        UserError: none is within the limits of the format, as where the weights are not finite.
    """
    weights = reading.matrices(module)
    if not all(bool(weight.isfinite().all()) for weight in weights):
        raise UserError("the weights hold NaN or infinity; training diverged, try a smaller lr")
    biases = [layer.bias for layer in reading.network.layers]
    chosen = torch.randperm(len(targets), generator=torch.Generator().manual_seed(0))[:_CHOOSING]
    candidates = [round_by_magnitude(weights, biases, kept, levels) for kept in _KEPT for levels in _LEVELS]

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


def _read_relu_chain(module: nn.Module, samples: Samples) -> Reading:
    """The module, read; raises UserError unless it is Linear layers with ReLUs between them, and perhaps biases."""
    reading = read_samples(module, samples)
    network = reading.network
    if reason := network.broken.get("chain") or network.broken.get("coded") or network.broken.get("linear"):
        raise UserError(f"a certificate is for perceptrons with ReLUs: {reason}")
    between = [node.op.name for node in network.nodes if isinstance(node.op, Through) and node.op.name != "Flatten"]
    if odd := sorted(set(between) - {"ReLU"}):
        raise UserError(f"a certificate is for networks with ReLUs, and this one has {', '.join(odd)}")
    kinds = [isinstance(node.op, Layer) for node in network.nodes if getattr(node.op, "name", "") != "Flatten"]
    if kinds != [True, False] * (len(network.layers) - 1) + [True]:
        raise UserError("a certificate is for perceptrons with one ReLU between any two layers")
    return reading


def _stored(samples: Samples) -> tuple[Tensor, Tensor]:
    """All samples on the CPU, as bytes if they are whole numbers below 256."""
    batches = [(_compact(inputs.cpu()), targets.cpu()) for inputs, targets in samples.batches()]
    return torch.cat([inputs for inputs, _ in batches]), torch.cat([targets for _, targets in batches])


def _compact(inputs: Tensor) -> Tensor:
    whole = inputs.to(torch.uint8)
    return whole if torch.equal(whole.to(inputs.dtype), inputs) else inputs
