"""Networks of any shape: what is read is what is computed, and what is said of it is true."""

import copy
import math

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torch.nn.parameter import is_lazy

from milkshake_mbp import PruneCallback
from milkshake_mbp.reading import measure, read, read_network
from milkshake_mbp.theory.bounds import evaluate
from milkshake_mbp.theory.network import Through


def images(count=8, channels=2, side=10, seed=0):
    return torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(seed))


class Net(nn.Module):
    """Pieces to be joined by whatever `forward` does."""

    def __init__(self, forward, bias=True):
        super().__init__()
        torch.manual_seed(1)
        self.first = nn.Conv2d(2, 4, 3, padding=1, bias=bias)
        self.second = nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=bias)
        self.strided = nn.Conv2d(4, 6, 3, stride=2, dilation=2, padding=2, bias=bias)
        self.depthwise = nn.Conv2d(4, 4, 3, padding="same", groups=4, bias=bias)
        self.reflected = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect", bias=bias)
        self.circular = nn.Conv2d(4, 4, (5, 3), padding=(4, 1), dilation=(2, 1), padding_mode="circular", bias=bias)
        self.norm, self.own_norm = nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False)
        self.slopes = nn.PReLU(4)
        self.head, self.wide = nn.LazyLinear(3, bias=bias), nn.LazyLinear(3, bias=bias)
        for norm in (self.norm, self.own_norm):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
        self._forward = forward

    def forward(self, x):
        return self._forward(self, x)


SHAPES = {
    "convolutions": lambda n, x: n.head(F.relu(n.strided(F.relu(n.second(F.relu(n.first(x)))))).flatten(1)),
    "depthwise and padding": lambda n, x: n.head(n.reflected(F.relu(n.depthwise(n.first(x)))).flatten(1)),
    "circular padding": lambda n, x: n.head(n.circular(F.relu(n.first(x))).flatten(1)),
    "circular to one side": lambda n, x: n.head(n.second(F.pad(n.first(x), (0, 7, 1, 0), "circular")).flatten(1)),
    "zeros around": lambda n, x: n.head(n.second(F.pad(F.relu(n.first(x)), (1, 0, 2, 1))).flatten(1)),
    "shuffled channels": lambda n, x: n.head(n.second(F.relu(n.first(x))[:, [0, 2, 1, 2]]).flatten(1)),
    "normalized": lambda n, x: n.head(F.relu(n.norm(n.first(x))).flatten(1)),
    "normalized twice": lambda n, x: n.head(n.own_norm(n.norm(n.first(x))).flatten(1)),
    "normalized before": lambda n, x: n.head(n.second(F.relu(n.norm(F.relu(n.first(x))))).flatten(1)),
    "residual": lambda n, x: n.head((n.second(h) + h if (h := F.relu(n.first(x))) is not None else x).flatten(1)),
    "concatenated": lambda n, x: n.wide(torch.cat([h := F.relu(n.first(x)), n.second(h)], dim=1).mean((2, 3))),
    "max pooling": lambda n, x: n.head(F.max_pool2d(F.relu(n.first(x)), 3, 2, 1).flatten(1)),
    "max pooling, ceil": lambda n, x: n.head(F.max_pool2d(n.first(x), 3, 2, ceil_mode=True).flatten(1)),
    "max pooling, dilated": lambda n, x: n.head(F.max_pool2d(n.first(x), 3, 2, 1, 2).flatten(1)),
    "average pooling": lambda n, x: n.head(F.avg_pool2d(F.relu(n.first(x)), 3, 2, 1).flatten(1)),
    "average pooling, ceil": lambda n, x: n.head(F.avg_pool2d(F.relu(n.first(x)), 3, 2, 1, True).flatten(1)),
    "average pooling by 7": lambda n, x: n.head(F.avg_pool2d(n.first(x), 3, 2, 0, False, False, 7).flatten(1)),
    "adaptive pooling": lambda n, x: n.head(F.adaptive_avg_pool2d(n.first(x), 3).flatten(1)),
    "global pooling": lambda n, x: n.head(F.adaptive_avg_pool2d(n.strided(F.relu(n.first(x))), 1).flatten(1)),
    "smooth": lambda n, x: n.head(F.gelu(n.second(torch.tanh(n.first(x)))).flatten(1)),
    "slopes": lambda n, x: n.head(n.slopes(F.leaky_relu(n.first(x), 2.0)).flatten(1)),
    "sigmoid": lambda n, x: n.head(torch.sigmoid(n.first(x)).mean((2, 3))),
}


def network_of(name, bias=True):
    module = Net(SHAPES[name], bias)
    with torch.no_grad():
        module(images())
    return module.eval()


@pytest.mark.parametrize("name", SHAPES)
def test_the_graph_computes_what_the_module_does(name):
    module = network_of(name)
    reading = read(module, images())
    assert reading.network.nodes, reading.network.broken
    x = images(5, seed=3)
    assert torch.allclose(reading.network(x), module(x), atol=1e-5)
    kernels = [torch.randn_like(matrix) for matrix in reading.matrices(module)]
    replaced = torch.func.functional_call(module, reading.replaced(module, kernels), (x,))
    names = [kernel.layer for kernel in reading.kernels]
    assert torch.allclose(reading.network(x, dict(zip(names, kernels, strict=True))), replaced, atol=1e-3)


def labelled(count, seed):
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, 3, (count,), generator=generator)
    inputs = torch.randn(count, 2, 10, 10, generator=generator)
    inputs[torch.arange(count), 0, targets, targets] += 8
    return inputs, targets


def fitted(name, bias=True):
    module = network_of(name, bias)
    used = {key: value for key, value in module.named_parameters() if not is_lazy(value)}
    initial = {key: value.detach().clone() for key, value in used.items()}
    optimizer = torch.optim.Adam(used.values(), 0.01)
    inputs, targets = labelled(200, 0)
    for _ in range(15):
        optimizer.zero_grad()
        F.cross_entropy(module(inputs), targets).backward()
        optimizer.step()
    return module, initial


@pytest.mark.parametrize("name", [name for name in SHAPES if "average pooling" in name or "adaptive" in name])
def test_what_is_said_of_an_average_is_true_of_its_matrix(name):
    nodes = read_network(network_of(name), images()).nodes
    average = next(node.op for node in nodes if isinstance(node.op, Through) and "AvgPool" in node.op.name)
    inputs = torch.rand(2, 4, 10, 10)
    jacobian = torch.autograd.functional.jacobian(lambda x: average.function(x).flatten(), inputs[:1])
    matrix = jacobian.reshape(len(jacobian), -1).double()
    assert average.lipschitz == pytest.approx(float(torch.linalg.matrix_norm(matrix, 2)), rel=1e-5)
    for p in (1.0, 2.0):
        sums = average.paths(inputs.double(), p)
        assert torch.allclose(sums.flatten(1), inputs.double().flatten(1) @ matrix.pow(p).T, rtol=1e-5)


@pytest.mark.parametrize("name", SHAPES)
def test_pruning_moves_no_output_further_than_is_said(name):
    module, initial = fitted(name)
    inputs, targets = labelled(200, 0)
    for d in (0.01, 1.0):
        measured = measure(module, (inputs, targets), prune_d=d, initial=initial, stability=False)
        pruned = copy.deepcopy(module)
        PruneCallback(d=d).prune(pruned, (inputs, targets))
        with torch.no_grad():
            moved = float((pruned(inputs) - module(inputs)).norm(dim=1).max())
        assert measured.log_moved is not None and moved <= math.exp(measured.log_moved)
        rows = {(bound.convention, bound.name): bound for bound in evaluate(measured)}
        assert rows["leading", "theorem_5_2_measured"].applies and rows["rigorous", "naive"].holds_with == 1 - 0.05 / 4
        assert not any(convention == "paper" for convention, _ in rows)
        assert ("leading", "gonon_2024") in rows or {"homogeneous", "zero_preserving"} & set(measured.broken)


def test_bounds_made_for_convolutions_join_a_bias_free_chain():
    module, initial = fitted("convolutions", bias=False)
    measured = measure(module, labelled(200, 0), labelled(100, 1), initial=initial, stability=False)
    rows = {bound.name: bound for bound in evaluate(measured, "leading")}
    made = {"gonon_2024", "graf_2022", "graf_2022_parameters", "lin_2019", "gouk_2021", "ledent_2021", "long_2020"}
    assert made <= set(rows) and all(rows[name].applies and math.isfinite(rows[name].log_value) for name in made)
    biased, initial = fitted("convolutions")
    biased_rows = {b.name: b for b in evaluate(measure(biased, labelled(200, 0), initial=initial, stability=False))}
    assert not biased_rows["graf_2022"].applies and biased_rows["gonon_2024"].applies


def test_statistics_of_a_normalization_are_paid_for():
    plain = read_network(network_of("convolutions"), images()).plain
    normalized = read_network(network_of("normalized"), images())
    assert plain == 4 + 4 + 6 + 3 and normalized.plain == 4 + 3 + 4 * 4
    assert "unnormalized" in normalized.broken and "coded" not in normalized.broken


def test_a_gain_at_other_statistics_is_that_of_the_module_with_them():
    module = network_of("normalized")
    reading = read(module, images())
    with torch.no_grad():
        module.norm.running_var.mul_(1e-4)
        module.norm.weight.mul_(3)
    found = reading.gains(module.state_dict())["first"]
    again = read_network(module, images()).layers[0].gain
    assert torch.allclose(found, again, rtol=1e-6) and not torch.allclose(found, reading.network.layers[0].gain)


def test_a_graph_costs_what_tells_it():
    lengths = {name: read_network(network_of(name), images()).structure_length() for name in SHAPES}
    assert all(length > 20 for length in lengths.values())
    assert lengths["normalized before"] > lengths["normalized"], "more nodes"
    slopes = {slope: Net(lambda n, x, s=slope: n.head(F.leaky_relu(n.first(x), s).flatten(1))) for slope in (0.01, 0.3)}
    for module in slopes.values():
        module(images())
    usual, own = (read_network(module, images()).structure_length() for module in slopes.values())
    assert own == pytest.approx(usual + 67 * math.log(2)), "64 bits, one for its kind, two for its number"


def test_a_convolution_on_an_image_of_one_pixel_is_a_linear_layer():
    """Its composition bound is the telescoping one, with the norm of pruning and rounding together."""
    torch.manual_seed(0)
    layers = [nn.Linear(6, 8, bias=False), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3, bias=False)]
    linear = nn.Sequential(nn.Flatten(), *layers)
    convolution = nn.Sequential(nn.Conv2d(6, 8, 1, bias=False), *layers[1:])
    convolution[0].weight.data.copy_(layers[0].weight[..., None, None])
    data = torch.randn(50, 6, 1, 1), torch.randint(0, 3, (50,))
    first, second = (measure(module, data, stability=False) for module in (linear, convolution))
    assert torch.allclose(first.margins, second.margins, atol=1e-5)
    mine, theirs = ({b.name: b.terms for b in evaluate(m, "leading")}["naive"] for m in (second, first))
    assert mine["log_complexity"] == pytest.approx(theirs["log_complexity"])
    assert theirs["log_gamma_telescoping"] - 0.05 < mine["log_gamma"] <= theirs["log_gamma_telescoping"] + 1e-9


@pytest.mark.parametrize("build", [torchvision.models.resnet18, torchvision.models.mobilenet_v2])
def test_networks_of_torchvision_are_graphs(build):
    torch.manual_seed(0)
    module = build(num_classes=10)
    network = read_network(module, torch.randn(4, 3, 32, 32))
    assert network.nodes and set(network.broken) >= {"sequence", "linear", "unnormalized"}
    assert all(math.isfinite(node.op.lipschitz) for node in network.nodes if isinstance(node.op, Through))


@pytest.mark.parametrize(
    "forward",
    [
        lambda n, x: n.head(torch.cat([h := n.first(x), n.second(h)]).flatten(1)),
        lambda n, x: n.head(F.pad(n.first(x), (1, 1), value=1.0).flatten(1)),
    ],
    ids=["samples one after another", "ones around"],
)
def test_what_the_theory_has_no_word_for_is_no_graph(forward):
    module = Net(forward)
    with torch.no_grad():
        module(images())
    assert not read_network(module.eval(), images()).nodes


def test_attention_is_no_graph_but_is_pruned():
    module = torchvision.models.VisionTransformer(16, 8, 2, 2, 16, 32, num_classes=3)
    inputs = torch.randn(20, 3, 16, 16), torch.randint(0, 3, (20,))
    reading = read(module, inputs[0])
    assert not reading.network.nodes and "not read as a graph" in reading.network.broken["coded"]
    assert any("in_proj_weight" in kernel.parameter for kernel in reading.kernels)
    assert not any("ln" in kernel.parameter or "pos_embedding" in kernel.parameter for kernel in reading.kernels)
    report = PruneCallback(d=5.0).prune(module, inputs)
    assert report.sparsity > 0.5
    rows = evaluate(measure(module, inputs, stability=False))
    assert not any(row.holds_with for row in rows) and {"dense", "params"} <= {row.name for row in rows}
