"""A network from nothing but a state dict: which of its tensors are Linear layers, and in which order."""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, pairwise

from torch import Tensor, nn

from milkshake_mbp.errors import UserError

__all__ = ["chain_from_state"]

_ACTIVATIONS = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid}


def chain_from_state(
    state: Mapping[str, Tensor], order: Sequence[str] = (), activation: str = "relu"
) -> tuple[nn.Sequential, list[str]]:
    """Rebuild a fully connected network as f(x) = A_L φ(A_{L−1} φ(… φ(A_1 x))) from its state dict.

    Args:
        state: tensors by name: for each layer `<layer>.weight`, (out, in), and perhaps `<layer>.bias`, (out,).
        order: the layers' names from input to output; by default by the numbers in their names or, where their names
            differ in more than numbers, as they are stored or as their shapes demand.
        activation: φ, which a state dict does not tell.

    Returns:
        The network, on flattened inputs, and its layers' names in forward order.

    Raises:
        UserError: a tensor belongs to no Linear layer, the layers do not chain, or their order cannot be told.
    """
    weights = {name.removesuffix(".weight"): tensor for name, tensor in state.items() if _is_weight(name, tensor)}
    biases = {name.removesuffix(".bias"): tensor for name, tensor in state.items() if name.endswith(".bias")}
    for name, tensor in state.items():
        owner, _, kind = name.rpartition(".")
        fits = owner in weights and (kind == "weight" or tensor.shape == weights[owner].shape[:1])
        if not fits:
            raise UserError(
                f"weights: {name}, shape {tuple(tensor.shape)}, belongs to no Linear layer: "
                "the bounds are for fully connected networks"
            )
    if not weights:
        raise UserError("weights: the file holds no Linear layer")
    names = _forward_order(weights, order)
    modules: list[nn.Module] = [nn.Flatten()]
    for name in names:
        rows, columns = weights[name].shape
        # A layer without values yet: the file's own tensors become its parameters.
        layer = nn.Linear(columns, rows, bias=name in biases, device="meta")
        layer.weight = nn.Parameter(weights[name], requires_grad=False)
        if name in biases:
            layer.bias = nn.Parameter(biases[name], requires_grad=False)
        modules += [layer, _ACTIVATIONS[activation]()]
    return nn.Sequential(*modules[:-1]), names


def _is_weight(name: str, tensor: Tensor) -> bool:
    return name.endswith(".weight") and tensor.ndim == 2 and tensor.is_floating_point()


def _forward_order(weights: Mapping[str, Tensor], order: Sequence[str]) -> list[str]:
    kinds = {re.sub(r"\d+", "#", name) for name in weights}
    if order:
        if sorted(order) != sorted(weights):
            raise UserError(f"layers: expected each of {', '.join(weights)} once, got {', '.join(order)}")
        names = list(order)
    elif len(kinds) == 1:
        names = sorted(weights, key=lambda name: [int(number) for number in re.findall(r"\d+", name)])
    elif list(weights) != sorted(weights):
        names = list(weights)  # the order of registration; a safetensors file has lost it
    else:
        found = list(islice(_chains(weights), 2))
        if len(found) == 2:
            raise UserError(f"weights: the order of {', '.join(weights)} cannot be told; give it with layers")
        names = found[0] if found else list(weights)
    for before, after in pairwise(names):
        if weights[before].shape[0] != weights[after].shape[1]:
            raise UserError(
                f"weights: layers do not chain: {before} has {weights[before].shape[0]} outputs, {after} takes "
                f"{weights[after].shape[1]} inputs; if that is not their order, give it with layers"
            )
    return names


def _chains(weights: Mapping[str, Tensor], start: tuple[str, ...] = ()) -> Iterator[list[str]]:
    """Every order of the layers in which each takes what the one before puts out."""
    if len(start) == len(weights):
        yield list(start)
    for name in weights:
        if name not in start and (not start or weights[start[-1]].shape[0] == weights[name].shape[1]):
            yield from _chains(weights, (*start, name))
