"""Images as they are stored, read without Lightning and torchvision, whose import takes longer than the reading."""

import math
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from milkshake_mbp.errors import UserError
from milkshake_mbp.framework.datamodules.dataset import ImageDataset
from milkshake_mbp.framework.datamodules.pickles import read_pickled_arrays
from milkshake_mbp.framework.datamodules.sampler import drawn_split

__all__ = [
    "CIFAR10_ARCHIVE",
    "CIFAR10_CLASSES",
    "MNIST_SIZES",
    "cifar10_batches",
    "mnist_files",
    "mnist_folder",
    "pixels_and_targets",
    "read_cifar10",
    "read_digits",
    "read_mnist",
    "stored_training_set",
]

Stored = tuple[Tensor, Tensor]

MNIST_SIZES = {"train": 60_000, "t10k": 10_000}
CIFAR10_ARCHIVE = "cifar-10-batches-py"
CIFAR10_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
# Two bytes of zeros and one that says unsigned bytes stand before the number of dimensions.
_IDX_BYTES = b"\0\0\x08"


def stored_training_set(args: Namespace) -> ImageDataset | None:
    """The training samples of the configuration, as its datamodule's `dataset_train` has them.

    Args:
        args: the configuration, with the keys of the data and seed.

    Returns:
        The samples; None where only the datamodule can tell: it is not known here, changes its samples, or has yet to
        download its files.

    Raises:
        UserError: the files are damaged.
    """
    there, read = _READERS.get(args.datamodule, (None, None))
    data_dir = Path(args.data_dir).expanduser()
    changed = args.image_size is not None or args.input_channels is not None or args.label_noise
    if there is None or read is None or changed or not there(data_dir):
        return None
    data, targets = read(data_dir, True)
    samples = ImageDataset(data, targets.long())
    kept, count = drawn_split(len(samples), args.val_split, args.seed)[0], args.train_samples
    if count is not None and count > len(kept):
        raise UserError(f"train_samples: expected at most the {len(kept)} that are not held out, got {count}")
    return samples.subset(kept[:count].sort().values)


def mnist_folder(data_dir: Path, name: str) -> Path:
    """Where the four files of MNIST or Fashion-MNIST are; upstream Milkshake keeps them under another name."""
    kept, own = data_dir / f"{name}Dataset" / "raw", data_dir / name / "raw"
    return kept if kept.is_dir() and not own.is_dir() else own


def mnist_files(part: str) -> tuple[str, str]:
    """The names of the files with the images and with the labels of a part, "train" or "t10k"."""
    return f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"


def read_mnist(folder: Path, train: bool, counts: Mapping[str, int] = MNIST_SIZES) -> Stored:
    """(n, 1, 28, 28) pixels and (n,) class numbers, n as `counts` says of the part.

    Raises:
        UserError: a file is absent, damaged or of another size.
    """
    part = "train" if train else "t10k"
    (images, labels), count = mnist_files(part), counts[part]
    return _read_idx(folder / images, (count, 28, 28)).unsqueeze(1), _read_idx(folder / labels, (count,))


def _read_idx(path: Path, shape: tuple[int, ...]) -> Tensor:
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"data_dir: {path} is absent: put it there, or call prepare_data()") from error
    except OSError as error:
        raise UserError(f"data_dir: {path} cannot be read: {error.strerror}") from error
    sizes = np.frombuffer(content, ">u4", content[3] if len(content) > 3 else 0, 4) if len(content) > 20 else ()
    found = tuple(int(size) for size in sizes)
    start = 4 + 4 * len(found)
    if content[:3] != _IDX_BYTES or len(content) != start + math.prod(found):
        raise UserError(f"data_dir: {path} is truncated or damaged: delete it to download it again")
    if found != shape:
        raise UserError(f"data_dir: {path} holds {found} bytes, expected {shape}: delete it to download it again")
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy())


def cifar10_batches(train: bool) -> list[str]:
    """The names of the archive's files."""
    return [f"data_batch_{number}" for number in range(1, 6)] if train else ["test_batch"]


def read_cifar10(data_dir: Path, train: bool) -> Stored:
    """(n, 3, 32, 32) pixels and (n,) class numbers, from `data_dir`/cifar10 if it is there, else from the archive.

    Raises:
        UserError: an image or a file is absent or damaged.
    """
    folder = data_dir / "cifar10"
    if folder.is_dir():
        images, numbers = _read_images(folder / ("train" if train else "test"))
        return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), numbers
    names = cifar10_batches(train)
    parts = [pixels_and_targets(data_dir / CIFAR10_ARCHIVE / name, "labels") for name in names]
    pixels, targets = (np.concatenate(part) for part in zip(*parts, strict=True))
    return torch.from_numpy(pixels), torch.from_numpy(targets)


def pixels_and_targets(path: Path, labels: str) -> tuple[np.ndarray, np.ndarray]:
    """The (n, 3, 32, 32) uint8 pixels and (n,) class numbers of a file of CIFAR-10's or CIFAR-100's archive.

    Args:
        path: the file.
        labels: under which name it has the class numbers.

    Raises:
        UserError: it is absent or damaged.
    """
    content = read_pickled_arrays(path)
    pixels, numbers = content.get("data"), np.asarray(content.get(labels, ()))
    if (
        not isinstance(pixels, np.ndarray)
        or pixels.dtype != np.uint8
        or pixels.shape != (len(numbers), 3 * 32 * 32)
        or numbers.dtype.kind not in "iu"
    ):
        raise UserError(
            f"data_dir: {path} does not hold n rows of 3072 pixels, data, and n class numbers, {labels}: delete it to "
            "download it again"
        )
    return pixels.reshape(-1, 3, 32, 32), numbers.astype(np.int64)


def _read_images(folder: Path) -> tuple[np.ndarray, Tensor]:
    missing = [name for name in CIFAR10_CLASSES if not (folder / name).is_dir()]
    if missing:
        raise UserError(f"data_dir: {folder} lacks the folders {', '.join(missing)}: unpack the images again")
    files = [sorted((folder / name).glob("*.png")) for name in CIFAR10_CLASSES]
    paths = [path for group in files for path in group]
    if not paths:
        raise UserError(f"data_dir: the folders of {folder} hold no .png files: unpack the images again")
    # Threads are slower: with images this small they mostly wait for one another's interpreter lock.
    images = np.stack([_read_image(path) for path in paths])
    targets = torch.arange(len(CIFAR10_CLASSES)).repeat_interleave(torch.tensor([len(group) for group in files]))
    return images, targets


def _read_image(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"data_dir: {path} is not a readable image: delete or replace it") from error
    if pixels.shape != (32, 32, 3):
        height, width, _ = pixels.shape
        raise UserError(f"data_dir: {path} has {width}×{height} pixels, expected 32×32")
    return pixels


def read_digits(train: bool) -> Stored:
    """(n, 1, 8, 8) pixels from 0 to 16 and (n,) class numbers, of scikit-learn's copy."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    parts = train_test_split(digits.images, digits.target, test_size=0.2, stratify=digits.target, random_state=0)
    images, targets = parts[0::2] if train else parts[1::2]
    return torch.from_numpy(images).to(torch.uint8).unsqueeze(1), torch.from_numpy(targets)


def _mnist_like(name: str) -> tuple[Callable[[Path], bool], Callable[[Path, bool], Stored]]:
    def there(data_dir: Path) -> bool:
        return all((mnist_folder(data_dir, name) / file).is_file() for file in mnist_files("train"))

    return there, lambda data_dir, train: read_mnist(mnist_folder(data_dir, name), train)


def _cifar10_is_there(data_dir: Path) -> bool:
    archive = data_dir / CIFAR10_ARCHIVE
    return (data_dir / "cifar10").is_dir() or all((archive / name).is_file() for name in cifar10_batches(True))


# By the datamodule's name: whether its training files are there, and what reads them.
_READERS: dict[str, tuple[Callable[[Path], bool], Callable[[Path, bool], Stored]]] = {
    "cifar10": (_cifar10_is_there, read_cifar10),
    "digits": (lambda data_dir: True, lambda data_dir, train: read_digits(train)),
    "fashion_mnist": _mnist_like("FashionMNIST"),
    "mnist": _mnist_like("MNIST"),
}
