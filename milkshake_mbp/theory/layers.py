"""A layer: a map that is linear in its input and in its kernel (spec §9)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Layer", "Window"]

_CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


@dataclass(frozen=True)
class Window:
    """How a convolution lays its kernel over the input, per spatial dimension; the padding is with zeros.

    Attributes:
        size: of the kernel.
        stride: steps between two places of the kernel.
        padding: zeros on either side.
        dilation: steps between two entries of the kernel.
        groups: parts that channels are divided into, each with kernels of its own.
    """

    size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1


@dataclass(frozen=True, eq=False)
class Layer:
    """A linear map of a sample, given by a kernel that it is linear in too.

    Attributes:
        name: the layer's name in the module.
        kernel: (out, in) weight of a Linear layer, (out, in/groups·kh·kw) of a convolution: what is pruned, counted,
            sketched and coded.
        inputs: shape of one sample on its way in; () where it was not seen.
        outputs: shape of one sample on its way out.
        window: of a convolution; None for a Linear layer.
        gain: (out,) factors of the outputs, as of a normalization in eval mode; None for 1.
        bias: (out,), added last; None for 0.
    """

    name: str
    kernel: Tensor
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    window: Window | None = None
    gain: Tensor | None = None
    bias: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """The kernel's (rows, columns)."""
        return int(self.kernel.shape[0]), int(self.kernel.shape[1])

    def apply(self, kernel: Tensor, x: Tensor) -> Tensor:
        """The map without gain and bias: (n, *inputs) to (n, *outputs), for any kernel of the layer's shape."""
        if self.window is None:
            return F.linear(x, kernel)
        window = self.window
        columns = self.kernel.shape[1] // math.prod(window.size)
        return _CONVOLVE[len(window.size)](
            x,
            kernel.reshape(-1, columns, *window.size),
            stride=window.stride,
            padding=window.padding,
            dilation=window.dilation,
            groups=window.groups,
        )

    def __call__(self, x: Tensor, kernel: Tensor | None = None) -> Tensor:
        """The layer with its own kernel or another one, gain and bias: (n, *inputs) to (n, *outputs)."""
        y = self.apply(self.kernel if kernel is None else kernel, x)
        for factor, combine in ((self.gain, torch.mul), (self.bias, torch.add)):
            if factor is not None:
                spatial = 0 if self.window is None else len(self.window.size)
                y = combine(y, factor.reshape(-1, *[1] * spatial))
        return y
