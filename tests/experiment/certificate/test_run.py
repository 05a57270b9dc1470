import io
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from milkshake_mbp.codec import CodedLayer, CodedNetwork, InputMap, encode, from_file_bytes, to_file_bytes
from milkshake_mbp.errors import UserError
from milkshake_mbp.experiment.certificate.model import CodedNet
from milkshake_mbp.experiment.certificate.run import make_certificate, pixels_datamodule, run_folder
from milkshake_mbp.experiment.certificate.search import Search
from milkshake_mbp.experiment.certificate.settings import Certifying
from milkshake_mbp.experiment.certificate.show import confidence
from milkshake_mbp.experiment.certificate.verify import read_file_argument, verify
from milkshake_mbp.framework.args import parse_args
from milkshake_mbp.runs.files import read_state, write_state
from milkshake_mbp.theory.tail import tail_bound
from tests.wandb_file import offline_runs

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
    assert result["bound"] == tail_bound(wrong, 8 * length, 1437, 0.05)
    assert result["bound"] <= result["before_search"]["bound"]
    assert encode(network) == files.certificate.read_bytes()[:length]
    assert verify(files.certificate, args, quiet()).bound == result["bound"]
    coded = next(bound for bound in result["bounds"] if bound["name"] == "coded")
    # Beside the other rows it has a part of δ only.
    assert coded["log_value"] > math.log(result["bound"])
    assert coded["terms"]["bits"] == result["code_bits"]
    again = make_certificate(args, quiet())[1]
    assert again == json.loads(json.dumps(result))
    # Whoever edits a result does not edit the guarantee, though it be in a folder that has no list of its files.
    edited = result | {"bound": 0.01, "train_errors": 0, "code_bits": 8}
    files.write_result(edited)
    assert {**make_certificate(args, quiet())[1], "seconds": 0} == {**again, "seconds": 0}
    files.write_result(edited)
    files.manifest.unlink()
    assert {**make_certificate(args, quiet())[1], "seconds": 0} == {**again, "seconds": 0}


@pytest.mark.long
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
        module = CodedNet(args)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in module.model.parameters():
                parameter += torch.randn(parameter.shape, generator=generator)
        float_logits, exact = module(data.float()).detach().double(), module.coded().logits(data)
        ratio = (exact * float_logits).sum() / (float_logits**2).sum()
        assert torch.allclose(exact / ratio, float_logits, atol=1e-4 * float(float_logits.abs().max()))
        assert module.coded().exact


CONVOLUTIONS = {
    "bank": "grey",
    "cell": 2,
    "nodes": '["conv 6 3 1 1", "sum 2 2"]',
    "hidden": "[]",
    "levels": "[1]",
    "free_scales": "true",
    "bias_step": 1,
    "pool": 1,
    "price": 0.3,
    "damping": 0.01,
}


@pytest.mark.parametrize(
    "nodes",
    [
        '["conv 6 3 1 1", "sum 2 2"]',
        '["conv 6 3 1 1", "max 3 1", "conv 4 1 1 0 2", "sum 2 1"]',
        '["sum 2 2", "conv 4 2 2 1"]',
    ],
)
@pytest.mark.parametrize("free", ["true", "false"])
def test_training_computes_what_convolutions_of_integers_compute(tmp_path, nodes, free):
    args = settings(tmp_path, **CONVOLUTIONS | {"nodes": nodes, "free_scales": free, "levels": "[2]"})
    data = torch.randint(0, 256, (30, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    args.sample_shape, args.num_samples, args.num_classes, args.brightest = (1, 8, 8), len(data), 10, 255
    module, generator = CodedNet(args), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.model.parameters():
            parameter += 0.5 * torch.randn(parameter.shape, generator=generator)
    float_logits, exact = module(data.float()).detach().double(), module.coded().logits(data)
    ratio = (exact * float_logits).sum() / (float_logits**2).sum()
    assert torch.allclose(exact / ratio, float_logits, atol=1e-5 * float(float_logits.abs().max()))
    assert module.coded().exact


@pytest.mark.long
def test_a_convolutional_certificate_from_one_command(tmp_path):
    args = settings(tmp_path, **CONVOLUTIONS)
    files, result = make_certificate(args, quiet())
    network, length = from_file_bytes(files.certificate.read_bytes())
    samples = pixels_datamodule(args).dataset_train
    wrong = network.errors(samples.data, samples.targets)
    assert (result["code_bits"], result["train_errors"]) == (8 * length, wrong)
    assert network.inputs.bank == 1 and network.exact and result["bound"] < 0.75
    assert verify(files.certificate, args, quiet()).bound == result["bound"]
    assert "human knowledge about images, fixed beforehand" in result["premises"]
    assert files.report.is_file() and (files.figures / "certificate.pdf").is_file()


def test_what_a_guarantee_rests_on_is_printed(tmp_path):
    args = settings(tmp_path, search_rounds=0, max_epochs=1, code_every_n_epochs=1, delta=0.001)
    files, _ = make_certificate(args, quiet())
    console = Console(record=True, width=400, quiet=False, file=io.StringIO())
    verify(files.certificate, args, console)
    said = console.export_text()
    assert "with probability at least 99.9%" in said and "independent draws" in said
    # Each sample four times: independent draws may coincide, but a reader should know that these do.
    digits = pixels_datamodule(args).dataset_train
    path = tmp_path / "many.npz"
    whole = digits.data.repeat(4, 1, 1, 1).numpy()
    np.savez(path, x_train=whole, y_train=digits.targets.repeat(4).numpy(), x_test=whole[:9], y_test=digits.targets[:9])
    repeated = settings(tmp_path, datamodule="arrays", arrays_path=path)
    console = Console(record=True, width=400, file=io.StringIO())
    verify(files.certificate, repeated, console)
    said = console.export_text()
    assert "1,437 of the 5,748 pairs of sample and label are distinct" in said and "Most are repeats" in said


def test_confidence_is_never_rounded_up():
    assert [confidence(delta) for delta in (0.05, 0.005, 0.001, 1e-9)] == ["95%", "99.5%", "99.9%", "99.9999999%"]


def test_a_certificate_of_what_a_datamodule_makes_of_pixels_is_refused(tmp_path):
    layer = CodedLayer(torch.ones(10, 64, dtype=torch.int64), torch.arange(10), torch.zeros(10, dtype=torch.int64))
    network = CodedNetwork(InputMap(1, 1, 64, pixels=False), (layer,))
    (tmp_path / "real.mbp").write_bytes(to_file_bytes(encode(network)))
    with pytest.raises(UserError, match="not on stored pixels"):
        verify(tmp_path / "real.mbp", settings(tmp_path), quiet())


def test_a_run_stays_in_its_folder(tmp_path):
    args = settings(tmp_path)
    args.datamodule = "../../x:B"
    assert "/" not in run_folder(args)


@pytest.mark.long
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
        ({"label_noise": 0.1}, "label_noise: expected 0"),
        ({"nodes": '["conv 0 3"]'}, "nodes: expected"),
        ({"nodes": '["mean 2"]'}, "nodes: expected"),
        ({"nodes": '["conv 4 3 1 0 3"]', "pool": 1}, "nodes: 1 channels in 3 groups"),
        ({"nodes": '["sum 9"]', "pool": 1}, "leaves no outputs"),
        ({"bank": "grey"}, "bank: grey reads unchanged pixels"),
        ({"bank": "grey", "pool": 1, "cell": 9}, "bank: grey with cell 9"),
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
    with pytest.raises(UserError, match="not a certificate"):
        verify(tmp_path / "junk.mbp", args, quiet())
    with pytest.raises(UserError, match="--verify FILE"):
        read_file_argument(["--verify", "--delta", "0.1"])
    assert read_file_argument(["-c", "x.yaml", "--verify=a.mbp"]) == (Path("a.mbp"), ["-c", "x.yaml"])
    assert read_file_argument(["--verify", "a.mbp", "--seed", "2"]) == (Path("a.mbp"), ["--seed", "2"])


@pytest.mark.long
@pytest.mark.parametrize(
    "names", ["certificate.mbp", "result.json", "search.json", "certificate.mbp rounds.csv epochs.csv"]
)
def test_a_flipped_bit_is_said_and_mended(tmp_path, names):
    files, whole = make_certificate(settings(tmp_path), quiet())
    kept = {path: path.read_bytes() for path in (files.certificate, files.rounds, files.epochs)}
    if names == "search.json":  # killed before it was complete
        files.result.unlink()
    for name in names.split():
        path = files.folder / name
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    said = Console(record=True, file=io.StringIO(), width=500)
    files, mended = make_certificate(settings(tmp_path), said)
    assert names.split()[0] in said.export_text()
    assert {path: path.read_bytes() for path in kept} == kept and files.altered() == {}
    assert {**mended, "seconds": 0} == {**whole, "seconds": 0}


@pytest.mark.long
@pytest.mark.parametrize("begun", [True, False])
def test_a_search_that_goes_on_where_its_folder_was_removed_has_the_record_of_its_training(tmp_path, begun):
    """Or else it is not gone on from."""
    files, whole = make_certificate(settings(tmp_path), quiet())
    record, state = files.epochs.read_bytes(), read_state(files.search, quiet())
    shutil.rmtree(files.folder)
    write_state(files.search, state if begun else state | {"epochs": ""})
    files, again = make_certificate(settings(tmp_path), quiet())
    assert files.epochs.read_bytes() == record
    assert {**again, "seconds": 0} == {**whole, "seconds": 0}


def interrupted(*arguments):
    raise KeyboardInterrupt


@pytest.mark.long
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
