import math

import pytest
import torch

from milkshake_mbp import BoundsCallback, PruneCallback, SketchCallback
from milkshake_mbp.errors import UserError
from milkshake_mbp.framework.datamodules import Digits
from milkshake_mbp.framework.main import main
from milkshake_mbp.framework.models import FFN
from milkshake_mbp.theory.layer_sketch import sketch_layer
from milkshake_mbp.theory.perturbation import default_step


@pytest.fixture
def pruned(configure):
    """A network pruned so far that every layer has a sketch, with what the callbacks saw."""
    args = configure(max_epochs=3, ffn_hidden_dim=48, ffn_num_layers=3)
    callbacks = BoundsCallback(prune_d=100.0), PruneCallback(d=100.0), SketchCallback()
    model, _, _ = main(args, FFN, Digits, callbacks=list(callbacks), verbose=False)
    return model, *callbacks


def test_every_layer_of_the_pruned_network_is_sketched_and_proven(pruned):
    model, _, pruning, sketching = pruned
    assert list(sketching.report.layers) == ["model.0", "model.3", "model.6"]
    for index, (name, layer) in enumerate(sketching.report.layers.items()):
        weight, unpruned = model.get_parameter(f"{name}.weight").detach(), pruning.weights[f"{name}.weight"]
        assert layer.certified and layer.reason == ""
        assert layer == sketch_layer(weight, default_step(unpruned), layer=index)
        step = default_step(unpruned)
        assert layer.nonzeros == int((weight.double() / step).round().count_nonzero())


def test_the_ladder_gets_the_sketched_row(pruned):
    _, bounds, _, sketching = pruned
    rows = {bound.name: bound for bound in bounds.report.bounds if bound.convention == "rigorous"}
    assert set(rows) == {"dense", "naive", "sketched", "test_set"}
    assert len({(b.convention, b.name) for b in bounds.report.bounds}) == len(bounds.report.bounds)
    layers = sketching.report.layers.values()
    assert rows["sketched"].terms["bits_if_all_were"] == pytest.approx(sum(layer.sketch_bits for layer in layers))
    # Naive coding is shorter here, so the row pays one bit a layer for the choice.
    assert rows["sketched"].terms["layers_by_sketch"] == 0
    assert rows["sketched"].terms["bits"] == pytest.approx(rows["naive"].terms["bits"] + len(layers))
    assert rows["sketched"].log_value >= rows["naive"].log_value
    assert all(row.holds_with == pytest.approx(1 - 0.05 / 4) for row in rows.values())


def test_sketches_of_another_network_do_not_enter_the_ladder(configure):
    bounds, sketching = BoundsCallback(prune_d=1.0), SketchCallback()
    callbacks = [bounds, PruneCallback(d=100.0), sketching]
    main(configure(max_epochs=2), FFN, Digits, callbacks=callbacks, verbose=False)
    assert sketching.report is not None
    assert "sketched" not in {bound.name for bound in bounds.report.bounds}


@pytest.mark.long
def test_during_training_the_network_is_left_alone(configure):
    args = configure(max_epochs=4)
    plain, _, _ = main(args, FFN, Digits, verbose=False)
    logged = []

    class Counting(SketchCallback):
        def measure(self, module, d=None, steps=None):
            logged.append(d)
            return super().measure(module, d, steps)

    watched, _, _ = main(args, FFN, Digits, callbacks=[Counting(every_n_epochs=2, d=100.0)], verbose=False)
    assert logged == [100.0, 100.0, None]
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), watched.parameters(), strict=True))


def test_a_dense_network_has_no_sketch_and_says_why(configure):
    model = FFN(configure_args(configure))
    report = SketchCallback().measure(model)
    assert not any(layer.certified for layer in report.layers.values())
    assert all("about four" in layer.reason for layer in report.layers.values())
    metrics = report.metrics()
    assert metrics["sketch/certified_layers"] == 0 and math.isinf(metrics["sketch/bits"])


def configure_args(configure):
    args = configure()
    args.num_classes, args.ffn_input_dim = 10, 64
    return args


def test_bad_arguments_and_weights(configure):
    for keys in ({"every_n_epochs": 0}, {"d": -1.0}, {"d": "auto"}):
        with pytest.raises(UserError):
            SketchCallback(**keys)
    model = FFN(configure_args(configure))
    model.model[0].weight.data.fill_(torch.nan)
    with pytest.raises(UserError, match="NaN"):
        SketchCallback().measure(model)
