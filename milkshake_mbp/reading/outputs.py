"""A network's outputs on samples: margins, errors, and norms of the inputs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from milkshake_mbp.errors import UnreadableError
from milkshake_mbp.reading.record import evaluating, uncompiled
from milkshake_mbp.reading.samples import Samples
from milkshake_mbp.theory.margins import margins

__all__ = ["Outputs", "measure_outputs", "two_classes"]

_INPUT_NORMS = (1.5, 2, math.inf)
# Between these a float32 holds a norm of float32 inputs to its own precision.
_TRUSTED = (1e-15, 1e15)


@dataclass(frozen=True)
class Outputs:
    """The quantities of a network's outputs on a set of samples that the bounds need.

    Attributes:
        margins: (n,) float64 margins, on the module's device.
        input_norms: the largest ‖x‖_p of the samples, by p.
        error: fraction of the samples that argmax misclassifies, as accuracies count it; a NaN is an error.
        num_classes: k.
    """

    margins: Tensor
    input_norms: Mapping[float, float]
    error: float
    num_classes: int

    @property
    def input_norm(self) -> float:
        """B, the largest ‖x‖₂."""
        return self.input_norms[2]

    @property
    def errors(self) -> int:
        """Number of misclassified samples; ties and NaN are errors."""
        return int((~(self.margins > 0)).sum())


@torch.no_grad()
def measure_outputs(
    module: nn.Module,
    samples: Samples,
    weights: Mapping[str, Tensor] | None = None,
    norms: Sequence[float] = _INPUT_NORMS,
) -> Outputs:
    """One pass over the samples in eval mode and the module's own precision; module and random state do not change.

    Args:
        module: called as `module(inputs)`; returns (n, k) logits, or one logit, (n, 1) or (n,), positive for class 1.
        samples: the samples.
        weights: parameters to use in place of the module's own, by name.
        norms: p of the input norms to measure; they do not depend on the network, so one pass suffices for several.

    Raises:
        UserError: a class number is larger than the outputs allow, or the outputs are not logits.
    """
    with evaluating(module), uncompiled():
        return pass_samples(module, samples, weights, norms)


@torch.no_grad()
def pass_samples(
    module: nn.Module, samples: Samples, weights: Mapping[str, Tensor] | None, norms: Sequence[float]
) -> Outputs:
    """`measure_outputs` of a module that is in eval mode already, and will be for many passes."""
    like = next(module.parameters())
    found, right, num_classes = [], torch.zeros((), device=like.device), 0
    largest = {p: torch.zeros((), device=like.device, dtype=torch.float64) for p in norms}
    for inputs, targets in samples.batches(like):
        logits = two_classes(functional_call(module, dict(weights), (inputs,)) if weights else module(inputs))
        check_targets(logits, targets)
        num_classes = logits.shape[1]
        found.append(margins(logits, targets))
        right += ((logits.argmax(dim=1) == targets) & ~found[-1].isnan()).sum()
        for p, norm in largest.items():
            largest[p] = torch.maximum(norm, _largest_norm(inputs.flatten(1), p))
    norms_by_p = {p: float(norm) for p, norm in largest.items()}
    return Outputs(torch.cat(found), norms_by_p, 1 - int(right) / len(samples), num_classes)


def two_classes(logits: Tensor) -> Tensor:
    """(n, k ≥ 2) logits; one logit z becomes (0, z), so that its sign decides."""
    if logits.ndim == 1 or (logits.ndim == 2 and logits.shape[1] == 1):
        column = logits.reshape(-1, 1)
        return torch.cat([torch.zeros_like(column), column], dim=1)
    return logits


def check_targets(logits: Tensor, targets: Tensor) -> None:
    """Raise UnreadableError unless there is an output for each class."""
    if logits.ndim != 2 or len(logits) != len(targets):
        raise UnreadableError(
            f"the module gives {tuple(logits.shape)} for {len(targets)} samples, expected one row of logits for each"
        )
    if bool((targets >= logits.shape[1]).any()):
        raise UnreadableError(
            f"a target is class {int(targets.max())}, but the module has {logits.shape[1]} classes (0 to "
            f"{logits.shape[1] - 1})"
        )


def _largest_norm(inputs: Tensor, p: float) -> Tensor:
    """Max ‖x‖_p over the rows, float64; in the inputs' own type where that loses nothing."""
    if not inputs.is_floating_point():
        inputs = inputs.double()
    largest = _row_norms(inputs, p).amax().double()
    if _TRUSTED[0] < float(largest) < _TRUSTED[1] and inputs.dtype in (torch.float32, torch.float64):
        return largest
    peaks = inputs.double().abs().amax(dim=1)
    units = inputs.double() / torch.where(peaks > 0, peaks, 1.0)[:, None]
    return (_row_norms(units, p) * peaks).amax()


def _row_norms(inputs: Tensor, p: float) -> Tensor:
    """‖x‖_p of every row; p = 1.5 without a power, at a quarter of its price."""
    if p == 1.5:
        sizes = inputs.abs()
        return (sizes * sizes.sqrt()).sum(dim=1) ** (2 / 3)
    return torch.linalg.vector_norm(inputs, ord=p, dim=1)
