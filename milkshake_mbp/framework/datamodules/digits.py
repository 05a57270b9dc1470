"""Handwritten digits of 8×8 pixels, which come with scikit-learn."""

from typing import Any

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from milkshake_mbp.framework.datamodules.datamodule import DataModule


class Digits(DataModule):
    """1,437 training and 360 test images (1, 8, 8) of 10 classes, pixels 0 to 16 as inputs in [-1, 1].

    The test set is the same whatever the seed: runs with different seeds are judged on the same images.
    """

    scale = 1 / 8

    def __init__(self, args: Any) -> None:
        super().__init__(args, num_classes=10)

    def load(self, train: bool) -> tuple[Tensor, Tensor]:
        """Read the training or the test part of scikit-learn's copy."""
        digits = load_digits()
        parts = train_test_split(digits.images, digits.target, test_size=0.2, stratify=digits.target, random_state=0)
        images, targets = parts[0::2] if train else parts[1::2]
        return torch.from_numpy(images).to(torch.uint8).unsqueeze(1), torch.from_numpy(targets)
