"""A layer: a map that is linear in its input and in its kernel (spec §9)."""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv1d_input, conv2d_input, conv3d_input

__all__ = ["Layer", "Window"]

_CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_ADJOINT = {1: conv1d_input, 2: conv2d_input, 3: conv3d_input}


@dataclass(frozen=True)
class Window:
    """How a convolution lays its kernel over the input, per spatial dimension; the padding is with zeros.

    Attributes:
        size: size of the kernel.
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
        window: window of a convolution; None for a Linear layer.
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

    @property
    def places(self) -> int:
        """Outputs that share a row of the kernel: pixels of a convolution, positions of a Linear layer."""
        return math.prod(self.outputs[:-1] if self.window is None else self.outputs[1:])

    @property
    def effective_kernel(self) -> Tensor:
        """gain·K, float64, of the kernel's shape: the matrix whose norms the layer has."""
        kernel = self.kernel.detach().double()
        return kernel if self.gain is None else self.gain.detach().double().reshape(-1, 1) * kernel

    def with_kernel(self, kernel: Tensor) -> "Layer":
        """The same layer with another kernel of the same shape, as after pruning."""
        return replace(self, kernel=kernel)

    def difference(self, other: "Layer") -> "Layer":
        """The layer whose operator is this one's less the other's, without bias; both have the same shapes.

        Raises:
            ValueError: the kernels differ in shape.
        """
        if self.shape != other.shape:
            raise ValueError(f"{self.name} has a kernel of shape {self.shape}, not {other.shape}")
        kernel, reference = self.effective_kernel, other.effective_kernel
        return replace(self, kernel=kernel - reference.to(kernel.device), gain=None, bias=None)

    def check_sizes(self) -> None:
        """Raise ValueError if the layer is a convolution whose input and output were not seen."""
        spatial = 0 if self.window is None else len(self.window.size)
        if spatial and not len(self.inputs) == len(self.outputs) == spatial + 1:
            raise ValueError(f"norms of {self.name} depend on the sizes of its input and output, which are not known")

    def apply(self, kernel: Tensor, x: Tensor) -> Tensor:
        """The map without gain and bias: (n, *inputs) to (n, *outputs), for any kernel of the layer's shape."""
        if self.window is None:
            return F.linear(x, kernel)
        return _CONVOLVE[len(self.window.size)](x, self._filters(kernel), **self._options(self.window))

    def adjoint(self, kernel: Tensor, y: Tensor) -> Tensor:
        """What `apply` is the adjoint of, from (n, *outputs) to (n, *inputs): ⟨Kx, y⟩ = ⟨x, K*y⟩ for all x and y."""
        if self.window is None:
            return y @ kernel
        backward = _ADJOINT[len(self.window.size)]
        return backward((len(y), *self.inputs), self._filters(kernel), y, **self._options(self.window))

    def _filters(self, kernel: Tensor) -> Tensor:
        assert self.window is not None
        return kernel.reshape(len(kernel), -1, *self.window.size)

    @staticmethod
    def _options(window: Window) -> dict[str, Any]:
        return {
            "stride": window.stride,
            "padding": window.padding,
            "dilation": window.dilation,
            "groups": window.groups,
        }

    def __call__(self, x: Tensor, kernel: Tensor | None = None) -> Tensor:
        """The layer with its own kernel or another one, gain and bias: (n, *inputs) to (n, *outputs)."""
        y = self.apply(self.kernel if kernel is None else kernel, x)
        for factor, combine in ((self.gain, torch.mul), (self.bias, torch.add)):
            if factor is not None:
                spatial = 0 if self.window is None else len(self.window.size)
                y = combine(y, factor.reshape(-1, *[1] * spatial))
        return y
