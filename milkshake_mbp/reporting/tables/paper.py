"""What the paper's Tables 1 and 2 print, and of which problems."""

from typing import NamedTuple

__all__ = ["NORMS", "OURS", "PAPER", "PROBLEMS", "Problem", "layer_shapes"]

NORMS = ("neyshabur_2015", "neyshabur_2017", "bartlett_2017")
OURS = "theorem_5_2"
# Natural logs by dataset and width: the norm rows, the paper's own, and the true error.
PAPER = {
    ("mnist", 500): (22.29, 17.91, 11.51, 3.36, -3.76),
    ("mnist", 784): (23.56, 18.34, 11.68, 3.77, -3.84),
    ("mnist", 1000): (24.42, 18.70, 11.87, 4.00, -3.80),
    ("mnist", 1500): (25.12, 18.81, 11.70, 4.40, -3.85),
    ("mnist", 2000): (27.03, 21.50, 13.96, 4.73, -3.86),
    ("mnist", 2500): (27.72, 21.57, 13.81, 4.96, -3.87),
    ("cifar10", 784): (33.19, 30.10, 22.40, 4.68, -2.41),
}


class Problem(NamedTuple):
    """Sizes of a dataset."""

    inputs: int
    classes: int
    num_samples: int


PROBLEMS = {"mnist": Problem(784, 10, 60_000), "cifar10": Problem(3072, 10, 50_000)}
_NUM_LAYERS = 5


def layer_shapes(datamodule: str, width: int) -> list[tuple[int, int]]:
    """(out, in) of the paper's network of that width."""
    problem = PROBLEMS[datamodule]
    sides = [problem.inputs, *[width] * (_NUM_LAYERS - 1), problem.classes]
    return list(zip(sides[1:], sides[:-1], strict=True))
