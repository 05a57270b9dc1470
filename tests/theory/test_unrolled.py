"""Bounds of fully connected networks on a convolutional chain, against the Linear network that it unrolls to."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from milkshake_mbp.reading import measure, read_network
from milkshake_mbp.theory.bounds import Bound, evaluate
from milkshake_mbp.theory.network import Through
from milkshake_mbp.theory.unrolled import is_fixed_linear, log_factor
from tests.theory.layer_instances import unrolled

PEELED = {
    *("neyshabur_2015", "bartlett_2002", "neyshabur_2015_l3", "path_norm_l1", "path_norm_l2"),
    *("golowich_2018", "golowich_2018_l1", "golowich_2018_depth_free"),
}
PERTURBED = {"neyshabur_2017", "neyshabur_2017_initial", "bartlett_2017", "bartlett_2017_initial"}


def module(*between: nn.Module, seed: int = 0, bias: bool = False) -> nn.Sequential:
    """Three layers of which two are convolutions; what is given stands behind the second."""
    torch.manual_seed(seed)
    layers = nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1, bias=bias),
        nn.ReLU(),
        nn.Conv2d(4, 6, 2, dilation=2, groups=2, bias=bias),
        nn.ReLU(),
        *between,
        nn.Flatten(),
        nn.LazyLinear(3, bias=bias),
    ).double()
    layers(samples(1)[0])
    return layers


def samples(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    return torch.tensor(rng.standard_normal((count, 2, 9, 8))), torch.tensor(rng.integers(0, 3, count))


def labelled(layers: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples with the classes that the network gives most of them, so that margins are positive."""
    inputs, targets = samples(60)
    targets[:50] = layers(inputs[:50]).argmax(dim=1)
    return inputs, targets


def rows(layers: nn.Module, data: tuple[torch.Tensor, torch.Tensor], **options: object) -> dict[str, Bound]:
    measured = measure(layers, data, stability=False, **options)  # type: ignore[arg-type]
    return {bound.name: bound for bound in evaluate(measured, "leading")}


def matrices(layers: nn.Module) -> list[np.ndarray]:
    return [unrolled(layer) for layer in read_network(layers, samples(8)[0]).layers]


@pytest.mark.parametrize("seed", range(3))
def test_the_rows_are_those_of_the_linear_network(seed: int) -> None:
    convolutional, other = module(seed=seed), module(seed=seed + 10)
    ops: list[nn.Module] = [nn.Flatten()]
    initial = {}
    for index, (matrix, start) in enumerate(zip(matrices(convolutional), matrices(other), strict=True)):
        linear = nn.Linear(matrix.shape[1], matrix.shape[0], bias=False).double()
        linear.weight.data = torch.tensor(matrix)
        initial[f"{2 * index + 1}.weight"] = torch.tensor(start)
        ops += [linear, nn.ReLU()]
    written_out, data = nn.Sequential(*ops[:-1]), labelled(convolutional)
    assert torch.allclose(written_out(data[0]), convolutional(data[0]))
    before = {name: value.detach() for name, value in other.named_parameters()}
    mine, theirs = rows(convolutional, data, initial=before), rows(written_out, data, initial=initial)
    assert mine.keys() >= PEELED | PERTURBED and not {"theorem_6_2", "neyshabur_2019", "arora_2018"} & mine.keys()
    for name in PEELED | PERTURBED:
        assert mine[name].applies and mine[name].log_value == pytest.approx(theirs[name].log_value, abs=1e-8), name


def test_average_pooling_is_a_fixed_layer_without_a_function() -> None:
    layers = module(nn.AvgPool2d(2))
    first, second, last = matrices(layers)
    pool = layers[4](torch.eye(6 * 3 * 2, dtype=torch.float64).reshape(-1, 6, 3, 2)).flatten(1).numpy().T
    data = labelled(layers)
    found = rows(layers, data)
    n, inputs = len(data[0]), data[0].flatten(1)
    chain = [first, second, last]

    def complexity(name: str) -> float:
        return found[name].terms["log_complexity"] + math.log(found[name].terms["gamma"])

    frobenius = math.prod(np.linalg.norm(matrix) for matrix in chain)
    expected = 4 * inputs.norm(dim=1).max().item() * np.linalg.norm(pool, 2) * frobenius / math.sqrt(n)
    assert complexity("neyshabur_2015") == pytest.approx(math.log(expected), abs=1e-8)
    paths = (np.abs(last) @ pool @ np.abs(second) @ np.abs(first)).sum(axis=1).max()
    l1 = 4 * inputs.abs().max().item() * math.sqrt(4 * math.log(2 * inputs.shape[1])) / math.sqrt(n)
    assert complexity("path_norm_l1") == pytest.approx(math.log(l1 * paths), abs=1e-8)
    l1_norms = math.prod(np.abs(matrix).sum(axis=1).max() for matrix in chain)
    assert complexity("bartlett_2002") == pytest.approx(math.log(l1 * l1_norms), abs=1e-8)
    squared = math.sqrt((last**2 @ pool**2 @ second**2 @ first**2).sum(axis=1).max())
    width = math.sqrt(max(len(first), len(second))) ** 3  # two functions and the pooling
    l2 = 4 * width * squared * inputs.norm(dim=1).max().item() / math.sqrt(n)
    assert complexity("path_norm_l2") == pytest.approx(math.log(l2), abs=1e-8)
    assert all(found[name].applies for name in PEELED)


def test_what_breaks_a_row_is_said() -> None:
    layers = module(nn.MaxPool2d(2))
    start = {name: torch.zeros_like(value) for name, value in layers.named_parameters()}
    pooled = rows(layers, labelled(layers), initial=start)
    assert all("MaxPool" in pooled[name].reason for name in PEELED)
    assert all(pooled[name].applies for name in PERTURBED), "a maximum is 1-Lipschitz and homogeneous"
    biased = rows(module(bias=True), samples(60))
    assert all("biases" in biased[name].reason for name in (PEELED | PERTURBED) & biased.keys())
    bent = nn.Sequential(*module()[:3], nn.Tanh(), *module()[4:])
    found = rows(bent, labelled(bent))
    assert found["bartlett_2017"].applies and "Tanh" in found["golowich_2018"].reason


@pytest.mark.parametrize(
    "pool",
    [
        nn.AvgPool2d(2),
        nn.AvgPool2d(3, 2, 1),
        nn.AvgPool2d(3, 1, 1, count_include_pad=False),
        nn.AdaptiveAvgPool2d(4),
        nn.ReflectionPad2d(2),
        nn.ZeroPad2d(1),
        nn.MaxPool2d(2),
        nn.MaxPool2d(3, 2, 1),
        nn.MaxPool2d(3, 1),
    ],
    ids=str,
)
@pytest.mark.parametrize("p", [1.5, 2.0, math.inf])
def test_factors_between_layers(pool: nn.Module, p: float) -> None:
    """No pair of inputs is moved apart further; disjoint windows attain it for constants."""
    layers = nn.Sequential(nn.Conv2d(1, 1, 1), pool, nn.Flatten(), nn.LazyLinear(2))
    layers(torch.randn(8, 1, 6, 6))
    network = read_network(layers, torch.randn(8, 1, 6, 6))
    op = next(node.op for node in network.nodes if isinstance(node.op, Through) and node.op.name != "Flatten")
    assert is_fixed_linear(op) == (not isinstance(pool, nn.MaxPool2d))
    factor = math.exp(log_factor(op, torch.ones(1, 1, 6, 6, dtype=torch.float64), p))
    rng = np.random.default_rng(0)
    x, y = torch.tensor(rng.standard_normal((2, 400, 1, 6, 6)) * rng.integers(0, 2, (2, 400, 1, 6, 6)))
    y[::2] = 0
    apart, before = ((a - b).flatten(1).norm(p, dim=1) for a, b in ((pool(x), pool(y)), (x, y)))
    assert (apart <= factor * before * (1 + 1e-9)).all()
    if isinstance(pool, nn.AvgPool2d) and pool.kernel_size == 2:
        ones = torch.ones(1, 1, 6, 6, dtype=torch.float64)
        assert (pool(ones).flatten().norm(p) / ones.flatten().norm(p)).item() == pytest.approx(factor)
