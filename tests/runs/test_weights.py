import pytest
import torch
from torch import nn

from milkshake_mbp.errors import UserError
from milkshake_mbp.runs.weights import chain_from_state


def layer(name, rows, columns, bias=False, seed=0):
    generator = torch.Generator().manual_seed(seed + rows + columns)
    state = {f"{name}.weight": torch.randn(rows, columns, generator=generator)}
    return state | ({f"{name}.bias": torch.randn(rows, generator=generator)} if bias else {})


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("activation", ["relu", "sigmoid"])
def test_a_sequential_comes_back_from_its_state_dict(bias, activation):
    kind = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid}[activation]
    network = nn.Sequential(
        nn.Linear(9, 7, bias=bias), kind(), nn.Linear(7, 7, bias=bias), kind(), nn.Linear(7, 3, bias=bias)
    )
    inputs = torch.randn(5, 3, 3)
    rebuilt, names = chain_from_state(network.state_dict(), activation=activation)
    assert names == ["0", "2", "4"]
    assert torch.allclose(rebuilt(inputs), network(inputs.flatten(1)), atol=1e-6)


def test_layer_10_comes_after_layer_2_in_a_file_sorted_by_name():
    state = {name: w for index in (0, 2, 10, 1) for name, w in layer(f"net.{index}", 4, 4, seed=index).items()}
    _, names = chain_from_state(dict(sorted(state.items())))
    assert names == ["net.0", "net.1", "net.2", "net.10"]


def test_names_without_numbers_go_by_their_stored_order_or_by_their_shapes():
    stored = layer("fc_in", 6, 9) | layer("fc_hidden", 5, 6) | layer("fc_out", 3, 5)
    assert chain_from_state(stored)[1] == ["fc_in", "fc_hidden", "fc_out"]
    assert chain_from_state(dict(sorted(stored.items())))[1] == ["fc_in", "fc_hidden", "fc_out"]


def test_an_order_that_cannot_be_told_is_asked_for():
    state = dict(sorted((layer("enter", 6, 6) | layer("between", 6, 6) | layer("out", 3, 6)).items()))
    with pytest.raises(UserError, match=r"order of between, enter, out is not determined; give it with layers"):
        chain_from_state(state)
    assert chain_from_state(state, ["enter", "between", "out"])[1] == ["enter", "between", "out"]
    with pytest.raises(UserError, match="expected each of between, enter, out once"):
        chain_from_state(state, ["enter", "out"])


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (layer("0", 4, 9) | {"1.running_mean": torch.zeros(4)} | layer("2", 3, 4), r"1.running_mean, shape \(4,\)"),
        ({"0.weight": torch.zeros(8, 3, 3, 3)}, r"0.weight, shape \(8, 3, 3, 3\), belongs to no Linear layer"),
        (layer("0", 4, 9) | {"0.bias": torch.zeros(5)}, r"0.bias, shape \(5,\)"),
        ({"table.weight": torch.zeros(4, 9, dtype=torch.long)}, "table.weight"),
        (layer("0", 4, 9) | layer("1", 3, 5), "layers do not chain: 0 has 4 outputs, 1 takes 5 inputs"),
        ({}, "has no Linear layer"),
    ],
    ids=["batch norm", "convolution", "bias of another size", "integers", "no chain", "empty"],
)
def test_what_is_no_chain_of_linear_layers_is_refused(state, message):
    with pytest.raises(UserError, match=message):
        chain_from_state(state)
