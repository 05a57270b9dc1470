import itertools
import math

import numpy as np
import pytest
import torch

from milkshake_mbp.theory.layers import Layer
from milkshake_mbp.theory.network import Concat, Network, Node, Sum, Through
from milkshake_mbp.theory.norms import log_path_norm
from milkshake_mbp.theory.paths import log_graph_path_norm, path_lengths
from tests.theory.layer_instances import convolution, linear, unrolled
from tests.theory.network_instances import RELU, inputs, max_pool, residual


def pooling_sums(kernel: int, stride: int, shape: tuple[int, ...]) -> np.ndarray:
    """Which entries each window of max pooling sees."""
    unit = torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, *shape)
    zero_one = torch.nn.functional.avg_pool2d(unit, kernel, stride, divisor_override=1)
    return zero_one.flatten(1).numpy().T


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("p", [1, 2, 3])
def test_path_norms_of_a_graph_by_matrices(seed: int, bias: bool, p: float) -> None:
    """Σ_paths Π|w|^p is linear algebra with |w|^p; each branch written out."""
    network = residual(seed, bias=bias)
    stem, first, second, beside, head = network.layers

    def through(layer: Layer, sums: np.ndarray) -> np.ndarray:
        after = np.abs(unrolled(layer)) ** p @ sums
        if layer.bias is not None:
            after = after + np.repeat(np.abs(layer.bias.numpy()) ** p, layer.places)
        return after

    pooled = pooling_sums(3, 2, (4, 9, 9)) @ through(stem, np.ones(2 * 81))
    branch = through(second, 1.5**p * through(first, pooled))
    joined = np.concatenate([pooled + branch, through(beside, pooled)])
    expected = through(head, joined.reshape(7, 16).sum(axis=1) / 16**p)
    assert log_graph_path_norm(network, p).tolist() == pytest.approx(np.log(expected) / p, abs=1e-12)


@pytest.mark.parametrize("p", [1, 1.5, 2])
def test_on_a_chain_of_linear_layers_it_is_the_path_norm(p: float) -> None:
    """To the last bit."""
    rng = np.random.default_rng(0)
    weights = [torch.tensor(rng.standard_normal(shape)) for shape in ((6, 4), (5, 6), (3, 5))]
    assert torch.equal(log_graph_path_norm(Network.chain(weights), p), log_path_norm(weights, p))


def test_positions_share_a_linear_layer() -> None:
    kernel = torch.tensor(np.random.default_rng(0).standard_normal((3, 5)))
    layer = Layer("tokens", kernel, (4, 5), (4, 3), bias=torch.ones(3, dtype=torch.float64))
    value = log_graph_path_norm(Network((layer,), (Node(layer, (-1,)),)), 1)
    assert value.shape == (4, 3) and value.exp()[2].tolist() == pytest.approx((kernel.abs().sum(dim=1) + 1).tolist())


@pytest.mark.parametrize("seed", range(4))
def test_the_path_norm_bounds_how_far_an_output_moves(seed: int) -> None:
    """φ_1 is a Lipschitz constant from ℓ∞ to each output."""
    network = residual(seed, bias=True)
    x, step = inputs(network, 60, 3.0, seed), inputs(network, 60, 1.0, seed + 1)
    moved = (network(x + step) - network(x)).abs() / step.flatten(1).abs().amax(dim=1, keepdim=True)
    assert (moved.amax(dim=0) <= log_graph_path_norm(network, 1).exp()).all()


@pytest.mark.parametrize("p", [1, 2, 3])
def test_scales_of_hidden_channels_do_not_matter(p: float) -> None:
    """(channel c of one convolution × s, its column in the next / s), s from 1e-100 to 1e100."""
    first = convolution((2, 4), (3, 3), (5, 5), padding=1)
    second = convolution((4, 3), (3, 3), (5, 5), padding=1, seed=1)
    scales = torch.tensor(10.0 ** np.random.default_rng(0).integers(-100, 100, 4))
    rescaled = (
        first.with_kernel(first.kernel * scales[:, None]),
        second.with_kernel((second.kernel.reshape(3, 4, 9) / scales[:, None]).reshape(3, 36)),
    )
    before, after = (
        log_graph_path_norm(Network(pair, (Node(pair[0], (-1,)), Node(RELU, (0,)), Node(pair[1], (1,)))), p)
        for pair in ((first, second), rescaled)
    )
    assert torch.allclose(before, after, atol=1e-9)


def test_where_no_path_leads() -> None:
    layer = convolution((1, 2), (2,), (3,))
    dead = layer.with_kernel(layer.kernel * torch.tensor([[1.0], [0.0]]))
    value = log_graph_path_norm(Network((dead,), (Node(dead, (-1,)),)), 2)
    assert value[0].isfinite().all() and (value[1] == -math.inf).all()


def test_longest_paths() -> None:
    assert path_lengths(residual(0, bias=False)) == (5, 1, 9)
    layer = linear((3, 3))
    chain = Network((layer,), (Node(layer, (-1,)), Node(layer, (0,)), Node(Sum(), (0, 1)), Node(Concat(), (2, -1))))
    assert path_lengths(chain) == (2, 0, 1)


@pytest.mark.parametrize("p", [0.5, math.inf, math.nan])
def test_exponents_out_of_range_raise(p: float) -> None:
    with pytest.raises(ValueError, match="path norm"):
        log_graph_path_norm(residual(0, bias=False), p)


def test_what_has_no_path_norm_raises() -> None:
    layer = linear((3, 3))
    for function, message in itertools.product(
        (Through("Sigmoid", torch.sigmoid, homogeneous=False), Through("mean", torch.relu, entrywise=False)),
        ("no path norm is known of",),
    ):
        with pytest.raises(ValueError, match=message):
            log_graph_path_norm(Network((layer,), (Node(layer, (-1,)), Node(function, (0,)))), 1)
    with pytest.raises(ValueError, match="shape of the network's input"):
        log_graph_path_norm(Network((layer,), (Node(max_pool(2, 2), (-1,)), Node(layer, (0,)))), 1)
    with pytest.raises(ValueError, match="attention"):
        log_graph_path_norm(Network((layer,), broken={"wired": "attention is not read"}), 1)
