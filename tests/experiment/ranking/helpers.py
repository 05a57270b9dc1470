"""Folders of finished runs, as training leaves them but for the weights."""

import json
import math

import yaml

ROWS = (("paper", "theorem_5_2"), ("rigorous", "test_set"), ("measure", "params"), ("measure", "inverse_margin"))


def write_run(folder, *, error, measure, train_loss=0.009, until_loss=0.01, train_error=0.0, pruned=None, **keys):
    """A run's config.yaml and result.json."""
    config = {
        "model": "ffn",
        "datamodule": "digits",
        "seed": 1,
        "ffn_hidden_dim": 16,
        "ffn_num_layers": 3,
        "lr": 0.01,
        "prune_d": 1.0,
        "out_dir": str(folder.parent),
        "experiment": "test",
        "nin_width": 192,
    } | keys
    width, depth = config["ffn_hidden_dim"], config["ffn_num_layers"]
    size = math.log(64 * width + (depth - 2) * width**2 + 10 * width)
    values = dict(zip(ROWS, (measure, math.log(error), size, math.inf if measure > 3 else measure), strict=True))
    result = {
        "bounds": [
            {"convention": convention, "name": name, "log_value": value, "terms": {}}
            for (convention, name), value in values.items()
        ],
        "margin": 1.0,
        "num_test": 10_000,
        "train_error": train_error,
        "test_error": {"unpruned": error, "pruned": 2 * error if pruned is None else pruned},
        "stopping": {"until_loss": until_loss, "train_loss": train_loss},
    }
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "result.json").write_text(json.dumps(result))


def write_grid(out):
    """Sixteen runs in which theorem_5_2 orders as the test error does."""
    index = 0
    for width in (16, 32):
        for depth in (3, 4):
            for lr in (0.01, 0.1):
                for strength in (0.5, 2.0):
                    error = 0.1 + 0.04 * (lr > 0.05) + 0.1 * (width > 16) + 0.02 * (depth > 3)
                    write_run(
                        out / f"run{index:02d}",
                        error=error,
                        measure=10 * error,
                        pruned=error + 0.03 * strength,
                        ffn_hidden_dim=width,
                        ffn_num_layers=depth,
                        lr=lr,
                        prune_d=strength,
                    )
                    index += 1
