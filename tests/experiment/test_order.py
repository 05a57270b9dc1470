"""In which order a run writes, and what it reads back: what a guarantee, and a run that goes on, rest on."""

import io
import shutil
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

import milkshake_mbp.reporting.ladder
import milkshake_mbp.runs.files
from milkshake_mbp.callbacks import BoundsCallback
from milkshake_mbp.errors import UserError
from milkshake_mbp.experiment.run import run
from milkshake_mbp.framework.checkpoints import LAST_CHECKPOINT
from milkshake_mbp.runs.files import RunFiles


def test_the_result_comes_after_the_weights_and_the_manifest_last(configure, monkeypatch):
    written = []

    def noting(original):
        def write(path, content):
            written.append(path.name)
            original(path, content)

        return write

    for module in (milkshake_mbp.runs.files, milkshake_mbp.reporting.ladder):
        monkeypatch.setattr(module, "write_atomically", noting(module.write_atomically))
    run(configure(max_epochs=1), Console(quiet=True))
    order = [written.index(name) for name in ("model.safetensors", "result.json", "ladder.md", "manifest.json")]
    assert order == sorted(order) and written.index("mask.safetensors") < order[1]
    assert written[-1] == "manifest.json" and written.count("result.json") == 1


def test_no_result_without_its_weights(configure, monkeypatch):
    args = configure(max_epochs=1)

    def stop(self, state, masks):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunFiles, "write_weights", stop)
        with pytest.raises(KeyboardInterrupt):
            run(args, Console(quiet=True))
    (folder,) = Path(args.out_dir).iterdir()
    assert not (folder / "result.json").exists()
    _, result = run(args, Console(quiet=True))
    assert RunFiles(folder).altered() == {} and result["epochs"] == 1


def test_the_error_is_that_of_the_network_which_is_coded():
    """Rounded to 1/256 the second row's last weight is 0, and the classes tie."""
    layer = nn.Linear(2, 2, bias=False)
    layer.weight.data = torch.tensor([[1.0, 0.0], [1.0, 0.001]])
    samples = torch.tensor([[1.0, 1.0]] * 6), torch.tensor([1] * 6)
    report = BoundsCallback(prune_d=0.0).measure(nn.Sequential(layer), samples)
    assert float(report.measured.margins.amin()) > 0 and report.compressed_error == 1.0
    rows = {bound.name: bound for bound in report.bounds if bound.convention == "rigorous"}
    assert rows["naive"].trivial and not rows["dense"].terms.get("error", 0)


@pytest.mark.long
def test_rows_come_back_with_the_last_checkpoint_though_nothing_is_left_to_train(configure):
    args = configure(max_epochs=2)
    files, whole = run(args, Console(quiet=True))
    rows = files.epochs.read_bytes()
    for path in (files.epochs, files.result, files.manifest):
        path.unlink()
    assert {**run(args, Console(quiet=True))[1], "seconds": 0} == {**whole, "seconds": 0}
    assert files.epochs.read_bytes() == rows


class Bomb:
    """Calls a function when it is unpickled by somebody careless."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def test_a_checkpoint_runs_nothing_when_training_goes_on(configure, monkeypatch, tmp_path):
    args = configure(max_epochs=2)
    files, _ = run(args, Console(quiet=True))
    files.result.unlink()
    target = tmp_path / "target"
    target.mkdir()
    last = files.folder / LAST_CHECKPOINT
    stored = torch.load(last, weights_only=False)
    for place in ("callbacks", "hyper_parameters"):
        torch.save(stored | {place: {**stored.get(place, {}), "bomb": Bomb(shutil.rmtree, str(target))}}, last)
        for other in last.parent.glob("epoch=*"):
            other.unlink()
        said = Console(file=io.StringIO())
        try:
            run(args, said)
        except UserError as error:
            assert len(str(error).splitlines()) == 1
        assert target.exists()
