"""What a function between two layers does to distances: Lipschitz constants in ℓ2, φ(0), homogeneity (spec §9).

Constants that are suprema without a closed form are rounded up.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from milkshake_mbp.theory.norms import spectral_norm

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "adaptive_windows",
    "average_pool_lipschitz",
    "average_pool_matrix",
    "max_pool_lipschitz",
    "mean_lipschitz",
    "overlap",
    "padding_lipschitz",
    "pool_windows",
]


@dataclass(frozen=True)
class Activation:
    """A function of one number.

    Attributes:
        lipschitz: sup |φ(x) − φ(y)|/|x − y|; infinity where it jumps.
        at_zero: φ(0).
        homogeneous: whether φ(cx) = cφ(x) for c ≥ 0.
    """

    lipschitz: float = 1.0
    at_zero: float = 0.0
    homogeneous: bool = False


def _slope(negative: float) -> Activation:
    return Activation(max(1.0, abs(negative)), homogeneous=True)


def _steepest(*slopes: float) -> Activation:
    """PReLU: a slope for each channel on the negative side."""
    return _slope(max(map(abs, slopes), default=0.0))


def _hardtanh(low: float = -1.0, high: float = 1.0) -> Activation:
    return Activation(at_zero=min(max(0.0, low), high))


def _elu(alpha: float = 1.0) -> Activation:
    return Activation(max(1.0, abs(alpha)))


def _softplus(beta: float = 1.0) -> Activation:
    return Activation(at_zero=math.log(2) / beta)


def _threshold(threshold: float, value: float) -> Activation:
    continuous = threshold == value
    at_zero = 0.0 if threshold < 0 else value
    return Activation(1.0 if continuous else math.inf, at_zero, homogeneous=threshold == value == 0)


def _gelu(approximate: str = "none") -> Activation:
    # x Φ(x) is steepest at √2, Φ(√2) + √2 φ(√2) = 1.128904145…; the tanh form at 1.41850….
    return Activation(1.12890415 if approximate == "none" else 1.12899307)


ACTIVATIONS: Mapping[str, Callable[..., Activation]] = {
    "CELU": lambda alpha=1.0: Activation(),
    "ELU": _elu,
    "GELU": _gelu,
    "Hardshrink": lambda lambd=0.5: Activation(1.0 if lambd == 0 else math.inf, homogeneous=lambd == 0),
    "Hardsigmoid": lambda: Activation(1 / 6, 0.5),
    "Hardswish": lambda: Activation(1.5),
    "Hardtanh": _hardtanh,
    "Identity": lambda: Activation(homogeneous=True),
    "LeakyReLU": lambda negative_slope=0.01: _slope(negative_slope),
    "LogSigmoid": lambda: Activation(at_zero=-math.log(2)),
    "Mish": lambda: Activation(1.08849817),
    "PReLU": _steepest,
    "ReLU": lambda: _slope(0.0),
    "ReLU6": lambda: Activation(),
    "SELU": lambda: Activation(1.7580993409),
    "SiLU": lambda: Activation(1.09983933),
    "Sigmoid": lambda: Activation(0.25, 0.5),
    "Softplus": _softplus,
    "Softshrink": lambda lambd=0.5: Activation(homogeneous=lambd == 0),
    "Softsign": lambda: Activation(),
    "Tanh": lambda: Activation(),
    "Tanhshrink": lambda: Activation(),
    "Threshold": _threshold,
}
"""The activation for the name of its class in torch.nn and that class's numbers.

PReLU takes its slopes; RReLU in eval mode is LeakyReLU with the mean of its bounds. Softplus ignores torch's threshold,
beyond which it jumps by e^(−20)/β, less than half a float32's step there.
"""


def overlap(kernel: int, stride: int, dilation: int = 1) -> int:
    """The most windows that share an entry in one dimension: ⌈k/(s/gcd(s, dilation))⌉, ⌈k/s⌉ without dilation."""
    return -(-kernel // (stride // math.gcd(stride, dilation)))


def max_pool_lipschitz(
    kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int] | None = None, *, within: Sequence[int] = ()
) -> float:
    """√Π⌈k/s⌉: a maximum moves by no more than some entry of its window, and an entry lies in so many windows.

    Attained on images of enough windows; whatever the padding (with −∞) and rounding of the number of windows.

    Args:
        kernel: size of the window in each dimension.
        stride: stride of the window.
        dilation: dilation of the window; by default 1.
        within: number of windows in each dimension, which the overlap does not exceed; by default unknown.
    """
    counts = [overlap(k, s, d) for k, s, d in zip(kernel, stride, dilation or [1] * len(kernel), strict=True)]
    return math.sqrt(math.prod(map(min, counts, within) if within else counts))


Windows = Sequence[tuple[int, int]]
"""The windows in one dimension: first entry and one past the last, within the image."""


def pool_windows(
    size: int, kernel: int, stride: int, padding: int = 0, ceil_mode: bool = False
) -> list[tuple[int, int]]:
    """The windows of a pooling layer over `size` entries; those of ceil_mode as torch places them."""
    rounding = stride - 1 if ceil_mode else 0
    count = (size + 2 * padding - kernel + rounding) // stride + 1
    if ceil_mode and (count - 1) * stride >= size + padding:
        count -= 1
    return [(i * stride - padding, i * stride - padding + kernel) for i in range(count)]


def adaptive_windows(size: int, outputs: int) -> list[tuple[int, int]]:
    """The windows of an adaptive pooling layer: from ⌊i·size/outputs⌋ to ⌈(i + 1)·size/outputs⌉."""
    return [(i * size // outputs, -(-(i + 1) * size // outputs)) for i in range(outputs)]


def average_pool_matrix(
    size: int, windows: Windows, *, padding: int = 0, count_include_pad: bool = True, divisor: float | None = None
) -> Tensor:
    """Average pooling in one dimension as a matrix, (windows, size) float64.

    Args:
        size: entries of the image.
        windows: of `pool_windows` or `adaptive_windows`.
        padding: zeros on either side, which count_include_pad counts.
        count_include_pad: whether a mean is over the padding too.
        divisor: in place of the number of entries; of a divisor for several dimensions, give it in one and 1 in others.
    """
    matrix = torch.zeros(len(windows), size, dtype=torch.float64)
    for row, (first, end) in zip(matrix, windows, strict=True):
        inside = slice(max(first, 0), min(end, size))
        counted = min(end, size + padding) - first if count_include_pad else inside.stop - inside.start
        row[inside] = 1 / (divisor or counted)
    return matrix


def average_pool_lipschitz(matrices: Sequence[Tensor]) -> float:
    """‖A_1 ⊗ A_2 ⊗ …‖₂ = Π‖A_i‖₂: average pooling is one dimension after another.

    For windows of k × k at stride s it is at most ⌈k/s⌉/k, where every mean is over k² entries.

    Args:
        matrices: those of `average_pool_matrix`, one a dimension.
    """
    return math.prod(float(spectral_norm(matrix)) for matrix in matrices) * (1 + 1e-8)


def mean_lipschitz(count: int) -> float:
    """1/√count: a mean over `count` entries."""
    return 1 / math.sqrt(count)


def padding_lipschitz(
    mode: Literal["zeros", "constant", "reflect", "replicate", "circular"],
    sizes: Sequence[int],
    pads: Sequence[tuple[int, int]],
) -> float:
    """√Π of the most copies that the padding makes of an entry, itself included, in each dimension: 1 for constants.

    Args:
        mode: of torch.nn.functional.pad, or "zeros".
        sizes: entries in each dimension that is padded.
        pads: (before, after) for each; negative to crop.
    """
    copies = 1
    if mode not in ("zeros", "constant"):
        for size, (before, after) in zip(sizes, pads, strict=True):
            sources = [_source(mode, place, size) for place in range(-before, size + after)]
            copies *= max(sources.count(source) for source in set(sources))
    return math.sqrt(copies)


def _source(mode: str, place: int, size: int) -> int:
    """The entry that a padded place copies."""
    if mode == "circular":
        return place % size
    if mode == "replicate":
        return min(max(place, 0), size - 1)
    return -place if place < 0 else place if place < size else 2 * (size - 1) - place
