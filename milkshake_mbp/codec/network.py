"""An integer network, as the code describes it and as its errors are counted.

Every parameter is an integer, and a network on pixels computes with integers that float64 represents exactly, so its
errors are the same on every machine, for any order of summation, number of threads and batch size.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from milkshake_mbp.codec.banks import BANKS, MAX_FEATURES, floor_root

__all__ = [
    "CodedLayer",
    "CodedNetwork",
    "InputMap",
    "Node",
    "Pool",
    "Window",
    "grid_after",
    "row_factor",
    "scale_factor",
    "shifted",
]

Grid = tuple[int, int, int]

_EXACT, _SINGLE = 2.0**53, 2.0**24
_BATCH = 8192
# Numbers that a batch may take in float64: 32 MiB.
_BATCH_NUMBERS = 1 << 22
_FEW_NUMBERS = 1 << 17
_ROW_UNIT = 1 << 16


def scale_factor(k: Tensor) -> Tensor:
    """2, 3, 4, 6, 8, 12, …: whole numbers that grow by √2 on average.

    Args:
        k: integers ≥ 0.

    Returns:
        float64, as k.
    """
    return (2 + k % 2) * 2.0 ** (k // 2).double()


def row_factor(values: Tensor) -> Tensor:
    """max(1, ⌊256/√(1 + Σv²)⌋) for each row: scales that need no code, since the row says them.

    Args:
        values: (out, in) integers.

    Returns:
        (out,) float64.
    """
    squares = 1 + _of_rows(values, lambda rows: rows.double().square().flatten(1).sum(dim=1))
    return floor_root((_ROW_UNIT / squares).floor()).clamp(min=1)


def _of_rows(values: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """(out,) float64, a number of each row, a few at a time: in float64 all would be as large as the network again."""
    few = max(1, _FEW_NUMBERS // max(1, values[:1].numel()))
    if len(values) <= few:
        return function(values)
    # In place, so that small results do not lie between the memory of large ones.
    found = torch.empty(len(values), dtype=torch.float64, device=values.device)
    for rows, some in zip(values.split(few), found.split(few), strict=True):
        some.copy_(function(rows))
    return found


@dataclass(frozen=True)
class InputMap:
    """The map from a sample to the network's inputs: fixed before the data, and coded as part of the architecture.

    Attributes:
        channels: channels of an image; 1 for a vector.
        height: rows; 1 for a vector.
        width: columns; the length of a vector.
        crop: number of pixels removed on each side.
        pool: side of the squares of pixels that are summed into one input.
        stride: distance of two squares in pixels; they overlap if it is less than `pool`.
        grey: whether the channels are summed.
        pixels: whether inputs are stored pixels, integers from 0 to 255, rather than a datamodule's scaled inputs.
        bank: number of the fixed first layer among `banks.BANKS`; 0 for none.
        cell: side of the bank's cells, in pixels.
    """

    channels: int
    height: int
    width: int
    crop: int = 0
    pool: int = 1
    stride: int = 1
    grey: bool = False
    pixels: bool = True
    bank: int = 0
    cell: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.bank <= len(BANKS):
            raise ValueError(f"bank {self.bank}, where {len(BANKS)} are known")
        if min(self.seen) < 1 or min(self.grid) < 1:
            raise ValueError(f"no input is left of {self}")
        if not self.bank:
            if self.cell != 1:
                raise ValueError("cells without a bank")
            return
        bank = BANKS[self.bank - 1]
        if not self.pixels or self.pool != 1 or self.stride != 1 or self.grey or self.channels != bank.channels:
            raise ValueError(f"bank {self.bank} is for {bank.channels} channels of pixels as they are")
        if self.cell % bank.step or max(self.seen) > bank.max_side:
            raise ValueError(
                f"bank {self.bank} is for cells of a multiple of {bank.step} and at most {bank.max_side} pixels a side"
            )
        if self.num_inputs > MAX_FEATURES:
            raise ValueError(f"{self.num_inputs} features, of at most {MAX_FEATURES}")

    @property
    def seen(self) -> Grid:
        """Channels, rows and columns before the bank."""
        height, width = ((side - 2 * self.crop - self.pool) // self.stride + 1 for side in (self.height, self.width))
        return 1 if self.grey else self.channels, height, width

    @property
    def grid(self) -> Grid:
        """Channels, rows and columns of the inputs."""
        if not self.bank:
            return self.seen
        _, height, width = self.seen
        return BANKS[self.bank - 1].features, height // self.cell, width // self.cell

    @property
    def num_inputs(self) -> int:
        """Inputs of the network."""
        return math.prod(self.grid)

    @property
    def largest(self) -> int:
        """The largest input that pixels can give; a bank's features stay below it too."""
        return 255 * self.pool**2 * (self.channels if self.grey else 1)

    def __call__(self, data: Tensor) -> Tensor:
        """The inputs.

        Args:
            data: (n, ...) samples of `channels` · `height` · `width` numbers: pixels, or what `pixels` says.

        Returns:
            (n, inputs) float64; exact whole numbers if the data are.

        Raises:
            ValueError: the samples have another size.
        """
        shape = (self.channels, self.height, self.width)
        if math.prod(data.shape[1:]) != math.prod(shape):
            raise ValueError(f"the network reads samples of shape {shape}, got {tuple(data.shape[1:])}")
        images = data.reshape(-1, *shape).double()
        if self.grey:
            images = images.sum(dim=1, keepdim=True)
        inner = images[:, :, self.crop : self.height - self.crop, self.crop : self.width - self.crop]
        if self.bank:
            return BANKS[self.bank - 1](inner, self.cell).flatten(1)
        squares = inner.unfold(2, self.pool, self.stride).unfold(3, self.pool, self.stride)
        return squares.sum(dim=(4, 5)).flatten(1)


@dataclass(frozen=True)
class Window:
    """The window of a convolution.

    Attributes:
        kernel: side of the kernel.
        stride: distance of two windows in pixels.
        padding: number of zeros on each side.
        groups: number of groups of channels.
    """

    kernel: int
    stride: int = 1
    padding: int = 0
    groups: int = 1

    def __post_init__(self) -> None:
        if min(self.kernel, self.stride, self.groups) < 1 or self.padding < 0:
            raise ValueError(f"no window: {self}")

    def columns(self, grid: Grid) -> int:
        """Numbers that each output reads."""
        if grid[0] % self.groups:
            raise ValueError(f"{grid[0]} channels in {self.groups} groups")
        return grid[0] // self.groups * self.kernel**2


@dataclass(frozen=True)
class Pool:
    """Sum pooling or max pooling over squares of each channel.

    Attributes:
        kind: "sum" or "max".
        kernel: side of the squares.
        stride: distance of two squares in pixels.
    """

    kind: Literal["sum", "max"]
    kernel: int
    stride: int

    def __post_init__(self) -> None:
        if min(self.kernel, self.stride) < 1:
            raise ValueError(f"no pooling: {self}")

    def grid_after(self, grid: Grid) -> Grid:
        """Channels, rows and columns of what it gives."""
        channels, height, width = grid
        return channels, _windows(height, self.kernel, self.stride), _windows(width, self.kernel, self.stride)

    def work(self, grid: Grid) -> int:
        """Operations for a sample."""
        return math.prod(self.grid_after(grid)) * self.kernel**2

    def __call__(self, hidden: Tensor) -> Tensor:
        """(c, h, w, n) to the same, pooled; samples are last."""
        _, height, width = self.grid_after((1, *hidden.shape[1:3]))
        found: Tensor | None = None
        for top, left in product(range(self.kernel), repeat=2):
            part = shifted(hidden, top, left, self.stride, height, width)
            if found is None:
                found = part.clone()
            elif self.kind == "sum":
                found += part
            else:
                found = torch.maximum(found, part)
        assert found is not None
        return found


def shifted(channels: Tensor, top: int, left: int, stride: int, height: int, width: int) -> Tensor:
    """(…, h, w, n) seen from one place of a window, at each of the height × width places where the window lies."""
    down = slice(top, top + (height - 1) * stride + 1, stride)
    return channels[..., down, left : left + (width - 1) * stride + 1 : stride, :]


@dataclass(frozen=True)
class CodedLayer:
    """z = Vx + 2^e b, then s ⊙ z, with a ReLU before the scales except in the last layer.

    Attributes:
        values: V, (out, in) int64; for a convolution (out, channels/groups · kernel²).
        biases: b, (out,) int64.
        scales: k, (out,) int64 ≥ 0, for s = `scale_factor(k)`; None for s = `row_factor(values)`.
        bias_exponent: e, of any sign.
        window: window of a convolution; None for a layer that reads every input.
    """

    values: Tensor
    biases: Tensor
    scales: Tensor | None
    bias_exponent: int = 0
    window: Window | None = None

    def __post_init__(self) -> None:
        out = self.values.shape[0]
        scales = torch.zeros_like(self.biases) if self.scales is None else self.scales
        if self.values.ndim != 2 or self.biases.shape != (out,) or scales.shape != (out,):
            raise ValueError(
                f"a layer of values {tuple(self.values.shape)} has biases and scales ({out},), not "
                f"{tuple(self.biases.shape)} and {tuple(scales.shape)}"
            )
        if any(part.is_floating_point() for part in (self.values, self.biases, scales)) or scales.min() < 0:
            raise ValueError("values, biases and scales are integers, and no scale is negative")

    @property
    def nonzeros(self) -> int:
        """Weights that are not zero."""
        return int((self.values != 0).sum())

    @property
    def factors(self) -> Tensor:
        """s, (out,) float64."""
        return row_factor(self.values) if self.scales is None else scale_factor(self.scales)

    @property
    def offsets(self) -> Tensor:
        """2^e b, (out,) float64."""
        return self.biases.double() * 2.0**self.bias_exponent

    def columns(self, grid: Grid) -> int:
        """Columns that V has on such an input."""
        return self.window.columns(grid) if self.window else math.prod(grid)

    def grid_after(self, grid: Grid) -> Grid:
        """Channels, rows and columns of what it gives."""
        return grid_after(self.window, len(self.biases), grid)

    def work(self, grid: Grid) -> int:
        """Multiplications for a sample."""
        _, height, width = self.grid_after(grid)
        return self.values.numel() * height * width

    def padded(self, hidden: Tensor, kind: torch.dtype = torch.float64) -> Tensor:
        """(c, h, w, n), and the zeros around it that a convolution reads."""
        padding = self.window.padding if self.window else 0
        return F.pad(hidden.to(kind), (0, 0, *(padding,) * 4)) if padding else hidden.to(kind)

    def sums(self, reads: Tensor) -> Tensor:
        """z, (out, h', w', n), of what is `padded`; samples are last, so that a product of two matrices does it."""
        values, offsets = self.values.to(reads.dtype), self.offsets.to(reads.dtype).reshape(-1, 1, 1, 1)
        if self.window is None:
            return (values @ reads.flatten(0, 2))[:, None, None] + offsets
        side, groups = self.window.kernel, self.window.groups
        height, width = (_windows(length, side, self.window.stride) for length in reads.shape[1:3])
        places = [
            shifted(reads, top, left, self.window.stride, height, width) for top, left in product(range(side), repeat=2)
        ]
        columns = torch.stack(places, dim=1).reshape(groups, values.shape[1], -1)
        return (values.reshape(groups, -1, values.shape[1]) @ columns).reshape(len(values), height, width, -1) + offsets


Node = CodedLayer | Pool


def _windows(side: int, kernel: int, stride: int) -> int:
    return (side - kernel) // stride + 1


def grid_after(window: Window | None, outputs: int, grid: Grid) -> Grid:
    """Channels, rows and columns behind a layer."""
    if window is None:
        return outputs, 1, 1
    if outputs % window.groups:
        raise ValueError(f"{outputs} channels in {window.groups} groups")
    height, width = (_windows(side + 2 * window.padding, window.kernel, window.stride) for side in (grid[1], grid[2]))
    return outputs, height, width


@dataclass(frozen=True)
class CodedNetwork:
    """A ReLU network with integer parameters.

    Attributes:
        inputs: the map from a sample to the network's inputs.
        nodes: layers and pooling in forward order; the last one is a layer.
    """

    inputs: InputMap
    nodes: tuple[Node, ...]

    def __post_init__(self) -> None:
        if not self.layers:
            raise ValueError("a network has at least one layer")
        if not isinstance(self.nodes[-1], CodedLayer):
            raise ValueError("a network ends with a layer")
        for node, before, after in zip(self.nodes, self.grids, self.grids[1:], strict=False):
            if isinstance(node, CodedLayer) and (found := node.values.shape[1]) != node.columns(before):
                raise ValueError(
                    f"layers do not chain: a layer takes {found} inputs, of {node.columns(before)} that are there"
                )
            if min(after) < 1:
                raise ValueError(f"nothing is left of {before} behind {node}")
        if self.grids[-1][1:] != (1, 1):
            raise ValueError(f"the last layer gives {self.grids[-1]}, no numbers for classes")

    def __eq__(self, other: object) -> bool:
        """Whether every integer is the same."""
        return isinstance(other, CodedNetwork) and self.inputs == other.inputs and _same(self.nodes, other.nodes)

    __hash__ = None  # type: ignore[assignment]

    @property
    def layers(self) -> tuple[CodedLayer, ...]:
        """Nodes with weights."""
        return tuple(node for node in self.nodes if isinstance(node, CodedLayer))

    @property
    def grids(self) -> tuple[Grid, ...]:
        """Channels, rows and columns of the inputs, and behind each node."""
        grids = [self.inputs.grid]
        for node in self.nodes:
            grids.append(node.grid_after(grids[-1]))
        return tuple(grids)

    @property
    def widths(self) -> tuple[int, ...]:
        """Inputs, then the outputs of each layer, for a convolution its channels."""
        return (self.inputs.num_inputs, *(len(layer.biases) for layer in self.layers))

    @property
    def nonzeros(self) -> int:
        """Weights that are not zero."""
        return sum(layer.nonzeros for layer in self.layers)

    @property
    def exact(self) -> bool:
        """Whether float64 computes every number exactly: multiples of one power of two, and in range."""
        if not self.inputs.pixels:
            return False
        return all(largest < _EXACT * unit for largest, unit in self._sizes())

    def _sizes(self) -> Iterator[tuple[float, float]]:
        """For each node, how large its numbers may become on pixels, and what they are multiples of."""
        unit, largest = 1.0, float(self.inputs.largest)
        for node in self.nodes:
            if isinstance(node, Pool):
                largest *= node.kernel**2 if node.kind == "sum" else 1
                yield largest, unit
            else:
                unit = min(unit, 2.0**node.bias_exponent)
                sizes = _of_rows(node.values, lambda rows: rows.abs().double().sum(dim=1))
                sums = sizes * largest + node.offsets.abs()
                largest = float((sums * node.factors).max())
                yield max(float(sums.max()), largest), unit

    @torch.no_grad()
    def logits(self, data: Tensor) -> Tensor:
        """(n, classes) float64 outputs for (n, ...) samples."""
        return self.outputs(self.inputs(data))

    @torch.no_grad()
    def outputs(self, inputs: Tensor) -> Tensor:
        """(n, classes) float64 outputs for (n, inputs) of what `inputs` makes of samples."""
        hidden = inputs.flatten(1).T.reshape(*self.inputs.grid, -1).double()
        for node, kind in zip(self.nodes, self._kinds(), strict=True):
            if isinstance(node, Pool):
                hidden = node(hidden)
                continue
            sums = node.sums(node.padded(hidden, kind))
            hidden = (sums if node is self.nodes[-1] else sums.relu()).double() * node.factors.reshape(-1, 1, 1, 1)
        return hidden.flatten(0, 2).T.contiguous()

    def _kinds(self) -> Iterator[torch.dtype]:
        """For each node float32 where that holds every number exactly, or else float64."""
        whole = self.inputs.pixels and torch.get_float32_matmul_precision() == "highest"
        for largest, unit in self._sizes():
            yield torch.float32 if whole and largest < _SINGLE * unit else torch.float64

    def errors(self, data: Tensor, targets: Tensor, *, seen: bool = False) -> int:
        """Number of samples that the network misclassifies; ties and NaN are errors.

        Args:
            data: (n, ...) samples: pixels, or scaled inputs if `inputs.pixels` is false.
            targets: (n,) class indices.
            seen: whether the data are outputs of the map `inputs` already.
        """
        batch = max(1, min(_BATCH, _BATCH_NUMBERS // self._numbers()))
        wrong = 0
        for some, labels in zip(data.split(batch), targets.split(batch), strict=True):
            logits = self.outputs(some) if seen else self.logits(some)
            own = logits.gather(1, labels[:, None])
            others = logits.scatter(1, labels[:, None], -math.inf)
            wrong += len(labels) - int((own > others).all(dim=1).sum())
        return wrong

    def _numbers(self) -> int:
        """How many numbers are held at once for a sample: what a node reads, its windows, and what it gives."""
        held = [math.prod(self.inputs.seen) + self.inputs.num_inputs]
        for node, before, after in zip(self.nodes, self.grids, self.grids[1:], strict=False):
            windows = 0
            if isinstance(node, CodedLayer) and node.window:
                windows = node.columns(before) * node.window.groups * math.prod(after[1:])
            held.append(math.prod(before) + windows + 2 * math.prod(after))
        return max(held)

    def live(self) -> "CodedNetwork":
        """The same function without dead neurons, which have no outgoing weights or are always zero."""
        network = self
        pairs = range(len(self.layers) - 1)
        # Back and forth, since a neuron's death can be another's, before it or behind it.
        for index in (*pairs, *reversed(pairs), *pairs):
            if network._apart(index):
                first, second = network.layers[index : index + 2]
                leads = (second.values.reshape(len(second.biases), len(first.biases), -1) != 0).any(dim=2).any(dim=0)
                # A weight on what is always zero counts in its row's scale, if the row says its scale.
                fires = (first.values != 0).any(dim=1) | (first.biases > 0) | (second.scales is None)
                keep = leads & fires
                keep[0] |= not keep.any()
                network = network._chosen(index, keep.nonzero()[:, 0])
        return network

    def canonical(self) -> "CodedNetwork":
        """The same function with every hidden layer's channels in the order of their biases, which takes fewer bits."""
        network = self
        for index in range(len(self.layers) - 1):
            if network._apart(index):
                network = network._chosen(index, network.layers[index].biases.argsort(stable=True))
        return network

    def _apart(self, index: int) -> bool:
        """Whether a layer's channels can be taken one by one: groups need as many as there are."""
        return all(layer.window is None or layer.window.groups == 1 for layer in self.layers[index : index + 2])

    def _chosen(self, index: int, rows: Tensor) -> "CodedNetwork":
        """With some of a hidden layer's channels, in that order."""
        first, second = self.layers[index : index + 2]
        by_channel = second.values.reshape(len(second.biases), len(first.biases), -1)
        changed = {
            id(first): replace(
                first,
                values=first.values[rows],
                biases=first.biases[rows],
                scales=None if first.scales is None else first.scales[rows],
            ),
            id(second): replace(second, values=by_channel[:, rows].flatten(1)),
        }
        return CodedNetwork(self.inputs, tuple(changed.get(id(node), node) for node in self.nodes))


def _same(first: Sequence[Node], second: Sequence[Node]) -> bool:
    return len(first) == len(second) and all(map(_same_node, first, second))


def _same_node(a: Node, b: Node) -> bool:
    if isinstance(a, Pool) or isinstance(b, Pool):
        return a == b
    tensors = ((a.values, b.values), (a.biases, b.biases), (a.scales, b.scales))
    return (a.bias_exponent, a.window) == (b.bias_exponent, b.window) and all(
        y is None if x is None else y is not None and torch.equal(x, y) for x, y in tensors
    )
