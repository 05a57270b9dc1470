"""Runs' folders by hand."""

import csv
import json
from itertools import pairwise

import yaml

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
