"""Where a script says what happens."""

import os
import sys

from rich.console import Console

__all__ = ["first_process", "make_console"]

# Where launchers leave a process's number, in the order in which Lightning looks.
_RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")


def make_console(quiet: bool | None = None) -> Console:
    """The terminal; by default silent in all processes of a distributed run but the first."""
    # Names of files and experiments are names, whatever brackets they have.
    return Console(highlight=False, markup=False, soft_wrap=True, quiet=not first_process() if quiet is None else quiet)


def first_process() -> bool:
    """Whether this is the first process of a distributed run, or the only one."""
    lightning = sys.modules.get("pytorch_lightning.utilities.rank_zero")
    if lightning is None:  # nothing has been started; loading it would take seconds
        return next((os.environ[name] for name in _RANKS if name in os.environ), "0") == "0"
    return getattr(lightning.rank_zero_only, "rank", 0) == 0
