"""The framework's own model: its sums, its schedules, its precision."""

from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning import Callback, Trainer
from torch.utils.data import DataLoader, IterableDataset

from milkshake_mbp.errors import UserError
from milkshake_mbp.framework.datamodules import Digits
from milkshake_mbp.framework.main import main
from milkshake_mbp.framework.models import FFN
from milkshake_mbp.framework.models.ffn import ACTIVATIONS
from milkshake_mbp.framework.models.metrics import ClassificationSums


class Rates(Callback):
    """The learning rate at the start of every epoch."""

    def __init__(self):
        self.seen = []

    def on_train_epoch_start(self, trainer, pl_module):
        self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])


@pytest.fixture
def digits(configure):
    """A model and its data, of about 11 batches of 128 where nothing is held out."""

    def build(**keys):
        args = configure(**keys)
        data = Digits(args)
        data.setup("fit")
        args.num_classes, args.num_groups, args.ffn_input_dim = 10, 0, 64
        return FFN(args), data

    return build


def trainer(**keys):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return Trainer(accelerator="cpu", enable_model_summary=False, **quiet, **keys)


@pytest.mark.parametrize("first", ["validate", "test", "predict", "fit"])
@pytest.mark.parametrize("sanity", [0, 2])
def test_a_fit_after_any_other_pass(digits, first, sanity):
    """Trainer.validate and its like leave tensors of inference mode behind."""
    model, data = digits(val_split=0.2)
    data.setup(None)
    runner = trainer(max_epochs=1, num_sanity_val_steps=sanity)
    if first == "predict":
        (numbers, *_) = runner.predict(model, dataloaders=data.test_dataloader())
        assert numbers.shape == (128,) and 0 <= int(numbers.min()) <= int(numbers.max()) <= 9
    else:
        getattr(runner, first)(model, datamodule=data)
    fresh = trainer(max_epochs=1, num_sanity_val_steps=sanity)
    fresh.fit(model, datamodule=data)
    (measured,) = fresh.validate(model, datamodule=data, verbose=False)
    inputs, targets = data.dataset_val.__getitems__(range(len(data.dataset_val)))
    right = (model.cpu()(inputs).argmax(dim=1) == targets).double().mean()
    assert measured["val_acc"] == pytest.approx(float(right), rel=1e-6)


def test_one_model_through_main_twice(configure):
    args = configure(val_split=0.2, max_epochs=1)
    model, *_ = main(args, FFN, Digits, verbose=False)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    main(args, model, Digits, verbose=False)
    assert not all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_pass_that_was_cut_short_is_not_counted(digits):
    class Stop(Callback):
        def on_test_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
            raise RuntimeError("cut short")

    model, data = digits()
    with pytest.raises(RuntimeError, match="cut short"):
        trainer(callbacks=[Stop()]).test(model, datamodule=data)
    (measured,) = trainer().test(model, datamodule=data, verbose=False)
    inputs, targets = data.dataset_test.__getitems__(range(len(data.dataset_test)))
    right = (model(inputs).argmax(dim=1) == targets).double().mean()
    assert measured["test_acc"] == pytest.approx(float(right), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_sums_count_in_any_precision(dtype):
    """Half precision has no whole numbers between 2,048 and 2,050."""
    sums = ClassificationSums(2).to(dtype)
    probs = torch.tensor([[0.9, 0.1]]).expand(1000, 2).to(dtype)
    for _ in range(30):
        sums.update(torch.tensor(0.1, dtype=dtype), probs, torch.zeros(1000, dtype=torch.int64))
    sums.update(torch.tensor(0.1, dtype=dtype), probs[:1], torch.ones(1, dtype=torch.int64))
    found = sums.compute()
    assert float(found["acc"]) == pytest.approx(30000 / 30001, rel=1e-7)
    assert float(found["loss"]) == pytest.approx(float(torch.tensor(0.1, dtype=dtype)), rel=1e-6)


@pytest.mark.parametrize("precision", ["64-true", "bf16-true", "16-true"])
def test_true_precisions(configure, precision):
    args = configure(precision=precision, val_split=0.2, max_epochs=2, lr=0.02)
    model, (validated,), (tested,) = main(args, FFN, Digits, verbose=False)
    kept = {"64-true": torch.float64, "bf16-true": torch.bfloat16, "16-true": torch.float16}[precision]
    assert {parameter.dtype for parameter in model.parameters()} == {kept}
    data = Digits(args)
    data.setup("test")
    inputs, targets = data.dataset_test.__getitems__(range(len(data.dataset_test)))
    right = (model(inputs.to(kept)).argmax(dim=1) == targets).double().mean()
    assert tested["test_acc"] == pytest.approx(float(right), abs=3 / len(targets)) and 0 < validated["val_loss"] < 3


COSINE = [1, 0.9330, 0.75, 0.5, 0.25, 0.0670]


@pytest.mark.parametrize(
    ("schedule", "limits", "expected"),
    [
        ("cosine", {"max_epochs": -1, "max_steps": 72}, COSINE),
        ("cosine", {"max_epochs": -1, "max_steps": 61}, COSINE),
        ("cosine", {"max_epochs": 6}, COSINE),
        ("cosine", {"max_epochs": 100, "max_steps": 72}, COSINE),
        ("cosine", {"max_epochs": 6, "max_steps": 10_000}, COSINE),
        ("cosine", {"max_epochs": -1, "max_steps": 36, "accumulate_grad_batches": 2}, COSINE),
        ("cosine", {"max_epochs": -1, "max_steps": 6, "limit_train_batches": 1}, COSINE),
        ("cosine", {"max_epochs": 6, "max_time": "00:01:00:00"}, COSINE),
        ("cosine", {"max_epochs": -1, "max_steps": 5}, [1]),
        ("linear", {"max_epochs": -1, "max_steps": 36}, [1, 0.7, 0.4]),
        ("cosine_warmup", {"max_epochs": -1, "max_steps": 72}, [0.3333, 0.6667, 1, 0.8536, 0.5, 0.1464]),
        ("step", {"max_epochs": -1, "max_steps": 36}, [1, 1, 0.1]),
        ("step", {"max_epochs": 1}, [1]),
    ],
)
def test_a_schedule_is_as_long_as_the_run(digits, schedule, limits, expected):
    model, data = digits(lr_scheduler=schedule, lr=0.1, lr_warmup_epochs=2, lr_steps=[2, 50])
    rates = Rates()
    trainer(callbacks=[rates], **limits).fit(model, datamodule=data)
    assert [rate / 0.1 for rate in rates.seen] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "cosine_warmup"])
@pytest.mark.parametrize("limits", [{"max_time": "00:00:01:00"}, {}])
def test_a_schedule_without_a_known_end_is_refused(digits, schedule, limits):
    model, data = digits(lr_scheduler=schedule)
    with pytest.raises(UserError, match=f"^lr_scheduler: {schedule} needs to know the length of the run"):
        trainer(max_epochs=-1, **limits).fit(model, datamodule=data)
    assert model.global_step == 0


def test_a_schedule_over_data_without_an_end_is_refused(digits):
    class Endless(IterableDataset):
        def __iter__(self):
            while True:
                yield torch.zeros(64), 0

    model, _ = digits(lr_scheduler="cosine")
    with pytest.raises(UserError, match="these data are endless"):
        trainer(max_epochs=-1, max_steps=3).fit(model, train_dataloaders=DataLoader(Endless(), 4))


def test_a_warmup_longer_than_the_run_is_refused(digits):
    model, data = digits(lr_scheduler="cosine_warmup", lr_warmup_epochs=3)
    with pytest.raises(UserError, match="lr_warmup_epochs: expected fewer than the 3 epochs of this run, got 3"):
        trainer(max_epochs=3).fit(model, datamodule=data)
    trainer(fast_dev_run=True).fit(model, datamodule=data)


def test_no_limit_of_lightnings_own_default(digits):
    """max_epochs null is Lightning's 1,000 epochs, not one."""
    model, _ = digits(lr_scheduler="cosine")
    model._trainer = SimpleNamespace(max_epochs=1000, max_steps=-1, fast_dev_run=False)
    _, (schedule,) = model.configure_optimizers()
    assert schedule.T_max == 1000


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_computes_what_it_says(digits, activation):
    model, _ = digits(ffn_activation=activation, ffn_num_layers=2)
    inputs = torch.randn(5, 64)
    first, last = (layer for layer in model.modules() if isinstance(layer, torch.nn.Linear))
    function = {"tanh": torch.tanh, "sigmoid": torch.sigmoid}.get(activation)
    function = function or getattr(torch.nn.functional, activation)
    assert torch.allclose(model(inputs), last(function(first(inputs))), atol=1e-6)
