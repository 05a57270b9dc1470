"""Where a script says what happens."""

from pytorch_lightning.utilities.rank_zero import rank_zero_only
from rich.console import Console

__all__ = ["first_process", "make_console"]


def make_console() -> Console:
    """The terminal; silent in all processes of a distributed run but the first."""
    # Names of files and experiments are names, whatever brackets they have.
    return Console(highlight=False, markup=False, soft_wrap=True, quiet=not first_process())


def first_process() -> bool:
    """Whether this is the first process of a distributed run, or the only one."""
    return getattr(rank_zero_only, "rank", 0) == 0
