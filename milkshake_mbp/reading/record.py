"""Records one forward pass of a module: the operations that compute its output, and their arguments."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from milkshake_mbp.errors import UnreadableError

__all__ = ["Call", "Given", "Recording", "Ref", "evaluating", "record", "uncompiled"]

_TRANSPOSES = ("t", "transpose", "permute", "numpy_T")
# What moves entries about without changing any.
_MOVES = (
    *_TRANSPOSES,
    *("alias", "detach", "view", "_unsafe_view", "reshape", "_to_copy", "clone", "lift_fresh", "expand", "select"),
    *("slice", "split", "split_with_sizes", "chunk", "unbind", "squeeze", "unsqueeze", "as_strided"),
)


@dataclass(frozen=True)
class Ref:
    """A tensor that depends on the input: what a call returned; the input itself is call −1."""

    call: int
    item: int = 0


@dataclass(frozen=True, eq=False)
class Given:
    """A tensor that does not depend on the input.

    Attributes:
        tensor: its value.
        leaves: names of the parameters and buffers from which it is computed; "" for a tensor that is neither.
        parameter: the parameter whose entries it contains, possibly rearranged; empty if it is computed otherwise.
        whole: whether it is that parameter entry for entry, in its shape or transposed.
        transposed: whether its rows are the parameter's columns.
        mask: the buffer of zeros and ones by which the parameter is multiplied; empty without one.
    """

    tensor: Tensor
    leaves: frozenset[str]
    parameter: str = ""
    whole: bool = True
    transposed: bool = False
    mask: str = ""


@dataclass(frozen=True)
class Call:
    """One operation on tensors that depend on the input.

    Attributes:
        function: PyTorch's own operator, as `torch.ops.aten.relu.default`.
        args: its arguments, tensors as `Ref` or `Given`.
        kwargs: likewise.
        shapes: shapes of what it returned, tensors only.
    """

    function: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    shapes: tuple[tuple[int, ...], ...]

    @property
    def name(self) -> str:
        """The operator's name, without namespace, overload and the mark of writing in place."""
        return str(self.function.overloadpacket.__name__).removesuffix("_") or str(self.function)

    def __str__(self) -> str:
        return str(self.function.overloadpacket)

    @property
    def operands(self) -> Iterator["Ref | Given"]:
        """Its tensor arguments."""
        flat, _ = tree_flatten((list(self.args), dict(self.kwargs)))
        return (argument for argument in flat if isinstance(argument, (Ref, Given)))


@dataclass
class Recording:
    """The operations of a forward pass.

    Attributes:
        calls: the operations, in order.
        output: the call that returned the output.
        used: names of the parameters and buffers that were used, in order of first use.
        parameters: names of all parameters of the module.
        inputs: shape of the samples.
        looked_up: names of the parameters whose rows are looked up at places that do not depend on the sample.
        faults: reasons why the calls may not describe the whole computation of the module.
    """

    calls: list[Call] = field(default_factory=list)
    output: Ref = Ref(-1)
    used: dict[str, None] = field(default_factory=dict)
    parameters: frozenset[str] = frozenset()
    inputs: tuple[int, ...] = ()
    looked_up: dict[str, None] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


class _Recorder(TorchDispatchMode):
    """Writes down every operation below PyTorch's own composite functions, whatever Python code called it."""

    def __init__(self, module: nn.Module, inputs: Tensor) -> None:
        super().__init__()
        parameters, buffers = dict(module.named_parameters()), dict(module.named_buffers())
        named = [*parameters.items(), *buffers.items()]
        self.recording = Recording(parameters=frozenset(parameters), inputs=tuple(inputs.shape))
        self._values: dict[int, Ref | Given] = {
            id(tensor): Given(tensor, frozenset([name]), name if name in parameters else "") for name, tensor in named
        }
        self._values[id(inputs)] = Ref(-1)
        # Tensors live until the end, so that no address is used twice.
        self._alive: list[Tensor] = [inputs, *(tensor for _, tensor in named)]
        # How often a memory was written to in place, and what each tensor in it knew of that.
        self._writes: dict[int, int] = {}
        self._seen: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        given = tree_map(self._value, (args, dict(kwargs)))
        operands = [value for value in tree_flatten(given)[0] if isinstance(value, (Ref, Given))]
        result = func(*args, **kwargs)
        returned = [result] if isinstance(result, Tensor) else list(result) if isinstance(result, (tuple, list)) else []
        tensors = [tensor for tensor in returned if isinstance(tensor, Tensor)]
        if func._schema.is_mutable:
            self._note_writes(func, args)
        if any(isinstance(operand, Ref) for operand in operands):
            self._record(func, given, returned, tensors)
        else:
            for operand in operands:
                assert isinstance(operand, Given)
                self._use(operand)
                if func.overloadpacket.__name__ == "embedding" and operand.parameter and operand.whole:
                    self.recording.looked_up[operand.parameter] = None
            for tensor in tensors:
                self._keep(tensor, _derive(func, operands, tensor))
        return result

    def finish(self, output: Any) -> Recording:
        """The recording, once the module has returned.

        Raises:
            UnreadableError: the output is not one tensor that was computed from the input.
        """
        if not isinstance(output, Tensor):
            raise UnreadableError(
                f"the module returns a {type(output).__name__}, expected one tensor of logits, (n, k): wrap it in a "
                "module that returns the logits alone"
            )
        value = self._value(output)
        if isinstance(value, Ref):
            self.recording.output = value
        else:
            self.recording.faults.append("the output is not computed from the input by PyTorch's operations")
        return self.recording

    def _record(self, func: Any, given: Any, returned: list[Any], tensors: list[Tensor]) -> None:
        (args, kwargs), index = given, len(self.recording.calls)
        self.recording.calls.append(Call(func, tuple(args), kwargs, tuple(tuple(tensor.shape) for tensor in tensors)))
        for operand in self.recording.calls[-1].operands:
            if isinstance(operand, Given):
                self._use(operand)
        if not tensors:
            self.recording.faults.append(f"the module's code depends on the values of a sample ({func})")
        for item, tensor in enumerate(returned):
            if isinstance(tensor, Tensor):
                self._keep(tensor, Ref(index, item))

    def _use(self, given: Given) -> None:
        self.recording.used |= dict.fromkeys(sorted(given.leaves))

    def _keep(self, tensor: Tensor, value: Ref | Given) -> None:
        self._alive.append(tensor)
        self._values[id(tensor)] = value
        self._seen[id(tensor)] = self._writes.get(_memory(tensor), 0)

    def _value(self, argument: Any) -> Any:
        if not isinstance(argument, Tensor):
            return argument
        value = self._values.get(id(argument))
        written = self._writes.get(_memory(argument), 0)
        if written and self._seen.get(id(argument), 0) < written:
            self.recording.faults.append("a tensor is used after another view of its memory was written to")
        if value is None:
            value = Given(argument, frozenset([""]))
            self._keep(argument, value)
        return value

    def _note_writes(self, func: Any, args: tuple[Any, ...]) -> None:
        for argument, schema in zip(args, func._schema.arguments, strict=False):
            if schema.alias_info is not None and schema.alias_info.is_write and isinstance(argument, Tensor):
                memory = _memory(argument)
                self._writes[memory] = self._writes.get(memory, 0) + 1
                self._seen[id(argument)] = self._writes[memory]


class _Wrapping(TorchFunctionMode):
    """Circular padding as what it computes, a choice of entries: PyTorch writes it slice by slice into new memory."""

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not F.pad or "circular" not in (*args, *kwargs.values()):
            return func(*args, **kwargs)
        x, pads = (*args, *(kwargs[key] for key in ("input", "pad") if key in kwargs))[:2]
        if not all(0 <= pad <= x.shape[-1 - index // 2] for index, pad in enumerate(pads)):
            return func(*args, **kwargs)  # which crops in another order, or fails
        for dim, (before, after) in enumerate(zip(pads[::2], pads[1::2], strict=True), start=1):
            places = torch.arange(-before, x.shape[-dim] + after, device=x.device)
            x = x.index_select(-dim, places % x.shape[-dim])
        return x


def _memory(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):  # a sparse or otherwise exotic tensor
        return id(tensor)


def _derive(func: Any, operands: Sequence[Any], tensor: Tensor) -> Given:
    """What came of operands that do not depend on the input."""
    leaves = frozenset[str]().union(*(operand.leaves for operand in operands)) or frozenset([""])
    name = func.overloadpacket.__name__
    base = next((operand for operand in operands if operand.parameter), None)
    if base is not None and len(operands) == 1 and name in _MOVES:
        if tensor.shape == base.tensor.shape and (name not in _TRANSPOSES or torch.equal(tensor, base.tensor)):
            return replace(base, tensor=tensor)
        if name in _TRANSPOSES and tensor.ndim == 2 and base.whole:
            return replace(base, tensor=tensor, transposed=not base.transposed)
        return replace(base, tensor=tensor, whole=False)
    if base is not None and len(operands) == 2 and name == "mul" and base.whole and not base.mask:
        (mask,) = (operand for operand in operands if operand is not base)
        shapes = {tensor.shape, base.tensor.shape, mask.tensor.shape}
        if len(mask.leaves) == 1 and "" not in mask.leaves and len(shapes) == 1 and _is_mask(mask.tensor):
            return replace(base, tensor=tensor, leaves=leaves, mask=next(iter(mask.leaves)))
    return Given(tensor, leaves)


def _is_mask(tensor: Tensor) -> bool:
    return bool(((tensor == 0) | (tensor == 1)).all())


@torch.no_grad()
def record(module: nn.Module, inputs: Tensor, forward: Callable[[Tensor], Any] | None = None) -> Recording:
    """Run samples through the module in eval mode and record its operations.

    Args:
        module: the module.
        inputs: (n, …) samples, on the module's device; not changed.
        forward: function to call; by default the module.

    Raises:
        UnreadableError: the module fails on these inputs, or does not return a single tensor.
    """
    inputs = inputs.clone()
    with evaluating(module), uncompiled():
        recorder = _Recorder(module, inputs)
        try:
            with recorder, _Wrapping():
                output = (forward or module)(inputs)
        except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError, AttributeError) as error:
            first = (str(error) or type(error).__name__).splitlines()[0]
            raise UnreadableError(
                f"{type(module).__name__} cannot be run on inputs {tuple(inputs.shape)}: {first}"
            ) from error
        return recorder.finish(output)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode inside; each submodule's own mode outside."""
    modes = {submodule: submodule.training for submodule in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for submodule, mode in modes.items():
            submodule.training = mode


def uncompiled() -> AbstractContextManager[Any]:
    """Inside, what `torch.compile` made runs as the Python code that it was made of."""
    stance = getattr(torch.compiler, "set_stance", None)
    return nullcontext() if stance is None else stance("force_eager")
