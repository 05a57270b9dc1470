"""One run of a network that is not the paper's: every file is written, and none speaks of what there is not."""

import json
import warnings
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from milkshake_mbp.errors import UserError
from milkshake_mbp.experiment.run import run
from milkshake_mbp.framework.args import parse_args
from milkshake_mbp.reporting.ladder import ladder_table
from milkshake_mbp.reporting.report import write_report
from milkshake_mbp.reporting.tables import find_runs
from milkshake_mbp.runs.names import run_name
from milkshake_mbp.runs.settings import Pruning
from milkshake_mbp.sweep.record import summary_table
from tests.quick import configuration, keeper

SHAPES = {"model.0": (8, 1, 3, 3), "model.2": (16, 8, 3, 3), "model.7": (10, 16)}
KEYS = {"model": "cnn", "cnn_initial_width": 8, "cnn_num_layers": 3, "cnn_padding": 1, "cnn_batchnorm": False}
SMALL = {**KEYS, "cnn_initial_width": 4, "max_epochs": 1}


@pytest.mark.parametrize(
    ("name", "run_starts"),
    [
        ("digits_cnn", "digits-cnn-16-seed1-"),
        ("mnist_cnn", "mnist-cnn-16-seed1-"),
        ("cifar10_nin", "cifar10-nin-192-seed1-"),
        ("cifar10_resnet18", "cifar10-resnet-18-seed1-"),
    ],
)
def test_configurations_that_come_along(name, run_starts):
    args = parse_args(["-c", str(Path(__file__).parents[2] / "cfgs" / f"{name}.yaml")], Pruning)
    assert run_name(args).startswith(run_starts) and args.experiment == name


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    args = configuration(tmp_path_factory.mktemp("run") / "out", **KEYS, max_epochs=2, figures=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="No artists with labels")
        files, result = run(args, Console(quiet=True))
    return files, result, keeper(files.folder.parent)


@pytest.fixture
def finished(trained):
    files, result, restore = trained
    restore()
    return files, result


def test_files_of_a_convolutional_run(finished):
    files, result = finished
    assert files.folder.name.startswith("digits-cnn-8-seed1-")
    assert {name: tuple(shape) for name, shape in result["kernels"].items()} == SHAPES
    for path in (files.model, files.mask, files.initial):
        assert {name: tuple(tensor.shape) for name, tensor in load_file(path).items()} == {
            f"{name}.weight": shape for name, shape in SHAPES.items()
        }
    kept = {name: int(mask.sum()) for name, mask in load_file(files.mask).items()}
    assert kept == {f"{layer['name']}.weight": layer["kept"] for layer in result["prune"]["layers"]}
    assert not torch.equal(load_file(files.initial)["model.0.weight"], load_file(files.model)["model.0.weight"])
    assert (files.figures / "epochs.pdf").exists() and files.report.exists()
    # Without a searched strength there is no error at it.
    assert (result["d"] is None) == (result["true_error"] is None)


@pytest.mark.long
def test_a_rule_by_names_is_applied_and_shown(configure):
    args = configure(**SMALL, prune_exclude=["model.7"], prune_layer_d=["*.0=4"], figures=True)
    files, result = run(args, Console(quiet=True))
    assert result["prune"]["kernels_left_alone"] == ["model.7"] and result["prune"]["left_alone"] == []
    assert [layer["d"] for layer in result["prune"]["layers"]] == [4.0, 1.0]
    masks, stored = load_file(files.mask), load_file(files.model)
    assert set(masks) == {"model.0.weight", "model.2.weight"} and set(stored) > set(masks)
    assert "model.0 at d = 4, model.7 not pruned" in files.report.read_text(encoding="utf-8")
    console = Console(record=True, width=200)
    console.print(ladder_table(result, brief=False))
    shown = console.export_text()
    assert "not pruned: 1 of 3 kernels by the rule, 80 numbers" in shown
    # Two conventions have a row of that name, of which one is left out.
    assert "rows are left out (" in shown and "Theorem 5.2 (paper)" in shown
    assert {"leading", "rigorous"} <= {bound["convention"] for bound in result["bounds"]}
    # No run of an older configuration has changed its name.
    plain = configure(**SMALL)
    assert run_name(plain) != run_name(args)
    given = {"prune_include": [], "prune_exclude": [], "prune_layer_d": []}
    assert run_name(Namespace(**{key: value for key, value in vars(plain).items() if key not in given})) == run_name(
        plain
    )


def test_a_rule_that_fits_nothing_is_one_line_before_training(configure):
    with pytest.raises(UserError, match=r'exclude: no layer is called "fc": there are model\.0, model\.2, model\.7'):
        run(configure(**KEYS, prune_exclude=["fc"]), Console(quiet=True))
    for wrong in ("fc", "fc=-1", "=2", "fc=much"):
        with pytest.raises(UserError, match=f'prune_layer_d: expected PATTERN=STRENGTH.*got "{wrong}"'):
            configure(**KEYS, prune_layer_d=[wrong])
    with pytest.raises(UserError, match="auto is one strength for all layers"):
        configure(prune_d="auto", prune_exclude=["fc"])


def test_report_of_a_convolutional_run(finished):
    files, _ = finished
    text = files.report.read_text(encoding="utf-8")
    assert "<h1>digits, cnn 8, seed 1</h1>" in text
    assert "A convolutional network of 3 layers with 8 channels in the first, without biases, trained" in text
    assert "16 × 8 × 3 × 3" in text


def test_what_was_not_searched_is_not_shown(finished, tmp_path):
    files, result = finished
    unread = {**result, "d": None, "true_error": None, "chi": None}
    unread["bounds"] = [bound for bound in result["bounds"] if bound["convention"] != "paper"]
    files.write_result(unread)
    rows = files.epochs.read_text(encoding="utf-8").splitlines()
    dropped = [column == "d" or column.startswith("bounds/paper/") for column in rows[0].split(",")]
    kept = [",".join(c for c, drop in zip(row.split(","), dropped, strict=True) if not drop) for row in rows]
    files.epochs.write_text("\n".join(kept) + "\n", encoding="utf-8")
    text = write_report([files.folder], tmp_path / "one.html").read_text(encoding="utf-8")
    assert "earched d" not in text and "unknown" not in text
    numbers = dict.fromkeys(("test_error", "pruned_test_error", "margin"), 0.1)
    trial = {"values": {"seed": 1}, "state": "finished", "bounds": {}, **numbers}
    console = Console(record=True, width=100)
    console.print(summary_table({"sweep": "s", "axes": {"seed": [1]}, "trials": [{**trial, "true_error": None}]}))
    assert "Theorem" not in (printed := console.export_text()) and "10.00%" in printed


def test_the_papers_tables_leave_other_models_out(finished, configure):
    files, _ = finished
    with pytest.raises(UserError, match="holds no run of model ffn"):
        find_runs([str(files.folder.parent)])
    plain, _ = run(configure(max_epochs=1, out_dir=str(files.folder.parent)), Console(quiet=True))
    assert [found.files.folder for found in find_runs([str(files.folder.parent)])] == [plain.folder]


def test_result_is_json_that_reads_back(finished):
    files, result = finished
    assert json.loads(files.result.read_text(encoding="utf-8")) == result
