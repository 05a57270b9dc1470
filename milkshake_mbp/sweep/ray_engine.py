"""What runs the trials of a sweep on Ray, whose workers need share no file system with this process."""

import importlib
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from argparse import Namespace
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from threading import Event, Thread, current_thread, main_thread
from typing import Any

import torch
from rich.console import Console

from milkshake_mbp.errors import UserError
from milkshake_mbp.experiment.run import MakeExperiment
from milkshake_mbp.files import write_atomically
from milkshake_mbp.framework.args import config_dict
from milkshake_mbp.framework.checkpoints import LAST_CHECKPOINT
from milkshake_mbp.runs.files import RunFiles
from milkshake_mbp.runs.lock import BusyError, locked
from milkshake_mbp.runs.names import run_name
from milkshake_mbp.runs.settings import Sweep
from milkshake_mbp.sweep.local_engine import cores, threads
from milkshake_mbp.sweep.trials import Outcome, Report, Trial, attempt

__all__ = ["run_on_ray"]

# Each holds a lock, an open file.
_SUBMITTED_AT_ONCE = 256
_POST_EVERY = 2.0
_LARGE, _POST_LARGE_EVERY = 4 << 20, 30.0
# What a trial needs to go on from where it was.
_RESUME = (LAST_CHECKPOINT, "epochs.csv", "initial.safetensors", "wandb_id")
_PATIENCE = 10.0
_REMAINS = "mbp-trial-"
_LAST = ("result.json", "manifest.json")

Files = dict[str, bytes]


def run_on_ray(trials: Sequence[Trial], how: Sweep, folder: Path, report: Report) -> None:
    """As Ray tasks, as many at once as there is room for; a trial whose worker is lost goes on elsewhere.

    Args:
        trials: what to run; the files that weights, arrays_path and data_dir name are looked for by the worker.
        how: the keys of the sweep.
        folder: the sweep's.
        report: told when a trial starts, and what came of it.

    Raises:
        UserError: Ray is not installed or does not start, or there is no cluster at the address.
    """
    ray = _ray()
    own = not ray.is_initialized()
    if own:
        _connect(ray, how, debug=any(trial.args.debug for trial in trials))
    # Beside this process, because what is there is lost with its node.
    here = importlib.import_module("ray.util.scheduling_strategies").NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=False
    )
    for module in {trial.make.__module__ for trial in trials} - {"__main__"}:
        ray.cloudpickle.register_pickle_by_value(sys.modules[module])  # a script that the workers may not have
    mailbox = ray.remote(_Mailbox).options(num_cpus=0, scheduling_strategy=here).remote()
    task = ray.remote(_attempt).options(
        num_cpus=how.trial_cpus, num_gpus=how.trial_gpus, max_retries=how.max_retries, retry_exceptions=False
    )
    queue, submitted = deque(trials), dict[Any, tuple[Trial, ExitStack]]()
    started: set[str] = set()
    by_name = {trial.name: trial for trial in trials}

    def receive() -> None:
        for name, files in ray.get(mailbox.take.remote()).items():
            _unpack(by_name[name].files.folder, files)
            if name not in started:
                started.add(name)
                report(by_name[name], Outcome("running"))

    try:
        while queue or submitted:
            for _ in range(min(len(queue), _SUBMITTED_AT_ONCE - len(submitted))):
                trial, held = queue.popleft(), ExitStack()
                try:
                    held.enter_context(locked(trial.files.folder))
                except BusyError as error:
                    report(trial, Outcome("waiting", str(error)))
                    queue.append(trial)
                    continue
                if trial.finished:  # meanwhile, by another process
                    held.close()
                    report(trial, Outcome("finished"))
                    continue
                ray.get(mailbox.keep.remote(trial.name, {} if trial.args.rerun else _pack(trial.files.folder, _RESUME)))
                if trial.args.rerun:
                    trial.files.result.unlink(missing_ok=True)
                trial.files.write_config(config_dict(trial.args))
                orders = (vars(trial.args), trial.make, folder.name, str(Path.cwd()), how.trial_cpus, mailbox)
                submitted[task.remote(*orders)] = trial, held
            done, _ = ray.wait(list(submitted), timeout=1.0) if submitted else ([], [])
            if not submitted:
                time.sleep(1)
            receive()
            for reference in done:
                trial, held = submitted.pop(reference)
                with held:
                    outcome = _collect(ray, reference, trial, how)
                    ray.get(mailbox.forget.remote(trial.name))
                    report(trial, outcome)
    finally:
        for reference, (_, held) in submitted.items():
            ray.cancel(reference, force=True)
            held.close()
        ray.kill(mailbox)
        if own:
            ray.shutdown()
        _remove_remains()


def _ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise UserError("engine: ray is not installed: pip install 'milkshake_mbp[ray]', or --engine local") from error


def _connect(ray: Any, how: Sweep, debug: bool) -> None:
    address = how.ray_address or os.environ.get("RAY_ADDRESS") or "local"
    _check_reachable(address)
    environment = threads(max(1, int(cores() / max(1.0, how.trial_cpus))))
    options: dict[str, Any] = {"num_cpus": cores(), "include_dashboard": False} if address == "local" else {}
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        ray.init(
            address=address,
            logging_level=logging.ERROR,
            log_to_driver=debug,
            # What the user has set goes over.
            runtime_env={"env_vars": {key: os.environ.get(key, value) for key, value in environment.items()}},
            **options,
        )
    except Exception as error:  # a bare one where Ray's own processes do not start
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        if address == "local":
            raise UserError(
                f"engine: Ray does not start on this machine ({reason}): it needs room in /dev/shm and in RAY_TMPDIR, "
                "by default /tmp, whose path must be short; or use --engine local"
            ) from error
        raise UserError(
            f"ray_address: no Ray cluster at {address} ({reason}): start one, ray start --head; "
            "if it asks for a token, set RAY_AUTH_MODE=token here"
        ) from error
    if current_thread() is main_thread():  # Ray's own handlers end the process, with a trace of C++
        for number, handler in handlers.items():
            signal.signal(number, handler)
    for kind, asked in (("CPU", how.trial_cpus), ("GPU", how.trial_gpus)):
        if address == "local" and (there := ray.cluster_resources().get(kind, 0)) < asked:
            ray.shutdown()
            raise UserError(f"trial_{kind.lower()}s: {asked:g} asked of a machine with {there:g}: ask for less")


def _check_reachable(address: str) -> None:
    """Ray itself would wait for minutes, or for ever."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"ray_address: nothing answers at {address} within {_PATIENCE:g} s ({error}): start a cluster there, "
            "ray start --head, or correct the address"
        ) from error


def _collect(ray: Any, reference: Any, trial: Trial, how: Sweep) -> Outcome:
    """What came of a task; its files are put into the run's folder."""
    try:
        outcome, files = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        return Outcome("failed", (str(error.cause or error).strip().splitlines() or ["no message"])[0])
    except ray.exceptions.RayError as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return Outcome("failed", f"its Ray worker was lost {how.max_retries + 1} times: {reason}")
    _unpack(trial.files.folder, files)
    return Outcome(*outcome)


class _Mailbox:
    """Between the workers and the driver: files on their way, and what a trial that lost its worker goes on from."""

    def __init__(self) -> None:
        self._coming: dict[str, Files] = {}
        self._kept: dict[str, Files] = {}

    def keep(self, name: str, files: Files) -> None:
        """What a trial starts from."""
        self._kept[name] = files

    def start(self, name: str) -> Files:
        """A worker starts a trial."""
        self._coming.setdefault(name, {})
        return self._kept[name]

    def post(self, name: str, files: Files) -> None:
        """From a worker."""
        self._coming.setdefault(name, {}).update(files)
        self._kept[name].update({path: files[path] for path in _RESUME if path in files})

    def take(self) -> dict[str, Files]:
        """By the driver."""
        coming, self._coming = self._coming, {}
        return coming

    def forget(self, name: str) -> None:
        """The trial has ended."""
        self._kept.pop(name, None)


def _attempt(
    values: dict[str, Any], make: MakeExperiment, group: str, working_folder: str, cpus: float, mailbox: Any
) -> tuple[Outcome, Files]:
    """A trial, on the worker: what came of it, and the files that were not posted meanwhile."""
    ray = _ray()
    torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", cpus))))
    with suppress(OSError):  # a shared file system, or the driver's own machine
        os.chdir(working_folder)
    _remove_remains()
    with tempfile.TemporaryDirectory(prefix=f"{_REMAINS}{os.getpid()}-") as out:
        args = Namespace(**{**values, "out_dir": out})
        name = run_name(args)
        files = RunFiles(Path(out) / name)
        _unpack(files.folder, ray.get(mailbox.start.remote(name)))
        posts = _Posts(files.folder, lambda new: ray.get(mailbox.post.remote(name, new)))
        with posts:
            outcome = attempt(args, make, group, Console(quiet=True))
        return outcome, _pack(files.folder, posts.changed(large=True))


def _remove_remains() -> None:
    """Remove what workers on this machine left that were killed and are no more."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_REMAINS}*"):
        process = folder.name.removeprefix(_REMAINS).partition("-")[0]
        if process.isdigit() and not _alive(int(process)):
            shutil.rmtree(folder, ignore_errors=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True


class _Posts:
    """Posts a folder's files as they change, the large ones less often."""

    def __init__(self, folder: Path, post: Any) -> None:
        self.folder = folder
        self._post = post
        self._over = Event()
        self._thread = Thread(target=self._run, daemon=True)
        self._seen: dict[str, tuple[int, int]] = self._versions()

    def __enter__(self) -> "_Posts":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join()

    def changed(self, large: bool) -> list[str]:
        """What has changed since it was posted; checkpoints first, so that epochs.csv is never older than they are."""
        changed = [
            path
            for path, version in self._versions().items()
            if self._seen.get(path) != version and (large or version[1] < _LARGE)
        ]
        return sorted(changed)

    def _run(self) -> None:
        last_large = time.monotonic()
        while not self._over.wait(_POST_EVERY):
            large = time.monotonic() - last_large > _POST_LARGE_EVERY
            if large:
                last_large = time.monotonic()
            versions = self._versions()
            files = _pack(self.folder, self.changed(large))
            # These mean that all else is there, so they come with the outcome.
            for name in _LAST:
                files.pop(name, None)
            with suppress(Exception):  # a mailbox that does not answer is not a reason to stop training
                self._post(files)
                self._seen |= {path: versions[path] for path in files if path in versions}

    def _versions(self) -> dict[str, tuple[int, int]]:
        """Of every file but config.yaml, which the driver writes."""
        versions = {}
        for path in self.folder.rglob("*"):
            with suppress(FileNotFoundError):
                if path.is_file() and not path.name.startswith(".") and path.name != "config.yaml":
                    stat = path.stat()
                    versions[path.relative_to(self.folder).as_posix()] = stat.st_mtime_ns, stat.st_size
        return versions


def _pack(folder: Path, paths: Sequence[str]) -> Files:
    files = {}
    for path in paths:
        with suppress(FileNotFoundError):
            files[path] = (folder / path).read_bytes()
    return files


def _unpack(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write the files, those last that say that all else is there."""
    for path in sorted(files, key=lambda path: _LAST.index(path) if path in _LAST else -1):
        write_atomically(folder / path, files[path])
