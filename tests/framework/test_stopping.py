"""Training until a loss is reached."""

import csv
from pathlib import Path

import pytest
import torch
from pytorch_lightning import Callback
from torch.nn import functional

from milkshake_mbp.errors import UserError
from milkshake_mbp.framework.datamodules import Digits
from milkshake_mbp.framework.main import main
from milkshake_mbp.framework.models import FFN
from milkshake_mbp.framework.stopping import UntilLoss


class Losses(Callback):
    """The training loss in eval mode after every epoch, from one pass over all samples."""

    def __init__(self):
        self.values = []

    def on_train_epoch_end(self, trainer, pl_module):
        self.values.append(loss_of(pl_module, trainer.datamodule))
        assert pl_module.training and pl_module.model.training


def loss_of(model, data):
    inputs, targets = data.dataset_train.__getitems__(range(len(data.dataset_train)))
    model.eval()
    with torch.no_grad():
        loss = functional.cross_entropy(model(inputs).double(), targets)
    model.train()
    return float(loss)


def stopping_of(model):
    return next(part for part in model.trainer.callbacks if isinstance(part, UntilLoss))


def epochs(args):
    with (Path(args.out_dir) / "epochs.csv").open(newline="") as file:
        return len(list(csv.DictReader(file)))


def test_training_stops_after_the_first_epoch_that_reaches_the_loss(configure):
    """With dropout, whose logged loss is another one: the network is compared as it will be used."""
    keys = {"ffn_hidden_dim": 32, "dropout_prob": 0.2, "lr": 0.1, "max_epochs": 12}
    losses = Losses()
    main(configure(**keys), FFN, Digits, callbacks=[losses], verbose=False)
    epoch = min(range(3, 9), key=losses.values.__getitem__)
    wanted = losses.values[epoch]
    assert min(losses.values[:epoch]) > wanted
    args = configure(**keys, until_loss=wanted * (1 + 1e-6), out_dir=configure().out_dir + "-until")
    seen = Losses()
    model, _, _ = main(args, FFN, Digits, callbacks=[seen], verbose=False)
    assert seen.values == losses.values[: epoch + 1] and epochs(args) == epoch + 1
    stopping = stopping_of(model)
    assert stopping.reached and stopping.loss == pytest.approx(wanted, rel=1e-5)


def test_a_loss_that_is_not_reached_is_said(configure):
    model, _, _ = main(configure(until_loss=1e-6, max_epochs=2), FFN, Digits, verbose=False)
    stopping = stopping_of(model)
    assert not stopping.reached and stopping.loss == pytest.approx(loss_of(model, model.trainer.datamodule), rel=1e-5)


def test_what_was_interrupted_after_its_last_epoch_trains_no_further(configure):
    args = configure(until_loss=2.2, max_epochs=9)
    first, _, _ = main(args, FFN, Digits, verbose=False)
    before, count = [p.clone() for p in first.model.parameters()], epochs(args)
    assert count < 9
    args.resume_training = True
    again, _, _ = main(args, FFN, Digits, verbose=False)
    assert all(torch.equal(a, b) for a, b in zip(before, again.model.parameters(), strict=True))
    assert epochs(args) == count and stopping_of(again).reached


def test_weights_that_are_only_evaluated_have_a_loss(configure):
    args = configure(until_loss=0.5, max_epochs=1)
    trained, _, _ = main(args, FFN, Digits, verbose=False)
    args.eval_only, args.weights = True, str(Path(args.out_dir) / "checkpoints" / "last.ckpt")
    loaded, _, _ = main(args, FFN, Digits, verbose=False)
    assert stopping_of(loaded).loss == pytest.approx(stopping_of(trained).loss)


def test_a_subset_is_drawn_by_the_seed_and_smaller_ones_lie_within_larger_ones(configure):
    def samples(**keys):
        data = Digits(configure(**keys))
        data.setup("fit")
        return {tuple(row.flatten().tolist()) for row in data.dataset_train.data}, len(data.dataset_train)

    small, large, other = samples(train_samples=50), samples(train_samples=200), samples(train_samples=50, seed=2)
    assert (small[1], large[1], other[1]) == (50, 200, 50)
    assert small[0] <= large[0] and small[0] != other[0]
    with pytest.raises(UserError, match="train_samples: Digits has 1150 training samples that are not held out"):
        Digits(configure(train_samples=1151, val_split=0.2)).setup("fit")


@pytest.mark.parametrize(("key", "value"), [("until_loss", 0), ("train_samples", 0)])
def test_impossible_values_are_refused(configure, key, value):
    with pytest.raises(UserError, match=f"{key}: expected"):
        configure(**{key: value})
