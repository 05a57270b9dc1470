"""MNIST and Fashion-MNIST, from their idx files."""

from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from milkshake_mbp.errors import UserError
from milkshake_mbp.framework.datamodules.datamodule import DataModule
from milkshake_mbp.framework.datamodules.files import MNIST_SIZES, mnist_files, mnist_folder, read_mnist


class MNIST(DataModule):
    """60,000 training and 10,000 test images (1, 28, 28) of 10 classes, inputs in [-1, 1].

    Read from `data_dir`/MNIST/raw, where torchvision keeps it, and downloaded there if it is absent.

    Raises:
        UserError: from `prepare_data`, the files are absent and cannot be downloaded; from `setup`, one is
            absent or damaged.
    """

    transforms_take_pictures = False
    # Of torchvision's class that downloads the files.
    source = "MNIST"
    num_images: ClassVar[dict[str, int]] = MNIST_SIZES

    def __init__(self, args: Any) -> None:
        super().__init__(args, num_classes=10)

    @property
    def folder(self) -> Path:
        """Where the four files are."""
        return mnist_folder(self.data_dir, self.source)

    def prepare_data(self) -> None:
        """Download the files if one of them is absent."""
        files = [name for part in self.num_images for name in mnist_files(part)]
        if all((self.folder / name).is_file() for name in files):
            return
        from torchvision import datasets

        try:
            getattr(datasets, self.source)(self.data_dir, download=True)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"data_dir: {self.folder} lacks the data and they cannot be downloaded "
                f"({' '.join(str(error).split())}): put {', '.join(files)} there"
            ) from error

    def load(self, train: bool) -> tuple[Tensor, Tensor]:
        """Read the training or the test files."""
        return read_mnist(self.folder, train, self.num_images)


class FashionMNIST(MNIST):
    """Fashion-MNIST, of the same sizes as MNIST, in `data_dir`/FashionMNIST/raw."""

    source = "FashionMNIST"
