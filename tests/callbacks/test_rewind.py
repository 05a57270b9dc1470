"""RewindCallback inside real fits."""

import math

import pytest
import torch
from pytorch_lightning import Callback

from milkshake_mbp import RewindCallback
from milkshake_mbp.errors import UserError
from milkshake_mbp.framework.checkpoints import LAST_CHECKPOINT
from milkshake_mbp.framework.datamodules import Digits
from milkshake_mbp.framework.main import main
from milkshake_mbp.framework.models import FFN

ADAM = {"optimizer": "adam", "lr": 0.005, "no_test": True, "metrics": ["loss"]}


def parameters(model):
    return {f"model.{name}": value.detach().clone() for name, value in model.model.named_parameters()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


class Witness(Callback):
    """What every fit began with, what each step left, and that pruned weights were zero all along."""

    def __init__(self, rewind):
        self.rewind = rewind
        self.begun, self.steps, self.masks, self.fresh = [], [], [], []

    def on_train_start(self, trainer, pl_module):
        self.begun.append(parameters(pl_module))
        self.masks.append({name: mask.clone() for name, mask in self.rewind.masks.items()})
        self.fresh.append(not trainer.optimizers[0].state)
        self.steps.append([])

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        weights = parameters(pl_module)
        self.steps[-1].append(weights)
        assert all(not weights[name][~mask].any() for name, mask in self.rewind.masks.items())


def play(configure, rounds, keys=None, **options):
    """Rounds of fits with one callback and one model."""
    args = configure(**(ADAM | (keys or {})))
    data = Digits(args)
    rewind = RewindCallback(**options)
    witness = Witness(rewind)
    model = FFN
    for _ in range(rounds + 1):
        model, _, _ = main(args, model, data, [rewind, witness], verbose=False)
    return model, rewind, witness


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_rounds_are_nested_exact_and_zero(configure, scope):
    model, rewind, witness = play(configure, 3, rate=0.4, output_rate=0.2, scope=scope)
    assert rewind.round == 3
    output = list(rewind.masks)[-1]
    alive = {name: mask.numel() for name, mask in rewind.masks.items()}
    for before, after in zip(witness.masks, witness.masks[1:], strict=False):
        assert all(bool((after[name] <= before[name]).all()) for name in after)
        for name in alive:
            if scope == "layer" or name == output:
                alive[name] -= round((0.2 if name == output else 0.4) * alive[name])
                assert int(after[name].sum()) == alive[name]
        hidden = [sum(int(masks[name].sum()) for name in masks if name != output) for masks in (before, after)]
        if scope == "global":
            assert hidden[1] == hidden[0] - round(0.4 * hidden[0])
    assert sum(int((value != 0).sum()) for value in parameters(model).values()) <= sum(
        int(mask.sum()) for mask in rewind.masks.values()
    )


def test_what_goes_are_the_smallest_of_what_was_trained(configure):
    _, _, witness = play(configure, 1, rate=0.5)
    trained, masks = witness.steps[0][-1], witness.masks[1]
    gone = torch.cat([trained[name].abs()[~mask] for name, mask in masks.items()])
    kept = torch.cat([trained[name].abs()[mask] for name, mask in masks.items()])
    assert gone.max() <= kept.min()


@pytest.mark.parametrize("bias", [False, True])
def test_rewinds_to_the_beginning_bit_for_bit(configure, bias):
    _, rewind, witness = play(configure, 2, {"bias": bias}, rate=0.3)
    start = witness.begun[0]
    assert set(rewind.rewind_weights) == set(start)
    for begun, masks in zip(witness.begun, witness.masks, strict=True):
        assert same(begun, {name: value * masks.get(name, 1) for name, value in start.items()})
    assert all(witness.fresh)


def test_rewinds_to_a_step_bit_for_bit(configure):
    _, rewind, witness = play(configure, 1, {"max_epochs": 1}, rate=0.3, rewind_steps=3)
    third = witness.steps[0][2]
    assert same(rewind.rewind_weights, third)
    assert same(witness.begun[1], {name: value * witness.masks[1][name] for name, value in third.items()})


def test_algorithm_1_prunes_as_many_as_expected_at_random(configure):
    _, rewind, witness = play(configure, 2, {"max_epochs": 1}, rate=0.3, pruner="algorithm_1", seed=5)
    total = sum(mask.numel() for mask in rewind.masks.values())
    for turn, masks in enumerate(witness.masks):
        kept = sum(int(mask.sum()) for mask in masks.values())
        assert abs(kept - total * 0.7**turn) < 5 * math.sqrt(total * turn / 4 + 1e-9)
    assert all(d > 0 for d in rewind.strengths.values())
    trained, masks = witness.steps[0][-1], witness.masks[1]
    gone = torch.cat([trained[name].abs()[~mask] for name, mask in masks.items()])
    kept = torch.cat([trained[name].abs()[mask] for name, mask in masks.items()])
    assert gone.max() > kept.min()
    assert gone.mean() < kept.mean()


class KilledError(RuntimeError):
    pass


class Killer(Callback):
    """Ends training in the middle of an epoch."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch == 2 and batch_idx == 5:
            raise KilledError


def test_a_round_killed_and_resumed_is_that_of_an_uninterrupted_one(configure, tmp_path):
    keys = ADAM | {"max_epochs": 4, "out_dir": str(tmp_path / "whole")}

    def first_round(args):
        data, rewind = Digits(args), RewindCallback(rate=0.5)
        model, _, _ = main(args, FFN, data, [rewind], verbose=False)
        return model, data, rewind

    args = configure(**keys)
    model, data, rewind = first_round(args)
    whole, _, _ = main(args, model, data, [rewind], verbose=False)

    torn = configure(**(keys | {"out_dir": str(tmp_path / "torn")}))
    model, data, interrupted = first_round(torn)
    torn.out_dir = str(tmp_path / "second")
    with pytest.raises(KilledError):
        main(torn, model, data, [interrupted, Killer()], verbose=False)
    resumed = RewindCallback(rate=0.5)
    torn.resume_training, torn.weights = True, str(tmp_path / "second" / LAST_CHECKPOINT)
    again, _, _ = main(torn, FFN, Digits, [resumed], verbose=False)

    assert resumed.round == 1
    assert same(resumed.masks, rewind.masks)
    assert same(resumed.rewind_weights, rewind.rewind_weights)
    assert same(parameters(again), parameters(whole))
    # And the round after it prunes what the resumed one trained.
    assert same(_advanced(resumed, again), _advanced(rewind, whole))


def _advanced(rewind, model):
    rewind.advance(model)
    return rewind.masks


def test_masks_are_in_the_checkpoint_and_weights_on_the_cpu(configure, tmp_path):
    _, rewind, _ = play(configure, 1, {"out_dir": str(tmp_path)}, rate=0.5)
    stored = torch.load(tmp_path / LAST_CHECKPOINT, weights_only=True)["callbacks"]["RewindCallback"]
    assert stored["round"] == 1
    assert same(stored["masks"], rewind.masks)
    assert all(mask.dtype == torch.bool for mask in stored["masks"].values())
    assert same(stored["rewind_weights"], rewind.rewind_weights)
    assert all(value.device.type == "cpu" for value in rewind.rewind_weights.values())


def test_rounds_are_logged(configure, tmp_path):
    _, rewind, _ = play(configure, 1, {"out_dir": str(tmp_path)}, rate=0.5)
    lines = (tmp_path / "epochs.csv").read_text().splitlines()
    row = dict(zip(lines[0].split(","), lines[-1].split(","), strict=True))
    assert float(row["ticket/round"]) == 1
    assert float(row["ticket/kept"]) == pytest.approx(0.5, abs=1e-3)
    first = rewind.masks["model.0.weight"]
    assert float(row["ticket/model.0/row_max"]) == int(first.sum(dim=1).max())
    assert float(row["ticket/model.0/column_max"]) == int(first.sum(dim=0).max())


def test_a_given_round_is_trained_instead(configure):
    args = configure(**(ADAM | {"max_epochs": 1}))
    rewind = RewindCallback()
    witness = Witness(rewind)
    generator = torch.Generator().manual_seed(0)

    def begin(model):
        masks = {name: torch.rand(value.shape, generator=generator) > 0.5 for name, value in parameters(model).items()}
        rewind.begin(model, 4, masks, {name: torch.ones_like(value) for name, value in parameters(model).items()})

    main(args, FFN, Digits, [rewind, witness], [begin], verbose=False)
    assert rewind.round == 4
    assert same(witness.begun[0], {name: mask.float() for name, mask in witness.masks[0].items()})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rate": 0.0}, "rate"),
        ({"output_rate": 1.0}, "output_rate"),
        ({"scope": "all"}, "scope"),
        ({"pruner": "best"}, "pruner"),
        ({"rewind_steps": -1}, "rewind_steps"),
    ],
)
def test_refusals(options, words):
    with pytest.raises(UserError, match=words) as refused:
        RewindCallback(**options)
    assert "\n" not in str(refused.value)


def test_a_step_never_reached_is_named(configure):
    with pytest.raises(UserError, match="rewind_steps"):
        play(configure, 1, {"max_epochs": 1}, rewind_steps=10_000)


@pytest.mark.slow
def test_memory_is_flat_over_thirty_rounds(configure):
    import gc
    import tracemalloc

    args = configure(**(ADAM | {"max_epochs": 1, "ffn_hidden_dim": 128}))
    data, rewind, model, sizes = Digits(args), RewindCallback(rate=0.1), FFN, []
    tracemalloc.start()
    for _ in range(31):
        model, _, _ = main(args, model, data, [rewind], verbose=False)
        gc.collect()
        tensors = sum(o.numel() * o.element_size() for o in gc.get_objects() if issubclass(type(o), torch.Tensor))
        sizes.append((tensors, tracemalloc.get_traced_memory()[0]))
    tracemalloc.stop()
    # The second round is the first to hold all that a round needs.
    assert sizes[-1][0] <= sizes[1][0] * 1.01
    assert sizes[-1][1] <= sizes[1][1] + 2**20
