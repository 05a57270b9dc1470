import csv
import io
import json
import re
import shutil
from argparse import Namespace
from copy import copy
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from pytorch_lightning.callbacks import ModelCheckpoint
from rich.console import Console
from safetensors.torch import load_file

from milkshake_mbp.callbacks import BoundsCallback
from milkshake_mbp.errors import UserError
from milkshake_mbp.experiment.run import run
from milkshake_mbp.framework.args import config_dict, parse_args
from milkshake_mbp.framework.checkpoints import LAST_CHECKPOINT
from milkshake_mbp.framework.datamodules.files import read_digits
from milkshake_mbp.runs.files import RunFiles
from milkshake_mbp.runs.lock import BusyError, locked
from milkshake_mbp.runs.names import run_name
from milkshake_mbp.runs.settings import Pruning
from milkshake_mbp.theory.bounds import ROWS
from tests.quick import configuration, keeper

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run as it was left, with or without figures; trained once."""

    @cache
    def train(figures):
        args = configuration(tmp_path_factory.mktemp("run") / "out", max_epochs=3, figures=figures)
        files, result = run(args, Console(quiet=True))
        return args, files, result, keeper(files.folder.parent)

    def left(figures):
        args, files, result, restore = train(figures)
        restore()
        return copy(args), files, result

    return left


@pytest.fixture
def finished(trained):
    return trained(figures=False)


@pytest.fixture
def drawn(trained):
    return trained(figures=True)


def test_files(drawn):
    args, files, result = drawn
    assert json.loads(files.result.read_text()) == result
    again = parse_args(["-c", str(files.config)], Pruning)
    assert vars(again) == config_dict(args)
    with files.epochs.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3
    # Sketched once training is over; and no run has a code of its own.
    absent = {"sketches", "coded", "magnitudes", "fourier", "operator_scales", "patches"}
    for row in (row for row in ROWS if not absent & set(row.needs)):
        logged = float(rows[-1][f"bounds/{row.convention}/{row.name}"])
        (final,) = [b for b in result["bounds"] if (b["convention"], b["name"]) == (row.convention, row.name)]
        assert logged == pytest.approx(final["log_value"], rel=1e-6)
    assert set(load_file(files.initial)) == set(load_file(files.mask))
    assert sorted(path.name for path in files.figures.iterdir()) == ["epochs.pdf", "epochs.png"]
    assert not [path for path in files.folder.iterdir() if path.name.startswith(".")]


def test_weights_are_unpruned_and_masks_give_the_pruned_ones(finished):
    _, files, result = finished
    weights, masks = load_file(files.model), load_file(files.mask)
    assert set(masks) == set(weights) and all(mask.dtype == torch.bool for mask in masks.values())
    kept = {layer["name"]: layer["kept"] for layer in result["prune"]["layers"]}
    assert {name.removesuffix(".weight"): int(mask.sum()) for name, mask in masks.items()} == kept
    assert all(int(weight.count_nonzero()) == weight.numel() for weight in weights.values())


def test_a_finished_run_is_read_not_repeated(finished, monkeypatch):
    args, _, result = finished
    monkeypatch.setattr("milkshake_mbp.experiment.train.train_and_bound", lambda *a, **k: pytest.fail("trained again"))
    assert run(args, Console(quiet=True))[1] == result


def test_rerun_gives_the_same_numbers(finished):
    args, _, result = finished
    args.rerun = True
    again = run(args, Console(quiet=True))[1]
    assert {**again, "seconds": 0} == {**result, "seconds": 0}


def test_interrupted_run_keeps_its_epochs_and_goes_on(configure, finished, monkeypatch, tmp_path):
    _, _, whole = finished
    args = configure(max_epochs=3, out_dir=str(tmp_path / "other"))
    measure = BoundsCallback._measure

    def interrupt(self, module, train, test, epoch, stability):
        if epoch == 3 and stability:
            raise KeyboardInterrupt
        return measure(self, module, train, test, epoch, stability)

    monkeypatch.setattr(BoundsCallback, "_measure", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(args, Console(quiet=True))
    folder = tmp_path / "other" / run_name(args)
    assert not (folder / "result.json").exists()
    assert len((folder / "epochs.csv").read_text().splitlines()) == 3
    monkeypatch.setattr(BoundsCallback, "_measure", measure)
    _, resumed = run(args, Console(quiet=True))
    assert {**resumed, "seconds": 0} == {**whole, "seconds": 0}


def test_killed_after_the_last_epoch_measures_the_unpruned_network(configure, finished, monkeypatch, tmp_path):
    _, _, whole = finished
    args = configure(max_epochs=3, out_dir=str(tmp_path / "other"))
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr("milkshake_mbp.experiment.train._keep_weights", lambda *a: 1 / 0)
        run(args, Console(quiet=True))
    _, resumed = run(args, Console(quiet=True))
    assert resumed["bounds"] == whole["bounds"] and resumed["epochs"] == 3
    assert resumed["test_error"] == whole["test_error"]


@pytest.mark.long
def test_a_checkpoint_cut_short_is_passed_over(configure, finished, tmp_path):
    _, _, whole = finished
    args = configure(max_epochs=3, out_dir=str(tmp_path / "other"), ckpt_every_n_epochs=1)
    files, _ = run(args, Console(quiet=True))
    for path, kept in ((files.folder / LAST_CHECKPOINT, 0.9), (files.folder / "checkpoints" / "epoch=002.ckpt", 0.5)):
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    files.result.unlink()
    said = Console(record=True, file=io.StringIO(), width=200)
    _, resumed = run(args, said)
    assert "continuing from its last checkpoint" in said.export_text()
    assert {**resumed, "seconds": 0} == {**whole, "seconds": 0}


@pytest.mark.long
def test_the_last_checkpoint_is_renewed_though_no_epoch_is_better(configure):
    args = configure(max_epochs=4, lr=3)  # every unit dies in the second epoch, so that none after it is the best
    files, _ = run(args, Console(quiet=True))
    with files.epochs.open(newline="") as file:
        losses = [float(row["train_loss"]) for row in csv.DictReader(file)]
    stored = torch.load(files.folder / LAST_CHECKPOINT, weights_only=True)
    assert losses.index(min(losses)) < 3 and stored["epoch"] == 3


def test_an_epoch_is_on_record_before_its_checkpoint(configure, monkeypatch):
    args = configure(max_epochs=3)
    save = ModelCheckpoint.on_train_epoch_end

    def killed_after(self, trainer, module):
        save(self, trainer, module)
        if trainer.current_epoch == 1 and self.filename == "last":
            raise KeyboardInterrupt

    monkeypatch.setattr(ModelCheckpoint, "on_train_epoch_end", killed_after)
    with pytest.raises(KeyboardInterrupt):
        run(args, Console(quiet=True))
    folder = Path(args.out_dir) / run_name(args)
    assert (folder / LAST_CHECKPOINT).exists() and len((folder / "epochs.csv").read_text().splitlines()) == 3


def test_a_run_that_another_process_does_is_left_alone(configure):
    args = configure()
    folder = Path(args.out_dir) / run_name(args)
    with locked(folder), pytest.raises(BusyError, match="in use by process"):
        run(args, Console(quiet=True))
    assert not list(folder.iterdir())


def test_name_depends_on_what_matters(configure):
    base = run_name(configure())
    assert run_name(configure(out_dir="elsewhere", wandb=True, debug=True)) == base
    for key, value in {"lr": 0.01, "prune_d": 2.0, "seed": 5, "max_epochs": 9, "prune_seed": 1}.items():
        assert run_name(configure(**{key: value})) != base


def test_names_of_runs_that_exist_stay():
    """A key that is added must not rename them: they would be trained again."""
    assert run_name(parse_args(["-c", str(ROOT / "cfgs" / "digits.yaml")], Pruning)) == "digits-ffn-128-seed1-ade3827b"


@pytest.mark.parametrize(
    ("model", "size"),
    [
        ("ffn", "ffn_hidden_dim=16"),
        ("cnn", "cnn_initial_width=32"),
        ("nin", "nin_width=192"),
        ("resnet", "resnet_version=18"),
        ("vit", "vit_version=base"),
        ("swin", "swin_version=base"),
    ],
)
def test_a_name_depends_on_the_keys_of_its_own_model_alone(configure, model, size):
    key, _, value = size.partition("=")
    base = run_name(configure(model=model))
    assert base.startswith(f"digits-{model}-{value}-seed1-")
    others = {
        "ffn_hidden_dim": 17,
        "cnn_initial_width": 33,
        "cnn_batchnorm": False,
        "nin_width": 191,
        "nin_padding": 0,
        "resnet_version": 34,
        "resnet_pretrained": False,
        "vit_version": "large",
        "swin_version": "tiny",
    }
    renamed = {other for other, new in others.items() if run_name(configure(model=model, **{other: new})) != base}
    assert key in renamed and renamed == {other for other in others if other.startswith(f"{model}_")}
    assert run_name(configure(model=model, train_fc_only=True)) != base


def test_a_class_of_ones_own_may_read_any_key(configure):
    own = {"model": "milkshake_mbp.framework.models.ffn:FFN"}
    base = run_name(configure(**own))
    assert base.startswith("digits-milkshake_mbp.framework.models.ffn.FFN-seed1-")
    for key, value in {"cnn_padding": 2, "vit_version": "large", "ffn_hidden_dim": 8}.items():
        assert run_name(configure(**own, **{key: value})) != base


def test_nothing_to_do(configure):
    with pytest.raises(UserError, match="nothing to do"):
        run(configure(eval_only=True, no_test=True), Console(quiet=True))


@pytest.mark.parametrize(
    "keys",
    [
        {"prune_d": -1},
        {"prune_seed": -1},
        {"bounds_every_n_epochs": 0},
        {"failure": 0},
        {"delta": 1},
        {"prune_d": "weak"},
    ],
)
def test_bad_keys(configure, keys):
    with pytest.raises(UserError, match=next(iter(keys))):
        configure(**keys)


@pytest.mark.long
@pytest.mark.parametrize("name", ["result.json", "model.safetensors", "mask.safetensors", "checkpoints/last.ckpt"])
@pytest.mark.parametrize("done", [True, False])
def test_a_flipped_bit_is_said_and_mended(configure, finished, tmp_path, name, done):
    """In a finished run, and in one killed before it was complete, whose last checkpoint and rows may be damaged."""
    args, files, whole = finished
    args.out_dir = str(tmp_path / "copy")
    folder = RunFiles(Path(args.out_dir) / files.folder.name)
    shutil.copytree(files.folder, folder.folder)
    if not done:
        folder.result.unlink()
        folder.epochs.write_text("epoch,margin\n0,what\n")
        folder.initial.write_bytes(b"nothing")
    if (path := folder.folder / name).exists():
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 4
        path.write_bytes(content)
    said = Console(record=True, file=io.StringIO(), width=500)
    _, result = run(args, said)
    if done and "checkpoints" not in name:
        assert name in said.export_text()
    assert {**result, "seconds": 0} == {**whole, "seconds": 0}
    for same in ("epochs.csv", "initial.safetensors", "model.safetensors", "mask.safetensors"):
        assert (folder.folder / same).read_bytes() == (files.folder / same).read_bytes()
    assert folder.altered() == {}


@pytest.mark.long
def test_what_follows_from_the_numbers_is_made_again(drawn):
    args, files, whole = drawn
    for path in (files.report, *files.figures.iterdir()):
        path.unlink()
    (files.folder / "ladder.csv").write_text("changed")
    assert run(args, Console(quiet=True))[1] == whole
    assert files.report.exists() and list(files.figures.iterdir())
    assert files.altered() == {}
    files.manifest.unlink()  # killed before it was complete
    files.report.unlink()
    # And damaged then: all is made again from the last checkpoint, whose check sums still tell.
    rows = files.epochs.read_bytes()
    files.epochs.write_bytes(rows.replace(b"1", b"q"))
    files.model.write_bytes(b"nothing")
    assert {**run(args, Console(quiet=True))[1], "seconds": 0} == {**whole, "seconds": 0}
    assert files.report.exists() and files.altered() == {} and files.epochs.read_bytes() == rows
    # Without one they are taken as they are.
    files.manifest.unlink()
    shutil.rmtree(files.folder / "checkpoints")
    assert {**run(args, Console(quiet=True))[1], "seconds": 0} == {**whole, "seconds": 0}
    assert files.altered() == {}


def test_a_damaged_configuration_is_made_again_whatever_else_is_lost(drawn):
    args, files, whole = drawn
    config = files.config.read_bytes()
    files.config.write_bytes(b"\xff" + config)
    assert run(args, Console(quiet=True))[1] == whole
    assert files.config.read_bytes() == config and files.altered() == {}
    files.config.write_bytes(b"\xff" + config)
    files.epochs.write_bytes(b"epoch,margin\n1,\xff\n")
    said = Console(record=True, file=io.StringIO(), width=500)
    assert run(args, said)[1] == whole
    assert (
        "epochs.csv is changed" in (text := said.export_text()) and "cannot be written again without this file" in text
    )


def test_other_samples_at_the_same_place_are_not_taken_for_those_of_a_finished_run(configure, tmp_path, monkeypatch):
    args = configure(max_epochs=1)
    run(args, Console(quiet=True))

    def replaced(train, read=read_digits):
        samples, targets = read(train)
        return samples.flip(0), targets

    monkeypatch.setattr("milkshake_mbp.framework.datamodules.files.read_digits", replaced)
    with pytest.raises(UserError, match="other samples"):
        run(args, Console(quiet=True))
    paths = [tmp_path / "a.npz", tmp_path / "b.npz"]
    for index, path in enumerate(paths):
        np.savez(path, x=np.full((4, 2), index))
    names = set()
    for path in paths:
        (tmp_path / "data.npz").write_bytes(path.read_bytes())
        names.add(run_name(configure(datamodule="arrays", arrays_path=str(tmp_path / "data.npz"))))
    assert len(names) == 2


@pytest.mark.parametrize("name", ["../../x", "/x", ".x", "out[/x]", "=1+1", "a\x1b[31mb", "<b>"])
def test_a_name_is_no_path(configure, name):
    made = run_name(Namespace(**{**vars(configure()), "datamodule": f"{name}:B"}))
    assert re.fullmatch(r"\w[\w.-]*", made)


def test_what_cannot_be_made_again_is_said(drawn):
    args, files, _ = drawn
    files.initial.unlink()
    files.epochs.write_text(files.epochs.read_text().replace("1", "2"))
    files.report.unlink()
    for _ in range(2):  # what was made again is not taken for the whole
        said = Console(record=True, file=io.StringIO(), width=500)
        run(args, said)
        text = said.export_text()
        assert "initial.safetensors is missing" in text and "epochs.csv is changed" in text
        assert files.report.exists()


def test_result_is_yaml_and_json(finished):
    _, files, _ = finished
    assert yaml.safe_load(files.config.read_text())["prune_d"] == 1.0
