"""Fixed first layers ("banks"), which are part of the decoder and therefore cost no bits.

They express that images have edges and lines in every direction, that only values relative to the image's contrast
matter, and that small shifts do not matter. Every number is an integer below 2⁵³ in float64, every sum is exact and
every quotient is rounded down, so the same pixels give the same features on every machine.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, reduce
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["BANKS", "MAX_FEATURES", "UNIT", "Bank", "colour_bank", "floor_root", "grey_bank"]

# So that a sum of their squares stays below 2⁵³.
MAX_FEATURES = 1 << 14
# Images that are looked at together: few, so that they stay in the processor's cache.
_CHUNK = 64

# A Gaussian of σ = 1.2 pixels, its first derivative and its negative second one, which sums to nothing.
_GAUSS = (1, 8, 23, 32, 23, 8, 1)
_SLOPE = (-2, -8, -11, 0, 11, 8, 2)
_RIDGE = (-8, -14, 6, 32, 6, -14, -8)
UNIT, _LARGEST = 32, 255

# The same for σ = 0.9 pixels, and for σ = 2 without the second derivative.
_FINE_GAUSS, _FINE_SLOPE, _FINE_RIDGE = (1, 6, 12, 6, 1), (-1, -3, 0, 3, 1), (-4, -2, 12, -2, -4)
_COARSE_GAUSS, _COARSE_SLOPE = (1, 3, 5, 7, 8, 7, 5, 3, 1), (-2, -3, -4, -3, 0, 3, 4, 3, 2)
# Up to it, what colour_bank computes at full resolution stays below 2²⁴, which float32 holds.
_SINGLE_CELL = 32
# What no number of a bank passes before it is squared: 4 · 255 · 96 · 44, and 24 · 765 · 40 · 12.
_GREY_LARGEST, _COLOUR_LARGEST = 4_308_480, 8_812_800


def floor_root(numbers: Tensor) -> Tensor:
    """⌊√a⌋ of whole numbers a < 2⁵², in float64, whatever the machine's square root rounds to."""
    root = numbers.sqrt().floor()
    root -= (root * root > numbers).double()
    return root + ((root + 1) * (root + 1) <= numbers).double()


def quotient(numbers: Tensor, divisor: Tensor | float) -> Tensor:
    """⌊a/b⌋ of whole numbers, a < 2⁵³ and b ≥ 1: a quotient that is not whole is 1/b or more from the next."""
    return (numbers / divisor).floor()


@lru_cache(maxsize=64)
def _band(side: int, taps: tuple[int, ...], continued: bool, kind: torch.dtype) -> Tensor:
    """(side, side) matrix of a filter along a line, with zeros beyond its ends, or the line continued by its ends."""
    matrix, half = torch.zeros(side, side, dtype=kind), len(taps) // 2
    for place in range(side):
        for read, tap in enumerate(taps, place - half):
            if continued or 0 <= read < side:
                matrix[place, min(max(read, 0), side - 1)] += tap
    return matrix


def _filters(images: Tensor, pairs: Sequence[tuple[tuple[int, ...], tuple[int, ...]]], continued: bool) -> list[Tensor]:
    """(n, c, h, w) images under separable kernels, each given by its taps down and across: two products each."""
    (height, width), kind, device = images.shape[2:], images.dtype, images.device
    rows = {
        across: images @ _band(width, across, continued, kind).T.to(device) for across in {taps for _, taps in pairs}
    }
    return [_band(height, down, continued, kind).to(device) @ rows[across] for down, across in pairs]


def _exact(largest: float) -> torch.dtype:
    """The type whose products are exact for whole numbers up to it; float32 may be told to be less than it is."""
    precise = torch.get_float32_matmul_precision() == "highest"
    return torch.float32 if largest < 1 << 24 and precise else torch.float64


def _pooled(images: Tensor, cell: int, function: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """(n, c, ⌊h/cell⌋, ⌊w/cell⌋) what a function of two makes of the numbers of each cell."""
    for dim in (2, 3):
        side = images.shape[dim] // cell * cell
        parts = [images.narrow(dim, 0, side).unflatten(dim, (-1, cell)).select(dim + 1, place) for place in range(cell)]
        images = reduce(function, parts)
    return images


def _normalized(features: Tensor) -> Tensor:
    """In units of 1/32 of the image's root mean square, up to 255."""
    squares = features.square().flatten(1).sum(dim=1) / features[0].numel()
    root = floor_root(squares.floor()).clamp(min=1)
    return quotient(UNIT * features, root.reshape(-1, 1, 1, 1)).clamp(max=_LARGEST)


def grey_bank(images: Tensor, cell: int) -> Tensor:
    """Edges in eight directions and lines in four, the largest in each cell.

    Args:
        images: (n, 1, h, w) whole numbers from 0 to 255.
        cell: side of the cells, in pixels.

    Returns:
        (n, 12, ⌊h/cell⌋, ⌊w/cell⌋) float64, whole numbers from 0 to 255.
    """
    images = images.to(_exact(_GREY_LARGEST))
    parts = ((_GAUSS, _SLOPE), (_SLOPE, _GAUSS), (_GAUSS, _RIDGE), (_RIDGE, _GAUSS), (_SLOPE, _SLOPE))
    x, y, across, down, twist = _filters(images, parts, continued=False)
    # ⌊181a/256⌋; products stay below 2³¹.
    rising, falling = (((both.int() * 181) >> 8).to(x) for both in (x + y, x - y))
    edges = torch.cat([x, rising, y, -falling], dim=1)
    both, twist = 2 * (across + down), 11 * twist
    lines = quotient(torch.cat([4 * across, both - twist, 4 * down, both + twist], dim=1), 8).relu()
    sizes = edges.abs()
    least = quotient(torch.maximum(sizes.flatten(1).amax(dim=1), lines.flatten(1).amax(dim=1)), 32)
    least = least.reshape(-1, 1, 1, 1)
    sizes, lines = (sizes - least).relu(), (lines - least).relu()
    largest = sizes.amax(dim=1, keepdim=True).clamp(min=1).double()
    # Each edge times its ratio to the strongest at its place; rounded down after the cells' largest is known.
    weakened = (sizes.double().square_() / largest).copysign_(edges)
    rising, falling = _pooled(weakened, cell, torch.maximum), -_pooled(weakened, cell, torch.minimum)
    rising, falling = rising.relu().floor(), falling.relu().floor()
    return _normalized(torch.cat([rising, falling, _pooled(lines, cell, torch.maximum).double()], dim=1))


def _sums(images: Tensor, cell: int) -> Tensor:
    """(n, c, ⌊h/cell⌋, ⌊w/cell⌋) sums of cells."""
    return _pooled(images, cell, torch.add)


def _both_signs(numbers: Tensor) -> Tensor:
    return torch.cat([numbers, -numbers], dim=1).relu()


def _oriented(responses: Tensor, cell: int) -> Tensor:
    """Each response times its ratio to the strongest direction's at its place; both signs' means in each cell.

    Args:
        responses: (n, directions, h, w) whole numbers from −4096 to 4096.
        cell: side of the cells.

    Returns:
        (n, 2 · directions, h', w') float64, in units of 1/32 of the root mean square over all of them.
    """
    sizes = responses.abs()
    weakened = (sizes * sizes).div_(sizes.amax(dim=1, keepdim=True).clamp_(min=1)).floor_().copysign_(responses)
    positive = _sums(weakened.relu(), cell)
    both = torch.cat([positive, positive - _sums(weakened, cell)], dim=1)
    return _normalized(quotient(16 * both.double(), cell**2))


def colour_bank(images: Tensor, cell: int) -> Tensor:
    """Edges and lines at two scales, opponent colours and their edges, and where it is light.

    In order: 8 edges and 8 lines (four directions, then the same with the signs exchanged), 8 edges at half the size;
    red − green, yellow − blue, and both with the signs exchanged; how much both change along diagonals; lighter and
    darker than the image's mean, in units of its contrast; that mean and contrast, everywhere the same.

    Args:
        images: (n, 3, h, w) float64, whole numbers from 0 to 255, of 2 to 4096 pixels a side.
        cell: side of the cells, in pixels, even.

    Returns:
        (n, 34, ⌊h/cell⌋, ⌊w/cell⌋) float64, whole numbers from 0 to 255.
    """
    images = images.to(_exact(_COLOUR_LARGEST * max(1, cell / _SINGLE_CELL) ** 2))
    red, green, blue = images.split(1, dim=1)
    light = images.sum(dim=1, keepdim=True)
    half = quotient(_sums(light, 2), 4)
    oriented = (
        _oriented(_edges(light, _FINE_GAUSS, _FINE_SLOPE, 512), cell),
        _oriented(_lines(light), cell),
        _oriented(_edges(half, _COARSE_GAUSS, _COARSE_SLOPE, 4096), cell // 2),
    )
    # In half levels, as numbers of order 32 in an image of some colour.
    opponent = torch.cat([2 * (red - green), red + green - 2 * blue], dim=1)
    corners = F.pad(opponent, (0, 1, 0, 1), mode="replicate")
    one, other = corners[:, :, 1:, 1:] - opponent, corners[:, :, 1:, :-1] - corners[:, :, :-1, 1:]
    colours = _sums(torch.cat([opponent, 2 * (one.abs() + other.abs())], dim=1), cell).double()
    colours = torch.cat([_both_signs(colours[:, :2]), colours[:, 2:]], dim=1)
    plain = torch.cat([quotient(colours, cell**2), _lightness(light.double(), cell)], dim=1).clamp(max=_LARGEST)
    return torch.cat([*oriented, plain], dim=1)


def _edges(light: Tensor, gauss: tuple[int, ...], slope: tuple[int, ...], unit: int) -> Tensor:
    """(n, 4, h, w) first derivatives of (n, 1, h, w), at angles of 0, 45, 90 and 135 degrees, towards zero.

    A unit is a power of two, so that a product with a fraction of it is as exact as one with a whole number.
    """
    x, y = _filters(light, ((gauss, slope), (slope, gauss)), continued=True)
    return torch.cat([24 / unit * x, 17 / unit * (x + y), 24 / unit * y, 17 / unit * (y - x)], dim=1).trunc_()


def _lines(light: Tensor) -> Tensor:
    """(n, 4, h, w) negative second derivatives of (n, 1, h, w), towards zero."""
    parts = ((_FINE_GAUSS, _FINE_RIDGE), (_FINE_RIDGE, _FINE_GAUSS), (_FINE_SLOPE, _FINE_SLOPE))
    across, down, twist = _filters(light, parts, continued=True)
    both, twist = (across + down) / 128, 23 / 256 * twist
    return torch.cat([across / 64, both - twist, down / 64, both + twist], dim=1).trunc_()


def _lightness(light: Tensor, cell: int) -> Tensor:
    """(n, 4, h', w'): how much more and less than the image's mean cells have, over its contrast; and these two."""
    pixels = light[0].numel()
    mean = quotient(16 * light.sum(dim=(2, 3), keepdim=True), pixels)
    variance = quotient(256 * light.square().sum(dim=(2, 3), keepdim=True), pixels) - mean * mean
    contrast = floor_root(variance.clamp(min=0))
    above = _both_signs(quotient(16 * _sums(light, cell), cell**2) - mean)
    everywhere = torch.cat([quotient(mean, 192), quotient(contrast, 96)], dim=1)
    above = quotient(UNIT * above, contrast.clamp(min=1))
    return torch.cat([above, everywhere.expand(-1, -1, *above.shape[2:])], dim=1)


class Bank(NamedTuple):
    """A fixed first layer.

    Attributes:
        channels: number of channels of its images.
        features: number of channels of its outputs.
        of_images: function from (n, channels, h, w) float64 and the side of the cells to (n, features, h', w').
        step: number that divides the side of its cells.
        max_side: largest side of the images, in pixels.
    """

    channels: int
    features: int
    of_images: Callable[[Tensor, int], Tensor]
    step: int
    max_side: int

    def __call__(self, images: Tensor, cell: int) -> Tensor:
        """The features, a few images at a time."""
        if torch.jit.is_tracing():
            return self.of_images(images, cell)
        return torch.cat([self.of_images(some, cell) for some in images.split(_CHUNK)])


# In the order of their numbers in the code, from 1.
BANKS = (Bank(1, 12, grey_bank, 1, 1 << 16), Bank(3, 34, colour_bank, 2, 1 << 12))
