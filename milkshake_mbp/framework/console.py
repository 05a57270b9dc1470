"""Where a script says what happens."""

from rich.console import Console

__all__ = ["first_process", "make_console"]


def make_console(quiet: bool | None = None) -> Console:
    """The terminal; by default silent in all processes of a distributed run but the first, which Lightning tells."""
    # Names of files and experiments are names, whatever brackets they have.
    return Console(highlight=False, markup=False, soft_wrap=True, quiet=not first_process() if quiet is None else quiet)


def first_process() -> bool:
    """Whether this is the first process of a distributed run, or the only one."""
    # Loads Lightning, which help and refusals do without.
    from pytorch_lightning.utilities.rank_zero import rank_zero_only

    return getattr(rank_zero_only, "rank", 0) == 0
