"""What a user sees: one line, a status, no traceback."""

import errno
import importlib.util
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import milkshake_mbp.files
from milkshake_mbp.framework.cli import run_cli
from milkshake_mbp.runs.files import RunFiles
from tests.one_device import assert_agrees_with_one_device

ROOT = Path(__file__).parents[2]
QUICK = [
    "--max_epochs",
    "1",
    "--ffn_hidden_dim",
    "8",
    "--ffn_num_layers",
    "2",
    "--bias",
    "false",
    "--accelerator",
    "cpu",
]


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "exps" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def mbp(monkeypatch, capsys, tmp_path):
    """Runs the script in this process; gives its status, output and errors."""
    script = load("mbp")

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["mbp.py", "--out_dir", str(tmp_path / "out"), *QUICK, *words])
        with pytest.raises(SystemExit) as stop:
            run_cli(script.main)
        captured = capsys.readouterr()
        return stop.value.code or 0, captured.out, captured.err

    return call


def idx_folder(folder, size):
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"):
            (raw / f"{part}-{kind}-ubyte").write_bytes(b"\0\0\x08\x03" + bytes(size))
    return folder


def test_prints_a_ladder(mbp, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    status, out, _ = mbp()
    assert status == 0
    assert "Like for like" in out and "Test error" in out and "Results:" in out
    assert "none of them is proved" in " ".join(out.split()) and "exps/certificate.py -c" in out
    assert all(len(line) <= 80 or str(line).startswith("Results: ") for line in out.splitlines()[2:])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--ffn_hiden_dim", "8"], 'did you mean "ffn_hidden_dim"'),
        (["--lr", "fast"], "lr"),
        (["--ffn_hidden_dim", "0"], "ffn_hidden_dim"),
        (["--prune_d", "-1"], "prune_d"),
        (["--lr", "1e9", "--max_epochs", "3"], "training diverged, try a smaller lr"),
        (["--datamodule", "mist"], "did you mean 'mnist'"),
        (["--datamodule", "arrays"], "arrays_path"),
        (["-c", "absent.yaml"], "absent.yaml"),
        (["--weights", "absent.safetensors"], "does not exist"),
        (
            ["--model", "fnn"],
            "did you mean 'ffn'? Known: ffn, cnn, nin, resnet, vit, swin, convnextv2, bert, or your own class as "
            "package.module:Class",
        ),
        (["--model", "absent.module:Class"], "needs the module 'absent'"),
        (["--seed", "1", "2", "--model", "fnn"], "did you mean 'ffn'"),
        (["--seed", "1", "2", "--weights", "absent.pt"], "weights: absent.pt does not exist"),
        (["--metrics", "f1"], "metrics: 'f1' is unknown: expected loss, acc, acc5, acc_by_class,"),
        (["--accelerator", "gpu"], "accelerator gpu: refused by Lightning"),
        (["--seed", "1", "2", "--accelerator", "gpu"], "accelerator gpu: refused by Lightning"),
        (["--strategy", "dpp"], 'did you mean "ddp"?'),
        (["--strategy", "fsdp"], "strategy fsdp: refused by Lightning"),
        (["--max_time", "5m"], "max_time 5m: refused by Lightning: `Timer(duration='5m')` is not a valid duration"),
        (["--devices", "0"], "devices 0: refused by Lightning"),
        (["--barebones", "true"], "barebones True: refused by Lightning"),
        (
            ["--max_epochs", "-1", "--lr_scheduler", "cosine", "--max_time", "00:00:00:09"],
            "give max_epochs or max_steps",
        ),
        (["--lr_scheduler", "cosine_warmup", "--lr_warmup_epochs", "5"], "lr_warmup_epochs: expected fewer than the 1"),
        (["--val_split", "0.9999"], "two classes or more, got 1 of class"),
        (["--resume_training"], "resume_training: there is no checkpoint"),
        (["--image_size", "x"], 'image_size on the command line: expected integer or null, got "x"'),
        (["--ffn_input_dim", "3"], "ffn_input_dim is 3"),
    ],
)
def test_one_clear_line(mbp, words, expected, tmp_path):
    status, _, err = mbp(*words)
    lines = [line for line in err.splitlines() if not line.startswith("epoch ")]
    assert status == 2
    assert len(lines) == 1 and expected in lines[0] and "Traceback" not in err
    # A folder is made when there is something to put in: only the run that diverged got so far.
    assert (tmp_path / "out").exists() == ("diverged" in expected)


def test_files_that_do_not_fit_are_one_line_and_leave_nothing(mbp, tmp_path):
    wide = nn.Sequential(nn.Linear(64, 9, bias=False), nn.ReLU(), nn.Identity(), nn.Linear(9, 10, bias=False))
    torch.save({f"model.{name}": value for name, value in wide.state_dict().items()}, tmp_path / "wide.pt")
    torch.save({"epoch": 3}, tmp_path / "nothing.pt")
    numbers = np.arange(60) % 3
    np.savez(
        tmp_path / "one.npz", x_train=np.ones((60, 4)), y_train=0 * numbers, x_test=np.ones((60, 4)), y_test=numbers
    )
    for words, expected in (
        (["--weights", "wide.pt"], "model.0.weight is (9, 64) in the file and (8, 64) in the model"),
        (["--weights", "wide.pt", "--resume_training"], "has weights but no training state"),
        (["--weights", "nothing.pt"], "found epoch (int)"),
        (["--datamodule", "arrays", "--arrays_path", "one.npz"], "two classes or more"),
    ):
        status, _, err = mbp(*(str(tmp_path / word) if "." in word else word for word in words))
        assert status == 2 and len(err.splitlines()) == 1 and expected in err
        assert not (tmp_path / "out").exists()


@pytest.mark.long
def test_config_yaml_means_the_same_from_another_working_directory(mbp, monkeypatch, tmp_path):
    """Where its own paths were relative, and where the command is the one that the report shows."""
    monkeypatch.chdir(tmp_path)
    rng, numbers = np.random.default_rng(0), np.arange(60) % 3
    x = rng.normal(size=(60, 4)) + numbers[:, None]
    np.savez("mine.npz", x_train=x, y_train=numbers, x_test=x, y_test=numbers)
    status, out, _ = mbp("--datamodule", "arrays", "--arrays_path", "mine.npz", "--out_dir", "here")
    (run,) = (tmp_path / "here").iterdir()
    assert status == 0 and f"Results: here/{run.name}" in out
    command = re.search(r"python exps/mbp.py -c (\S+) --rerun true", (run / "report.html").read_text())
    assert command.group(1) == str(run / "config.yaml")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setattr(sys, "argv", ["mbp.py", "-c", command.group(1)])
    with pytest.raises(SystemExit) as stop:
        run_cli(load("mbp").main)
    assert not stop.value.code
    assert not list(Path.cwd().iterdir()) and list((tmp_path / "here").iterdir()) == [run]


def test_missing_and_truncated_data(mbp, tmp_path, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.mnist.MNIST.mirrors", ["http://127.0.0.1:9/"])
    status, _, err = mbp("--datamodule", "mnist", "--data_dir", str(tmp_path / "nothing"))
    assert status == 2 and "lacks the data and they cannot be downloaded" in err
    folder = idx_folder(tmp_path / "short", 100)
    status, _, err = mbp("--datamodule", "mnist", "--data_dir", str(folder))
    assert status == 2 and "train-images-idx3-ubyte is truncated or damaged" in err and len(err.splitlines()) == 1


@pytest.mark.long
def test_a_grid_is_printed_run_and_summed_up(mbp, tmp_path):
    status, out, err = mbp("--seed", "1", "2", "--lr", "[0.05,1e12]")
    assert status == 1 and not err
    assert "2 × 2 = 4 trials" in out and "[1/4] seed=1 lr=0.05  running" in out
    assert out.count("failed: seed=") == 2 and "[4/4] seed=2 lr=1e+12  failed: after epoch 1: " in out
    (folder,) = (tmp_path / "out").glob("mbp-sweep-*")
    assert f"Results: {folder}" in out
    assert [path.name for path in sorted(folder.iterdir())] == ["report.html", "sweep.csv", "sweep.json"]
    status, out, _ = mbp("--seed", "1", "2", "--lr", "[0.05]")
    assert status == 0 and out.count("skipped") == 2


def test_a_grid_is_refused_in_one_line(mbp):
    for words, expected in (
        (["--lr", "0.1", "0"], "lr: expected a finite number above 0"),
        (["--seed", "1", "1"], "is given twice"),
        (["--out_dir", "a", "b"], "out_dir: expected one value"),
    ):
        status, out, err = mbp(*words)
        assert status == 2 and not out and len(err.splitlines()) == 1 and expected in err


@pytest.mark.long
@pytest.mark.parametrize(
    ("signals", "parallel"),
    [([signal.SIGINT, signal.SIGINT], 1), ([signal.SIGTERM], 2)],
    ids=["Ctrl-C twice", "SIGTERM"],
)
def test_a_sweep_is_stopped(tmp_path, signals, parallel):
    """While trials train; it says where it stands, and leaves no lock."""
    words = ["--seed", "1", "2", "--out_dir", str(tmp_path), "--parallel", str(parallel), *QUICK]
    words[words.index("--max_epochs") + 1] = "300"
    command = [sys.executable, str(ROOT / "exps" / "mbp.py"), *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not list(tmp_path.glob("*/epochs.csv")):
        time.sleep(0.05)
    for number in signals:
        process.send_signal(number)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 128 + signals[0], err
    assert err.splitlines()[-1].startswith("interrupted: ") and "Traceback" not in err
    (summary,) = tmp_path.glob("*/sweep.json")
    states = [trial["state"] for trial in json.loads(summary.read_text())["trials"]]
    assert states == ["interrupted", "waiting" if parallel == 1 else "interrupted"]
    assert not list(tmp_path.rglob(".*"))


def test_full_disk(mbp, monkeypatch, tmp_path):
    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(milkshake_mbp.files.os, "fsync", full)
    status, _, err = mbp()
    assert status == 2 and "disk full" in err and "Traceback" not in err
    assert not list((tmp_path / "out").rglob(".*"))


@pytest.mark.long
def test_debug_shows_the_traceback(tmp_path):
    words = [sys.executable, str(ROOT / "exps" / "mbp.py"), "--weights", "absent.ckpt", "--debug", *QUICK]
    done = subprocess.run([*words, "--out_dir", str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "Traceback" in done.stderr and "absent.ckpt does not exist" in done.stderr


@pytest.mark.long
def test_two_processes_agree_with_one(tmp_path):
    """Masks and bounds after a distributed run are those that one process computes from the same weights."""
    words = [sys.executable, str(ROOT / "exps" / "mbp.py"), "--out_dir", str(tmp_path), *QUICK]
    words += ["--devices", "2", "--strategy", "ddp", "--val_split", "0", "--lr", "0.05", "--max_epochs", "3"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Like for like") == 1
    (folder,) = tmp_path.iterdir()
    assert_agrees_with_one_device(RunFiles(folder))


def test_processes_that_take_their_results_along_are_refused(mbp):
    status, _, err = mbp("--devices", "2", "--strategy", "ddp_spawn")
    assert status == 2 and err.count("\n") == 1 and "strategy: ddp_spawn" in err and "use ddp" in err
