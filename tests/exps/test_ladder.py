"""The ladder of any file of weights, as a user calls it."""

import csv
import json
import math
import sys
from argparse import Namespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from milkshake_mbp.framework.cli import run_cli
from milkshake_mbp.framework.datamodules import Digits

from .test_mbp import QUICK, load


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """Runs a script in this process; gives its status, output and errors."""

    def run(name, *words):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", "--out_dir", str(tmp_path / "out"), *QUICK, *words])
        with pytest.raises(SystemExit) as stop:
            run_cli(load(name).main)
        captured = capsys.readouterr()
        return stop.value.code or 0, captured.out, captured.err

    return run


def ladder(folder):
    (path,) = folder.glob("out/ladder-*/ladder.csv")
    with path.open(newline="") as file:
        return {(row["convention"], row["name"]): row for row in csv.DictReader(file)}


@pytest.mark.long
def test_our_own_run_gives_the_numbers_it_logged(call, tmp_path):
    assert call("mbp")[0] == 0
    (run,) = (path for path in (tmp_path / "out").iterdir())
    for name in ("model.safetensors", "checkpoints/last.ckpt"):
        code, out, err = call(
            "ladder", "--weights", str(run / name), "--initial_weights", str(run / "initial.safetensors")
        )
        assert (code, err) == (0, "")
        assert "model.0 (8, 64), model.3 (10, 8)" in out
        logged = json.loads((run / "result.json").read_text())
        found = ladder(tmp_path)
        for bound in logged["bounds"]:
            # Algorithm 1's masks and all forward passes are functions of weights, seed and data.
            assert float(found[bound["convention"], bound["name"]]["log_value"]) == pytest.approx(
                bound["log_value"], rel=1e-6
            )
        folder = next((tmp_path / "out").glob("ladder-*"))
        assert {"strengths.csv", "strengths.png", "normality.csv", "ladder.tex"} <= {p.name for p in folder.iterdir()}
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


def test_any_state_dict_of_linear_layers(call, tmp_path):
    network = nn.Sequential(nn.Linear(64, 12, bias=True), nn.ReLU(), nn.Linear(12, 10, bias=True))
    torch.save(network.state_dict(), tmp_path / "mine.pt")
    code, out, _ = call("ladder", "--weights", str(tmp_path / "mine.pt"), "--diagnostics", "false")
    assert code == 0 and "0 (12, 64), 2 (10, 12)" in out and "Lemma B.2 is false" in out
    rows = ladder(tmp_path)
    assert rows["leading", "naive"]["applies"] == "False" and rows["rigorous", "naive"]["applies"] == "True"
    bits = json.loads(rows["rigorous", "dense"]["terms"])["bits"]
    assert bits > 32 * (64 * 12 + 12 + 12 * 10 + 10)


def test_what_a_file_does_not_tell_is_said_first_and_can_be_given(call, tmp_path):
    """A network that was trained on pixels from 0 to 1 with tanh is read as it is only if one says so."""
    digits = Digits(Namespace(batch_size=64, data_dir="data", val_split=0.2, seed=1))
    digits.setup("fit")
    pixels, targets = digits.dataset_train.data.flatten(1) / 16, digits.dataset_train.targets
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(64, 32, bias=False), nn.Tanh(), nn.Linear(32, 10, bias=False))
    optimizer = torch.optim.Adam(network.parameters(), 0.02)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network((pixels - 0.3) / 0.4), targets).backward()
        optimizer.step()
    error = float((network((pixels - 0.3) / 0.4).argmax(1) != targets).double().mean())
    torch.save(network.half().state_dict(), tmp_path / "half.pt")
    words = ("--weights", str(tmp_path / "half.pt"), "--diagnostics", "false")
    code, out, _ = call("ladder", *words, "--ffn_activation", "tanh", "--input_mean", "0.3", "--input_std", "0.4")
    lines = out.splitlines()
    assert code == 0 and error < 0.02 and "no better than guessing" not in out
    assert lines[0].startswith("ignored: max_epochs, accelerator, which this script does not use")
    assert lines[1].startswith(
        "assumed: tanh between the layers, inputs from -0.75 to 1.75; change with --ffn_activation"
    )
    numbers = json.loads(next((tmp_path / "out").glob("ladder-*/result.json")).read_text())
    margins = network.float()((pixels - 0.3) / 0.4)
    own = margins.gather(1, targets[:, None])[:, 0]
    others = margins.scatter(1, targets[:, None], -math.inf).amax(1)
    assert numbers["margin"] == pytest.approx(float((own - others).min()), abs=1e-3)
    code, out, _ = call("ladder", *words)
    assert code == 0 and "assumed: relu between the layers, inputs as digits scales them, from -1 to 1" in out


def test_a_network_that_guesses_is_said_to(call, tmp_path):
    torch.manual_seed(0)
    torch.save(nn.Sequential(nn.Linear(64, 10), nn.ReLU(), nn.Linear(10, 10)).state_dict(), tmp_path / "new.pt")
    code, out, _ = call("ladder", "--weights", str(tmp_path / "new.pt"), "--diagnostics", "false")
    (line,) = [line for line in out.splitlines() if line.startswith("the training error is ")]
    assert code == 0 and line.endswith("no better than guessing; is this the right data, scaling or activation?")


def test_what_is_beside_the_network_is_left_out_and_said(call, tmp_path):
    torch.manual_seed(0)
    state = nn.Sequential(nn.Linear(64, 10), nn.ReLU(), nn.Linear(10, 10)).double().state_dict()
    torch.save({"net": state | {"criterion.weight": torch.ones(10)}, "epoch": 3}, tmp_path / "mine.pt")
    code, out, _ = call("ladder", "--weights", str(tmp_path / "mine.pt"), "--diagnostics", "false")
    assert (
        code == 0
        and "left out: criterion.weight" in out
        and "double precision: the weights are rounded to float32" in out
    )


def test_keys_of_the_inputs(call, tmp_path):
    save_file({"0.weight": torch.randn(10, 64)}, tmp_path / "one.safetensors")
    words = ("--weights", str(tmp_path / "one.safetensors"))
    for more, message in (
        (("--input_mean", "0.5"), "input_mean, input_std: expected as many of one"),
        (("--input_mean", "0.5", "--input_std", "0"), "input_std: expected finite numbers above 0"),
        (
            ("--input_mean", "0", "0", "--input_std", "1", "1"),
            "input_mean, input_std: 2 coefficients for data of shape",
        ),
        (("--ffn_activation", "swish"), "expected relu or leaky_relu or elu or gelu or silu or tanh or sigmoid"),
    ):
        code, _, err = call("ladder", *words, *more)
        assert code == 2 and err.count("\n") == 1 and message in err


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"0.weight": torch.zeros(12, 64), "1.running_mean": torch.zeros(12)}, "belongs to no Linear layer"),
        ({"0.kernel": torch.zeros(12, 64)}, "0.kernel"),
        ({"0.weight": torch.randn(12, 30), "2.weight": torch.randn(10, 12)}, "has 30 inputs"),
        ({"0.weight": torch.randn(12, 64), "2.weight": torch.randn(7, 12)}, "7 outputs"),
        ({"0.weight": torch.full((12, 64), torch.nan), "2.weight": torch.randn(10, 12)}, "NaN"),
        ({"0.weight": torch.randn(12, 64), "2.weight": torch.randn(10, 11)}, "do not chain"),
    ],
    ids=["batch norm", "other names", "inputs", "classes", "nan", "no chain"],
)
def test_what_cannot_be_bounded_is_refused_in_one_line(call, tmp_path, state, message):
    save_file(state, tmp_path / "odd.safetensors")
    code, _, err = call("ladder", "--weights", str(tmp_path / "odd.safetensors"))
    assert code == 2 and err.count("\n") == 1 and message in err
    assert not (tmp_path / "out").exists()


def test_wrong_flags(call, tmp_path):
    for words, message in (
        ((), "give --weights FILE"),
        (("--weights", "missing.pt"), "missing.pt does not exist"),
        (("--weights", str(tmp_path)), "cannot be read"),
        (("--delta", "2"), "delta must lie strictly between 0 and 1"),
    ):
        code, _, err = call("ladder", *words)
        assert code == 2 and err.count("\n") == 1 and message in err
    save_file({"0.weight": torch.randn(10, 64)}, tmp_path / "one.safetensors")
    words = ("--weights", str(tmp_path / "one.safetensors"))
    code, _, err = call("ladder", *words, "--initial_weights", str(tmp_path / "none.safetensors"))
    assert code == 2 and "none.safetensors does not exist" in err
    save_file({"1.weight": torch.randn(10, 64)}, tmp_path / "other.safetensors")
    code, _, err = call("ladder", *words, "--initial_weights", str(tmp_path / "other.safetensors"))
    assert code == 2 and "does not contain 0.weight" in err
