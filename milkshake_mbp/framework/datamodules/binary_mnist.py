"""MNIST's digits as even and odd."""

from typing import Any

from torch import Tensor

from milkshake_mbp.framework.datamodules.mnist import MNIST


class BinaryMNIST(MNIST):
    """MNIST with two classes, 0 for the even digits and 1 for the odd ones, from the same files."""

    def __init__(self, args: Any) -> None:
        super().__init__(args)
        self.num_classes = 2

    def remap_targets(self, targets: Tensor) -> Tensor:
        """The digits' parity."""
        return targets % 2
