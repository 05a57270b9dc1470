"""Networks judged on the samples, without Lightning, whose import takes longer than the judging."""

from argparse import Namespace
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from milkshake_mbp.codec import CodedNetwork, DecodeError, InputMap, decode, encode, from_file_bytes
from milkshake_mbp.codec.certificate import Certificate
from milkshake_mbp.errors import UserError
from milkshake_mbp.framework.datamodules.dataset import ImageDataset
from milkshake_mbp.framework.datamodules.files import stored_training_set

if TYPE_CHECKING:
    from milkshake_mbp.framework.datamodules import DataModule

__all__ = ["Judge", "certified", "count_distinct", "seen_by", "training_pixels"]

_CHUNK = 1024


def seen_by(inputs: InputMap, data: Tensor) -> Tensor:
    """(n, inputs) what an input map makes of (n, ...) pixels, in the smallest type that holds it."""
    kind = torch.uint8 if inputs.largest <= 255 else torch.int32
    return torch.cat([inputs(some).to(kind) for some in data.split(_CHUNK)])


@dataclass(frozen=True)
class Judge:
    """Codes networks, and counts what they get wrong of samples that one input map has seen.

    Attributes:
        inputs: the map.
        seen: (n, inputs) what it makes of the samples.
        targets: (n,) class indices.
        delta: δ.
    """

    inputs: InputMap
    seen: Tensor
    targets: Tensor
    delta: float

    @classmethod
    def of(cls, inputs: InputMap, samples: ImageDataset, delta: float) -> "Judge":
        """Of stored pixels."""
        return cls(inputs, seen_by(inputs, samples.data), samples.targets, delta)

    def __call__(self, network: CodedNetwork) -> Certificate:
        """Encode, decode, and judge what came back.

        Raises:
            ValueError: the network sees something else, or is beyond the limits of the format.
        """
        code = encode(network)
        return self.again(code.hex())

    def again(self, code: str) -> Certificate:
        """Judge a code, in hexadecimal digits."""
        network, _ = decode(bytes.fromhex(code))
        if network.inputs != self.inputs:
            raise ValueError(f"a network of {network.inputs}, where {self.inputs} was applied")
        errors = network.errors(self.seen, self.targets, seen=True)
        return Certificate(bytes.fromhex(code), network, errors, len(self.targets), self.delta)

    @staticmethod
    def tidy(network: CodedNetwork) -> CodedNetwork:
        """The same function, without what is dead, in the order that is cheapest."""
        network = network.live()
        return network.canonical() if network.layers[0].scales is None else network

    def datamodule(self, datamodule: "DataModule", probabilities: Tensor | None = None) -> "DataModule":
        """The same samples with a bank's features for pixels, so that the bank is applied once.

        Args:
            datamodule: of the samples.
            probabilities: (n, k) a teacher's; they then stand behind the class numbers.
        """
        if not self.inputs.bank and probabilities is None:
            return datamodule
        made, train, held_out = copy(datamodule), datamodule.dataset_train, datamodule.dataset_val
        if self.inputs.bank:
            train = ImageDataset(self.seen.reshape(-1, *self.inputs.grid), self.targets)
        if probabilities is not None:
            train = copy(train)
            train.targets = torch.cat([self.targets[:, None].float(), probabilities], dim=1)
        made.dataset_train, made.dataset_val = train, held_out.subset(torch.arange(0))
        if len(held_out) and self.inputs.bank:
            seen = seen_by(self.inputs, held_out.data)
            made.dataset_val = ImageDataset(seen.reshape(-1, *self.inputs.grid), held_out.targets)
        elif len(held_out):
            made.dataset_val = held_out
        return made


def certified(path: Path, samples: ImageDataset, name: str, delta: float) -> tuple[Certificate, int]:
    """What a file guarantees on the samples, and how many of these are distinct: from the bytes and the data alone.

    Args:
        path: of a certificate.
        samples: stored pixels.
        name: of their datamodule, for messages.
        delta: δ.

    Raises:
        UserError: the file is not a certificate, or its network is not for such samples.
    """
    try:
        content = path.read_bytes()
        network, length = from_file_bytes(content)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except DecodeError as error:
        raise UserError(f"{path} is not a certificate: {error}") from error
    if not network.inputs.pixels:
        raise UserError(
            f"{path} was made by CertificateCallback on inputs that a datamodule has scaled, not on stored pixels: "
            "count its errors with `network.errors` of the decoded network, on inputs with the same scaling"
        )
    try:
        made = Judge.of(network.inputs, samples, delta).again(content[:length].hex())
    except (IndexError, RuntimeError, ValueError) as error:
        raise UserError(f"{path}: this network does not fit the samples of {name}: {error}") from error
    return made, count_distinct(samples)


def count_distinct(samples: ImageDataset) -> int:
    """How many pairs (x, y) are distinct."""
    rows = torch.cat([samples.data.flatten(1), samples.targets[:, None].to(samples.data.dtype)], dim=1).numpy()
    return len({row.tobytes() for row in rows})


def training_pixels(args: Namespace) -> ImageDataset:
    """The training samples as stored pixels, from the files if they are there and known, else from the datamodule.

    Args:
        args: the configuration, with the keys of the data and seed.

    Raises:
        UserError: as `pixels_datamodule`.
    """
    if (samples := stored_training_set(args)) is not None:
        return samples
    from milkshake_mbp.experiment.certificate.run import pixels_datamodule

    return pixels_datamodule(args).dataset_train
