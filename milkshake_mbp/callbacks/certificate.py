"""The coding step: a network as bytes, and what their number guarantees about its error."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

from milkshake_mbp.callbacks.after_fit import log_once
from milkshake_mbp.callbacks.measure import Chain, Samples, test_samples, train_samples
from milkshake_mbp.codec import CodedLayer, CodedNetwork, InputMap, decode, encode, scale_factor, to_file_bytes
from milkshake_mbp.errors import UserError
from milkshake_mbp.files import write_atomically
from milkshake_mbp.theory.occam import occam_bound

__all__ = ["Certificate", "CertificateCallback", "certify", "round_by_magnitude"]

_KEPT = tuple(2.0**-power for power in range(1, 11))
_LEVELS = (1, 3, 7)
# Samples that choose how much to prune; every one judges what was chosen.
_CHOOSING = 2000
_CHECKED = 64
_BIAS_LEVELS = 64


@dataclass(frozen=True)
class Certificate:
    """A network that was read back from its code, and the guarantee on its test error.

    Attributes:
        code: its bytes.
        network: what they decode to.
        errors: samples that it gets wrong, of those that the guarantee rests on.
        num_samples: n.
        delta: δ.
    """

    code: bytes
    network: CodedNetwork
    errors: int
    num_samples: int
    delta: float

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


def certify(network: CodedNetwork, data: Tensor, targets: Tensor, delta: float) -> Certificate:
    """Encode, decode, and judge what came back.

    Args:
        network: what to encode.
        data: (n, ...) distinct samples that no choice of the code was made by.
        targets: (n,) class indices.
        delta: δ.

    Raises:
        ValueError: the network is beyond the limits of the format.
    """
    code = encode(network)
    decoded, _ = decode(code)
    return Certificate(code, decoded, decoded.errors(data, targets), len(targets), delta)


class CertificateCallback(Callback):
    """Code the network when fit ends, and every so many epochs if asked; keep the code with the best guarantee.

    A module with a method `coded()` says itself what its network of integers is. Any other multilayer perceptron with
    ReLUs is pruned by magnitude and rounded, to the fraction kept and the number of levels with the best guarantee.
    The guarantee is about the coded network, on the datamodule's inputs, computed on the CPU in float64.

    Args:
        every_n_epochs: 0 for the end of fit only.
        delta: δ, between 0 and 1.
        path: where to write the best code whenever it changes, as `milkshake_mbp.codec.from_file_bytes` reads it; None
            for nowhere.

    Attributes:
        best: the certificate with the smallest bound; None before the first.
        last: the newest.

    Raises:
        UserError: an argument is out of range; or the module is no chain of Linear layers and ReLUs.
    """

    def __init__(self, every_n_epochs: int = 0, delta: float = 0.05, path: str | Path | None = None) -> None:
        if every_n_epochs < 0 or not 0 < delta < 1:
            raise UserError(f"expected every_n_epochs ≥ 0 and delta in (0, 1), got {every_n_epochs} and {delta}")
        self.every_n_epochs, self.delta = every_n_epochs, delta
        self.path = Path(path) if path else None
        self.best: Certificate | None = None
        self.last: Certificate | None = None
        self._data: tuple[Tensor, Tensor] | None = None
        self._resumed = b""

    def state_dict(self) -> dict[str, Any]:
        """The best code, for a checkpoint."""
        return {"code": list(self.best.code)} if self.best else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the best code of an interrupted fit."""
        self._resumed = bytes(state_dict.get("code", []))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the samples; judge again what an interrupted fit had found."""
        if not hasattr(pl_module, "coded"):
            _check_relu(pl_module)
        self.best = self.last = None
        self._data = _stored(train_samples(trainer.datamodule))  # type: ignore[attr-defined]
        if self._resumed:
            network, _ = decode(self._resumed)
            self._keep(certify(network, *self._data, self.delta))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Code the network if it is time."""
        if self.every_n_epochs and (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            made = self.make(pl_module, trainer.datamodule)  # type: ignore[attr-defined]
            pl_module.log_dict(made.metrics(), rank_zero_only=True)
            pl_module.log("certificate/best_bound", self.best.bound, prog_bar=True, rank_zero_only=True)  # type: ignore[union-attr]

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Code the network, unless its last epoch did."""
        if not self.every_n_epochs or trainer.current_epoch % self.every_n_epochs:
            made = self.make(pl_module, trainer.datamodule)  # type: ignore[attr-defined]
            log_once(trainer, made.metrics())

    def make(self, module: nn.Module, datamodule: Any) -> Certificate:
        """The certificate of a module as it is; it is kept if its bound is the smallest so far."""
        data, targets = self._data or _stored(train_samples(datamodule))
        if coded := getattr(module, "coded", None):
            network = coded()
        else:
            _check_relu(module)
            Chain.of(module).check(module, data[:_CHECKED].to(next(module.parameters()).device))
            network = _rounded_best(module, data, targets, self.delta)
        self.last = certify(network, data, targets, self.delta)
        self._keep(self.last)
        return self.last

    def test_error(self, module: nn.Module, datamodule: Any) -> float | None:
        """The best network's error on the test set, a probability; None if the configuration says no_test."""
        samples = test_samples(datamodule, module)
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
    layers, unit = [], 1.0
    for weight, bias in zip((w.detach().double().cpu() for w in weights), biases, strict=True):
        count = max(1, round(kept * weight.numel()))
        weight = weight * (weight.abs() >= weight.abs().flatten().topk(count).values[-1])
        # Rows of scale 2^{k/2} or a little more times that of the smallest, so that no weight exceeds the levels.
        steps = weight.abs().amax(dim=1) / levels
        smallest = float(steps[steps > 0].min())
        k = (2 * (steps / smallest).clamp(min=1).log2() - 1e-9).ceil().clamp(min=0).long()
        steps = scale_factor(k) / 2 * smallest
        values = (weight / steps[:, None]).round().clamp(-levels, levels).long()
        offsets = torch.zeros(len(weight)).double() if bias is None else bias.detach().double().cpu() / steps * unit
        largest = float(offsets.abs().max())
        exponent = math.floor(math.log2(largest / _BIAS_LEVELS)) if largest else 0
        layers.append(CodedLayer(values, (offsets / 2.0**exponent).round().long(), k, exponent))
        unit *= 2 / smallest
    inputs = InputMap(1, 1, weights[0].shape[1], pixels=False)
    return CodedNetwork(inputs, tuple(layers)).live()


def _rounded_best(module: nn.Module, data: Tensor, targets: Tensor, delta: float) -> CodedNetwork:
    """The candidate with the smallest bound, by an estimate of its code's length and some of the samples."""
    layers = list(Chain.of(module).layers.values())
    weights, biases = [layer.weight for layer in layers], [layer.bias for layer in layers]
    chosen = torch.randperm(len(targets), generator=torch.Generator().manual_seed(0))[:_CHOOSING]
    candidates = (round_by_magnitude(weights, biases, kept, levels) for kept in _KEPT for levels in _LEVELS)

    def estimate(network: CodedNetwork) -> float:
        error = network.errors(data[chosen], targets[chosen]) / len(chosen)
        return occam_bound(error, sum(map(_rough_bits, network.layers)), len(targets), delta)

    return min(candidates, key=estimate)


def _rough_bits(layer: CodedLayer) -> float:
    """The entropy of a layer's integers."""
    counts = layer.values.flatten().unique(return_counts=True)[1].double()
    shares = counts / counts.sum()
    return float(-(counts * shares.log2()).sum()) + 8 * len(layer.biases)


def _check_relu(module: nn.Module) -> None:
    chain = Chain.of(module)
    inner = getattr(module, "model", module)
    odd = {
        type(part).__name__
        for part in inner.modules()
        if not list(part.children()) and not isinstance(part, (nn.Linear, nn.ReLU, nn.Identity, nn.Dropout, nn.Flatten))
    }
    if len(chain.layers) > 1 and odd:
        raise UserError(f"a certificate is for networks with ReLUs, and this one has {', '.join(sorted(odd))}")


def _stored(samples: Samples) -> tuple[Tensor, Tensor]:
    """All samples on the CPU, as bytes if they are whole numbers below 256."""
    batches = [(_compact(inputs), targets) for inputs, targets in samples.batches(torch.device("cpu"))]
    return torch.cat([inputs for inputs, _ in batches]), torch.cat([targets for _, targets in batches])


def _compact(inputs: Tensor) -> Tensor:
    whole = inputs.to(torch.uint8)
    return whole if torch.equal(whole.to(inputs.dtype), inputs) else inputs
