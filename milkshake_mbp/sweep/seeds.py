"""Several seeds side by side: the theorem holds for all their networks at once, so the best is free to be quoted."""

import os
from argparse import Namespace
from concurrent.futures import ProcessPoolExecutor
from copy import copy
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console

from milkshake_mbp.experiment.certificate.files import CertificateFiles
from milkshake_mbp.experiment.certificate.run import make_certificate
from milkshake_mbp.reporting.words import at_most
from milkshake_mbp.sweep.local_engine import cores, threads

__all__ = ["best_of_seeds"]


def best_of_seeds(args: Namespace, console: Console) -> tuple[CertificateFiles, dict[str, Any]]:
    """Make `args.seeds` certificates, from `args.seed` on, in as many processes as there are cores.

    Args:
        args: the configuration, with the keys of `Certifying`.
        console: where to say what came of each.

    Returns:
        The files and the result of the one with the smallest bound.

    Raises:
        UserError: as `make_certificate`.
        KeyboardInterrupt: the user interrupted; the same command continues from there.
    """
    each = []
    for seed in range(args.seed, args.seed + args.seeds):
        one = copy(args)
        one.seed, one.seeds, one.enable_progress_bar = seed, 1, False
        each.append(one)
    count = min(cores(), len(each))
    console.print(f"{len(each)} seeds, {count} at a time; their folders are under {args.out_dir}")
    # Read by the processes when they load torch.
    os.environ.update(threads(count))
    made = []
    with ProcessPoolExecutor(count, mp_context=get_context("spawn")) as pool:
        try:
            for one, (folder, result) in zip(each, pool.map(_make, each), strict=True):
                made.append((CertificateFiles(Path(folder)), result))
                console.print(
                    f"seed {one.seed}: below {at_most(result['bound'])}, {result['code_bits']:,} bits, "
                    f"{result['train_error']:.2%} training error, {result['certified_test_error']:.2%} test error"
                )
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    bounds = [result["bound"] for _, result in made]
    console.print(
        f"bounds: mean {at_most(fmean(bounds))}, from {at_most(min(bounds))} to {at_most(max(bounds))}; the best:"
    )
    return min(made, key=lambda pair: pair[1]["bound"])


def _make(args: Namespace) -> tuple[str, dict[str, Any]]:
    files, result = make_certificate(args, Console(quiet=True))
    return str(files.folder), result
