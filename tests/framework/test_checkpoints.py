"""Files of weights as people save them."""

import argparse
import collections
import os
import pickle
import re
import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import nn
from torch.nn.utils import parametrizations, prune

from milkshake_mbp.errors import UserError
from milkshake_mbp.framework.checkpoints import load_weights, plain_weights, read_weights
from milkshake_mbp.runs.files import write_tensors
from milkshake_mbp.runs.weights import chain_from_state


class Recipe:
    """A class of the user's own, which must not be looked up."""

    def __init__(self, **keys):
        vars(self).update(keys)


class Body(nn.Module):
    """A whole module, for those who save that."""

    def __init__(self):
        super().__init__()
        self.net = mlp()
        self.register_buffer("scratch", torch.zeros(3), persistent=False)


def mlp(seed=0, bias=True):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 5, bias=bias), nn.ReLU(), nn.Linear(5, 4, bias=bias), nn.ReLU(), nn.Linear(4, 3))


def optimizer_state():
    network = mlp()
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.randn(2, 6)).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


def prefixed(prefix, state=None):
    return {f"{prefix}{name}": value for name, value in (state or mlp().state_dict()).items()}


INPUTS = torch.randn(7, 6, generator=torch.Generator().manual_seed(3))
STATE = mlp().state_dict()


def saved(tmp_path, what):
    torch.save(what, tmp_path / "file.pt")
    return tmp_path / "file.pt"


LAYOUTS = {
    "bare": STATE,
    "ordered": collections.OrderedDict(STATE),
    "tutorial": {"epoch": 3, "model_state_dict": STATE, "optimizer_state_dict": optimizer_state(), "loss": 0.1},
    "loss is a tensor": {"loss": torch.tensor(0.1), "model_state_dict": STATE},
    "model": {"epoch": 3, "model": STATE, "optimizer": optimizer_state()},
    "net": {"net": STATE, "acc": 93.1, "epoch": 12},
    "weights": {"weights": STATE},
    "params": {"params": STATE, "params_ema": mlp(1).state_dict()},
    "module": {"module": STATE},
    "ema": {"ema": STATE, "step": torch.tensor(5)},
    "ema beside": {"state_dict": STATE, "state_dict_ema": mlp(1).state_dict()},
    "two levels": {"checkpoint": {"model": {"state_dict": STATE}}, "epoch": 1},
    "an unusual key": {"generator": STATE, "epoch": 1},
    "beside an unusual optimizer": {"generator": STATE, "adam_opt": optimizer_state()},
    "beside numbers": {**STATE, "epoch": 3, "best": 0.1},
    "a list of one": [STATE],
    "by layer": {"0": mlp()[0].state_dict(), "2": mlp()[2].state_dict(), "4": mlp()[4].state_dict()},
    "DataParallel": prefixed("module."),
    "compiled": prefixed("_orig_mod."),
    "compiled inside": prefixed("model._orig_mod."),
    "both": {"state_dict": prefixed("module._orig_mod.")},
    "Lightning": {"state_dict": prefixed("model."), "epoch": 2, "loops": {}, "optimizer_states": [optimizer_state()]},
    "Namespace": {"state_dict": STATE, "hyper_parameters": argparse.Namespace(lr=1, path=Path("data"))},
    "own class": {"state_dict": STATE, "recipe": Recipe(lr=np.float64(0.1), arrays=np.zeros(3)), "f": torch.relu},
    "SimpleNamespace": {"model": STATE, "args": SimpleNamespace(lr=[1, {"a": Recipe()}])},
    "sets and types": {"model": STATE, "seen": {1, 2}, "kind": nn.ReLU, "dtype": torch.float16},
    "whole module": mlp(),
    "whole module in a checkpoint": {"model": Body(), "epoch": 1},
    "class weights": {**STATE, "criterion.weight": torch.ones(3), "train_acc.correct": torch.zeros(3)},
    "class weights in a buffer": {**STATE, "class_weights": torch.ones(3), "loss_fn.pos_weight": torch.ones(1)},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path, layout):
    network, names = chain_from_state(read_weights(saved(tmp_path, LAYOUTS[layout])))
    assert [name.rpartition(".")[2] for name in names] == ["0", "2", "4"]
    assert torch.allclose(network(INPUTS), mlp()(INPUTS), atol=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
        lambda layer: prune.random_unstructured(prune.random_unstructured(layer, "weight", 0.3), "bias", 0.5),
        lambda layer: prune.ln_structured(layer, "weight", 0.5, 2, 0),
        parametrizations.weight_norm,
        lambda layer: parametrizations.weight_norm(layer, dim=1),
        lambda layer: parametrizations.weight_norm(layer, dim=None),
        nn.utils.weight_norm,
    ],
    ids=["l1", "twice", "rows", "weight_norm", "weight_norm of columns", "weight_norm of all", "old weight_norm"],
)
def test_tensors_in_parts_are_what_the_network_computes_with(tmp_path, make):
    network = mlp()
    for layer in (network[0], network[2], network[4]):
        make(layer)
    rebuilt, _ = chain_from_state(read_weights(saved(tmp_path, network.state_dict())))
    assert torch.allclose(rebuilt(INPUTS), network(INPUTS), atol=1e-6)


def test_other_parametrizations_are_refused_by_name(tmp_path):
    for change in (parametrizations.spectral_norm, parametrizations.orthogonal, nn.utils.spectral_norm):
        network = mlp()
        change(network[2])
        with pytest.raises(UserError, match=r"2\.(parametrizations\.)?weight.*belongs to no Linear layer"):
            chain_from_state(read_weights(saved(tmp_path, network.state_dict())))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_float_type(tmp_path, dtype):
    network = mlp().to(dtype)
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    for path in (tmp_path / "w.safetensors", saved(tmp_path, network.state_dict())):
        rebuilt, _ = chain_from_state(read_weights(path))
        assert {parameter.dtype for parameter in rebuilt.parameters()} == {torch.float32}
        assert torch.allclose(rebuilt(INPUTS), network.float()(INPUTS), atol=1e-6)
        network.to(dtype)


def test_mixed_types_keep_their_order(tmp_path):
    """safetensors stores by size of type first, which is no order of layers."""
    state = {
        "a.weight": torch.randn(4, 6),
        "b.weight": torch.randn(5, 4).double(),
        "c.weight": torch.randn(3, 5).half(),
    }
    save_file(state, tmp_path / "w.safetensors")
    assert list(read_weights(tmp_path / "w.safetensors")) == list(state)
    assert chain_from_state(read_weights(tmp_path / "w.safetensors"))[1] == ["a", "b", "c"]


def tied():
    network = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))
    network[2].weight = network[1].weight
    return network


@pytest.mark.parametrize("way", ["save_model", "write_tensors", "torch.save"])
def test_tied_layers_are_all_there_and_one_tensor(tmp_path, way):
    network, path = tied(), tmp_path / ("w.pt" if way == "torch.save" else "w.safetensors")
    if way == "save_model":
        save_model(network, path)
    elif way == "write_tensors":
        write_tensors(path, network.state_dict())
    else:
        torch.save(network.state_dict(), path)
    state = read_weights(path)
    assert all(torch.equal(state[name], value) for name, value in network.state_dict().items())
    rebuilt, names = chain_from_state(state)
    assert (
        names == ["0", "1", "2"]
        and rebuilt[3].weight is rebuilt[5].weight
        and rebuilt[1].weight is not rebuilt[3].weight
    )
    fresh = tied()
    load_weights(fresh, path)
    assert torch.equal(fresh[2].weight, network[1].weight)


def test_views_of_one_buffer_are_written_whole_and_apart(tmp_path):
    buffer = torch.arange(12.0)
    views = {"a": buffer[:6].view(2, 3), "b": buffer[3:9].view(2, 3), "c": buffer.view(3, 4).T}
    write_tensors(tmp_path / "w.safetensors", views)
    state = read_weights(tmp_path / "w.safetensors")
    assert all(torch.equal(state[name], value) for name, value in views.items())
    assert len({value.data_ptr() for value in state.values()}) == 3


def test_metadata_that_names_no_tie_is_let_be(tmp_path):
    save_file(dict(STATE), tmp_path / "w.safetensors", metadata={"format": "pt", "0.weight": "2.weight", "x": "y"})
    state = read_weights(tmp_path / "w.safetensors")
    assert all(torch.equal(state[name], value) for name, value in STATE.items()) and len(state) == len(STATE)


@pytest.mark.parametrize(
    ("what", "found"),
    [
        ({"epoch": 3, "notes": "none"}, "epoch (int), notes (str)"),
        ({"generator": STATE, "discriminator": prefixed("x.")}, "generator.0.weight (Tensor)"),
        ([1, 2], "list"),
        (torch.ones(3), "Tensor"),
        ({"state_dict": Recipe()}, "state_dict ("),
        ({}, "dict"),
    ],
)
def test_what_holds_no_network_is_refused_with_its_keys(tmp_path, what, found):
    with pytest.raises(UserError) as refusal:
        read_weights(saved(tmp_path, what))
    message = str(refusal.value)
    assert found in message and "state_dict" in message and len(message.splitlines()) == 1


class Bomb:
    """Calls a function when it is unpickled by somebody careless."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def test_nothing_foreign_runs(tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    bomb = Bomb(shutil.rmtree, str(target))
    path = saved(tmp_path, {"bomb": bomb, "second": Recipe(bomb=[bomb]), "state_dict": STATE})
    assert read_weights(path).keys() == STATE.keys()
    with pytest.raises(UserError, match="found bomb"):
        read_weights(saved(tmp_path, {"bomb": bomb}))
    # Builtins, what torch's own reader blocks by name, and methods are refused or not, but never called.
    for call in (
        Bomb(eval, f"__import__('shutil').rmtree({str(target)!r})"),
        Bomb(os.rmdir, str(target)),
        Bomb(Path.rmdir, target),
    ):
        try:
            assert read_weights(saved(tmp_path, {"state_dict": STATE, "x": call})).keys() == STATE.keys()
        except UserError as refusal:
            assert "holds more than tensors (" in str(refusal)
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps({"state_dict": STATE, "bomb": bomb}))
    with pytest.raises(UserError):
        read_weights(tmp_path / "plain.pkl")
    assert target.exists()


def unreadable(tmp_path):
    whole = saved(tmp_path, STATE).read_bytes()
    scripted = tmp_path / "scripted.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(mlp(), INPUTS), scripted)
    yield scripted
    for name, content in {
        "short.pt": whole[: len(whole) // 2],
        "empty.pt": b"",
        "text.ckpt": b"weights",
        "list.pkl": pickle.dumps([STATE]),
        "junk.safetensors": b"junk",
        "pt.safetensors": whole,
        "short.safetensors": b"\xff" * 100,
    }.items():
        (tmp_path / name).write_bytes(content)
        yield tmp_path / name
    yield tmp_path
    yield tmp_path / "absent.pt"


def test_what_cannot_be_read_is_one_plain_line(tmp_path, recwarn):
    for path in unreadable(tmp_path):
        with pytest.raises(UserError) as refusal:
            read_weights(path)
        message = str(refusal.value)
        assert message.startswith(f"weights: {path} ") and len(message.splitlines()) == 1 and message.isprintable()
        assert not re.search(r"weights_only|safe_globals|trust|torch\.load", message)
    assert not recwarn.list


class TestLoad:
    @pytest.mark.parametrize("prefix", ["", "model.", "module.", "model._orig_mod.", "encoder.layers."])
    def test_prefixes(self, tmp_path, prefix):
        own = nn.ModuleDict({"model": mlp(1)})
        load_weights(own, saved(tmp_path, prefixed(prefix)))
        assert torch.equal(own["model"](INPUTS), mlp()(INPUTS))

    def test_a_pruned_file_into_a_plain_and_into_a_pruned_model(self, tmp_path):
        pruned = mlp()
        prune.l1_unstructured(pruned[0], "weight", 0.5)
        path = saved(tmp_path, pruned.state_dict())
        plain, alike = mlp(1), mlp(1)
        prune.identity(alike[0], "weight")
        for model in (plain, alike):
            load_weights(model, path)
            assert torch.allclose(model(INPUTS), pruned(INPUTS), atol=1e-6)
        assert int((alike[0].weight_mask == 0).sum()) == 15

    def test_one_layer(self, tmp_path):
        layer = nn.Linear(6, 3)
        own = nn.ModuleDict({"model": nn.Sequential(nn.Linear(6, 3))})
        load_weights(own, saved(tmp_path, layer.state_dict()))
        assert torch.equal(own["model"](INPUTS), layer(INPUTS))

    def test_class_weights_are_left_out_and_said(self, tmp_path, capsys):
        own = mlp(1)
        load_weights(own, saved(tmp_path, {**STATE, "criterion.weight": torch.ones(3)}))
        assert torch.equal(own(INPUTS), mlp()(INPUTS))
        assert "left out criterion.weight" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("state", "message"),
        [
            (STATE | {"2.weight": torch.zeros(4, 9)}, r"2\.weight is \(4, 9\) in the file and \(4, 5\) in the model"),
            (prefixed("model.", STATE | {"2.weight": torch.zeros(4, 9)}), r"2\.weight is \(4, 9\) in the file"),
            ({"0.weight": STATE["0.weight"]}, r"the file lacks .*4\.bias"),
            (STATE | {"6.weight": torch.zeros(3, 3)}, r"the file has 6\.weight, which the model lacks"),
            (prefixed("a.") | prefixed("b."), "the file lacks 0.weight, .* and the file has|; the file has"),
        ],
    )
    def test_a_file_of_another_network(self, tmp_path, state, message):
        with pytest.raises(UserError, match=message) as refusal:
            load_weights(mlp(), saved(tmp_path, state))
        assert "does not fit this model" in str(refusal.value) and len(str(refusal.value).splitlines()) == 1


def test_plain_names_that_would_collide_are_kept():
    state = {"module.0.weight": torch.ones(1), "0.weight": torch.zeros(1)}
    assert plain_weights(state).keys() == state.keys()
