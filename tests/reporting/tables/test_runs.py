import pytest
import torch
from safetensors.torch import save_file

from milkshake_mbp.errors import UserError
from milkshake_mbp.reporting.tables import find_runs
from milkshake_mbp.theory.pruning import MaskDraw

from .helpers import write_run


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
