"""Reads a module as a network of layers by tracing a forward pass, and compares both on other samples."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from milkshake_mbp.errors import UserError
from milkshake_mbp.reading.ops import KERNEL_OPERATIONS, Context, Gain, is_shift, meaning, moves_only, normalization
from milkshake_mbp.reading.record import Call, Given, Recording, Ref, evaluating, record, uncompiled
from milkshake_mbp.theory.layers import Layer
from milkshake_mbp.theory.network import Network, Node, Op, Sum, Through, Trait
from milkshake_mbp.theory.unrolled import is_fixed_linear

__all__ = ["Kernel", "Reading", "read", "read_network", "registered_kernels"]


@dataclass(frozen=True)
class Kernel:
    """The parameter of a module that is a layer's kernel.

    Attributes:
        layer: the layer's name.
        parameter: name of the parameter from which the kernel is computed.
        transposed: whether the kernel's rows are the parameter's columns.
        mask: buffer by which the parameter is multiplied, as by `torch.nn.utils.prune`; empty without one.
    """

    layer: str
    parameter: str
    transposed: bool = False
    mask: str = ""

    def matrix(self, module: nn.Module) -> Tensor:
        """The kernel's current value, (out, in/groups·kh·kw), detached; it may share the parameter's memory."""
        value = module.get_parameter(self.parameter).detach()
        if self.mask:
            value = value * module.get_buffer(self.mask)
        return self.to_matrix(value)

    def to_matrix(self, value: Tensor) -> Tensor:
        """Reshape a tensor of the parameter's shape to the kernel's shape."""
        return value.T if self.transposed else value.flatten(1)

    def to_parameter(self, matrix: Tensor, module: nn.Module) -> Tensor:
        """Reshape a tensor of the kernel's shape to the parameter's shape."""
        shape = module.get_parameter(self.parameter).shape
        return matrix.T.contiguous() if self.transposed else matrix.reshape(shape)


@dataclass(frozen=True)
class Reading:
    """The result of reading a module.

    Attributes:
        network: its layers and the operations between them, with the values at the time of reading.
        kernels: the kernel of each layer, in the order of `network.layers`.
        left_alone: names of the other parameters that the pass used.
        biases: number of bias parameters.
        normalizations: the normalizations that are part of a layer, by the layer's name.
    """

    network: Network
    kernels: tuple[Kernel, ...]
    left_alone: tuple[str, ...] = ()
    biases: int = 0
    normalizations: Mapping[str, tuple[Gain, ...]] = field(default_factory=dict)

    def gains(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Each layer's gain for other values of parameters and buffers, by name, if all of these are given."""
        found = {}
        for layer in self.network.layers:
            gains = [gain.with_values(values) for gain in self.normalizations.get(layer.name, ())]
            known = [gain for gain in gains if gain is not None]
            if known and len(known) == len(gains):
                found[layer.name] = torch.stack(known).prod(dim=0).to(layer.kernel)
        return found

    @property
    def normalized_by(self) -> tuple[str, ...]:
        """Names of the parameters and buffers from which the layers' gains are computed."""
        gains = [gain for gains in self.normalizations.values() for gain in gains]
        return tuple(name for gain in gains for name in (gain.weight, gain.variance) if name)

    def matrices(self, module: nn.Module) -> list[Tensor]:
        """The kernels' current values, detached."""
        return [kernel.matrix(module) for kernel in self.kernels]

    def replaced(self, module: nn.Module, matrices: Sequence[Tensor]) -> dict[str, Tensor]:
        """Other kernels by parameter name, in the parameters' shapes and types, for `torch.func.functional_call`."""
        return {
            kernel.parameter: kernel.to_parameter(matrix, module).to(module.get_parameter(kernel.parameter).dtype)
            for kernel, matrix in zip(self.kernels, matrices, strict=True)
        }

    @property
    def chain(self) -> bool:
        """Whether the network is a chain of Linear layers, as in the paper."""
        return not self.not_a_chain

    @property
    def not_a_chain(self) -> str:
        """Why the network is not a chain of Linear layers; empty if it is."""
        traits: tuple[Trait, ...] = ("chain", "linear", "unnormalized")
        return next((self.network.broken[trait] for trait in traits if trait in self.network.broken), "")


def read_network(module: nn.Module, inputs: Tensor) -> Network:
    """The network of layers that a module computes.

    Args:
        module: a classifier; called as `module(inputs)` in eval mode, and not changed.
        inputs: (n, …) samples, on any device; half of them are traced, the other half checks the result.

    Raises:
        UserError: the module fails on the samples, uses no kernel, or computes a layer's weights in each pass.
    """
    return read(module, inputs).network


def read(module: nn.Module, inputs: Tensor) -> Reading:
    """As `read_network`, together with the parameters of the module that are its kernels."""
    example = next(module.parameters(), None)
    if example is None:
        raise UserError(f"{type(module).__name__} has no parameters, so there is nothing to prune or bound")
    inputs = fit(inputs, example)
    first, others = inputs[: (len(inputs) + 1) // 2], inputs[(len(inputs) + 1) // 2 :]
    recording = record(module, first)
    kernels = list(_kernels(recording))
    if not kernels:
        raise UserError(f"{type(module).__name__} multiplies by no weights, so there is no layer to prune or bound")
    names = {kernel.parameter: kernel.layer for kernel in kernels}
    wiring = _Wiring(recording, lambda given: names.get(given.parameter, given.parameter))
    network = wiring.network(module, kernels, _plain(module, recording, kernels))
    if network.nodes:
        network = _checked(network, module, others if len(others) else first.flip(0) * 0.5)
    used = [name for name in recording.used if name and name not in names and name in dict(module.named_parameters())]
    return Reading(network, tuple(kernels), tuple(used), wiring.biases, wiring.normalizations)


def fit(inputs: Tensor, like: Tensor) -> Tensor:
    """Inputs on a parameter's device and, if they are floating, of its type."""
    return inputs.to(like.device, like.dtype if inputs.is_floating_point() else None)


def _kernels(recording: Recording) -> Iterator[Kernel]:
    """The parameters that something is multiplied by, in order of first use.

    Raises:
        UserError: a kernel is computed from parameters in another way than by a mask.
    """
    seen = set()
    for call in recording.calls:
        for given in call.operands if call.name in KERNEL_OPERATIONS else ():
            if not isinstance(given, Given) or given.tensor.ndim < 2 or not given.tensor.is_floating_point():
                continue
            if given.parameter and given.parameter not in seen:
                seen.add(given.parameter)
                # On the right of its input a (out, in) kernel stands transposed, and is whole itself if it does not.
                right = call.name in ("mm", "addmm") and given.whole
                yield Kernel(layer_name(given.parameter), given.parameter, right != given.transposed, given.mask)
            elif (
                not given.parameter and (sources := sorted(given.leaves - {""})) and _has_parameter(sources, recording)
            ):
                raise UserError(computed_weights(sources))
    # An embedding of positions is one of the pruned, as that of words is.
    yield from (Kernel(layer_name(name), name) for name in recording.looked_up if name not in seen)


def _has_parameter(sources: Sequence[str], recording: Recording) -> bool:
    return any(source in recording.parameters for source in sources)


def computed_weights(sources: Sequence[str]) -> str:
    """Why a kernel that is computed anew in each pass cannot be pruned or replaced."""
    return (
        f"a layer's weights are computed from {', '.join(sources)} in each pass, as by weight or spectral "
        "normalization, so pruned weights would come back: make them plain parameters first "
        "(torch.nn.utils.parametrize.remove_parametrizations, or remove_weight_norm and remove_spectral_norm)"
    )


def layer_name(parameter: str) -> str:
    """What a parameter's layer is called: the module that holds it."""
    for suffix in (".weight", ".weight_orig"):
        if parameter.endswith(suffix):
            return parameter.removesuffix(suffix)
    return parameter


def _plain(module: nn.Module, recording: Recording, kernels: Sequence[Kernel]) -> int:
    """Numbers that the pass used beside the kernels and their masks."""
    known = {kernel.parameter for kernel in kernels} | {kernel.mask for kernel in kernels}
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    return sum(tensors[name].numel() for name in recording.used if name in tensors and name not in known)


class _Wiring:
    """The graph of a recording."""

    def __init__(self, recording: Recording, name: Callable[[Given], str]) -> None:
        self.recording = recording
        self.name = name
        self.nodes: list[Node] = []
        self.places: dict[Ref, int] = {Ref(-1): -1}
        self.layers: dict[str, Layer] = {}
        self.biases = 0
        self.normalizations: dict[str, tuple[Gain, ...]] = {}
        self.unknown = self._wire()

    def _wire(self) -> str:
        """Make the nodes; returns why that cannot be done, or nothing."""
        if self.recording.faults:
            return self.recording.faults[0]
        wanted, context = sorted(_ancestors(self.recording)), Context(self.recording, self.name)
        uses = Counter(o for index in wanted for o in self.recording.calls[index].operands if isinstance(o, Ref))
        for index in wanted:
            call = self.recording.calls[index]
            found = meaning(call, context)
            if found is None:
                return f"the operation {_describe(call)} is not supported"
            op, inputs = found
            places = tuple(self.places[ref] for ref in inputs)
            if isinstance(op, Gain):
                self.places[Ref(index)] = self._normalize(op, places[0], uses[inputs[0]], context.shape(inputs[0])[1:])
                continue
            if isinstance(op, Layer):
                self.layers.setdefault(op.name, op)
                self.biases += 0 if op.bias is None else op.bias.numel()
            elif is_shift(op):
                self.biases += math.prod(call.shapes[0][1:])
            if moves_only(op) and context.shape(inputs[0]) == call.shapes[0]:
                self.places[Ref(index)] = places[0]
                continue
            self.places[Ref(index)] = self._node(op, places)
        return ""

    def _node(self, op: Op, places: tuple[int, ...]) -> int:
        self.nodes.append(Node(op, places))
        return len(self.nodes) - 1

    def _normalize(self, gain: Gain, place: int, uses: int, shape: Sequence[int]) -> int:
        """A batch normalization: part of the layer before it, if nothing else reads that."""
        before = self.nodes[place].op if place >= 0 else None
        if not isinstance(before, Layer) or uses > 1:
            return self._node(normalization(gain, shape), (place,))
        layer = gain.of(before)
        if self.layers[before.name] is before:
            self.layers[before.name] = layer
            self.normalizations[before.name] = (*self.normalizations.get(before.name, ()), gain)
        self.nodes[place] = Node(layer, self.nodes[place].inputs)
        return place

    def network(self, module: nn.Module, kernels: Sequence[Kernel], plain: int) -> Network:
        layers = tuple(
            self.layers.get(kernel.layer) or Layer(kernel.layer, kernel.matrix(module).clone()) for kernel in kernels
        )
        if self.unknown:
            reason = f"the network is not read as a graph: {self.unknown}"
            broken: dict[Trait, str] = {"wired": reason, "chain": reason, "coded": reason}
            if any(module.get_parameter(kernel.parameter).ndim > 2 for kernel in kernels):
                broken["linear"] = "a layer is a convolution"
            return Network(layers, (), plain, broken)
        nodes = _leading_to(self.nodes, self.places[self.recording.output])
        return Network(layers, nodes, plain, dict(_broken(nodes)))


def _leading_to(nodes: Sequence[Node], output: int) -> tuple[Node, ...]:
    """The nodes that one of them comes of, it being the last; what was taken for part of another operation is not."""
    wanted, open_ = set[int](), [output]
    while open_:
        index = open_.pop()
        if index >= 0 and index not in wanted:
            wanted.add(index)
            open_ += nodes[index].inputs
    order = sorted(wanted)
    places = {-1: -1} | {index: place for place, index in enumerate(order)}
    return tuple(replace(nodes[index], inputs=tuple(places[i] for i in nodes[index].inputs)) for index in order)


def _ancestors(recording: Recording) -> set[int]:
    """The calls that the output comes of."""
    found: set[int] = set()
    open_ = [recording.output.call]
    while open_:
        call = open_.pop()
        if call >= 0 and call not in found:
            found.add(call)
            open_ += [operand.call for operand in recording.calls[call].operands if isinstance(operand, Ref)]
    return found


def _describe(call: Call) -> str:
    constants = {name or "an unregistered tensor" for o in call.operands if isinstance(o, Given) for name in o.leaves}
    return f"{call}" + (f" of {', '.join(sorted(constants))}" if constants else "")


def _broken(nodes: Sequence[Node]) -> Iterator[tuple[Trait, str]]:
    """Which traits a graph does not have, and why."""
    ops: list[Op] = [node.op for node in nodes]
    throughs = [op for op in ops if isinstance(op, Through)]
    layers = [op for op in ops if isinstance(op, Layer)]
    if any(node.inputs != (index - 1,) for index, node in enumerate(nodes)):
        yield "sequence", "a layer's output is used more than once, as with a skip connection"
    if reason := _no_chain(nodes):
        yield "chain", f"not a chain: {reason}"
    if any(layer.window is not None for layer in layers):
        yield "linear", "a layer is a convolution"
    if any(layer.gain is not None for layer in layers) or any(op.name == "BatchNorm" for op in throughs):
        yield "unnormalized", "a layer is normalized"
    if any(layer.bias is not None for layer in layers) or any(map(is_shift, throughs)):
        yield "bias_free", "the network has biases, for which Lemma B.2 is false"
    functions = [op for op in throughs if not is_shift(op)]
    # A slope above 1 is a factor where the function is homogeneous, and is not what the sources assume elsewhere.
    steep = {op.name for op in functions if op.entrywise and op.lipschitz > 1 and not op.homogeneous}
    odd = steep | {op.name for op in functions if not op.zero_preserving}
    if odd:
        yield "zero_preserving", f"{', '.join(sorted(odd))} is not known to be 1-Lipschitz with φ(0) = 0"
    if bent := {op.name for op in functions if not op.homogeneous} - odd:
        yield "homogeneous", f"{', '.join(sorted(bent))} is not positively homogeneous, which the source needs"
    if mixed := {op.name for op in functions if not op.entrywise and not is_fixed_linear(op)}:
        yield (
            "entrywise",
            f"{', '.join(sorted(mixed))} is neither entrywise nor a fixed linear map, which the source's proof needs",
        )


def _no_chain(nodes: Sequence[Node]) -> str:
    """Why the graph is not A_L φ(A_{L−1} φ(… φ(A_1 x))) with entrywise φ; nothing if it is."""
    order = [node.op for node in nodes]
    names = [op.name for op in order if isinstance(op, Layer)]
    if len(set(names)) < len(names):
        return f"a forward pass uses the layers {', '.join(names)}, one of them more than once"
    if any(node.inputs != (index - 1,) for index, node in enumerate(nodes)) or any(isinstance(op, Sum) for op in order):
        return "a layer's output is used more than once, as with a skip connection"
    places = [index for index, op in enumerate(order) if isinstance(op, Layer)]
    if not places:
        return "the output does not pass through a layer"
    if any(not moves_only(op) for op in order[: places[0]]):
        return f"the module changes its inputs before {names[0]}, but B is measured on the inputs"
    if any(not moves_only(op) and not is_shift(op) for op in order[places[-1] + 1 :]):
        return f"the module changes the outputs of {names[-1]}, but margins need these logits"
    if any(isinstance(op, Through) and not op.entrywise for op in order):
        return "an operation between two layers is not an entrywise function"
    return ""


@torch.no_grad()
def _checked(network: Network, module: nn.Module, inputs: Tensor) -> Network:
    """The network, unwired if it does not compute what the module does on samples that it was not read from."""
    with evaluating(module), uncompiled():
        outputs = module(inputs.clone())
    if not outputs.isfinite().all():
        return network  # a diverged network, which others report better
    try:
        difference = (network(inputs) - outputs).double().abs().amax()
    except (RuntimeError, ValueError):
        difference = torch.tensor(math.inf)
    tolerance = 1e3 * torch.finfo(outputs.dtype).eps * float(outputs.abs().amax().clamp_min(1e-30))
    if float(difference) <= tolerance:
        return network
    reason = "the network is not read as a graph: on other samples the module computes a different function"
    broken: dict[Trait, str] = {**network.broken, "wired": reason, "chain": reason, "coded": reason}
    return replace(network, nodes=(), broken=broken)


def registered_kernels(module: nn.Module) -> list[Kernel]:
    """The kernels of a module whose forward pass cannot be run, in order of registration.

    These are the weights of Linear, convolution, embedding, attention and recurrent layers, without biases.

    Raises:
        UserError: there is no kernel, or one is computed in each pass.
    """
    found: dict[int, Kernel] = {}
    buffers = dict(module.named_buffers())
    for prefix, part in module.named_modules():
        if getattr(part, "parametrizations", None):
            raise UserError(computed_weights([f"{prefix}.parametrizations"]))
        for own, parameter in part.named_parameters(recurse=False):
            name = f"{prefix}.{own}" if prefix else own
            if own in ("weight_g", "weight_v") or (own == "weight_orig" and f"{name[:-4]}mask" not in buffers):
                raise UserError(computed_weights([name]))
            if _holds_kernel(part, own) and parameter.ndim >= 2 and id(parameter) not in found:
                mask = f"{name[:-4]}mask" if own == "weight_orig" else ""
                found[id(parameter)] = Kernel(layer_name(name), name, mask=mask)
    if not found:
        raise UserError(f"{type(module).__name__} has no layer with weights to prune")
    return list(found.values())


def _holds_kernel(part: nn.Module, own: str) -> bool:
    kinds: tuple[Any, ...] = (nn.Linear, nn.modules.conv._ConvNd, nn.Embedding, nn.MultiheadAttention, nn.RNNBase)
    return isinstance(part, kinds) and not own.startswith("bias")
