"""What the callbacks read from a Milkshake model and datamodule: its linear layers, and margins over the data."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.data import DataLoader, Subset
from torchmetrics import Metric

from milkshake_mbp.errors import UserError
from milkshake_mbp.theory.margins import margins

__all__ = ["Chain", "Outputs", "Samples", "check_strength", "measure_outputs", "test_samples", "train_samples"]

_EVALUATION_BATCH = 4096
_INPUT_NORMS = (1.5, 2, math.inf)
# Lipschitz constant at most 1 and φ(0) = 0, as the paper's network has it.
_ZERO_PRESERVING = (nn.ReLU, nn.LeakyReLU, nn.ReLU6, nn.Tanh, nn.Softshrink, nn.Tanhshrink)
_TRANSPARENT = (nn.Identity, nn.Flatten, nn.Dropout)


@dataclass(frozen=True)
class Chain:
    """A network's linear layers in forward order.

    Attributes:
        layers: the layers, by their name in the module.
        violated: why the network is not the paper's bias-free, 0-preserving one; empty if it is.
    """

    layers: dict[str, nn.Linear]
    violated: str

    @classmethod
    def of(cls, module: nn.Module) -> "Chain":
        """Read the chain from a Milkshake model's `.model`, or from any other module, in order of registration.

        Raises:
            UserError: a layer with weights is not Linear, the layers do not chain, or there are none.
        """
        inner = getattr(module, "model", None)
        network, prefix = (inner, "model") if isinstance(inner, nn.Module) else (module, "")
        layers: dict[str, nn.Linear] = {}
        odd: list[str] = []
        for name, part in network.named_modules(prefix=prefix):
            if isinstance(part, Metric):
                continue
            if isinstance(part, nn.Linear):
                layers[name] = part
            elif any(True for _ in part.parameters(recurse=False)):
                raise UserError(
                    f"layer {name} is {type(part).__name__}, not Linear: the bounds are for fully connected networks"
                )
            elif not list(part.children()) and not isinstance(part, _ZERO_PRESERVING + _TRANSPARENT):
                odd.append(type(part).__name__)
        if not layers:
            raise UserError(f"{type(module).__name__} has no Linear layer to prune or bound")
        for (before, first), (after, second) in pairwise(layers.items()):
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

    @torch.no_grad()
    def check(self, module: nn.Module, inputs: Tensor) -> None:
        """Run a few samples through the module and see that it computes A_L φ(… φ(A_1 x)), whatever its code says.

        Args:
            module: the module that the chain was read from.
            inputs: some samples.

        Raises:
            UserError: a layer is left out, used twice or in another order; something but an entrywise function stands
                between two layers, such as a skip connection; or inputs or outputs are changed on the way.
        """
        calls: list[tuple[str, Tensor, Tensor]] = []
        hooks = [
            layer.register_forward_hook(lambda _, given, out, name=name: calls.append((name, given[0], out)))
            for name, layer in self.layers.items()
        ]
        try:
            with _evaluating(module):
                outputs = module(inputs)
        finally:
            for hook in hooks:
                hook.remove()
        if not outputs.isfinite().all():
            return  # a diverged network, which others report better
        order = [name for name, _, _ in calls]
        if order != list(self.layers):
            raise UserError(
                f"not a chain: a forward pass uses the layers {', '.join(order)}, the module lists "
                f"{', '.join(self.layers)}"
            )
        if not _same(calls[0][1], inputs.flatten(1)):
            raise UserError(
                f"not a chain: the module changes its inputs before {order[0]}, and B is measured on them; move that "
                "into the dataset"
            )
        for (before, _, out), (after, given, _) in pairwise(calls):
            if not _entrywise(out, given):
                raise UserError(
                    f"not a chain: what enters {after} is no entrywise function of what leaves {before}, as with a "
                    "skip connection or a normalization"
                )
        if not _same(calls[-1][2], outputs):
            raise UserError(f"not a chain: the module changes the outputs of {order[-1]}; margins need its logits")

    @property
    def weights(self) -> list[Tensor]:
        """The (out, in) weights, detached."""
        return [layer.weight.detach() for layer in self.layers.values()]

    @property
    def biases(self) -> int:
        """How many bias parameters there are."""
        return sum(layer.bias.numel() for layer in self.layers.values() if layer.bias is not None)

    def parameters(self) -> dict[str, Tensor]:
        """The weights by parameter name, detached."""
        return {f"{name}.weight": layer.weight.detach() for name, layer in self.layers.items()}

    def replaced(self, weights: Sequence[Tensor]) -> dict[str, Tensor]:
        """Other weights by parameter name, in the network's own type, for `measure_outputs`."""
        return {name: w.to(own) for (name, own), w in zip(self.parameters().items(), weights, strict=True)}

    def masked(self, masks: Sequence[Tensor]) -> dict[str, Tensor]:
        """The pruned weights by parameter name."""
        return self.replaced([weight * mask for weight, mask in zip(self.weights, masks, strict=True)])


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
        self._collate = collate
        self._loader = DataLoader(
            dataset,
            batch_size=_EVALUATION_BATCH,
            collate_fn=collate,
            generator=torch.Generator().manual_seed(0),
        )
        self._kept: list[tuple[Tensor, Tensor]] = []

    def __len__(self) -> int:
        return len(self._loader.dataset)  # type: ignore[arg-type]

    def some(self, count: int, seed: int = 0) -> "Samples":
        """At most `count` of the samples, at random, always the same."""
        chosen = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))[:count]
        return Samples(Subset(self._loader.dataset, chosen.tolist()), self._collate)

    def first(self, count: int, device: torch.device) -> Tensor:
        """The inputs of the first samples, at most `count` and one batch, on the device."""
        return next(self.batches(device))[0][:count]

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


def test_samples(datamodule: Any, module: nn.Module) -> Samples | None:
    """The test samples of a datamodule, set up for testing if it is not yet; None if the configuration says no_test.

    Raises:
        UserError: there is no datamodule.
    """
    if getattr(getattr(module, "hparams", None), "no_test", False):
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
        input_norms: the largest ‖x‖_p measured, by p.
        error: fraction of the samples that argmax gets wrong, as accuracies count it; a NaN is an error.
    """

    margins: Tensor
    input_norms: Mapping[float, float]
    error: float

    @property
    def input_norm(self) -> float:
        """B, the largest ‖x‖₂."""
        return self.input_norms[2]


@torch.no_grad()
def measure_outputs(
    module: nn.Module,
    samples: Samples,
    weights: Mapping[str, Tensor] | None = None,
    norms: Sequence[float] = _INPUT_NORMS,
) -> Outputs:
    """One pass over the samples in eval mode and full precision, leaving module and random state as they were.

    Args:
        module: called as `module(inputs)`.
        samples: what to pass.
        weights: parameters to use in place of the module's own, by name.
        norms: p of the input norms wanted; the same for every network, so that one pass may do for all.
    """
    device = next(module.parameters()).device
    found, right = [], 0
    largest = {p: torch.zeros((), device=device) for p in norms}
    with _evaluating(module):
        for inputs, targets in samples.batches(device):
            logits = functional_call(module, dict(weights), (inputs,)) if weights else module(inputs)
            found.append(margins(logits, targets))
            right += ((logits.argmax(dim=1) == targets) & ~found[-1].isnan()).sum()
            for p, norm in largest.items():
                largest[p] = torch.maximum(norm, _row_norms(inputs.flatten(1), p).amax())
    return Outputs(torch.cat(found), {p: float(norm) for p, norm in largest.items()}, 1 - int(right) / len(samples))


def _row_norms(inputs: Tensor, p: float) -> Tensor:
    """‖x‖_p of every row; p = 1.5 without a power, at a quarter of its price."""
    if p == 1.5:
        sizes = inputs.abs()
        return (sizes * sizes.sqrt()).sum(dim=1) ** (2 / 3)
    return torch.linalg.vector_norm(inputs, ord=p, dim=1)


def _same(first: Any, second: Tensor) -> bool:
    return isinstance(first, Tensor) and first.shape == second.shape and torch.equal(first, second)


def _entrywise(before: Tensor, after: Tensor) -> bool:
    """Whether equal entries before mean equal entries after, in the only order that an entrywise map could keep.

    A nonlinearity is a function of one number: sorted by what goes in, what comes out moves by no more than a
    Lipschitz function would, here 4 for every step of 1.
    """
    if before.shape != after.shape:
        return False
    order = before.flatten().argsort()
    steps, moves = before.flatten()[order].diff().double(), after.flatten()[order].diff().double()
    slack = 1e-5 * float(after.abs().amax())
    return bool((moves.abs() <= 4 * steps + slack).all())


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
