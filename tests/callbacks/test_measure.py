import pytest
import torch
from torch import nn
from torch.nn import functional as F

from milkshake_mbp.callbacks.measure import Chain
from milkshake_mbp.errors import UserError


class Net(nn.Module):
    """Three layers of one width, joined by whatever forward does."""

    def __init__(self, forward, names=("first", "second", "third")):
        super().__init__()
        for name in names:
            setattr(self, name, nn.Linear(6, 6, bias=False))
        self._forward = forward

    def forward(self, x):
        return self._forward(self, x.flatten(1))


def inputs():
    return torch.randn(16, 2, 3, generator=torch.Generator().manual_seed(0))


def checked(forward, names=("first", "second", "third")):
    torch.manual_seed(1)
    net = Net(forward, names)
    Chain.of(net).check(net, inputs())


@pytest.mark.parametrize(
    "activation",
    [F.relu, F.gelu, torch.tanh, torch.sigmoid, F.leaky_relu, F.elu, lambda x: x, lambda x: torch.zeros_like(x)],
    ids=["relu", "gelu", "tanh", "sigmoid", "leaky relu", "elu", "identity", "dead"],
)
def test_any_entrywise_activation_makes_a_chain(activation):
    checked(lambda net, x: net.third(activation(net.second(activation(net.first(x))))))


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (
            lambda n, x: n.third(F.relu(n.second(F.relu(n.first(x)))) + F.relu(n.first.weight @ x.T).T),
            "third is no entrywise",
        ),
        (lambda n, x: n.third(F.relu(n.second(F.layer_norm(F.relu(n.first(x)), (6,))))), "second is no entrywise"),
        (lambda n, x: n.third(F.softmax(n.second(F.relu(n.first(x))), 1)), "third is no entrywise"),
        (lambda n, x: n.third(F.relu(n.second(F.relu(n.second(F.relu(n.first(x))))))), "first, second, second, third"),
        (lambda n, x: n.third(F.relu(n.first(x))), "uses the layers first, third"),
        (lambda n, x: n.third(F.relu(n.first(F.relu(n.second(x))))), "uses the layers second, first, third"),
        (lambda n, x: n.third(F.relu(n.second(F.relu(n.first(x - 0.5))))), "changes its inputs before first"),
        (lambda n, x: n.third(F.relu(n.second(F.relu(n.first(x))))).softmax(1), "changes the outputs of third"),
    ],
    ids=["skip", "layer norm", "softmax", "shared", "unused", "other order", "input scaling", "probabilities"],
)
def test_what_is_no_chain_is_refused(forward, message):
    with pytest.raises(UserError, match=message):
        checked(forward)


def test_a_diverged_network_is_left_to_others():
    net = Net(lambda n, x: n.third(n.second(n.first(x))))
    net.first.weight.data.fill_(torch.nan)
    Chain.of(net).check(net, inputs())


def test_the_modes_of_training_are_left_alone():
    torch.manual_seed(1)
    net = nn.Sequential(nn.Flatten(), nn.Linear(6, 6), nn.Dropout(0.5), nn.Linear(6, 2))
    net[2].eval()
    Chain.of(net).check(net, inputs())
    assert [part.training for part in net] == [True, True, False, True]


def test_a_plain_module_is_read_under_its_own_names():
    chain = Chain.of(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))
    assert list(chain.parameters()) == ["0.weight", "2.weight"]
    assert chain.biases == 5 and "biases" in chain.violated
