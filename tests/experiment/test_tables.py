import csv
import json
import math
import re
from itertools import pairwise

import pytest
import torch
import yaml
from safetensors.torch import save_file

from milkshake_mbp.errors import UserError
from milkshake_mbp.experiment.tables import Entry, compare, export_table, find_runs, notes, number, remaining
from milkshake_mbp.theory.pruning import MaskDraw

CONFIG = {
    "datamodule": "mnist",
    "ffn_hidden_dim": 784,
    "seed": 1,
    "optimizer": "sgd",
    "lr": 0.02,
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "batch_size": 256,
    "max_epochs": 60,
    "prune_seed": 0,
    "ffn_activation": "relu",
}
PAPER = ("neyshabur_2015", "neyshabur_2017", "bartlett_2017", "theorem_5_2")
INPUTS = {"mnist": 784, "cifar10": 3072, "digits": 64}


def write_run(folder, bounds=(23.0, 18.0, 12.0, 3.75), *, margin=2.0, error=0.016, n=60_000, finished=True, **keys):
    """A run's folder by hand: as much as tables and figures read."""
    config = CONFIG | keys
    name = f"{config['datamodule']}-{config['ffn_hidden_dim']}-{config['seed']}-{config['max_epochs']}"
    path = folder / name
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    width = config["ffn_hidden_dim"]
    sides = [INPUTS[config["datamodule"]], width, width, width, width, 10]
    result = {
        "n": n,
        "margin": margin,
        "epochs": config["max_epochs"],
        "d": 4e-5 if margin > 0 else 0.0,
        "true_error": error,
        "bounds": [
            {"convention": convention, "name": name, "log_value": value + shift}
            for convention, shift in (("leading", 100), ("paper", 0))
            for name, value in zip(PAPER, bounds, strict=True)
        ],
        "prune": {"layers": [{"shape": [out, inp]} for inp, out in pairwise(sides)]},
    }
    if finished:
        (path / "result.json").write_text(json.dumps(result))
    epochs = [
        {"epoch": 9, "margin": -3.0, "d": 0.0, "true_error": 0.03, "bounds/paper/theorem_5_2": 3.756},
        {"epoch": 10, "train_loss": 0.5},
        {"epoch": 19, "margin": 1.0, "d": 2e-5, "true_error": 0.02, "bounds/paper/theorem_5_2": 3.754},
        {"epoch": 29, "margin": -1.0, "d": 0.0, "true_error": 0.02, "bounds/paper/theorem_5_2": 3.755},
        {"epoch": 59, "margin": margin, "d": 4e-5, "true_error": error, "bounds/paper/theorem_5_2": bounds[3]},
    ]
    with (path / "epochs.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["train_loss", *epochs[0]], restval="")
        writer.writeheader()
        writer.writerows(epochs)
    return path


@pytest.fixture
def mnist(tmp_path):
    """Width 784 with three seeds, 1000 with one, 1500 not finished, 500 not run."""
    runs = tmp_path / "runs"
    for seed, shift in ((2, 0.5), (1, 0.0), (3, -0.1)):
        write_run(runs, (23 + shift, 18, 12, 3.75), seed=seed, error=0.016 + 0.001 * seed)
    write_run(runs, (25, 19, math.inf, 4.0), ffn_hidden_dim=1000, max_epochs=20, margin=-1.0)
    write_run(runs, ffn_hidden_dim=1500, finished=False)
    return find_runs([str(runs)])


def cells(path):
    """A Markdown file's lines of cells by (label, kind)."""
    found, label = {}, ""
    for line in path.read_text().splitlines():
        if line.startswith("|"):
            first, kind, *rest = (cell.strip() for cell in line.strip("|").split("|"))
            label = first or label
            found[label, kind] = rest
    return found


def test_median_range_and_difference(mnist, tmp_path):
    comparison = compare(mnist, "mnist", [500, 784, 1000, 1500])
    entry = comparison.entries["neyshabur_2015", 784]
    assert (entry.median, entry.low, entry.high, entry.paper) == (23.0, 22.9, 23.5, 23.56)
    assert entry.difference == pytest.approx(-0.56)
    assert comparison.entries["true_error", 784].median == pytest.approx(math.log(0.018))
    assert Entry((1.0, 2.0)).median == 1.5 and Entry(()).difference is None
    assert comparison.seeds(784) == "1, 2, 3" and not comparison.runs[1500]


def test_markdown(mnist, tmp_path):
    comparison = compare(mnist, "mnist", [500, 784, 1000, 1500])
    path, _, _ = export_table(comparison, tmp_path / "table1", label="Table 1", title="title", remarks=["a remark"])
    found = cells(path)
    assert path.name == "table1.md" and path.read_text().startswith("## Table 1: title\n")
    assert found["natural log", ""] == ["width 500", "width 784", "width 1000", "width 1500"]
    assert found["Neyshabur 2015", "here"] == ["not run", "23.00", "25.00", "not run"]
    assert found["Neyshabur 2015", "range"] == ["", "22.90 to 23.50", "", ""]
    assert found["Neyshabur 2015", "paper"] == ["22.29", "23.56", "24.42", "25.12"]
    assert found["Neyshabur 2015", "difference"] == ["", "−0.56", "+0.58", ""]
    assert found["Bartlett 2017", "here"][2] == "∞" and found["Bartlett 2017", "difference"][2] == "∞"
    assert found["Ours (Theorem 5.2)", "here"][1] == "3.750" and found["Ours (Theorem 5.2)", "paper"][1] == "3.77"
    assert ("Ours (Theorem 5.2)", "range") not in found
    # ln sqrt(Σ N_l ln² p_l / n): a formula, so that it is there without a run.
    assert found["ln of Theorem 5.2, nothing pruned", "here"] == ["3.327", "3.755", "4.006", "4.432"]
    assert found["Smallest training margin", "here"] == ["not run", "2.00", "−1.00", "not run"]
    assert found["Searched d", "here"] == ["not run", "4.0e−5", "0", "not run"]
    assert found["Weights pruned at it", "here"] == ["not run", "unknown", "unknown", "not run"]
    assert found["Epochs", "here"] == ["not run", "60", "20", "not run"]
    assert "- a remark" in path.read_text()


def test_csv_has_the_numbers(mnist, tmp_path):
    comparison = compare(mnist, "mnist", [500, 784])
    _, _, path = export_table(comparison, tmp_path, label="Table 1", title="title", remarks=[])
    with path.open(newline="") as file:
        rows = {(row["quantity"], row["width"]): row for row in csv.DictReader(file)}
    assert len(rows) == 10 * 2
    row = rows["neyshabur_2015", "784"]
    assert [float(row[name]) for name in ("median", "low", "high", "paper")] == [23.0, 22.9, 23.5, 23.56]
    assert (row["runs"], row["seeds"], row["dataset"]) == ("3", "1 2 3", "mnist")
    hole = rows["neyshabur_2015", "500"]
    assert (hole["median"], hole["difference"], hole["runs"], float(hole["paper"])) == ("", "", "0", 22.29)


def test_latex_is_ascii_and_rectangular(mnist, tmp_path):
    comparison = compare(mnist, "mnist", [500, 784, 1000])
    remarks = [*notes(comparison), "50% & more_of #1"]
    _, path, _ = export_table(comparison, tmp_path, label="Table 1", title="title of it", remarks=remarks)
    text = path.read_text()
    assert text.isascii()
    assert r"\caption{Title of it. " in text and r"50\% \& more\_of \#1" in text
    assert r"$4.0\cdot 10^{-5}$" in text and r"$\infty$" in text and "$-$0.56" in text
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(rows) > 20 and {len(re.findall(r"(?<!\\)&", line)) for line in rows} == {4}
    assert text.count(r"\begin{tabular}{llrrr}") == text.count(r"\end{tabular}") == 1


def test_what_remains(mnist):
    comparisons = [compare(mnist, "mnist", [500, 784, 1000, 1500, 2000]), compare(mnist, "cifar10", [784])]
    assert remaining(mnist, comparisons) == [
        "MNIST, width 1500, seed 1: unfinished after 5 of 60 epochs",
        "MNIST, width 500, 2000: not run",
        "CIFAR-10, width 784: not run",
    ]


def test_notes_on_mnist(mnist):
    text = " ".join(notes(compare(mnist, "mnist", [500, 784, 1000])))
    assert "Width 784: SGD, momentum 0.9, learning rate 0.02, weight decay 0.0001, batch 256, 60 epochs." in text
    assert "precision" not in text
    assert "Width 1000: SGD" in text and "20 epochs." in text
    assert "∞: a training sample is misclassified" in text and "their range" in text
    assert "The paper's row is within 0.03 of that, the one here within 0.006." in text


def test_the_margin_that_the_paper_must_have_had(tmp_path):
    # The paper's rows at width 784 for a margin of 0.5 in place of 2, but for 0.3 nats in one of the three.
    shift = 2 * math.log(2.0 / 0.5)
    write_run(tmp_path, (23.56 - shift, 18.34 - shift, 11.68 - shift + 0.3, 3.75), margin=2.0 * math.exp(-0.05))
    write_run(tmp_path, (23, 18, math.inf, 3.75), ffn_hidden_dim=500)
    text = " ".join(notes(compare(find_runs([str(tmp_path)]), "mnist", [500, 784, 1000])))
    assert "Had it been 0.50 at width 784 in the paper's networks" in text and "within 0.20 of the paper's" in text
    assert "at width 500" not in text


def test_notes_on_cifar10(tmp_path):
    text = " ".join(notes(compare([], "cifar10", [784])))
    assert "= 4.25 at width 784 with n = 50,000" in text and "4.36); the paper's 4.68" in text
    assert "9.0% of the test set" in text and "12,500 steps." in text
    write_run(tmp_path, datamodule="cifar10", n=40_000, error=0.42, batch_size=128)
    text = " ".join(notes(compare(find_runs([str(tmp_path)]), "cifar10", [784])))
    assert "= 4.36 at width 784 with n = 40,000" in text
    assert "here it is 42.0%" in text and "batch 128 is used here" in text


def test_digits_have_nothing_of_the_paper(tmp_path):
    write_run(tmp_path / "runs", datamodule="digits")
    comparison = compare(find_runs([str(tmp_path / "runs")]), "digits", [784])
    assert not comparison.has_paper and "paper" not in " ".join(notes(comparison))
    path, _, _ = export_table(comparison, tmp_path, label="Table 2", title="quick", remarks=[])
    assert {kind for _, kind in cells(path)} == {"", "here"} | {cell for _, cell in cells(path) if "--" in cell}


@pytest.mark.parametrize(("key", "value"), [("max_epochs", 300), ("precision", "bf16-mixed")])
def test_runs_of_different_recipes_are_not_mixed(tmp_path, key, value):
    write_run(tmp_path, seed=1)
    write_run(tmp_path, seed=2, **{key: value})
    runs = find_runs([str(tmp_path)])
    with pytest.raises(UserError, match=rf"width 784 on mnist differ in {key} \(.*{value}"):
        compare(runs, "mnist", [784])
    assert compare(runs, "mnist", [500]).entries["margin", 500].values == ()


def test_the_same_run_counts_once(tmp_path):
    here = write_run(tmp_path / "here", finished=False)
    there = write_run(tmp_path / "there", (20, 18, 12, 3.75))
    again = write_run(tmp_path / "again", (19, 18, 12, 3.75), prune_d=2.0)
    again.rename(again.with_name("another-name"))
    runs = find_runs([str(here), str(there), str(tmp_path / "here"), str(tmp_path / "again")])
    assert compare(runs, "mnist", [784]).entries["neyshabur_2015", 784].values == (20,)


def test_sparsity_is_measured_from_the_weights(tmp_path):
    path = write_run(tmp_path, ffn_hidden_dim=30)
    weights = [torch.randn(30, 784, generator=torch.Generator().manual_seed(1)), torch.randn(10, 30)]
    save_file({f"model.{3 * i}.weight": weight for i, weight in enumerate(weights)}, path / "model.safetensors")
    masks = MaskDraw(weights, 0).masks(4e-5, keep_diagonal=False)
    (run,) = find_runs([str(path)])
    expected = 1 - sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)
    assert run.numbers["sparsity"] == pytest.approx(expected) and 0 < expected < 0.02


def test_folders_that_hold_no_run(tmp_path):
    ladder = tmp_path / "ladder-model"
    ladder.mkdir()
    (ladder / "config.yaml").write_text("datamodule: mnist\n")
    (ladder / "result.json").write_text("{}")
    for folder, message in ((tmp_path, "holds no run"), (tmp_path / "none", "is no folder")):
        with pytest.raises(UserError, match=message):
            find_runs([str(folder)])
    path = write_run(tmp_path)
    (path / "config.yaml").write_text("datamodule: [")
    with pytest.raises(UserError, match=r"config\.yaml is damaged"):
        find_runs([str(tmp_path)])
    (path / "config.yaml").write_text("- mnist")
    with pytest.raises(UserError, match="is not the configuration of a run"):
        find_runs([str(tmp_path)])


def test_numbers_as_written():
    assert [number(value, ".2f", "hole") for value in (None, -1.5, math.inf, -math.inf)] == ["hole", "−1.50", "∞", "−∞"]
    assert [number(value, "#.3g") for value in (2.0, 123.0)] == ["2.00", "123"]
    assert [number(value, ".1e") for value in (0, 4.26e-5, 3.0)] == ["0", "4.3e−5", "3.0e0"]
