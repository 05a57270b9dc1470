"""What the callbacks read from a Milkshake model and datamodule: its linear layers, and margins over the data."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.data import DataLoader

from milkshake_mbp.errors import UserError
from milkshake_mbp.theory.margins import margins

__all__ = ["Chain", "Outputs", "Samples", "check_strength", "measure_outputs", "test_samples", "train_samples"]

_EVALUATION_BATCH = 4096
# Lipschitz constant at most 1 and φ(0) = 0, as the paper's network has it.
_ZERO_PRESERVING = (nn.ReLU, nn.LeakyReLU, nn.ReLU6, nn.Tanh, nn.Softshrink, nn.Tanhshrink)
_TRANSPARENT = (nn.Identity, nn.Flatten, nn.Dropout)


@dataclass(frozen=True)
class Chain:
    """A network's linear layers in forward order.

    Attributes:
        layers: the layers, by their name in the LightningModule.
        violated: why the network is not the paper's bias-free, 0-preserving one; empty if it is.
    """

    layers: dict[str, nn.Linear]
    violated: str

    @classmethod
    def of(cls, pl_module: LightningModule) -> "Chain":
        """Read the chain from the module's `.model`.

        Raises:
            UserError: a layer with weights is not Linear, the layers do not chain, or there are none.
        """
        network = getattr(pl_module, "model", None)
        if not isinstance(network, nn.Module):
            raise UserError(f"{type(pl_module).__name__} has no .model to read layers from")
        layers: dict[str, nn.Linear] = {}
        odd: list[str] = []
        for name, module in network.named_modules(prefix="model"):
            if isinstance(module, nn.Linear):
                layers[name] = module
            elif any(True for _ in module.parameters(recurse=False)):
                raise UserError(
                    f"layer {name} is {type(module).__name__}, not Linear: the bounds are for fully connected networks"
                )
            elif not list(module.children()) and not isinstance(module, _ZERO_PRESERVING + _TRANSPARENT):
                odd.append(type(module).__name__)
        if not layers:
            raise UserError(f"{type(pl_module).__name__}.model has no Linear layer to prune or bound")
        pairs = list(layers.items())
        for (before, first), (after, second) in pairwise(pairs):
            if first.out_features != second.in_features:
                raise UserError(
                    f"layers do not chain: {before} has {first.out_features} outputs, {after} takes "
                    f"{second.in_features} inputs"
                )
        reasons = []
        if any(layer.bias is not None for layer in layers.values()):
            reasons.append("the network has biases, and Lemma B.2 is false with them")
        if odd:
            reasons.append(f"{', '.join(sorted(set(odd)))} is not known to be 1-Lipschitz with φ(0) = 0")
        return cls(layers, "; ".join(reasons))

    @property
    def weights(self) -> list[Tensor]:
        """The (out, in) weights, detached."""
        return [layer.weight.detach() for layer in self.layers.values()]

    def masked(self, masks: list[Tensor]) -> dict[str, Tensor]:
        """The pruned weights by parameter name, for `measure_outputs`."""
        return {
            f"{name}.weight": layer.weight.detach() * mask
            for (name, layer), mask in zip(self.layers.items(), masks, strict=True)
        }


def check_strength(name: str, d: float | str) -> float | Literal["auto"]:
    """The strength itself; raises UserError unless it is "auto" or a number ≥ 0."""
    if d == "auto":
        return "auto"
    if isinstance(d, bool) or not isinstance(d, (int, float)) or not d >= 0:
        raise UserError(f'{name} must be "auto" or a number ≥ 0, got {d!r}')
    return float(d)


class Samples:
    """Every sample of a map-style dataset once, in order, without touching the global random state.

    A dataset that cannot hand out whole batches (`__getitems__`) runs Python for each sample; it is read once and kept.
    """

    def __init__(self, dataset: Any, collate: Any) -> None:
        self._loader = DataLoader(
            dataset,
            batch_size=_EVALUATION_BATCH,
            collate_fn=collate,
            generator=torch.Generator().manual_seed(0),
        )
        self._kept: list[tuple[Tensor, Tensor]] = []

    def __len__(self) -> int:
        return len(self._loader.dataset)  # type: ignore[arg-type]

    def batches(self, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """(inputs, class indices) on the device."""
        with isolate_rng():
            for inputs, targets in self._kept or self._read():
                yield inputs.to(device), targets.to(device)

    def _read(self) -> Iterator[tuple[Tensor, Tensor]]:
        keep = not hasattr(self._loader.dataset, "__getitems__")
        kept = []
        for inputs, targets in self._loader:
            batch = (inputs, targets[:, 0] if targets.ndim > 1 else targets)
            if keep:
                kept.append(batch)
            yield batch
        self._kept = kept


def train_samples(datamodule: Any) -> Samples:
    """The training samples of a set-up datamodule.

    Raises:
        UserError: there is no datamodule.
    """
    if datamodule is None:
        raise UserError("the callbacks read their data from a datamodule: pass one to the Trainer")
    return Samples(datamodule.dataset_train, datamodule.train_dataloader().collate_fn)


def test_samples(datamodule: Any, pl_module: LightningModule) -> Samples | None:
    """The test samples of a datamodule, set up for testing if it is not yet; None if the configuration says no_test.

    Raises:
        UserError: there is no datamodule.
    """
    if getattr(pl_module.hparams, "no_test", False):
        return None
    if datamodule is None:
        raise UserError("the callbacks read their data from a datamodule: pass one to the Trainer")
    if getattr(datamodule, "dataset_test", None) is None:
        datamodule.setup("test")
    loaders = datamodule.test_dataloader()
    loader = loaders[0] if isinstance(loaders, (list, tuple)) else loaders
    return Samples(datamodule.dataset_test, loader.collate_fn)


@dataclass(frozen=True)
class Outputs:
    """A network's outputs on a set of samples, as far as the bounds need them.

    Attributes:
        margins: (n,) float64 margins, on the module's device.
        input_norm: B, the largest ‖x‖₂ measured.
        error: fraction of the samples that argmax gets wrong, as accuracies count it; a NaN is an error.
    """

    margins: Tensor
    input_norm: float
    error: float


@torch.no_grad()
def measure_outputs(
    pl_module: LightningModule, samples: Samples, weights: Mapping[str, Tensor] | None = None
) -> Outputs:
    """One pass over the samples in eval mode and full precision, leaving module and random state as they were.

    Args:
        pl_module: the module; called as `pl_module(inputs)`.
        samples: what to pass.
        weights: parameters to use in place of the module's own, by name.
    """
    found, norm, right = [], torch.zeros((), device=pl_module.device), 0
    with _evaluating(pl_module):
        for inputs, targets in samples.batches(pl_module.device):
            logits = functional_call(pl_module, dict(weights), (inputs,)) if weights else pl_module(inputs)
            found.append(margins(logits, targets))
            right += ((logits.argmax(dim=1) == targets) & ~found[-1].isnan()).sum()
            norm = torch.maximum(norm, torch.linalg.vector_norm(inputs.flatten(1), dim=1).amax())
    return Outputs(torch.cat(found), float(norm), 1 - int(right) / len(samples))


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode inside; each submodule's own mode outside."""
    modes = {submodule: submodule.training for submodule in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for submodule, mode in modes.items():
            submodule.training = mode
