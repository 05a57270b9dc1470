"""A network from nothing but a state dict: which of its tensors are Linear layers, and in which order."""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, pairwise

import torch
from torch import Tensor, nn

from milkshake_mbp.errors import UserError
from milkshake_mbp.framework.checkpoints import bystanders, plain_weights
from milkshake_mbp.framework.models.activations import ACTIVATIONS

__all__ = ["chain_from_state"]


def chain_from_state(
    state: Mapping[str, Tensor], order: Sequence[str] = (), activation: str = "relu"
) -> tuple[nn.Sequential, list[str]]:
    """Rebuild a fully connected network as f(x) = A_L φ(A_{L−1} φ(… φ(A_1 x))) from its state dict.

    Weights in half precision are widened to float32, which changes none of them, and float64 is rounded to it. Tensors
    that share their memory become one parameter.

    Args:
        state: tensors by name: for each layer `<layer>.weight`, (out, in), and perhaps `<layer>.bias`, (out,); as a
            compiled, wrapped or pruned module names them, too. What a loss or a metric holds is left out.
        order: the layers' names from input to output; by default by the numbers in their names or, where their names
            differ in more than numbers, as they are stored or as their shapes demand.
        activation: φ, which a state dict does not tell; a key of `framework.models.activations.ACTIVATIONS`.

    Returns:
        The network, on flattened inputs, and its layers' names in forward order.

    Raises:
        UserError: a tensor belongs to no Linear layer, the layers do not chain, or their order cannot be told.
    """
    state = plain_weights(state)
    layers = [name.removesuffix(".weight") for name, tensor in state.items() if _is_weight(name, tensor)]
    weights = {layer: state[f"{layer}.weight"] for layer in layers}
    aside = {name for name in bystanders(state) if name.rpartition(".")[0] not in weights}
    biases, odd = {}, []
    for name, tensor in state.items():
        owner, _, kind = name.rpartition(".")
        if kind == "bias" and owner in weights and tensor.shape == weights[owner].shape[:1]:
            biases[owner] = tensor
        elif name not in aside and not (kind == "weight" and owner in weights):
            odd.append(f"{name}, shape {tuple(tensor.shape)},")
    if odd:
        more = f" (nor do {len(odd) - 3} others)" if len(odd) > 3 else ""
        raise UserError(
            f"weights: {' '.join(odd[:3])} belongs to no Linear layer{more}: "
            "name the network's class with model, as in --model cnn"
        )
    if not weights:
        raise UserError(f"weights: the file has no Linear layer, only {', '.join(list(state)[:8]) or 'nothing'}")
    names = _forward_order(weights, order)
    parameter = _Parameters()
    modules: list[nn.Module] = [nn.Flatten()]
    for name in names:
        rows, columns = weights[name].shape
        # A layer without values yet: the file's own tensors become its parameters.
        layer = nn.Linear(columns, rows, bias=name in biases, device="meta")
        layer.weight = parameter(weights[name])
        if name in biases:
            layer.bias = parameter(biases[name])
        modules += [layer, ACTIVATIONS[activation]()]
    return nn.Sequential(*modules[:-1]), names


class _Parameters:
    """Makes parameters of tensors, one for all that are the same memory."""

    def __init__(self) -> None:
        self._made: dict[tuple[object, ...], nn.Parameter] = {}

    def __call__(self, tensor: Tensor) -> nn.Parameter:
        place = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if place not in self._made:
            self._made[place] = nn.Parameter(tensor.detach().to(torch.float32), requires_grad=False)
        return self._made[place]


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
            raise UserError(f"weights: the order of {', '.join(weights)} is not determined; give it with layers")
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
