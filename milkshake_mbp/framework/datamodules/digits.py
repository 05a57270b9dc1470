"""Handwritten digits of 8×8 pixels, which come with scikit-learn."""

from typing import Any

from torch import Tensor

from milkshake_mbp.framework.datamodules.datamodule import DataModule
from milkshake_mbp.framework.datamodules.files import read_digits


class Digits(DataModule):
    """1,437 training and 360 test images (1, 8, 8) of 10 classes, pixels 0 to 16 as inputs in [-1, 1].

    The test set is the same whatever the seed: runs with different seeds are judged on the same images.
    """

    scale = 1 / 8

    def __init__(self, args: Any) -> None:
        super().__init__(args, num_classes=10)

    def load(self, train: bool) -> tuple[Tensor, Tensor]:
        """Read the training or the test part of scikit-learn's copy."""
        return read_digits(train)
