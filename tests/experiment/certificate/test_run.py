import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from milkshake_mbp.codec import encode, from_file_bytes
from milkshake_mbp.errors import UserError
from milkshake_mbp.experiment.certificate.model import CodedMLP
from milkshake_mbp.experiment.certificate.run import make_certificate, pixels_datamodule
from milkshake_mbp.experiment.certificate.search import Search
from milkshake_mbp.experiment.certificate.settings import Certifying
from milkshake_mbp.experiment.certificate.verify import read_file_argument, verify
from milkshake_mbp.framework.args import parse_args
from milkshake_mbp.theory.occam import occam_bound

from ..wandb_file import offline_runs

ROOT = Path(__file__).resolve().parents[3]
KEYS = {
    "pool": 2,
    "hidden": "[8]",
    "levels": "[2]",
    "price": 2,
    "lr": 0.05,
    "batch_size": 64,
    "val_split": 0,
    "max_epochs": 12,
    "code_every_n_epochs": 4,
    "search_rounds": 2,
    "search_steps": 200,
    "accelerator": "cpu",
    "enable_progress_bar": "false",
}


def settings(tmp_path, **keys):
    given = KEYS | {"out_dir": tmp_path} | keys
    return parse_args([f"--{key}={value}" for key, value in given.items()], Certifying)


def quiet():
    return Console(quiet=True)


def test_the_numbers_are_those_of_the_file(tmp_path):
    args = settings(tmp_path)
    files, result = make_certificate(args, quiet())
    network, length = from_file_bytes(files.certificate.read_bytes())
    samples = pixels_datamodule(args).dataset_train
    wrong = network.errors(samples.data, samples.targets)
    assert (result["code_bits"], result["train_errors"], result["n"]) == (8 * length, wrong, 1437)
    assert result["bound"] == occam_bound(wrong / 1437, 8 * length, 1437, 0.05)
    assert result["bound"] <= result["before_search"]["bound"]
    assert encode(network) == files.certificate.read_bytes()[:length]
    assert verify(files.certificate, args, quiet()).bound == result["bound"]
    coded = next(bound for bound in result["bounds"] if bound["name"] == "coded")
    # Beside the other rows it has a part of δ only.
    assert coded["log_value"] > math.log(result["bound"])
    assert coded["terms"]["bits"] == result["code_bits"]
    again = make_certificate(args, quiet())[1]
    assert again == json.loads(json.dumps(result))


def test_an_interrupted_one_goes_on_to_the_same_result(tmp_path):
    whole = make_certificate(settings(tmp_path / "whole"), quiet())[1]
    args = settings(tmp_path / "parts")
    script = (
        "import sys, os\n"
        "import milkshake_mbp.experiment.certificate.run as r\n"
        "from milkshake_mbp.experiment.certificate.settings import Certifying\n"
        "from milkshake_mbp.framework.args import parse_args\n"
        "from rich.console import Console\n"
        "write = r.write_csv\n"
        "r.write_csv = lambda *given: (write(*given), os.kill(os.getpid(), 9))\n"
        "r.make_certificate(parse_args(sys.argv[1:], Certifying), Console(quiet=True))\n"
    )
    given = KEYS | {"out_dir": tmp_path / "parts"}
    words = [f"--{key}={value}" for key, value in given.items()]
    killed = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, cwd=ROOT)
    assert killed.returncode == -9, killed.stderr
    parts = make_certificate(args, quiet())[1]
    same = ("bound", "code_bits", "train_errors", "widths", "before_search")
    assert {key: parts[key] for key in same} == {key: whole[key] for key in same}


def test_training_computes_what_the_integers_compute(tmp_path):
    args = settings(tmp_path, hidden="[9, 7]", levels="[3]")
    datamodule = pixels_datamodule(args)
    data = datamodule.dataset_train.data
    args.sample_shape, args.num_samples, args.num_classes, args.brightest = (1, 8, 8), len(data), 10, 16
    for seed in range(5):
        args.seed = seed
        module = CodedMLP(args)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in module.model.parameters():
                parameter += torch.randn(parameter.shape, generator=generator)
        float_logits, exact = module(data.float()).detach().double(), module.coded().logits(data)
        ratio = (exact * float_logits).sum() / (float_logits**2).sum()
        assert torch.allclose(exact / ratio, float_logits, atol=1e-4 * float(float_logits.abs().max()))
        assert module.coded().exact


def test_a_price_prunes(tmp_path):
    kept = [
        sum(make_certificate(settings(tmp_path, price=price, search_rounds=0), quiet())[1]["nonzeros"])
        for price in (0.0, 5.0)
    ]
    assert kept[1] < 0.8 * kept[0]


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"hidden": "[0]"}, "hidden"),
        ({"levels": "[2, 2, 2]"}, "levels"),
        ({"delta": 0}, "delta"),
        ({"pool": 9}, "too large for 8 × 8"),
        ({"image_size": 4}, "image_size"),
    ],
)
def test_bad_keys_get_a_line(tmp_path, keys, words):
    with pytest.raises(UserError, match=words):
        make_certificate(settings(tmp_path, **keys), quiet())


def test_bad_files_get_a_line(tmp_path):
    args = settings(tmp_path)
    with pytest.raises(UserError, match="cannot be read"):
        verify(tmp_path / "absent.mbp", args, quiet())
    (tmp_path / "junk.mbp").write_bytes(bytes(range(200)))
    with pytest.raises(UserError, match="no certificate"):
        verify(tmp_path / "junk.mbp", args, quiet())
    with pytest.raises(UserError, match="--verify FILE"):
        read_file_argument(["--verify", "--delta", "0.1"])
    assert read_file_argument(["-c", "x.yaml", "--verify=a.mbp"]) == (Path("a.mbp"), ["-c", "x.yaml"])
    assert read_file_argument(["--verify", "a.mbp", "--seed", "2"]) == (Path("a.mbp"), ["--seed", "2"])


def interrupted(*arguments):
    raise KeyboardInterrupt


def test_training_and_search_are_one_run_of_wandb(tmp_path, offline_wandb, monkeypatch):
    keys = {"wandb": "true", "wandb_dir": tmp_path / "wandb", "experiment": "few"}
    with monkeypatch.context() as patch:
        patch.setattr(Search, "rounds", interrupted)
        with pytest.raises(KeyboardInterrupt):
            make_certificate(settings(tmp_path, **keys), quiet())
    offline_wandb.finish()
    files, result = make_certificate(settings(tmp_path, **keys), quiet())
    first, second = offline_runs(tmp_path / "wandb")
    for file in (first, second):
        (opened,) = file.of("run")
        assert (opened.display_name, opened.run_group, opened.run_id) == (
            files.folder.name,
            "few",
            files.wandb.read_text(),
        )
    assert [row["epoch"] for row in first.history if "certificate/bound" in row] == [3, 7, 11]
    assert [row["search/round"] for row in second.history if "search/round" in row] == [1, 2]
    assert second.summary["bound"] == result["bound"] and second.summary["code_bits"] == result["code_bits"]
    (artifact,) = second.of("artifact")
    assert {"certificate.mbp", "report.html", "figures/certificate.pdf"} <= {
        entry.path for entry in artifact.manifest.contents
    }
