"""The lottery on digits: what each training begins with, what is left, and that nothing is trained twice."""

import csv
import json
import shutil

import pytest
import torch
from pytorch_lightning import Callback
from rich.console import Console

from milkshake_mbp.errors import UserError
from milkshake_mbp.experiment.lottery.figures import draw_rounds, draw_strong
from milkshake_mbp.experiment.lottery.report import write_rounds_report, write_strong_report
from milkshake_mbp.experiment.lottery.rounds import (
    TICKET,
    Branch,
    _start,
    export_rounds,
    finished_rounds,
    lottery_folder,
    rounds_table,
    run_rounds,
    summarize_rounds,
)
from milkshake_mbp.experiment.lottery.settings import Lottery, Strong
from milkshake_mbp.experiment.lottery.strong import growth, run_strong, strong_table
from milkshake_mbp.framework import main as framework
from milkshake_mbp.framework.args import parse_args
from milkshake_mbp.framework.checkpoints import read_weights
from tests.reporting.test_report import Page
from tests.wandb_file import offline_runs

QUIET = Console(quiet=True)


@pytest.fixture
def lottery(tmp_path):
    def build(**keys):
        given = {
            "datamodule": "digits",
            "ffn_hidden_dim": 12,
            "ffn_num_layers": 3,
            "bias": False,
            "val_split": 0,
            "max_epochs": 2,
            "lr": 0.05,
            "accelerator": "cpu",
            "out_dir": str(tmp_path / "out"),
            "rounds": 2,
            "prune_rate": 0.5,
            "target_width": 4,
            "target_layers": 2,
            "random_seeds": 2,
            "nearest_candidates": "[20,2000]",
            "subset_candidates": "[6,36]",
        } | keys
        return parse_args([word for key, value in given.items() for word in (f"--{key}", str(value))], Lottery, Strong)

    return build


def folders(args, seed=1):
    return {path.name: path for path in (lottery_folder(args) / f"seed-{seed}").iterdir()}


def weights(folder, name="model"):
    return read_weights(folder / f"{name}.safetensors")


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.long
def test_tickets_and_controls(lottery, monkeypatch):
    args = lottery(control_rounds="[2]")
    begun = {}
    fit = framework.main

    def watching(inside, model, data, callbacks, hooks, verbose):
        class Start(Callback):
            def on_train_start(self, trainer, pl_module):
                named = pl_module.model.named_parameters()
                begun[inside.run_name] = {f"model.{name}": value.detach().clone() for name, value in named}

        return fit(inside, model, data, [*callbacks, Start()], hooks, verbose=verbose)

    monkeypatch.setattr(framework, "main", watching)
    results = run_rounds(args, QUIET)
    names = [f"{result['branch']}-{result['round']:02d}" for result in results]
    assert names == ["ticket-00", "ticket-01", "ticket-02", "random_mask-02", "reinit-02"]
    there = folders(args)
    dense = weights(there["ticket-00"], "rewind")
    assert equal(dense, begun["seed1-ticket-00"])
    total = 64 * 12 + 144 + 120
    assert [result["kept"] for result in results if result["branch"] == "ticket"] == [
        1.0,
        (total - round(total / 2)) / total,
        (total - round(total / 2) - round((total - round(total / 2)) / 2)) / total,
    ]
    for turn in ("01", "02"):
        ticket = weights(there[f"ticket-{turn}"], "mask")
        assert equal(begun[f"seed1-ticket-{turn}"], {name: value * ticket[name] for name, value in dense.items()})
        trained = weights(there[f"ticket-{turn}"])
        assert all(bool((value[~ticket[name]] == 0).all()) for name, value in trained.items())
    random, other = (weights(there[f"{name}-02"], "mask") for name in ("random_mask", "reinit"))
    assert equal(ticket, other)
    assert not equal(ticket, random)
    assert {n: int(mask.sum()) for n, mask in ticket.items()} == {n: int(mask.sum()) for n, mask in random.items()}
    assert equal(begun["seed1-random_mask-02"], {name: value * random[name] for name, value in dense.items()})
    for name, value in begun["seed1-reinit-02"].items():
        assert bool((value[~ticket[name]] == 0).all())
        assert not bool((value == dense[name])[ticket[name]].any())
    nested = weights(there["ticket-02"], "mask"), weights(there["ticket-01"], "mask")
    assert all(bool((nested[0][name] <= nested[1][name]).all()) for name in nested[0])

    ladder = {(bound["convention"], bound["name"]) for bound in results[-3]["bounds"]}
    assert {("leading", "naive"), ("rigorous", "sketched"), ("paper", "theorem_5_2")} <= ladder
    theorem = results[-3]["theorem_6_2"]
    assert theorem["ticket_width"] == 12
    assert theorem["width"] <= 12
    assert not theorem["applies"]
    assert len(theorem["broken"]) == 7
    assert set(results[-3]["sketch"]) == {"model.0", "model.3", "model.6"}

    # What is there is read, not trained; a further round and a further seed join it.
    monkeypatch.setattr(framework, "main", None)
    assert run_rounds(args, QUIET) == results
    assert lottery_folder(lottery(rounds=5, seeds="[1,2]")) == lottery_folder(args)
    assert lottery_folder(lottery(prune_rate=0.4)) != lottery_folder(args)

    folder = lottery_folder(args)
    lines = summarize_rounds(results)
    export_rounds(results, folder)
    assert [line["round"] for line in lines] == [0, 1, 2]
    assert [len(line["test_error"]) for line in lines] == [1, 1, 3]
    with (folder / "rounds.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 5
    assert float(rows[-3]["leading/theorem_6_2_measured"]) == theorem["log_value"]
    drawn = draw_rounds(results, folder)
    assert {path.stem for path in drawn} == {"accuracy", "bounds", "memory", "pixels"}
    assert all(path.stat().st_size > 2000 for path in drawn)
    assert len(rounds_table(lines, results).rows) == 3
    assert finished_rounds(folder) == sorted(results, key=lambda r: (r["round"], r["branch"] != "ticket", r["branch"]))
    page = Page(write_rounds_report(results, folder))
    for result in results:
        assert f"{result['test_error']:.2%}" in page.text
    assert len(page.all("figure")) == 3 and len(page.all("tr")) == 1 + 3 + 1 + len(results)
    shutil.rmtree(folder / "seed-1" / "reinit-02")
    with pytest.raises(UserError, match="reinit-02 was removed during the run"):
        draw_rounds(results, folder)


class StoppedError(RuntimeError):
    pass


@pytest.mark.long
def test_killed_in_mid_round_and_resumed_is_the_same_ticket(lottery, monkeypatch, tmp_path):
    keys = {"max_epochs": 3, "rewind_steps": 4, "controls": "[]", "sketch_rounds": False, "rounds": 1}
    whole = lottery(**keys)
    expected = run_rounds(whole, QUIET)
    torn = lottery(**keys, out_dir=str(tmp_path / "torn"))
    fit = framework.main

    def killing(inside, model, data, callbacks, hooks, verbose):
        class Kill(Callback):
            def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
                if inside.run_name.endswith("ticket-01") and trainer.current_epoch == 1 and batch_idx == 2:
                    raise StoppedError

        return fit(inside, model, data, [*callbacks, Kill()], hooks, verbose=verbose)

    monkeypatch.setattr(framework, "main", killing)
    with pytest.raises(StoppedError):
        run_rounds(torn, QUIET)
    assert not (folders(torn)["ticket-01"] / "result.json").exists()
    monkeypatch.setattr(framework, "main", fit)
    found = run_rounds(torn, QUIET)
    for name in ("ticket-00", "ticket-01"):
        for kind in ("model", "mask"):
            assert equal(weights(folders(torn)[name], kind), weights(folders(whole)[name], kind))
        assert not (folders(torn)[name] / "checkpoints").exists()
    for one, other in zip(found, expected, strict=True):
        assert one["bounds"] == other["bounds"]
        assert one["test_error"] == other["test_error"]


def test_every_training_is_a_run_of_wandb(lottery, offline_wandb, tmp_path):
    keys = {"max_epochs": 1, "rounds": 1, "controls": "[]", "sketch_rounds": False}
    results = run_rounds(lottery(**keys, wandb=True, wandb_dir=str(tmp_path / "wandb"), experiment="few"), QUIET)
    runs = {file.of("run")[0].display_name: file for file in offline_runs(tmp_path / "wandb")}
    assert set(runs) == {"seed1-ticket-00", "seed1-ticket-01"} and offline_wandb.run is None
    for result, file in zip(results, (runs[name] for name in sorted(runs)), strict=True):
        assert file.of("run")[0].run_group == "few"
        assert {key: file.summary[key] for key in ("round", "kept", "test_error", "margin")} == {
            key: result[key] for key in ("round", "kept", "test_error", "margin")
        }
        (artifact,) = file.of("artifact")
        assert {entry.path for entry in artifact.manifest.contents} == {
            "result.json",
            "config.yaml",
            "epochs.csv",
            "mask.safetensors",
        }


def test_refusals(lottery):
    for keys, words in (
        ({"no_test": True}, "no_test"),
        ({"weights": "file"}, "weights"),
        ({"devices": 2}, "devices"),
        ({"rewind_steps": 10_000}, "rewind_steps"),
    ):
        with pytest.raises(UserError, match=words):
            run_rounds(lottery(**keys, max_epochs=1), QUIET)
    for keys, words in (
        ({"controls": "[twins]"}, "controls"),
        ({"control_rounds": "[9]"}, "control_rounds"),
        ({"prune_rate": 1.0}, "prune_rate"),
        ({"epsilon": 0}, "epsilon"),
        ({"seeds": "[1,1]"}, "seeds"),
    ):
        with pytest.raises(UserError, match=words):
            lottery(**keys)
    with pytest.raises(UserError, match="without biases"):
        run_strong(lottery(bias=True), QUIET)


def test_a_round_that_others_begin_from_is_removed_meanwhile(tmp_path):
    start = _start(Branch(1, TICKET, 1, tmp_path / "ticket-01"), tmp_path, None)
    with pytest.raises(UserError, match=r"ticket-00/rewind\.safetensors was removed .* run the command again"):
        start(None, None)


@pytest.mark.long
def test_strong_ticket(lottery):
    args = lottery(max_epochs=5)
    folder, result = run_strong(args, QUIET)
    assert result["target"]["sizes"] == [64, 4, 10]
    assert len(result["imitations"]) == 8
    for row in result["imitations"]:
        assert row["train_error"] <= row["ball_bound"]
        assert row["random_error"] <= row["ball_bound"]
        assert row["relative_error"] == pytest.approx(row["train_error"] / result["target"]["largest_output"])
    assert {(row["method"], row["candidates"]) for row in result["found"]} == {("nearest", 2000), ("subset_sum", 36)}
    for row in result["found"]:
        assert row["relative_error"] <= 0.01
        assert row["theorem_6_2"]["broken"] == [row["theorem_6_2"]["broken"][0]]
        assert "full diagonal" in row["theorem_6_2"]["broken"][0]
        assert row["theorem_6_2"]["ticket_width"] == 64 * row["candidates"]
        assert 0 < row["mask_bound"] <= 1
    rates = growth(result["single_weights"])
    assert rates["boxed"] == pytest.approx(2, abs=0.3)
    assert rates["nearest"] == pytest.approx(1, abs=0.2)
    assert json.loads((folder / "result.json").read_text()) == result
    assert run_strong(args, QUIET) == (folder, result)
    assert {path.name for path in draw_strong(result, folder)} == {"strong.pdf", "strong.png"}
    page = Page(write_strong_report(result, folder))
    assert f"{result['target']['test_error']:.2%}" in page.text and len(page.all("figure")) == 1
    assert len(strong_table(result).rows) == len(result["found"])


@pytest.mark.long
def test_a_convolutional_network_with_its_statistics_and_controls(lottery):
    args = lottery(model="cnn", cnn_initial_width=4, cnn_num_layers=3, cnn_padding=1, rounds=1, max_epochs=1)
    results = run_rounds(args, QUIET)
    there = folders(args)
    assert set(there) == {"ticket-00", "ticket-01", "random_mask-01", "reinit-01"}
    start, trained = weights(there["ticket-00"], "rewind"), weights(there["ticket-00"])
    assert not start["model.1.running_mean"].any() and trained["model.1.running_mean"].any()
    masks = weights(there["ticket-01"], "mask")
    assert set(masks) == {"model.0.weight", "model.3.weight", "model.9.weight"}
    for folder in (there["ticket-01"], there["random_mask-01"]):
        held = weights(folder, "mask")
        assert {name: int(mask.sum()) for name, mask in held.items()} == {
            name: int(mask.sum()) for name, mask in masks.items()
        }
        assert not any(bool(weights(folder)[name][~mask.bool()].any()) for name, mask in held.items())
    # The theorem about tickets is one about chains of layers.
    assert not any("theorem_6_2" in result for result in results)
    rounds_table(summarize_rounds(results), results)
    assert "crowding" in {path.stem for path in draw_rounds(results, lottery_folder(args))}
