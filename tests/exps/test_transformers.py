"""Hugging Face's networks of a few weights, trained, tested, pruned and bounded by `exps/mbp.py`.

python -m pytest -m slow tests/exps/test_transformers.py, where `pip install '.[transformers]'` has been done
"""

import json
import sys

import numpy as np
import pytest

from .test_mbp import load

SHORT = {"max_epochs": 1, "batch_size": 16, "accelerator": "cpu", "enable_progress_bar": False, "figures": False}
MODELS = {
    "convnextv2": {"convnextv2_pretrained": "none", "convnextv2_initial_width": 4, "convnextv2_stage3_depth": 1},
    "bert": {"bert_pretrained": False, "bert_width": 64, "bert_depth": 1, "lr_scheduler": "linear"},
}


def images(rng, labels):
    pixels = rng.integers(0, 128, (len(labels), 3, 32, 32)) + 40 * labels[:, None, None, None]
    return pixels.astype(np.uint8)


def sentences(rng, labels):
    """Tokens, mask and token types; the first word tells the class."""
    words = rng.integers(1000, 2000, (len(labels), 6))
    words[:, 0] = 2000 + labels
    return np.stack([words, np.ones_like(words), np.zeros_like(words)], 2)


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_a_run(tmp_path, monkeypatch, model):
    pytest.importorskip("transformers")
    rng = np.random.default_rng(0)
    parts = {}
    for part, count in (("train", 60), ("test", 20)):
        labels = np.arange(count) % 3
        parts |= {f"x_{part}": (images if model == "convnextv2" else sentences)(rng, labels), f"y_{part}": labels}
    np.savez(tmp_path / "arrays.npz", **parts)
    keys = SHORT | MODELS[model] | {"model": model, "datamodule": "arrays", "arrays_path": tmp_path / "arrays.npz"}
    words = [word for key, value in keys.items() for word in (f"--{key}", str(value))]
    monkeypatch.setattr(sys, "argv", ["mbp.py", "--out_dir", str(tmp_path / "out"), *words])
    assert load("mbp").main() == 0
    (result,) = (json.loads(path.read_text()) for path in tmp_path.glob("out/*/result.json"))
    assert 0 < result["prune"]["sparsity"] < 1
    assert all(0 <= result["test_error"][part] <= 1 for part in ("unpruned", "pruned"))
    # Attention and layer normalization are not read, so that the rows that rest on the wiring are left out.
    assert result["left_out"] and result["bounds"]
