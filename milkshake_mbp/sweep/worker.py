"""A process of its own for trials: `python -m milkshake_mbp.sweep.worker [TRIAL]`.

Without a word it does the trials that it reads, a line for each, until its standard input ends. With one it does that
trial and ends: Lightning gives every device a process by starting the script of the first again with the same words,
which here are that trial's and not the sweep's.

What came of a trial goes to standard output, a line for each.
"""

import json
import os
import signal
import sys
from argparse import Namespace
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from threading import Thread

from milkshake_mbp.experiment.run import script_experiment
from milkshake_mbp.framework.cli import replace_unprintable
from milkshake_mbp.framework.console import first_process, make_console
from milkshake_mbp.sweep.trials import attempt

__all__ = ["main"]


def main() -> None:
    """Do trials while the process at the other end of standard input lives; end with it, children and all."""
    # Kept from libraries that print, and from processes that they start.
    orders, outcomes = os.dup(0), os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    replace_unprintable()
    trials: SimpleQueue[bytes] = SimpleQueue()
    if first_process():
        Thread(target=_read, args=(orders, trials), daemon=True).start()
    if len(sys.argv) > 1:
        _do(sys.argv[1], outcomes)
        return
    while True:
        _do(trials.get(), outcomes)


def _do(trial: str | bytes, outcomes: int) -> None:
    given = json.loads(trial)
    script, name = given["experiment"]
    outcome = attempt(Namespace(**given["args"]), script_experiment(Path(script), name), given["group"], make_console())
    if first_process():
        os.write(outcomes, json.dumps(outcome).encode() + b"\n")


def _read(orders: int, trials: "SimpleQueue[bytes]") -> None:
    rest = b""
    while chunk := os.read(orders, 65536):
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            trials.put(line)
    with suppress(OSError):
        if os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)
    os._exit(0)


if __name__ == "__main__":
    main()
