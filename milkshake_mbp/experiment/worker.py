"""The process that `engines.run_in_processes` starts: trials in, a line for each; outcomes out, likewise."""

import json
import os
from argparse import Namespace
from queue import SimpleQueue
from threading import Thread

from milkshake_mbp.experiment.run import make_console
from milkshake_mbp.experiment.trials import attempt

__all__ = ["main"]


def main() -> None:
    """Do trials until standard input ends, which is when the process at its other end does; then end at once."""
    # Kept from libraries that print, and from processes that they start.
    orders, outcomes = os.dup(0), os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    trials: SimpleQueue[bytes] = SimpleQueue()
    Thread(target=_read, args=(orders, trials), daemon=True).start()
    while True:
        trial = json.loads(trials.get())
        outcome = attempt(Namespace(**trial["args"]), trial["group"], make_console())
        os.write(outcomes, json.dumps(outcome).encode() + b"\n")


def _read(orders: int, trials: "SimpleQueue[bytes]") -> None:
    rest = b""
    while chunk := os.read(orders, 65536):
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            trials.put(line)
    os._exit(0)
