import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from milkshake_mbp.theory.layers import Layer
from milkshake_mbp.theory.network import Concat, Network, Node, Sum, Through
from milkshake_mbp.theory.norms import operator_norm
from milkshake_mbp.theory.perturbation import log_telescoping_perturbation
from milkshake_mbp.theory.transfer import largest_logs, log_lipschitz, transfer
from tests.theory.layer_instances import linear
from tests.theory.network_instances import inputs, residual, sigmoid


def upper(layer: Layer) -> float:
    return operator_norm(layer)[1]


def pruned_kernels(network: Network, share: float, seed: int = 0) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(seed)
    return {
        layer.name: layer.kernel * torch.tensor(rng.random(tuple(layer.kernel.shape)) > share)
        for layer in network.layers
    }


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("slope", [1.0, 0.5, 2.0])
def test_on_a_chain_it_is_the_telescoping_bound(seed: int, slope: float) -> None:
    rng = np.random.default_rng(seed)
    widths = (7, 9, 5, 6, 3)
    weights = [torch.tensor(rng.standard_normal((after, before))) for before, after in pairwise(widths)]
    moved = [w + 0.1 * torch.tensor(rng.standard_normal(tuple(w.shape))) for w in weights]
    plain = Network.chain(weights)
    bent = Through("LeakyReLU", torch.relu, lipschitz=slope)
    network = Network(
        plain.layers, tuple(Node(bent if isinstance(n.op, Through) else n.op, n.inputs) for n in plain.nodes)
    )
    logs = [
        [math.log(torch.linalg.matrix_norm(w, 2).item()) for w in group]
        for group in (weights, moved, [a - b for a, b in zip(moved, weights, strict=True)])
    ]
    names = [layer.name for layer in network.layers]
    norms, perturbed, differences = (dict(zip(names, values, strict=True)) for values in logs)
    carried = transfer(network, math.log(2.5), norms, log_differences=differences, log_perturbed=perturbed)
    expected = log_telescoping_perturbation(*logs, math.log(2.5), lipschitz=slope)
    assert carried.log_distance == pytest.approx(expected, abs=1e-12)
    assert carried.log_norm == pytest.approx(math.log(2.5) + sum(logs[0]) + 3 * math.log(slope), abs=1e-12)
    assert log_lipschitz(network, norms) == pytest.approx(sum(logs[0]) + 3 * math.log(slope), abs=1e-12)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("smooth", [False, True])
def test_no_output_moves_further_than_the_bound(seed: int, bias: bool, smooth: bool) -> None:
    """With pooling, residual sums, concatenation, gains and biases; every node, not only the last."""
    network = residual(seed, bias=bias, smooth=smooth)
    kernels = pruned_kernels(network, 0.3, seed)
    differences = {
        layer.name: math.log(upper(layer.difference(layer.with_kernel(kernels[layer.name]))))
        for layer in network.layers
    }
    perturbed = largest_logs(network, lambda layer: upper(layer.with_kernel(kernels[layer.name])))
    norms = largest_logs(network, upper)
    x = inputs(network, 50, 3.0, seed)
    loose = transfer(network, math.log(3), norms, log_differences=differences)
    for bound in (loose, transfer(network, math.log(3), norms, log_differences=differences, log_perturbed=perturbed)):
        for last in range(len(network.nodes)):
            part = Network(network.layers, network.nodes[: last + 1])
            before, after = part(x).flatten(1), part(x, kernels).flatten(1)
            assert before.norm(dim=1).max().item() <= math.exp(bound.log_norms[last]) * (1 + 1e-9)
            assert (after - before).norm(dim=1).max().item() <= math.exp(bound.log_distances[last]) * (1 + 1e-9)
        assert bound.log_distance <= loose.log_distance + 1e-12


@pytest.mark.parametrize("seed", range(6))
def test_no_output_moves_further_than_its_input_times_the_lipschitz_constant(seed: int) -> None:
    network = residual(seed, bias=True)
    constant = math.exp(log_lipschitz(network, largest_logs(network, upper)))
    x, step = inputs(network, 100, 3.0, seed), inputs(network, 100, 0.1, seed + 1)
    moved = (network(x + step) - network(x)).norm(dim=1)
    assert moved.max().item() <= 0.1 * constant


def test_what_does_not_change_moves_nothing() -> None:
    network = residual(0, bias=True)
    norms = largest_logs(network, upper)
    assert transfer(network, 0.0, norms).log_distance == -math.inf
    only_head = transfer(network, 0.0, norms, log_differences={network.layers[-1].name: 0.0})
    assert only_head.log_distance == pytest.approx(only_head.log_norms[-2], abs=1e-12)


def test_a_function_that_does_not_preserve_zero_adds_what_it_makes_of_it() -> None:
    """Attained: of the zero input, sigmoid makes 1/2 in each of nine entries."""
    layer = linear((9, 4))
    network = Network((layer,), (Node(layer, (-1,)), Node(sigmoid(9), (0,))))
    assert math.exp(transfer(network, -math.inf, {layer.name: 0.0}).log_norm) == pytest.approx(1.5)
    assert network(torch.zeros(1, 4, dtype=torch.float64)).norm().item() == pytest.approx(1.5)
    assert math.exp(transfer(network, 0.0, {layer.name: math.log(2)}).log_norm) == pytest.approx(0.25 * 2 + 1.5)


def test_norms_of_sums_and_concatenations() -> None:
    layer = linear((3, 3))
    both = (Node(layer, (-1,)), Node(layer, (-1,)))
    norms = {layer.name: math.log(5.0)}
    added = transfer(Network((layer,), (*both, Node(Sum(), (0, 1, 1)))), 0.0, norms)
    beside = transfer(Network((layer,), (*both, Node(Concat(), (0, 1, -1)))), 0.0, norms)
    assert math.exp(added.log_norm) == pytest.approx(15.0) and math.exp(beside.log_norm) == pytest.approx(math.sqrt(51))


def test_a_kernel_used_twice_has_the_larger_norm() -> None:
    layer = linear((3, 3))
    twice = Layer(layer.name, layer.kernel, (3,), (3,), gain=torch.full((3,), 2.0))
    network = Network((layer,), (Node(layer, (-1,)), Node(twice, (0,))))
    assert largest_logs(network, upper)[layer.name] == pytest.approx(math.log(2 * upper(layer)))


def test_nothing_overflows() -> None:
    weights = [torch.full((4, 4), 1e30, dtype=torch.float64)] * 60
    network = Network.chain(weights)
    norms = {layer.name: math.log(4e30) for layer in network.layers}
    carried = transfer(network, 0.0, norms, log_differences=norms)
    assert 60 * math.log(4e30) < carried.log_distance < 60 * math.log(8e30)


def test_a_dead_layer_and_a_function_without_a_constant() -> None:
    layer = linear((3, 3))
    jump = Through("Hardshrink", torch.relu, lipschitz=math.inf)
    network = Network((layer,), (Node(layer, (-1,)), Node(jump, (0,))))
    dead = transfer(network, 0.0, {layer.name: -math.inf})
    assert dead.log_norm == -math.inf and dead.log_distance == -math.inf
    assert transfer(network, 0.0, {layer.name: 0.0}, log_differences={layer.name: 0.0}).log_distance == math.inf


def test_a_network_that_is_not_wired_raises() -> None:
    with pytest.raises(ValueError, match="attention"):
        transfer(Network((linear((2, 2)),), broken={"wired": "attention is not read"}), 0.0, {})
