"""The guarantee again, from the bytes and the data alone."""

import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from milkshake_mbp.codec import DecodeError, export_certificate, load_certificate
from milkshake_mbp.codec.certificate import Certificate
from milkshake_mbp.errors import UserError
from milkshake_mbp.experiment.certificate.judge import certified, training_pixels
from milkshake_mbp.experiment.certificate.show import confidence, premises, shown
from milkshake_mbp.reporting.words import at_most

__all__ = ["export", "read_file_argument", "verify"]


def read_file_argument(argv: Sequence[str], name: str = "--verify") -> tuple[Path | None, list[str]]:
    """The file after `--verify` or another word, if it is there, and the other words.

    Raises:
        UserError: no file is named.
    """
    for index, word in enumerate(argv):
        flag, equals, value = word.partition("=")
        if flag == name:
            rest = [*argv[:index], *argv[index + (1 if equals else 2) :]]
            if not value and index + 1 < len(argv) and not argv[index + 1].startswith("-"):
                value = argv[index + 1]
            if not value:
                raise UserError(f"{name}: name the certificate, as in {name} FILE.mbp")
            return Path(value), rest
    return None, list(argv)


def verify(path: Path, args: Namespace, console: Console) -> Certificate:
    """Decode the file, count its network's errors on the training samples, and print the guarantee.

    Args:
        path: a file that `make_certificate` wrote.
        args: the configuration that names the data, and δ.
        console: where to print it.

    Raises:
        UserError: the file is not a certificate, or its network does not fit the data.
    """
    started = time.monotonic()
    found, distinct = certified(path, training_pixels(args), args.datamodule, args.delta)
    network = found.network
    console.print(
        f"{path}: {len(found.code)} bytes of code, {shown(network)}, {network.nonzeros} weights\n"
        f"Training error   {found.error:.2%}: {found.errors:,} of {found.num_samples:,}\n"
        f"Test error       below {at_most(found.bound)} with probability at least {confidence(args.delta)}\n"
        f"It assumes       {premises(network.inputs, found.num_samples, distinct, args.datamodule)}\n"
        f"Arithmetic       {'exact: integers below 2⁵³' if network.exact else 'float64 on the CPU'}\n"
        f"Verified in      {time.monotonic() - started:.1f} s",
        markup=False,
    )
    return found


def export(path: Path, console: Console) -> Path:
    """Write a certificate's network as TorchScript beside it.

    Args:
        path: a certificate.
        console: where to say it.

    Returns:
        The file written: `path` with the ending .pt.

    Raises:
        UserError: the file is not a certificate, or its network is not on stored pixels.
    """
    try:
        module, target = load_certificate(path), path.with_suffix(".pt")
        export_certificate(module, target)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except DecodeError as error:
        raise UserError(f"{path} is not a certificate: {error}") from error
    except ValueError as error:
        raise UserError(f"{path} cannot be exported: {error}") from error
    x = module.network.inputs
    console.print(
        f"{target}: takes (n, {x.channels}, {x.height}, {x.width}) pixels from 0 to 255 and returns the same float64 "
        "logits as the certificate's network; the class is the index of the largest logit",
        markup=False,
    )
    return target
