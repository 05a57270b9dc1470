import csv
import pickle
from pathlib import Path

import pytest
import torch
from pytorch_lightning import Callback
from safetensors.torch import save_file

from milkshake_mbp.errors import UserError
from milkshake_mbp.framework.checkpoints import load_weights
from milkshake_mbp.framework.datamodules import Digits
from milkshake_mbp.framework.main import main
from milkshake_mbp.framework.models import FFN


def weights(model):
    return [parameter.detach().clone() for parameter in model.model.parameters()]


def equal(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def epochs(args):
    with (Path(args.out_dir) / "epochs.csv").open(newline="") as file:
        return list(csv.DictReader(file))


class StopAfter(Callback):
    """What Ctrl-C does, at a chosen moment."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == self.epoch:
            raise KeyboardInterrupt


def test_metrics_are_those_of_the_model_that_is_returned(configure):
    args = configure(val_split=0.2, max_epochs=3)
    model, validated, tested = main(args, FFN, Digits, verbose=False)
    data = Digits(args)
    data.setup(None)
    for metrics, dataset, stage in ((validated, data.dataset_val, "val"), (tested, data.dataset_test, "test")):
        inputs, targets = dataset.__getitems__(range(len(dataset)))
        logits = model(inputs)
        right = logits.argmax(dim=1) == targets
        assert metrics[0][f"{stage}_acc"] == pytest.approx(right.double().mean().item(), rel=1e-6)
        assert metrics[0][f"{stage}_acc_class03"] == pytest.approx(right[targets == 3].double().mean().item(), rel=1e-6)
        loss = torch.nn.functional.cross_entropy(logits, targets)
        assert metrics[0][f"{stage}_loss"] == pytest.approx(loss.item(), rel=1e-5)


def test_every_epoch_is_a_row(configure):
    args = configure(max_epochs=3, val_split=0.2)
    main(args, FFN, Digits, verbose=False)
    rows = epochs(args)
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]
    assert float(rows[2]["train_loss"]) < float(rows[0]["train_loss"])
    assert all(0 <= float(row["val_acc"]) <= 1 for row in rows)


def test_same_seed_same_numbers_other_seed_others(configure):
    runs = [main(configure(seed=seed), FFN, Digits, verbose=False) for seed in (1, 1, 2)]
    assert equal(weights(runs[0][0]), weights(runs[1][0]))
    assert runs[0][2] == runs[1][2]
    assert not equal(weights(runs[0][0]), weights(runs[2][0]))


def test_momentum_reaches_the_optimizer_and_matters(configure):
    models = [main(configure(momentum=momentum), FFN, Digits, verbose=False)[0] for momentum in (0.0, 0.9)]
    assert not equal(*map(weights, models))
    optimizers, _ = FFN(args_for_model(configure(momentum=0.7))).configure_optimizers()
    assert optimizers[0].param_groups[0]["momentum"] == 0.7


def args_for_model(args):
    args.num_classes, args.ffn_input_dim = 10, 64
    return args


def test_a_step_is_the_textbook_step(configure):
    """One epoch of one batch, against SGD with momentum and weight decay written out."""
    args = configure(batch_size=2000, max_epochs=2, momentum=0.9, weight_decay=0.01, ffn_num_layers=1)
    start = []
    model, _, _ = main(args, FFN, Digits, model_hooks=[lambda m: start.extend(weights(m))], verbose=False)
    data = Digits(args)
    data.setup("fit")
    inputs, targets = data.dataset_train.__getitems__(range(len(data.dataset_train)))
    inputs, weight, velocity = inputs.flatten(1).double(), start[0].double(), torch.zeros(10, 64).double()
    for _ in range(2):
        error = (inputs @ weight.T).softmax(dim=1) - torch.nn.functional.one_hot(targets, 10)
        velocity = 0.9 * velocity + error.T @ inputs / len(inputs) + 0.01 * weight
        weight = weight - 0.05 * velocity
    assert torch.allclose(weights(model)[0].double(), weight, atol=1e-5)


def test_interrupted_and_resumed_is_as_if_never_interrupted(configure, tmp_path):
    straight, _, _ = main(configure(max_epochs=4), FFN, Digits, verbose=False)
    args = configure(max_epochs=4, out_dir=str(tmp_path / "broken"))
    with pytest.raises(SystemExit):
        main(args, FFN, Digits, callbacks=[StopAfter(2)], verbose=False)
    assert len(epochs(args)) == 2
    args.resume_training = True
    resumed, _, _ = main(args, FFN, Digits, verbose=False)
    assert equal(weights(straight), weights(resumed))
    assert [row["epoch"] for row in epochs(args)] == ["0", "1", "2", "3"]


def test_checkpoints_every_n_epochs_and_best(configure):
    args = configure(max_epochs=4, ckpt_every_n_epochs=2, val_split=0.2)
    main(args, FFN, Digits, verbose=False)
    names = sorted(path.name for path in (Path(args.out_dir) / "checkpoints").iterdir())
    assert names == ["best.ckpt", "epoch=001.ckpt", "epoch=003.ckpt", "last.ckpt"]


@pytest.mark.parametrize("scheduler", ["cosine", "cosine_warmup", "linear", "step"])
def test_schedules_end_where_they_should(configure, scheduler):
    args = configure(lr_scheduler=scheduler, max_epochs=4, lr_steps=[2, 3], lr_drop=0.5, lr_warmup_epochs=1)
    rates = []

    class Watch(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"] / args.lr)

    main(args, FFN, Digits, callbacks=[Watch()], verbose=False)
    expected = {
        "cosine": [1, 0.8536, 0.5, 0.1464],
        "cosine_warmup": [0.5, 1, 0.75, 0.25],
        "linear": [1, 0.875, 0.75, 0.625],
        "step": [1, 1, 0.5, 0.25],
    }
    assert rates == pytest.approx(expected[scheduler], abs=1e-4)


@pytest.mark.parametrize(
    "keys", [{"loss": "mse", "lr": 0.5}, {"optimizer": "adam", "lr": 0.01}, {"label_smoothing": 0.1}]
)
def test_other_keys_learn(configure, keys):
    _, _, tested = main(configure(max_epochs=5, **keys), FFN, Digits, verbose=False)
    assert tested[0]["test_acc"] > 0.5


def test_metrics_key_chooses(configure):
    _, _, tested = main(configure(metrics=["acc"]), FFN, Digits, verbose=False)
    assert set(tested[0]) == {"test_acc"}


def test_divergence_is_one_line(configure):
    with pytest.raises(UserError, match="training diverged, try a smaller lr"):
        main(configure(lr=1e9, max_epochs=3), FFN, Digits, verbose=False)


def test_input_dimension_must_fit(configure):
    with pytest.raises(UserError, match="ffn_input_dim is 100, but a sample of Digits has 64"):
        main(configure(ffn_input_dim=100), FFN, Digits, verbose=False)


def test_resume_without_checkpoint(configure):
    with pytest.raises(UserError, match="there is no checkpoint"):
        main(configure(resume_training=True), FFN, Digits, verbose=False)


class TestLoadWeights:
    def test_safetensors_and_checkpoint(self, configure, tmp_path):
        args = configure()
        trained, _, _ = main(args, FFN, Digits, verbose=False)
        save_file({f"model.{k}": v for k, v in trained.model.state_dict().items()}, tmp_path / "w.safetensors")
        for path in (tmp_path / "w.safetensors", Path(args.out_dir) / "checkpoints" / "last.ckpt"):
            fresh = FFN(args_for_model(configure(seed=9)))
            load_weights(fresh, path)
            assert equal(weights(fresh), weights(trained))

    def test_nothing_is_unpickled(self, configure, tmp_path):
        class Bomb:
            def __reduce__(self):
                return (Path.touch, (tmp_path / "exploded",))

        path = tmp_path / "bomb.ckpt"
        path.write_bytes(pickle.dumps(Bomb()))
        with pytest.raises(UserError, match=r"bomb\.ckpt"):
            load_weights(FFN(args_for_model(configure())), path)
        torch.save({"state_dict": Bomb()}, path)
        with pytest.raises(UserError, match=r"bomb\.ckpt"):
            load_weights(FFN(args_for_model(configure())), path)
        assert not (tmp_path / "exploded").exists()

    def test_wrong_files(self, configure, tmp_path):
        model = FFN(args_for_model(configure()))
        with pytest.raises(UserError, match="does not exist"):
            load_weights(model, tmp_path / "absent.ckpt")
        (tmp_path / "junk.safetensors").write_bytes(b"junk")
        with pytest.raises(UserError, match="not a safetensors file"):
            load_weights(model, tmp_path / "junk.safetensors")
        save_file({"model.0.weight": torch.zeros(3, 3)}, tmp_path / "other.safetensors")
        with pytest.raises(UserError, match="does not fit this model"):
            load_weights(model, tmp_path / "other.safetensors")


def test_user_classes_by_path(configure):
    from milkshake_mbp.framework.datamodules import load_datamodule
    from milkshake_mbp.framework.models import load_model

    assert load_model("milkshake_mbp.framework.models.ffn:FFN") is FFN
    assert load_datamodule("milkshake_mbp.framework.datamodules.digits.Digits") is Digits
    with pytest.raises(UserError, match="did you mean 'ffn'"):
        load_model("ffnn")
    with pytest.raises(UserError, match="not a subclass"):
        load_model("pathlib:Path")
