"""Fixed first layers, part of the decoder and so free: what a map of edges and lines holds is said before any sample.

They know that images have edges and lines in every direction, that what matters is relative to the image's own
contrast, and that small shifts do not. Every number is a whole number below 2⁵³ held in float64, every sum exact and
every quotient rounded down, so that the same pixels give the same features on every machine.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["BANKS", "MAX_FEATURES", "UNIT", "Bank", "floor_root", "grey_bank"]

# So that a sum of their squares stays below 2⁵³.
MAX_FEATURES = 1 << 14
# Images that are looked at together: few, so that they stay in the processor's cache.
_CHUNK = 64

# A Gaussian of σ = 1.2 pixels, its first derivative and its negative second one, which sums to nothing.
_GAUSS = (1, 8, 23, 32, 23, 8, 1)
_SLOPE = (-2, -8, -11, 0, 11, 8, 2)
_RIDGE = (-8, -14, 6, 32, 6, -14, -8)
UNIT, _LARGEST = 32, 255


def floor_root(numbers: Tensor) -> Tensor:
    """⌊√a⌋ of whole numbers a < 2⁵², in float64, whatever the machine's square root rounds to."""
    root = numbers.sqrt().floor()
    root -= (root * root > numbers).double()
    return root + ((root + 1) * (root + 1) <= numbers).double()


def quotient(numbers: Tensor, divisor: Tensor | float) -> Tensor:
    """⌊a/b⌋ of whole numbers, a < 2⁵³ and b ≥ 1: a quotient that is not whole is 1/b or more from the next."""
    return (numbers / divisor).floor()


def _filtered(images: Tensor, down: tuple[int, ...], across: tuple[int, ...]) -> Tensor:
    """(n, c, h, w) images under a separable kernel, zeros around them."""
    for dim, taps in ((2, down), (3, across)):
        side, found = images.shape[dim], torch.zeros_like(images)
        for shift, tap in enumerate(taps, -(len(taps) // 2)):
            first, count = max(0, -shift), side - abs(shift)
            if tap and count > 0:
                found.narrow(dim, first, count).add_(images.narrow(dim, first + shift, count), alpha=tap)
        images = found
    return images


def _against_strongest(responses: Tensor) -> Tensor:
    """Each response times its ratio to the largest at its place."""
    largest = responses.amax(dim=1, keepdim=True).clamp(min=1)
    return quotient(responses * responses, largest)


def _normalized(features: Tensor) -> Tensor:
    """In units of 1/32 of the image's root mean square, up to 255."""
    squares = features.square().flatten(1).sum(dim=1) / features[0].numel()
    root = floor_root(squares.floor()).clamp(min=1)
    return quotient(UNIT * features, root.reshape(-1, 1, 1, 1)).clamp(max=_LARGEST)


def grey_bank(images: Tensor, cell: int) -> Tensor:
    """Edges in eight directions and lines in four, the largest in each cell.

    Args:
        images: (n, 1, h, w) float64, whole numbers from 0 to 255.
        cell: side of the cells, in pixels.

    Returns:
        (n, 12, ⌊h/cell⌋, ⌊w/cell⌋) float64, whole numbers from 0 to 255.
    """
    x, y = _filtered(images, _GAUSS, _SLOPE), _filtered(images, _SLOPE, _GAUSS)
    rising, falling = (quotient(181 * both, 256) for both in (x + y, x - y))
    edges = torch.cat([x, rising, y, -falling, -x, -rising, -y, falling], dim=1)
    across, down = _filtered(images, _GAUSS, _RIDGE), _filtered(images, _RIDGE, _GAUSS)
    both, twist = 2 * (across + down), 11 * _filtered(images, _SLOPE, _SLOPE)
    lines = torch.cat([4 * across, both - twist, 4 * down, both + twist], dim=1)
    responses = torch.cat([edges, quotient(lines, 8)], dim=1).relu()
    least = quotient(responses.flatten(1).amax(dim=1), 32).reshape(-1, 1, 1, 1)
    responses = (responses - least).relu()
    features = torch.cat([_against_strongest(responses[:, :8]), responses[:, 8:]], dim=1)
    return _normalized(F.max_pool2d(features, cell))


class Bank(NamedTuple):
    """A fixed first layer.

    Attributes:
        channels: of the images it is for.
        features: channels that it gives.
        of_images: (n, channels, h, w) float64 and the side of its cells, to (n, features, h', w').
    """

    channels: int
    features: int
    of_images: Callable[[Tensor, int], Tensor]

    def __call__(self, images: Tensor, cell: int) -> Tensor:
        """The features, a few images at a time."""
        return torch.cat([self.of_images(some, cell) for some in images.split(_CHUNK)])


# In the order of their numbers in the code, from 1.
BANKS = (Bank(1, 12, grey_bank),)
