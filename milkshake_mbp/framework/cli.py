"""How a script ends: a status, and one line rather than a traceback when something goes wrong."""

import argparse
import codecs
import errno
import io
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from threading import Timer
from types import FrameType
from typing import NoReturn

from milkshake_mbp.commands import as_called, program
from milkshake_mbp.errors import UserError

_FAILED = 1
_USER_ERROR = 2
_INTERRUPTED = 130
_SPELLED = {"≤": "<=", "≥": ">=", "∞": "inf", "−": "-", "→": "->", "‖": "|", "√": "sqrt", "²": "^2", "×": "x", "ℓ": "l"}


def run_cli(entry: Callable[[], int | None]) -> NoReturn:
    """Run a script's ``entry`` and leave the process with a status.

    The status is what ``entry`` returns, 0 for None; 2 for what the user can put right, such as a full disk;
    130 after Ctrl-C, 143 after SIGTERM, which ends a run in the same way; and 1 for any other exception. With
    ``--debug`` exceptions pass through.

    Raises:
        SystemExit: Always, unless an exception passes through.
    """
    replace_unprintable()
    debug = _debug_requested(sys.argv[1:])
    try:
        with _stopped_once() as signals:
            sys.exit(entry())
    except SystemExit as stop:
        # Lightning turns an interrupt of training into an exit of its own.
        if debug or not isinstance(stop.__context__, KeyboardInterrupt):
            raise
        line, status = "interrupted", _INTERRUPTED
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            raise
        line, status = verdict(error)
    print(line, file=sys.stderr)
    sys.exit(128 + signals[0] if status == _INTERRUPTED and signals else status)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help shows how this is called")


def script_parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser for a script without a configuration; its help is the script's docstring."""
    return _Parser(
        prog=program(), description=as_called(doc or ""), formatter_class=argparse.RawDescriptionHelpFormatter
    )


@contextmanager
def _stopped_once() -> Iterator[list[int]]:
    """Raise KeyboardInterrupt at the first SIGINT or SIGTERM, and leave what is being written alone at the second.

    A third ends the process as it is. SIGINT stays ignored where it was, as in a shell's background. Yields the
    signals that came.

    Python drops what is raised in a `__del__`, and the first signal may well come there: it is sent once more.
    """
    came: list[int] = []
    tell = sys.unraisablehook

    def stop(number: int, frame: FrameType | None) -> None:
        came.append(number)
        if len(came) == 1:
            raise KeyboardInterrupt
        if len(came) == 2:
            print("stopping; interrupt again to stop immediately and lose what is being written", file=sys.stderr)
        else:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    def dropped(what: "sys.UnraisableHookArgs") -> None:
        if not (came and isinstance(what.exc_value, KeyboardInterrupt)):
            tell(what)
            return
        again = Timer(0.05, os.kill, (os.getpid(), came[0]))  # by when that `__del__` is over
        came.clear()
        again.daemon = True
        again.start()

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    taken = [number for number, handler in before.items() if handler != signal.SIG_IGN]
    for number in taken:
        signal.signal(number, stop)
    sys.unraisablehook = dropped
    try:
        yield came
    finally:
        sys.unraisablehook = tell
        for number in taken:
            signal.signal(number, before[number])


def replace_unprintable() -> None:
    """Have what the terminal's encoding lacks spelled out, as <= for ≤, or printed as "?", rather than crash on it."""
    codecs.register_error("spell", _spell)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="spell")


def _spell(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_SPELLED.get(character, "?") for character in error.object[error.start : error.end]), error.end


def _debug_requested(argv: Sequence[str]) -> bool:
    """Whether ``--debug`` stands on the command line, alone or with a word that means true."""
    debug = False
    for word, following in pairwise([*argv, ""]):
        flag, _, value = word.partition("=")
        if flag == "--debug":
            debug = (value or following).lower() not in ("false", "no", "off")
    return debug


def disk_full(error: BaseException) -> bool:
    """Whether there is no room left, on the disk or of what the user may have of it."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def verdict(error: BaseException) -> tuple[str, int]:
    """The line that tells a user of ``error``, and the status to leave with."""
    if isinstance(error, KeyboardInterrupt):
        return ": ".join(["interrupted", *map(str, error.args)]), _INTERRUPTED
    if isinstance(error, UserError):
        return f"error: {_plain(str(error))}", _USER_ERROR
    if disk_full(error):
        place = f" at {filename}" if (filename := getattr(error, "filename", None)) else ""
        return f"error: disk full: free space{place} and rerun; what was already written is kept", _USER_ERROR
    if isinstance(error, OSError) and error.strerror:
        place = f": {error.filename}" if error.filename else ""
        return f"error: {error.strerror}{place}", _USER_ERROR
    # By name, so that torch need not be loaded to report something else.
    if type(error).__name__ == "OutOfMemoryError":
        return "error: the device is out of memory: lower batch_size or the width of the network", _FAILED
    message = _plain((str(error).strip().splitlines() or ["no message"])[0])
    return f"error: {type(error).__name__}: {message} (rerun with --debug for the traceback)", _FAILED


def _plain(text: str) -> str:
    """In one line, without the escape codes that colour a terminal; what else cannot be printed as its code."""
    words = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text).split()
    return " ".join("".join(c if c.isprintable() else ascii(c)[1:-1] for c in word) for word in words)
