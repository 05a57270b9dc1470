"""What runs the trials of a sweep on this machine: this process, or several."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import wait
from pathlib import Path

from rich.console import Console

from milkshake_mbp.runs.lock import BusyError, locked
from milkshake_mbp.runs.settings import Sweep
from milkshake_mbp.sweep.trials import Outcome, Report, Trial, attempt

__all__ = ["cores", "run_here", "run_in_processes", "threads"]


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads(share: int) -> dict[str, str]:
    """Environment of a process that torch is to be loaded in, one of `share` on these cores.

    Threads that spin while they wait would stall one another.
    """
    return {"OMP_NUM_THREADS": str(max(1, cores() // share)), "OMP_WAIT_POLICY": "passive"}


def run_here(trials: Sequence[Trial], how: Sweep, folder: Path, report: Report) -> None:
    """One after another in this process.

    Args:
        trials: what to run.
        how: the keys of the sweep.
        folder: the sweep's.
        report: told when a trial starts, and what came of it.
    """
    queue = deque(trials)
    while queue:
        trial = queue.popleft()
        report(trial, Outcome("running"))
        outcome = attempt(trial.args, trial.make, folder.name, Console(quiet=True))
        report(trial, outcome)
        if outcome.state == "waiting":
            queue.append(trial)


def run_in_processes(trials: Sequence[Trial], how: Sweep, folder: Path, report: Report) -> None:
    """In `how.parallel` processes, each of which loads torch once; a trial whose process dies is started again.

    A trial on several devices has a process of its own, which Lightning starts again for each device. All of them end
    when this one does, however it does, because their standard input then ends.

    Args:
        trials: what to run.
        how: the keys of the sweep.
        folder: the sweep's; the processes' output goes there.
        report: told when a trial starts, and what came of it.
    """
    queue, losses = deque(trials), Counter[Trial]()
    workers = [_Worker(folder / f"worker-{index + 1}.log") for index in range(min(how.parallel, len(trials)))]
    idle = list(workers)
    busy: dict[_Worker, Trial] = {}
    try:
        while queue or busy:
            while queue and idle:
                trial, worker = queue.popleft(), idle.pop(0)
                worker.start(trial, folder.name, how.parallel)
                busy[worker] = trial
                report(trial, Outcome("running"))
            ready = wait([worker.fileno() for worker in busy])
            for worker in [worker for worker in busy if worker.fileno() in ready]:
                trial, outcome = busy.pop(worker), worker.outcome()
                idle.append(worker)
                if outcome is None:
                    losses[trial] += 1
                    again = losses[trial] <= how.max_retries
                    outcome = Outcome("waiting" if again else "failed", f"its process {worker.end()}")
                report(trial, outcome)
                if outcome.state == "waiting":
                    queue.append(trial)
    finally:
        for worker in workers:
            worker.stop(at_once=bool(queue or busy))
        for trial in busy.values():
            with suppress(BusyError), locked(trial.files.folder):
                pass  # what was killed could not remove its lock and what it had not finished writing


class _Worker:
    """A process that does trials, started when there is one to do, and again after it died."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._for_one = False

    def fileno(self) -> int:
        """To wait for its outcome."""
        assert self._process is not None and self._process.stdout is not None
        return self._process.stdout.fileno()

    def start(self, trial: Trial, group: str, share: int) -> None:
        """Hand it a trial, one of `share` that run at once."""
        code = trial.make.__code__
        script = str(Path(code.co_filename).resolve()), code.co_name
        order = json.dumps({"args": vars(trial.args), "experiment": script, "group": group})
        self._for_one = trial.processes != 1
        if self._for_one:
            self.stop()
            self._process = self._launch(share * (trial.processes or 1), order)
            return
        if self._process is None:
            self._process = self._launch(share)
        assert self._process.stdin is not None
        # If it died meanwhile, its outcome says so.
        with suppress(BrokenPipeError):
            self._process.stdin.write(order.encode() + b"\n")
            self._process.stdin.flush()

    def outcome(self) -> Outcome | None:
        """What came of the trial; None if the process died."""
        assert self._process is not None and self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.endswith(b"\n"):
            return None
        if self._for_one:
            self.stop()
        return Outcome(*json.loads(line))

    def end(self) -> str:
        """How the process died, in words."""
        assert self._process is not None
        status = self._process.wait()
        self.stop()
        if status < 0:
            return f"was killed by signal {-status}, {signal.strsignal(-status)}"
        return f"ended with status {status}: see {self.log}"

    def stop(self, at_once: bool = False) -> None:
        """End it, and the processes that it started."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None and process.stdout is not None
        if at_once:
            _kill_group(process)
        with suppress(BrokenPipeError):
            process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=10)
        _kill_group(process)
        process.wait()
        process.stdout.close()

    def _launch(self, share: int, *words: str) -> "subprocess.Popen[bytes]":
        path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "milkshake_mbp.sweep.worker", *words],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                # What the user has set goes over.
                env={**threads(share), **os.environ, "PYTHONPATH": path},
                # Ctrl-C is the first process's to handle; and a group can be killed with all that it started.
                start_new_session=True,
            )


def _kill_group(process: "subprocess.Popen[bytes]") -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
