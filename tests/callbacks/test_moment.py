"""What is reported and tested is the network that is there: Lightning's habits, one test each."""

import math
from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer
from pytorch_lightning.callbacks import (
    EarlyStopping,
    LearningRateFinder,
    ModelCheckpoint,
    StochasticWeightAveraging,
    Timer,
)
from pytorch_lightning.tuner import Tuner
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import milkshake_mbp.callbacks.bounds
from milkshake_mbp import BoundsCallback, CertificateCallback, PruneCallback, RewindCallback, SketchCallback
from milkshake_mbp.callbacks.after_fit import AfterFit, Pruned, fingerprint
from milkshake_mbp.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore")


def samples(count, seed):
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, 3, (count,), generator=generator)
    return TensorDataset(torch.randn(count, 6, generator=generator) + 2 * torch.eye(3, 6)[targets], targets)


class Data(LightningDataModule):
    """Any Lightning user's: no name of Milkshake's."""

    def __init__(self, test_loaders=1):
        super().__init__()
        self.test_loaders = test_loaders

    def train_dataloader(self):
        return DataLoader(samples(120, 0), 20, shuffle=True)

    def val_dataloader(self):
        return DataLoader(samples(60, 1), 30)

    def test_dataloader(self):
        loaders = [DataLoader(samples(60, seed), 30) for seed in range(2, 2 + self.test_loaders)]
        return loaders if self.test_loaders > 1 else loaders[0]


class Net(LightningModule):
    def __init__(self, seed=0, stop_at=None, interrupt_at=None, width=8):
        super().__init__()
        torch.manual_seed(seed)
        self.net = nn.Sequential(nn.Linear(6, width, bias=False), nn.ReLU(), nn.Linear(width, 3, bias=False))
        self.lr, self.stop_at, self.interrupt_at = 0.05, stop_at, interrupt_at

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, idx):
        if self.global_step == self.interrupt_at:
            raise KeyboardInterrupt
        if self.global_step == self.stop_at:
            self.trainer.should_stop = True
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss, on_epoch=True, on_step=False)
        return loss

    def validation_step(self, batch, idx, dataloader_idx=0):
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    def test_step(self, batch, idx, dataloader_idx=0):
        self.log("test_error", (self(batch[0]).argmax(1) != batch[1]).float().mean())

    def predict_step(self, batch, idx):
        return self(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.lr, momentum=0.9)


@pytest.fixture
def trainer(tmp_path):
    def build(**keys):
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
        defaults = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False, "max_epochs": 2}
        return Trainer(**{**quiet, **defaults, "default_root_dir": tmp_path, **keys})

    return build


def zeros(module):
    return sum(int((parameter == 0).sum()) for parameter in module.parameters())


def error_of(module, seed=2):
    inputs, targets = samples(60, seed).tensors
    return float((module(inputs).argmax(1) != targets).double().mean())


def check_reports(module, bounds, pruning):
    """Both reports are of the network as it stands."""
    assert zeros(module) > 0
    assert pruning.report.pruned_test_error == pytest.approx(error_of(module))
    pruning.restore(module)
    assert zeros(module) == 0
    assert bounds.report.test_error == pytest.approx(error_of(module)) == pruning.report.unpruned_test_error
    inputs, targets = samples(120, 0).tensors
    logits = module(inputs).detach().double()
    rest = logits.scatter(1, targets[:, None], -math.inf).amax(1)
    assert bounds.report.margin == pytest.approx(
        float((logits.gather(1, targets[:, None])[:, 0] - rest).min()), abs=1e-6
    )
    assert {"pacbayes_flatness", "arora_2018"} <= {bound.name for bound in bounds.report.bounds}


class Averaging(Callback):
    """Puts the average of the epochs' weights into the module at the end, as weight averaging does."""

    def __init__(self):
        self.kept = []

    def on_train_epoch_end(self, trainer, module):
        self.kept.append([parameter.detach().clone() for parameter in module.parameters()])

    def on_train_end(self, trainer, module):
        for parameter, *values in zip(module.parameters(), *self.kept, strict=True):
            parameter.data.copy_(torch.stack(values).mean(0))


class AveragingLate(Averaging):
    def on_train_end(self, trainer, module):
        pass

    def on_fit_end(self, trainer, module):
        super().on_train_end(trainer, module)


ENDS = {
    "max_epochs": ({"max_epochs": 3}, {}, []),
    "max_steps": ({"max_epochs": -1, "max_steps": 9}, {}, []),
    "max_steps before max_epochs": ({"max_epochs": 50, "max_steps": 9}, {}, []),
    "max_time": ({"max_epochs": 1000, "max_time": {"seconds": 0.2}}, {}, []),
    "should_stop": ({"max_epochs": 50}, {"stop_at": 8}, []),
    "timer": ({"max_epochs": 1000}, {}, [lambda: Timer(duration={"seconds": 0.2})]),
    "early stopping": ({"max_epochs": 50}, {}, [lambda: EarlyStopping("val_loss", patience=1, min_delta=9.0)]),
    "early stopping on training": (
        {"max_epochs": 50},
        {},
        [lambda: EarlyStopping("train_loss", patience=1, min_delta=9.0, check_on_train_epoch_end=True)],
    ),
    "weight averaging": ({"max_epochs": 3}, {}, [Averaging]),
    "stochastic weight averaging": ({"max_epochs": 4}, {}, [lambda: StochasticWeightAveraging(0.1, 2)]),
    "gradient accumulation": ({"max_epochs": 2, "accumulate_grad_batches": 4}, {}, []),
    "fast_dev_run": ({"fast_dev_run": True}, {}, []),
    "no validation": ({"limit_val_batches": 0}, {}, []),
}


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("end", ENDS)
def test_the_final_report_is_of_the_final_network(trainer, end, order):
    keys, how, others = ENDS[end]
    bounds, pruning = BoundsCallback(every_n_epochs=2), PruneCallback()
    added = [build() for build in others]
    callbacks = [bounds, pruning, *added] if order == "before" else [*added, pruning, bounds]
    module, fitting = Net(**how), trainer(**keys, callbacks=callbacks)
    fitting.fit(module, datamodule=Data())
    assert bounds.report.epoch == fitting.current_epoch > 0
    check_reports(module, bounds, pruning)


def test_weights_changed_when_fit_ends(trainer):
    bounds, pruning, module = BoundsCallback(), PruneCallback(), Net()
    trainer(callbacks=[AveragingLate(), bounds, pruning]).fit(module, datamodule=Data())
    check_reports(module, bounds, pruning)


def test_only_an_interrupted_fit_leaves_a_report(monkeypatch):
    callback, seen = BoundsCallback(), []
    monkeypatch.setattr(callback, "_report_on", lambda *moment, **how: seen.append(how))
    for exception, moment, read in (
        (KeyboardInterrupt(), "fit", ("samples",)),
        (RuntimeError(), "fit", ("samples",)),
        (KeyboardInterrupt(), "test", ("samples",)),
        (KeyboardInterrupt(), "fit", None),
    ):
        callback._samples = read
        at = SimpleNamespace(state=SimpleNamespace(fn=moment), current_epoch=2)
        callback.on_exception(at, Net(), exception)
    assert seen == [{"stability": False}]
    with pytest.raises(UserError, match="every_n_epochs"):
        BoundsCallback(every_n_epochs=0)


def test_an_interrupted_fit_leaves_a_report_of_its_network(trainer):
    bounds, pruning = BoundsCallback(), PruneCallback()
    module, fitting = Net(interrupt_at=9), trainer(max_epochs=5, callbacks=[bounds, pruning])
    with pytest.raises(SystemExit):
        fitting.fit(module, datamodule=Data())
    assert (
        bounds.report.test_error == pytest.approx(error_of(module))
        and bounds.report.epoch == fitting.current_epoch == 1
    )
    assert zeros(module) == 0 and pruning.report is None, "an interrupted fit may go on"


def test_fit_then_test_of_the_same_network_measures_nothing_anew(trainer):
    bounds, pruning, sketching = BoundsCallback(), PruneCallback(), SketchCallback()
    module, fitting = Net(), trainer(callbacks=[bounds, pruning, sketching])
    fitting.fit(module, datamodule=Data())
    reports = bounds.report, pruning.report, sketching.report
    fitting.validate(module, datamodule=Data(), verbose=False)
    (tested,) = fitting.test(module, datamodule=Data(), verbose=False)
    assert tested["test_error"] == pytest.approx(pruning.report.pruned_test_error)
    assert all(a is b for a, b in zip(reports, (bounds.report, pruning.report, sketching.report), strict=True))


def test_the_last_epoch_is_not_measured_twice_where_it_is_not_known_beforehand(trainer, monkeypatch):
    """After its end only the rows about noise are missing, which take long."""
    measured, whole = [], milkshake_mbp.callbacks.bounds.measure

    def count(*given, **keys):
        measured.append(keys["stability"])
        return whole(*given, **keys)

    monkeypatch.setattr(milkshake_mbp.callbacks.bounds, "measure", count)
    bounds = BoundsCallback()
    trainer(callbacks=[bounds], max_epochs=-1, max_steps=6).fit(Net(), datamodule=Data())
    assert measured == [False] and bounds.report.measured.stability_measured


@pytest.mark.parametrize("how", ["default", "best", "files"])
def test_weights_that_are_loaded_are_pruned_and_reported_on(trainer, tmp_path, how):
    bounds, pruning = BoundsCallback(), PruneCallback(d=3.0)
    saving = ModelCheckpoint(dirpath=tmp_path, save_top_k=-1, monitor="train_loss", mode="max")
    module, fitting = Net(), trainer(max_epochs=3, enable_checkpointing=True, callbacks=[bounds, pruning, saving])
    fitting.fit(module, datamodule=Data())
    paths = {"default": [None], "best": ["best"], "files": sorted(tmp_path.glob("*.ckpt"))}[how]
    seen = set()
    for path in paths:
        given = {} if path is None else {"model": module, "ckpt_path": path}
        (tested,) = fitting.test(datamodule=Data(), verbose=False, weights_only=False, **given)
        assert tested["test_error"] == pytest.approx(pruning.report.pruned_test_error)
        seen.add(bounds.report.margin)
        check_reports(module, bounds, pruning)
    assert len(seen) == len(paths)


def test_another_model_on_the_same_trainer(trainer):
    bounds, pruning = BoundsCallback(), PruneCallback()
    fitting = trainer(callbacks=[bounds, pruning])
    fitting.fit(Net(), datamodule=Data())
    other = Net(seed=7)
    fitting.test(other, datamodule=Data(), verbose=False)
    check_reports(other, bounds, pruning)


def test_predictions_are_of_the_pruned_network(trainer):
    pruning = PruneCallback()
    module = Net()
    (first, *_) = trainer(callbacks=[pruning]).predict(module, DataLoader(samples(60, 2).tensors[0], 30))
    assert zeros(module) > 0 and torch.equal(first, module(samples(60, 2).tensors[0][:30]))


@pytest.mark.parametrize("refit", ["keep", "dense"])
def test_a_second_fit(trainer, refit):
    bounds, pruning = BoundsCallback(), PruneCallback(refit=refit)
    module = Net()
    trainer(callbacks=[bounds, pruning]).fit(module, datamodule=Data())
    first, masks = zeros(module), pruning.masks
    before = [parameter.detach().clone() for parameter in module.parameters()]
    trainer(callbacks=[bounds, pruning]).fit(module, datamodule=Data())
    assert any(not torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
    pruned = [pruning.weights[name][~mask] for name, mask in masks.items()]
    assert all(not bool(values.any()) for values in pruned) == (refit == "keep")
    if refit == "keep":
        assert zeros(module) == first and pruning.report.sparsity == pytest.approx(first / 72)
        assert bounds.report.test_error == pytest.approx(error_of(module))
    else:
        check_reports(module, bounds, pruning)


def test_masks_survive_a_checkpoint_in_a_new_process(trainer, tmp_path):
    module, pruning = Net(), PruneCallback()
    trainer(callbacks=[pruning]).fit(module, datamodule=Data())
    saving = ModelCheckpoint(dirpath=tmp_path, save_last=True)
    trainer(max_epochs=1, enable_checkpointing=True, callbacks=[pruning, saving]).fit(module, datamodule=Data())
    again, restored = Net(seed=3), PruneCallback()
    fitting = trainer(max_epochs=3, callbacks=[restored])
    fitting.fit(again, datamodule=Data(), ckpt_path=tmp_path / "last.ckpt", weights_only=False)
    assert fitting.global_step == 18 and zeros(again) == zeros(module)
    assert all(torch.equal(restored.masks[name], mask) for name, mask in pruning.masks.items())


def test_two_test_loaders_and_a_fit_without_data_module(trainer):
    bounds, pruning = BoundsCallback(), PruneCallback()
    module, fitting = Net(), trainer(callbacks=[bounds, pruning])
    fitting.fit(module, datamodule=Data(test_loaders=2))
    check_reports(module, bounds, pruning)
    bounds, pruning = BoundsCallback(), PruneCallback()
    module, fitting = Net(), trainer(callbacks=[bounds, pruning])
    fitting.fit(module, train_dataloaders=Data().train_dataloader())
    assert bounds.report.num_samples == 120 and bounds.report.test_error is None and zeros(module) > 0
    fitting.test(module, Data().test_dataloader(), verbose=False)
    assert zeros(module) > 0


def test_restores_that_are_no_resumed_fit_change_nothing(trainer, tmp_path):
    """After lr_find, batch-size scaling and a test of another checkpoint, rounds go on as if nothing had been."""
    data, rewind, kept = Data(), RewindCallback(rate=0.5), []
    module = Net()
    for turn in range(3):
        saving = ModelCheckpoint(dirpath=tmp_path / str(turn), monitor="train_loss")
        finder = [LearningRateFinder(num_training_steps=3)] if turn == 1 else []
        fitting = trainer(enable_checkpointing=True, callbacks=[rewind, saving, *finder])
        if turn == 2:
            Tuner(fitting).lr_find(module, datamodule=data, num_training=3)
        fitting.fit(module, datamodule=data)
        fitting.test(module, datamodule=data, ckpt_path="best", verbose=False, weights_only=False)
        kept.append((rewind.round, rewind.report(module).kept))
    assert kept == [(0, 1.0), (1, 0.5), (2, 0.25)]


def test_a_fit_that_trains_nothing_is_no_round(trainer):
    rewind, module = RewindCallback(rate=0.5), Net()
    fitting = trainer(callbacks=[rewind])
    for _ in range(3):
        fitting.fit(module, datamodule=Data())
    assert rewind.round == 0 and zeros(module) == 0
    trainer(callbacks=[rewind]).fit(module, datamodule=Data())
    assert rewind.round == 1 and zeros(module) == 36


def test_a_round_goes_on_in_a_new_process(trainer, tmp_path):
    rewind, module = RewindCallback(rate=0.5), Net()
    saving = ModelCheckpoint(dirpath=tmp_path, save_last=True)
    trainer(callbacks=[rewind]).fit(module, datamodule=Data())
    trainer(max_epochs=1, enable_checkpointing=True, callbacks=[rewind, saving]).fit(module, datamodule=Data())
    again, restored = Net(seed=5), RewindCallback(rate=0.5)
    trainer(callbacks=[restored]).fit(again, datamodule=Data(), ckpt_path=tmp_path / "last.ckpt", weights_only=False)
    assert restored.round == 1 and zeros(again) == 36
    trainer(callbacks=[restored]).fit(again, datamodule=Data())
    assert restored.round == 2 and zeros(again) == 54
    assert all(torch.equal(restored.rewind_weights[name], weight) for name, weight in rewind.rewind_weights.items())


@pytest.mark.parametrize("epochs", [1, 3])
def test_initial_weights_survive_a_checkpoint_in_a_new_process(trainer, tmp_path, epochs):
    bounds, module = BoundsCallback(), Net()
    first = {name: value.detach().clone() for name, value in module.named_parameters()}
    saving = ModelCheckpoint(dirpath=tmp_path, save_last=True)
    trainer(max_epochs=1, enable_checkpointing=True, callbacks=[bounds, saving]).fit(module, datamodule=Data())
    again = BoundsCallback()
    fitting = trainer(max_epochs=epochs, callbacks=[again])
    fitting.fit(Net(seed=4), datamodule=Data(), ckpt_path=tmp_path / "last.ckpt", weights_only=False)
    assert all(torch.equal(again.initial[name], value) for name, value in first.items())
    assert "fro_dist" in {bound.name for bound in again.report.bounds}


class Unreadable(Data):
    def train_dataloader(self):
        inputs, targets = samples(120, 0).tensors
        return DataLoader(TensorDataset(inputs, targets, torch.arange(120)), 20)


class Soft(Data):
    def train_dataloader(self):
        inputs, targets = samples(120, 0).tensors
        return DataLoader(TensorDataset(inputs, F.one_hot(targets, 3) * 0.9 + 1 / 30), 20)


class Steps(Net):
    steps = 0

    def training_step(self, batch, idx):
        self.steps += 1
        return super().training_step(batch[:2], idx)


@pytest.mark.parametrize("data", [Unreadable, Soft])
@pytest.mark.parametrize("callback", [BoundsCallback, CertificateCallback])
def test_what_can_be_known_before_training_is_said_before(trainer, data, callback):
    module = Steps()
    with pytest.raises(UserError):
        trainer(callbacks=[callback()], limit_val_batches=0).fit(module, datamodule=data())
    assert module.steps == 0
    takes = callback(unpack=lambda batch: (batch[0], batch[1])) if data is Unreadable else None
    if takes:
        trainer(callbacks=[takes], limit_val_batches=0).fit(module, datamodule=data())
        assert module.steps > 0


def test_weights_that_a_hook_computes_are_refused_before_training(trainer):
    for callback in (BoundsCallback(), PruneCallback(), SketchCallback(), RewindCallback(), CertificateCallback()):
        module = Steps()
        nn.utils.parametrizations.weight_norm(module.net[0])
        with pytest.raises(UserError, match="computed from"):
            trainer(callbacks=[callback], limit_val_batches=0).fit(module, datamodule=Data())
        assert module.steps == 0


@pytest.mark.parametrize("precision", ["64-true", "bf16-true"])
def test_networks_of_other_types(trainer, precision):
    callbacks = [BoundsCallback(), PruneCallback(), SketchCallback()]
    module = Net()
    trainer(precision=precision, callbacks=callbacks).fit(module, datamodule=Data())
    assert callbacks[0].report.measured.weight_bits == (64 if precision == "64-true" else 16) and zeros(module) > 0


def test_a_certificate_is_of_the_final_network(trainer):
    callback, module = CertificateCallback(every_n_epochs=1), Net()
    trainer(max_epochs=3, callbacks=[callback, Averaging()]).fit(module, datamodule=Data())
    fresh = CertificateCallback().make(module, Data())
    assert callback.last.code == fresh.code and callback.best.bound <= fresh.bound


class Magnitude(AfterFit):
    """A pruner of the user's own: the smaller half of the first layer."""

    done = None

    def act(self, trainer, pl_module):
        before, weight = fingerprint(pl_module), pl_module.net[0].weight
        mask = weight.abs() > weight.abs().median()
        self.done = Pruned(before, {"net.0.weight": weight.detach().clone()}, {"net.0.weight": mask.detach()})
        self.done.redo(pl_module)
        self.report = "pruned"

    def pruned(self, fingerprint):
        return self.done if self.done and fingerprint == self._left else None


@pytest.mark.parametrize("first", [True, False])
def test_bounds_are_of_the_unpruned_network_whoever_pruned_it(trainer, first):
    bounds, pruning = BoundsCallback(), Magnitude()
    fit = trainer(callbacks=[pruning, bounds] if first else [bounds, pruning])
    model = Net()
    fit.fit(model, Data())
    report = bounds.report
    assert int((model.net[0].weight == 0).sum()) == 24
    pruning.done.undo(model)
    expected = BoundsCallback().measure(model, Data().train_dataloader().dataset).measured
    assert report.measured.margin == expected.margin
    pruning.done.redo(model)
    fit.test(model, Data(), verbose=False)
    assert bounds.report.measured is report.measured and int((model.net[0].weight == 0).sum()) == 24
