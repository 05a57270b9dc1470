"""What each operation of a recording means for the theory: a layer, or something that stands between layers.

One rule an operation. A rule returns None where the operation is not one that the theory knows: then the network is not
read as a graph.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from milkshake_mbp.reading.record import Call, Given, Recording, Ref
from milkshake_mbp.theory.constants import (
    ACTIVATIONS,
    Activation,
    adaptive_windows,
    average_pool_lipschitz,
    average_pool_matrix,
    max_pool_lipschitz,
    padding_lipschitz,
    pool_windows,
)
from milkshake_mbp.theory.layers import Layer, Window
from milkshake_mbp.theory.network import Concat, Op, Sum, Through

__all__ = ["KERNEL_OPERATIONS", "Context", "Gain", "Meaning", "is_shift", "meaning", "moves_only", "normalization"]

Meaning = tuple["Op | Gain", tuple[Ref, ...]]
"""What an operation does, and the tensors that it does that to."""

# Operations that multiply by a kernel, wherever it stands among their arguments.
KERNEL_OPERATIONS = {
    *("mm", "addmm", "mv", "addmv", "bmm", "baddbmm", "addbmm", "matmul", "linear", "convolution"),
    *("embedding", "embedding_bag", "_native_multi_head_attention", "_transformer_encoder_layer_fwd"),
    *("lstm", "gru", "rnn_tanh", "rnn_relu", "mkldnn_rnn_layer", "_cudnn_rnn"),
}
_SHIFT, _MOVE = "bias", "Flatten"


@dataclass(frozen=True)
class Context:
    """What a rule may ask.

    Attributes:
        recording: that the operation is part of.
        name: name of the layer that a kernel belongs to.
    """

    recording: Recording
    name: Callable[[Given], str]

    def shape(self, ref: Ref) -> tuple[int, ...]:
        """Of a tensor, samples first."""
        return self.recording.inputs if ref.call < 0 else self.recording.calls[ref.call].shapes[ref.item]


@dataclass(frozen=True, eq=False)
class Gain:
    """Factors and shifts of a layer's rows: a batch normalization in eval mode (spec §9).

    Attributes:
        gain: (channels,), γ/√(v + ε).
        shift: (channels,), β − gain·μ.
        weight: name of γ; empty if there is none.
        variance: name of v.
        epsilon: ε.
    """

    gain: Tensor
    shift: Tensor
    weight: str = ""
    variance: str = ""
    epsilon: float = 0.0

    def with_values(self, values: Mapping[str, Tensor]) -> Tensor | None:
        """The gain at other values of the parameters and buffers; None if they are not all there."""
        if self.variance not in values or (self.weight and self.weight not in values):
            return None
        scale = (values[self.variance].double() + self.epsilon).rsqrt()
        return values[self.weight].double().to(scale.device) * scale if self.weight else scale

    def of(self, layer: Layer) -> Layer:
        """The layer with this behind it."""
        gain = self.gain if layer.gain is None else self.gain * layer.gain
        bias = self.shift if layer.bias is None else self.gain * layer.bias + self.shift
        kernel = layer.kernel
        return Layer(
            layer.name, kernel, layer.inputs, layer.outputs, layer.window, gain.to(kernel.dtype), bias.to(kernel.dtype)
        )


def meaning(call: Call, context: Context) -> Meaning | None:
    """The theory's reading of an operation; None if there is none."""
    rule = _RULES.get(call.name)
    return None if rule is None else rule(call, context)


def is_shift(op: Op) -> bool:
    """Whether it adds a constant."""
    return isinstance(op, Through) and op.name == _SHIFT


def moves_only(op: Op) -> bool:
    """Whether it gives the same numbers another shape."""
    return isinstance(op, Through) and op.name == _MOVE


# Layers


def _linear(x: Any, weight: Any, bias: Any, context: Context) -> Meaning | None:
    """x·weightᵀ + bias for a whole (out, in) weight."""
    if not isinstance(x, Ref) or not isinstance(weight, Given) or weight.tensor.ndim != 2 or not weight.whole:
        return None
    rows, columns = weight.tensor.shape
    if len(context.shape(x)) != 2 or not _is_bias(bias, rows):
        return None
    added = None if bias is None else bias.tensor.detach().clone()
    return Layer(context.name(weight), weight.tensor.detach().clone(), (columns,), (rows,), bias=added), (x,)


def _transposed(weight: Any) -> Any:
    """A kernel that stands on the right of its input, as the (out, in) matrix that it is."""
    if not isinstance(weight, Given) or weight.tensor.ndim != 2:
        return weight
    return Given(weight.tensor.T, weight.leaves, weight.parameter, weight.whole, not weight.transposed, weight.mask)


def _mm(call: Call, context: Context) -> Meaning | None:
    return _linear(call.args[0], _transposed(call.args[1]), None, context)


def _addmm(call: Call, context: Context) -> Meaning | None:
    if any(call.kwargs.get(factor, 1) != 1 for factor in ("alpha", "beta")):
        return None
    return _linear(call.args[1], _transposed(call.args[2]), call.args[0], context)


def _linear_call(call: Call, context: Context) -> Meaning | None:
    return _linear(call.args[0], call.args[1], call.args[2] if len(call.args) > 2 else None, context)


def _convolution(call: Call, context: Context) -> Meaning | None:
    x, weight, bias, stride, padding, dilation, transposed, _, groups = call.args[:9]
    if transposed or not isinstance(x, Ref) or not _is_parameter(weight) or not _is_bias(bias, len(weight.tensor)):
        return None
    kernel, given = weight.tensor.detach(), context.shape(x)
    spatial = kernel.ndim - 2
    if len(given) != spatial + 2:
        return None
    steps, zeros, apart = (tuple(value) * (spatial if len(value) == 1 else 1) for value in (stride, padding, dilation))
    window = Window(tuple(kernel.shape[2:]), steps, zeros, apart, groups)
    added = None if bias is None else bias.tensor.detach().clone()
    return Layer(context.name(weight), kernel.flatten(1).clone(), given[1:], call.shapes[0][1:], window, bias=added), (
        x,
    )


def _batch_norm(call: Call, context: Context) -> Meaning | None:
    x, weight, bias, mean, variance = call.args[:5]
    training = call.args[5] if isinstance(call.args[5], bool) else False
    given = [tensor for tensor in (weight, bias, mean, variance) if tensor is not None]
    if training or mean is None or not isinstance(x, Ref) or not all(isinstance(part, Given) for part in given):
        return None
    # As torch divides by it.
    scale = (variance.tensor.double() + call.args[-1]).rsqrt()
    gain = scale if weight is None else weight.tensor.double() * scale
    shift = -gain * mean.tensor.double() + (0.0 if bias is None else bias.tensor.double())
    of_weight = "" if weight is None else "".join(weight.leaves)
    return Gain(gain.detach(), shift.detach(), of_weight, "".join(variance.leaves), call.args[-1]), (x,)


def normalization(gain: Gain, shape: Sequence[int]) -> Through:
    """A batch normalization that does not stand behind a layer, as a function of its own; `shape` of one sample."""
    factors, shifts = (part.reshape(-1, *[1] * (len(shape) - 1)) for part in (gain.gain, gain.shift))
    at_zero = float(torch.linalg.vector_norm(gain.shift)) * math.sqrt(math.prod(shape[1:]))

    def function(x: Tensor) -> Tensor:
        return factors.to(x.dtype) * x + shifts.to(x.dtype)

    largest = float(gain.gain.abs().amax())

    def paths(sums: Tensor, p: float) -> Tensor:
        return factors.abs().double().pow(p) * sums

    return Through("BatchNorm", function, largest, not at_zero, not at_zero, False, at_zero, paths)


# Sums


def _add(call: Call, context: Context) -> Meaning | None:
    first, second = call.args[:2]
    if call.kwargs.get("alpha", 1) != 1:
        return None
    if isinstance(first, Ref) and isinstance(second, Ref):
        return (Sum(), (first, second)) if context.shape(first) == context.shape(second) else None
    if isinstance(second, Ref):
        first, second = second, first
    if not isinstance(first, Ref) or not _is_parameter(second) or second.tensor.ndim != 1:
        return None
    if len(call.shapes[0]) != 2:
        return None
    constant = second.tensor.detach().clone()
    at_zero = float(torch.linalg.vector_norm(constant.double()))
    return Through(_SHIFT, partial(torch.add, constant), 1.0, False, False, True, at_zero), (first,)


def _cat(call: Call, context: Context) -> Meaning | None:
    parts = call.args[0]
    dim = call.args[1] if len(call.args) > 1 else 0
    dim = dim + len(call.shapes[0]) if dim < 0 else dim
    if dim == 0 or not all(isinstance(part, Ref) for part in parts):
        return None
    return Concat(dim), tuple(parts)


# Functions of one number


def _activation(label: str, call: Call, context: Context, *numbers: float) -> Meaning | None:
    """The function of torch.nn of that name with these numbers."""
    x = call.args[0]
    if not isinstance(x, Ref) or sum(isinstance(operand, Given) for operand in call.operands):
        return None
    shown = f"{label}({', '.join(f'{number:g}' for number in numbers)})" if numbers else label
    return _through(shown, ACTIVATIONS[label](*numbers), call, numbers), (x,)


def _through(shown: str, known: Activation, call: Call, numbers: tuple[float, ...] = ()) -> Through:
    return Through(
        shown,
        partial(_again, call),
        known.lipschitz,
        known.at_zero == 0,
        known.homogeneous,
        at_zero=abs(known.at_zero) * math.sqrt(math.prod(call.shapes[0][1:])),
        numbers=numbers,
    )


def _again(call: Call, x: Tensor) -> Tensor:
    """The same operation, with the same numbers, on another tensor; not in place."""
    operator = getattr(torch.ops.aten, call.name)
    result = operator(x, *call.args[1:], **call.kwargs)
    return result[0] if isinstance(result, tuple) else result


def _simple(label: str) -> Callable[[Call, Context], Meaning | None]:
    return partial(_activation, label)


def _numbered(label: str, *defaults: float) -> Callable[[Call, Context], Meaning | None]:
    def rule(call: Call, context: Context) -> Meaning | None:
        given = tuple(float(number) for number in call.args[1:] if isinstance(number, (int, float)))[: len(defaults)]
        numbers = (*given, *defaults[len(given) :])
        return _activation(label, call, context, *(() if numbers == defaults else numbers))

    return rule


def _hardtanh(call: Call, context: Context) -> Meaning | None:
    low, high = [float(number) for number in (*call.args[1:3], *(-1.0, 1.0)[len(call.args) - 1 :])]
    if (low, high) == (0.0, 6.0):
        return _activation("ReLU6", call, context)
    return _activation("Hardtanh", call, context, *(() if (low, high) == (-1.0, 1.0) else (low, high)))


def _clamp(call: Call, context: Context) -> Meaning | None:
    low, high = [*call.args[1:], None, None][:2]
    if low == 0 and high is None:
        return _activation("ReLU", call, context)
    if not all(bound is None or isinstance(bound, (int, float)) for bound in (low, high)):
        return None
    low, high = -math.inf if low is None else low, math.inf if high is None else high
    return _activation("Hardtanh", call, context, low, high)


def _gelu(call: Call, context: Context) -> Meaning | None:
    x = call.args[0]
    form = call.kwargs.get("approximate", "none")
    label = "GELU" if form == "none" else "GELU(tanh)"
    return (_through(label, ACTIVATIONS["GELU"](form), call), (x,)) if isinstance(x, Ref) else None


def _prelu(call: Call, context: Context) -> Meaning | None:
    x, slopes = call.args[:2]
    if not isinstance(x, Ref) or not isinstance(slopes, Given) or not slopes.parameter:
        return None
    known = ACTIVATIONS["PReLU"](*slopes.tensor.flatten().tolist())
    slope = slopes.tensor.detach().clone()
    return Through("PReLU", lambda value: torch.where(value >= 0, value, slope * value), known.lipschitz), (x,)


def _unknown(label: str, call: Call, context: Context) -> Meaning | None:
    """An entrywise function without a Lipschitz constant that is known here."""
    x, function = call.args[0], partial(_again, call)
    return (Through(label, function, math.inf, False, False, True, math.inf), (x,)) if isinstance(x, Ref) else None


def _tanhshrink(call: Call, context: Context) -> Meaning | None:
    """X − tanh(x), which PyTorch computes in two operations."""
    x, other = call.args[:2]
    if call.kwargs.get("alpha", 1) != 1 or not isinstance(x, Ref) or not isinstance(other, Ref) or other.call < 0:
        return None
    before = context.recording.calls[other.call]
    if before.name != "tanh" or before.args[0] != x:
        return None
    known = ACTIVATIONS["Tanhshrink"]()
    return Through("Tanhshrink", F.tanhshrink, known.lipschitz, True, known.homogeneous), (x,)


# Pooling, padding, shapes


def _max_pool(call: Call, context: Context) -> Meaning | None:
    x, kernel, stride, padding, dilation, ceil_mode = _pool_arguments(call)
    if not isinstance(x, Ref):
        return None
    spatial = len(kernel)
    pool: Callable[..., Tensor] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}[spatial]
    function = partial(pool, kernel_size=kernel, stride=stride, padding=padding, dilation=dilation, ceil_mode=ceil_mode)
    windows = call.shapes[0][-spatial:]
    sums = [
        _window_sums(*sides)
        for sides in zip(context.shape(x)[-spatial:], windows, kernel, stride, padding, dilation, strict=True)
    ]
    count = math.prod(kernel)
    through = Through(
        "MaxPool",
        function,
        max_pool_lipschitz(kernel, stride, dilation, within=windows),
        entrywise=count == 1,
        paths=lambda values, p: _along(sums, values),
        maximum_of=count,
        numbers=(*kernel, *stride, *padding, *dilation, float(ceil_mode)),
    )
    return through, (x,)


def _window_sums(size: int, windows: int, kernel: int, stride: int, padding: int, dilation: int) -> Tensor:
    """(windows, size): 1 where a window has an entry."""
    matrix = torch.zeros(windows, size, dtype=torch.float64)
    for window, row in enumerate(matrix):
        entries = [window * stride - padding + step * dilation for step in range(kernel)]
        row[[entry for entry in entries if 0 <= entry < size]] = 1
    return matrix


def _along(matrices: Sequence[Tensor], x: Tensor, power: float = 1.0) -> Tensor:
    """Matrices, each to a power entry by entry, applied to the last dimensions one after another."""
    for offset, matrix in enumerate(reversed(matrices)):
        dim = x.ndim - 1 - offset
        x = torch.tensordot(x, matrix.pow(power).to(x), dims=([dim], [1])).movedim(-1, dim)
    return x


def _pool_arguments(call: Call) -> tuple[Any, list[int], list[int], list[int], list[int], bool]:
    x, kernel = call.args[:2]
    stride = list(call.args[2]) if len(call.args) > 2 and call.args[2] else list(kernel)
    padding = list(call.args[3]) if len(call.args) > 3 else [0]
    dilation = list(call.args[4]) if len(call.args) > 4 else [1]
    spread = [list(value) * (len(kernel) if len(value) == 1 else 1) for value in (stride, padding, dilation)]
    return x, list(kernel), *spread, bool(call.args[5]) if len(call.args) > 5 else False


def _average_pool(call: Call, context: Context) -> Meaning | None:
    x, kernel = call.args[:2]
    if not isinstance(x, Ref):
        return None
    stride = list(call.args[2]) if len(call.args) > 2 and call.args[2] else list(kernel)
    padding = list(call.args[3]) if len(call.args) > 3 else [0] * len(kernel)
    ceil_mode = bool(call.args[4]) if len(call.args) > 4 else False
    include = bool(call.args[5]) if len(call.args) > 5 else True
    divisor = call.args[6] if len(call.args) > 6 else None
    sizes = context.shape(x)[-len(kernel) :]
    matrices = [
        average_pool_matrix(
            size,
            pool_windows(size, k, s, p, ceil_mode),
            padding=p,
            count_include_pad=include,
            divisor=None if divisor is None else (divisor if index == 0 else 1),
        )
        for index, (size, k, s, p) in enumerate(zip(sizes, kernel, stride, padding, strict=True))
    ]
    numbers = (*kernel, *stride, *padding, float(ceil_mode), float(include), float(divisor or 0))
    return _averages("AvgPool", matrices, call, numbers), (x,)


def _adaptive_average_pool(call: Call, context: Context) -> Meaning | None:
    x, outputs = call.args[:2]
    if not isinstance(x, Ref):
        return None
    sizes = context.shape(x)[-len(outputs) :]
    matrices = [
        average_pool_matrix(size, adaptive_windows(size, count)) for size, count in zip(sizes, outputs, strict=True)
    ]
    return _averages("AdaptiveAvgPool", matrices, call, tuple(outputs)), (x,)


def _mean(call: Call, context: Context) -> Meaning | None:
    """A mean over the last dimensions of an image."""
    x = call.args[0]
    if not isinstance(x, Ref) or len(call.args) < 2 or call.args[1] is None:
        return None
    given = context.shape(x)
    over = sorted(dim % len(given) for dim in call.args[1])
    if not over or over != list(range(over[0], len(given))) or over[0] < 2:
        return None
    matrices = [average_pool_matrix(size, [(0, size)]) for size in given[over[0] :]]
    return _averages("mean", matrices, call, (over[0], float(len(call.shapes[0]) == len(given)))), (x,)


def _averages(name: str, matrices: Sequence[Tensor], call: Call, numbers: tuple[float, ...]) -> Through:
    """A linear map that works on the last dimensions one after another."""
    shape = call.shapes[0][1:]

    def paths(sums: Tensor, p: float) -> Tensor:
        return _along(matrices, sums, p).reshape(len(sums), *shape)

    lipschitz = average_pool_lipschitz(matrices)
    return Through(name, partial(_again, call), lipschitz, entrywise=False, paths=paths, numbers=numbers)


def _padding(mode: str, call: Call, context: Context) -> Meaning | None:
    x, pads = call.args[:2]
    value = call.args[2] if len(call.args) > 2 else 0.0
    if not isinstance(x, Ref) or (mode == "constant" and value != 0):
        return None
    given = context.shape(x)
    pairs = [(pads[i], pads[i + 1]) for i in range(0, len(pads), 2)]
    sizes = [given[-1 - index] for index in range(len(pairs))]
    if len(given) - len(pairs) < 2:
        return None
    function = partial(F.pad, pad=list(pads), mode=mode)
    lipschitz = padding_lipschitz(mode, sizes, pairs)  # type: ignore[arg-type]
    through = Through(
        f"{mode} padding",
        function,
        lipschitz,
        entrywise=False,
        paths=lambda sums, p: function(sums),
        numbers=tuple(pads),
    )
    return through, (x,)


def _index_select(call: Call, context: Context) -> Meaning | None:
    x, dim, places = call.args
    return _choice(x, dim, places, context)


def _index(call: Call, context: Context) -> Meaning | None:
    x, places = call.args
    given = [(dim, place) for dim, place in enumerate(places) if place is not None]
    return _choice(x, *given[0], context) if len(given) == 1 else None


def _choice(x: Any, dim: int, places: Any, context: Context) -> Meaning | None:
    """Entries at places that do not depend on the sample, as in circular padding and shuffled channels."""
    if not isinstance(x, Ref) or not isinstance(places, Given):
        return None
    index, dim = places.tensor.detach().clone(), dim % len(context.shape(x))
    if index.is_floating_point() or index.dtype == torch.bool or index.ndim != 1 or not len(index) or not dim:
        return None
    index %= context.shape(x)[dim]
    function = partial(torch.index_select, dim=dim, index=index)
    through = Through(
        "index_select",
        function,
        math.sqrt(float(index.bincount().amax())),
        entrywise=False,
        paths=lambda sums, p: function(sums),
        numbers=(dim, *index.tolist()),
    )
    return through, (x,)


def _reshape(call: Call, context: Context) -> Meaning | None:
    x, shape = call.args[0], call.shapes[0]
    if not isinstance(x, Ref) or shape[:1] != context.shape(x)[:1]:
        return None

    def function(tensor: Tensor) -> Tensor:
        return tensor.reshape(len(tensor), *shape[1:])

    return Through(_MOVE, function, paths=lambda sums, p: function(sums), numbers=shape[1:]), (x,)


def _is_parameter(value: Any) -> bool:
    return isinstance(value, Given) and bool(value.parameter) and value.whole


def _is_bias(value: Any, rows: int) -> bool:
    return value is None or (_is_parameter(value) and value.tensor.shape == (rows,))


_RULES: dict[str, Callable[[Call, Context], Meaning | None]] = {
    "mm": _mm,
    "addmm": _addmm,
    "linear": _linear_call,
    "convolution": _convolution,
    **dict.fromkeys(
        ("native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm", "_native_batch_norm_legit_no_training"),
        _batch_norm,
    ),
    "add": _add,
    "cat": _cat,
    "relu": _simple("ReLU"),
    "relu6": _simple("ReLU6"),
    "leaky_relu": _numbered("LeakyReLU", 0.01),
    "_prelu_kernel": _prelu,
    "hardtanh": _hardtanh,
    "clamp": _clamp,
    "clamp_min": _clamp,
    "tanh": _simple("Tanh"),
    "sub": _tanhshrink,
    "softshrink": _numbered("Softshrink", 0.5),
    "hardshrink": _numbered("Hardshrink", 0.5),
    "sigmoid": _simple("Sigmoid"),
    "softplus": _numbered("Softplus", 1.0),
    "gelu": _gelu,
    "silu": _simple("SiLU"),
    "mish": _simple("Mish"),
    "hardswish": _simple("Hardswish"),
    "hardsigmoid": _simple("Hardsigmoid"),
    "log_sigmoid_forward": _simple("LogSigmoid"),
    "elu": _numbered("ELU", 1.0),
    "celu": _numbered("CELU", 1.0),
    "exp": partial(_unknown, "exp"),
    "max_pool2d_with_indices": _max_pool,
    "max_pool3d_with_indices": _max_pool,
    "max_pool1d": _max_pool,
    "avg_pool1d": _average_pool,
    "avg_pool2d": _average_pool,
    "avg_pool3d": _average_pool,
    "_adaptive_avg_pool2d": _adaptive_average_pool,
    "_adaptive_avg_pool3d": _adaptive_average_pool,
    "mean": _mean,
    "index": _index,
    "index_select": _index_select,
    "constant_pad_nd": partial(_padding, "constant"),
    **{f"reflection_pad{spatial}d": partial(_padding, "reflect") for spatial in (1, 2, 3)},
    **{f"replication_pad{spatial}d": partial(_padding, "replicate") for spatial in (1, 2, 3)},
    **dict.fromkeys(
        ("view", "_unsafe_view", "reshape", "flatten", "squeeze", "unsqueeze", "clone", "alias", "detach"), _reshape
    ),
}
