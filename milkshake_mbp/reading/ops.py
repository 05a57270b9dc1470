"""What each operation of a recording means for the theory: a layer, or something that stands between layers."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from milkshake_mbp.reading.record import Call, Given, Ref
from milkshake_mbp.theory.layers import Layer
from milkshake_mbp.theory.network import Op, Sum, Through

__all__ = ["KERNEL_OPERATIONS", "Meaning", "is_shift", "meaning"]

Meaning = tuple[Op, tuple[Ref, ...]]
"""What an operation does, and the tensors that it does that to."""

# Operations that multiply by a kernel, wherever it stands among their arguments.
KERNEL_OPERATIONS = {
    *("mm", "addmm", "mv", "addmv", "bmm", "baddbmm", "addbmm", "matmul", "linear", "convolution"),
    *("embedding", "embedding_bag", "_native_multi_head_attention", "_transformer_encoder_layer_fwd"),
    *("lstm", "gru", "rnn_tanh", "rnn_relu", "mkldnn_rnn_layer", "_cudnn_rnn"),
}

_RESHAPES = ("view", "_unsafe_view", "reshape", "flatten", "squeeze", "unsqueeze", "clone", "alias", "detach")
# Entrywise, but with no Lipschitz constant that is known here, or with φ(0) ≠ 0.
_ODD = {
    **{"sigmoid": "Sigmoid", "softplus": "Softplus", "gelu": "GELU", "silu": "SiLU", "elu": "ELU", "mish": "Mish"},
    **{"hardswish": "Hardswish", "hardsigmoid": "Hardsigmoid", "hardshrink": "Hardshrink", "exp": "exp", "cos": "cos"},
    **{"_prelu_kernel": "PReLU", "celu": "CELU", "selu": "SELU", "log_sigmoid_forward": "LogSigmoid", "sin": "sin"},
}


def meaning(calls: Sequence[Call], index: int, name: Callable[[Given], str]) -> Meaning | None:
    """The theory's reading of an operation; None if there is none.

    Args:
        calls: all operations of the recording.
        index: which of them.
        name: of the layer that a kernel belongs to.
    """
    call = calls[index]
    if (x := _shrunk(calls, call)) is not None:
        return Through("Tanhshrink", F.tanhshrink, homogeneous=False), (x,)
    rule = _RULES.get(call.name)
    return None if rule is None else rule(call, name)


def _shrunk(calls: Sequence[Call], call: Call) -> Ref | None:
    """The x of x − tanh(x), which PyTorch computes in two operations; None for another operation."""
    if call.name != "sub" or call.kwargs.get("alpha", 1) != 1 or len(list(call.operands)) != 2:
        return None
    x, other = call.operands
    if isinstance(x, Ref) and isinstance(other, Ref) and other.call >= 0:
        before = calls[other.call]
        return x if before.name == "tanh" and before.args[0] == x else None
    return None


def is_shift(op: Op) -> bool:
    """Whether it adds a constant."""
    return isinstance(op, Through) and op.name == _SHIFT


_SHIFT = "bias"


def _linear(x: Any, weight: Any, bias: Any, name: Callable[[Given], str]) -> Meaning | None:
    """x·weightᵀ + bias for a whole (out, in) weight."""
    if not isinstance(x, Ref) or not isinstance(weight, Given) or weight.tensor.ndim != 2 or not weight.whole:
        return None
    rows, columns = weight.tensor.shape
    if bias is not None and not (_is_parameter(bias) and bias.tensor.shape == (rows,)):
        return None
    added = None if bias is None else bias.tensor.detach().clone()
    return Layer(name(weight), weight.tensor.detach().clone(), (columns,), (rows,), bias=added), (x,)


def _transposed(weight: Any) -> Any:
    """A kernel that stands on the right of its input, as the (out, in) matrix that it is."""
    if not isinstance(weight, Given) or weight.tensor.ndim != 2:
        return weight
    return Given(weight.tensor.T, weight.leaves, weight.parameter, weight.whole, not weight.transposed, weight.mask)


def _mm(call: Call, name: Callable[[Given], str]) -> Meaning | None:
    return _linear(call.args[0], _transposed(call.args[1]), None, name)


def _addmm(call: Call, name: Callable[[Given], str]) -> Meaning | None:
    if any(call.kwargs.get(factor, 1) != 1 for factor in ("alpha", "beta")):
        return None
    return _linear(call.args[1], _transposed(call.args[2]), call.args[0], name)


def _linear_call(call: Call, name: Callable[[Given], str]) -> Meaning | None:
    if len(call.shapes[0]) != 2:
        return None
    return _linear(call.args[0], call.args[1], call.args[2] if len(call.args) > 2 else None, name)


def _add(call: Call, name: Callable[[Given], str]) -> Meaning | None:
    first, second = call.args[:2]
    if call.kwargs.get("alpha", 1) != 1:
        return None
    if isinstance(first, Ref) and isinstance(second, Ref):
        return Sum(), (first, second)
    if isinstance(second, Ref):
        first, second = second, first
    if not isinstance(first, Ref) or not _is_parameter(second):
        return None
    constant = second.tensor.detach().clone()
    if constant.ndim != 1 or len(call.shapes[0]) != 2:
        return None
    at_zero = float(torch.linalg.vector_norm(constant.double()))
    shift = Through(_SHIFT, partial(torch.add, constant), 1.0, False, False, True, at_zero)
    return shift, (first,)


def _entrywise(call: Call, through: Through) -> Meaning | None:
    (x,) = call.args[:1]
    return (through, (x,)) if isinstance(x, Ref) else None


def _relu(call: Call, name: Callable[[Given], str]) -> Meaning | None:
    return _entrywise(call, Through("ReLU", torch.relu))


def _leaky_relu(call: Call, name: Callable[[Given], str]) -> Meaning | None:
    slope = float(call.args[1]) if len(call.args) > 1 else 0.01
    function = partial(F.leaky_relu, negative_slope=slope)
    return _entrywise(call, Through(f"LeakyReLU({slope:g})", function, max(1.0, abs(slope))))


def _hardtanh(call: Call, name: Callable[[Given], str]) -> Meaning | None:
    low = float(call.args[1]) if len(call.args) > 1 else -1.0
    high = float(call.args[2]) if len(call.args) > 2 else 1.0
    label = "ReLU6" if (low, high) == (0.0, 6.0) else f"Hardtanh({low:g}, {high:g})"
    function = partial(F.hardtanh, min_val=low, max_val=high)
    return _entrywise(call, Through(label, function, 1.0, low <= 0 <= high, False))


def _clamp(call: Call, name: Callable[[Given], str]) -> Meaning | None:
    bounds = [*call.args[1:], None, None][:2]
    low, high = (math.copysign(math.inf, sign) if b is None else b for b, sign in zip(bounds, (-1, 1), strict=True))
    if not isinstance(low, (int, float)) or not isinstance(high, (int, float)):
        return None
    if (low, high) == (0, math.inf):
        return _relu(call, name)
    function = partial(torch.clamp, min=low, max=high)
    return _entrywise(call, Through(f"clamp({low:g}, {high:g})", function, 1.0, low <= 0 <= high, False))


def _tanh(call: Call, name: Callable[[Given], str]) -> Meaning | None:
    return _entrywise(call, Through("Tanh", torch.tanh, homogeneous=False))


def _softshrink(call: Call, name: Callable[[Given], str]) -> Meaning | None:
    threshold = float(call.args[1]) if len(call.args) > 1 else 0.5
    function = partial(F.softshrink, lambd=threshold)
    return _entrywise(call, Through("Softshrink", function, homogeneous=threshold == 0))


def _odd(label: str, call: Call, name: Callable[[Given], str]) -> Meaning | None:
    if any(isinstance(operand, Given) for operand in call.operands):
        return None
    function = partial(_again, call)
    return _entrywise(call, Through(label, function, math.inf, False, False, True, math.inf))


def _again(call: Call, x: Tensor) -> Tensor:
    """The same operation, with the same numbers, on another tensor; not in place."""
    plain = getattr(torch.ops.aten, call.name)
    return plain(x, *call.args[1:], **call.kwargs)


def _reshape(call: Call, name: Callable[[Given], str]) -> Meaning | None:
    x, shape = call.args[0], call.shapes[0]
    if not isinstance(x, Ref):
        return None
    return Through("Flatten", lambda tensor: tensor.reshape(len(tensor), *shape[1:])), (x,)


def _is_parameter(value: Any) -> bool:
    return isinstance(value, Given) and bool(value.parameter) and value.whole


_RULES: dict[str, Callable[[Call, Callable[[Given], str]], Meaning | None]] = {
    "mm": _mm,
    "addmm": _addmm,
    "linear": _linear_call,
    "add": _add,
    "relu": _relu,
    "leaky_relu": _leaky_relu,
    "hardtanh": _hardtanh,
    "relu6": lambda call, name: _entrywise(call, Through("ReLU6", F.relu6, homogeneous=False)),
    "clamp": _clamp,
    "clamp_min": _clamp,
    "tanh": _tanh,
    "softshrink": _softshrink,
    **{operator: partial(_odd, label) for operator, label in _ODD.items()},
    **dict.fromkeys(_RESHAPES, _reshape),
}
