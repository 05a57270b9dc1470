"""What a module computes, read off one forward pass: members of each kind that lists of modules got wrong."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune

from milkshake_mbp.errors import UnreadableError, UserError
from milkshake_mbp.reading import read, read_network, registered_kernels


def inputs(count=12, width=6, seed=0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


class Net(nn.Module):
    """Three layers of one width, joined by whatever `forward` does."""

    def __init__(self, forward, bias=False):
        super().__init__()
        torch.manual_seed(1)
        # Registered in another order than they are used in.
        self.third = nn.Linear(6, 6, bias=bias)
        self.second = nn.Linear(6, 6, bias=bias)
        self.first = nn.Linear(6, 6, bias=bias)
        self.unused = nn.Linear(6, 6)
        self.loss = nn.CrossEntropyLoss(weight=torch.ones(6))
        self.scale = nn.Parameter(torch.ones(6))
        self.register_buffer("constant", torch.ones(6))
        self._forward = forward

    def forward(self, x):
        return self._forward(self, x)


def chain_of(activation):
    return Net(lambda net, x: net.third(activation(net.second(activation(net.first(x))))))


@pytest.mark.parametrize(
    ("activation", "broken"),
    [
        (F.relu, set()),
        (torch.relu_, set()),
        (lambda x: x.clamp(min=0), set()),
        (lambda x: F.leaky_relu(x, 0.2), set()),
        (lambda x: F.leaky_relu(x, 3.0), set()),
        (lambda x: F.dropout(F.relu(x), training=False), set()),
        (lambda x: F.relu(x).reshape(len(x), 2, 3).flatten(1), set()),
        (lambda x: x, set()),
        (torch.tanh, {"homogeneous"}),
        (F.relu6, {"homogeneous"}),
        (F.softshrink, {"homogeneous"}),
        (F.tanhshrink, {"homogeneous"}),
        (F.hardtanh, {"homogeneous"}),
        (lambda x: F.hardtanh(x, 0.5, 2.0), {"zero_preserving"}),
        (torch.sigmoid, {"zero_preserving"}),
        (F.softplus, {"zero_preserving"}),
        (F.gelu, {"zero_preserving"}),
        (F.silu, {"zero_preserving"}),
        (F.elu, {"homogeneous"}),
        (torch.exp, {"zero_preserving"}),
    ],
)
def test_a_function_called_in_forward_is_seen(activation, broken):
    module = chain_of(activation)
    network = read_network(module, inputs())
    assert [layer.name for layer in network.layers] == ["first", "second", "third"]
    assert set(network.broken) == broken
    x = inputs(seed=5)
    assert torch.allclose(network(x), module(x), atol=1e-6)
    assert all("is not" in reason for reason in network.broken.values())


def test_a_slope_above_1_is_a_lipschitz_constant():
    through = [
        node.op for node in read_network(chain_of(nn.LeakyReLU(3.0)), inputs()).nodes if hasattr(node.op, "lipschitz")
    ]
    assert [op.lipschitz for op in through] == [3.0, 3.0]


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda n, x: n.third(F.relu(n.second(F.relu(n.first(x)))) + F.relu(n.first(x))), "more than once"),
        (lambda n, x: n.third(n.second(x) + F.relu(n.first(x))), "skip connection"),
        (lambda n, x: n.third(F.relu(n.second(F.relu(n.second(n.first(x)))))), "more than once"),
        (lambda n, x: n.third(F.relu(n.first(x - 0.5))), "aten.sub"),
        (lambda n, x: n.third(F.relu(n.first(F.relu(x)))), "changes its inputs before first"),
        (lambda n, x: torch.sigmoid(n.third(F.relu(n.first(x)))), "changes the outputs of third"),
        (lambda n, x: n.third(F.softmax(n.first(x), 1)), "_softmax"),
        (lambda n, x: n.third(F.layer_norm(n.first(x), (6,))), "native_layer_norm"),
        (lambda n, x: n.third(n.first(x) * n.scale), "aten.mul of scale"),
        (lambda n, x: n.third(n.first(x) * n.constant), "aten.mul of constant"),
        (lambda n, x: n.third(n.first(x) * torch.ones(6)), "an unregistered tensor"),
        (lambda n, x: n.third(n.first(x) if float(x.sum()) > 1e9 else n.second(x)), "values of a sample"),
        (lambda n, x: n.third(F.relu(n.first(x))) if x.shape[1] == 6 else x, ""),
        (lambda n, x: n.third(n.first(x) + torch.rand(6)), "an unregistered tensor"),
        (lambda n, x: n.third(F.dropout(n.first(x), training=True)), "not read as a graph"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_a_chain_says_why(forward, message):
    broken = read_network(Net(forward), inputs()).broken
    assert message in broken.get("chain", "")
    assert bool(message) == ("chain" in broken)


def test_memory_written_in_place_is_not_misread():
    def forward(net, x):
        hidden = net.first(x)
        view = hidden.view(len(x), 2, 3)
        hidden.relu_()
        return net.third(view.flatten(1))

    assert "another view of its memory" in read_network(Net(forward), inputs()).broken["wired"]


def test_what_differs_on_other_samples_is_not_a_graph():
    class Hidden(nn.Module):
        """Looks at its samples where no operation of PyTorch's shows it."""

        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b = nn.Linear(6, 4), nn.Linear(6, 4)

        def forward(self, x):
            return (self.a if x.numpy()[0, 0] > 0 else self.b)(x)

    x = inputs()
    x[:6, 0], x[6:, 0] = 1.0, -1.0
    network = read_network(Hidden(), x)
    assert "on other samples" in network.broken["wired"] and "coded" in network.broken and not network.nodes


@pytest.mark.parametrize("bias", [False, True])
def test_biases_are_counted(bias):
    reading = read(Net(lambda n, x: n.third(F.relu(n.first(x))), bias), inputs())
    assert reading.biases == 12 * bias == reading.network.plain
    assert ("bias_free" in reading.network.broken) == bias


def test_a_bias_of_its_own_and_a_weight_the_other_way_round():
    class Raw(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.weight_in, self.shift = nn.Parameter(torch.randn(6, 5)), nn.Parameter(torch.randn(5))
            self.out = nn.Linear(5, 3, bias=False)

        def forward(self, x):
            return self.out(F.relu(x @ self.weight_in + self.shift))

    module = Raw()
    reading = read(module, inputs())
    assert [tuple(layer.kernel.shape) for layer in reading.network.layers] == [(5, 6), (3, 5)]
    assert torch.equal(reading.network.layers[0].kernel, module.weight_in.T)
    assert reading.biases == reading.network.plain == 5 and set(reading.network.broken) == {"bias_free"}
    kernels = [torch.ones(5, 6), torch.ones(3, 5)]
    assert reading.replaced(module, kernels)["weight_in"].shape == (6, 5)


def test_tied_parameters_are_one_layer():
    module = nn.Sequential(
        nn.Linear(6, 6, bias=False), nn.ReLU(), nn.Linear(6, 6, bias=False), nn.ReLU(), nn.Linear(6, 2)
    )
    module[2].weight = module[0].weight
    network = read_network(module, inputs())
    assert [layer.name for layer in network.layers] == ["0", "4"]
    assert "more than once" in network.broken["chain"] and "wired" not in network.broken
    assert [kernel.parameter for kernel in registered_kernels(module)] == ["0.weight", "4.weight"]


def test_pruned_by_torch_is_read_through_its_mask():
    plain = nn.Sequential(nn.Linear(6, 5, bias=False), nn.ReLU(), nn.Linear(5, 3, bias=False))
    masked = copy.deepcopy(plain)
    for layer in (masked[0], masked[2]):
        prune.l1_unstructured(layer, "weight", 0.5)
    reading = read(masked, inputs())
    assert [kernel.parameter for kernel in reading.kernels] == ["0.weight_orig", "2.weight_orig"]
    assert [layer.name for layer in reading.network.layers] == ["0", "2"] and reading.network.plain == 0
    for found, layer in zip(reading.matrices(masked), (masked[0], masked[2]), strict=True):
        assert torch.equal(found, layer.weight) and int((found == 0).sum()) == round(found.numel() / 2)
    assert registered_kernels(masked) == list(reading.kernels)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda layer: nn.utils.weight_norm(layer),
        lambda layer: nn.utils.spectral_norm(layer),
        lambda layer: parametrizations.weight_norm(layer),
        lambda layer: parametrizations.spectral_norm(layer),
        lambda layer: parametrizations.orthogonal(layer),
        lambda layer: (parametrize.register_parametrization(layer, "weight", Doubled()) and layer) or layer,
    ],
    ids=["old weight norm", "old spectral norm", "weight norm", "spectral norm", "orthogonal", "own parametrization"],
)
@pytest.mark.filterwarnings("ignore")
def test_weights_that_are_computed_in_each_pass_are_refused(wrap):
    module = nn.Sequential(wrap(nn.Linear(6, 5)), nn.ReLU(), nn.Linear(5, 3))
    for look in (lambda: read(module, inputs()), lambda: registered_kernels(module)):
        with pytest.raises(UserError, match=r"weights are computed from .* make them plain parameters first"):
            look()


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def test_weights_that_forward_computes_are_refused():
    module = Net(lambda n, x: F.linear(x, n.first.weight * 2))
    with pytest.raises(UserError, match=r"computed from first\.weight"):
        read(module, inputs())


def test_compiled_and_wrapped_modules_are_read_through():
    module = chain_of(F.relu)
    for wrapped in (nn.DataParallel(module, device_ids=[]), torch.compile(module)):
        network = read_network(wrapped, inputs())
        assert len(network.layers) == 3 and not network.broken


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_modules_of_other_types_are_read_as_they_are(dtype):
    network = read_network(chain_of(F.relu).to(dtype), inputs())
    assert not network.broken and network.layers[0].kernel.dtype == dtype


def test_the_module_is_left_as_it_was():
    module = nn.Sequential(nn.Flatten(), nn.Linear(6, 6), nn.Dropout(0.5), nn.ReLU(inplace=True), nn.Linear(6, 2))
    module[2].eval()
    x = inputs()
    before, state = x.clone(), torch.get_rng_state()
    network = read_network(module, x)
    assert torch.equal(x, before) and torch.equal(torch.get_rng_state(), state)
    assert [part.training for part in module] == [True, True, False, True, True]
    with torch.no_grad():
        module[1].weight.zero_()
    assert network.layers[0].kernel.any(), "what was read does not change with the module"


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.ReLU(), "no parameters"),
        (nn.LayerNorm(6), "multiplies by no weights"),
        (Net(lambda n, x: {"logits": n.first(x)}), "returns a dict"),
        (nn.Linear(7, 2), "cannot be run on inputs"),
        (nn.Module(), "no parameters"),
    ],
)
def test_what_cannot_be_read_says_why(module, message):
    with pytest.raises(UserError, match=message):
        read(module, inputs())


def test_a_pass_that_cannot_be_run_is_told_apart():
    with pytest.raises(UnreadableError):
        read(nn.Linear(7, 2), inputs())


def test_convolutions_have_kernels_though_no_wiring_yet():
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    reading = read(module, torch.randn(8, 1, 6, 6))
    assert [tuple(matrix.shape) for matrix in reading.matrices(module)] == [(4, 9), (3, 64)]
    kernel = reading.kernels[0]
    assert kernel.to_parameter(reading.matrices(module)[0], module).shape == (4, 1, 3, 3)


def test_a_diverged_network_is_left_to_others():
    module = chain_of(F.relu)
    module.first.weight.data.fill_(math.nan)
    assert len(read_network(module, inputs()).layers) == 3
