"""One process at a time in a run's folder."""

import errno
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows, where nothing is locked
    fcntl = None  # type: ignore[assignment]

from milkshake_mbp.errors import UserError

__all__ = ["BusyError", "locked"]

# What a run writes before it has anything to show for.
_BEGINNINGS = {"config.yaml", "initial.safetensors", "wandb_id"}
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
# As `write_atomically` names them.
_TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}")


class BusyError(UserError):
    """Another process is at work in the folder."""


@contextmanager
def locked(folder: Path, patient: bool = False) -> Iterator[None]:
    """Hold `folder`/.lock, which is gone afterwards.

    The system lets go of a dead process's lock, however it died. A file system that knows no locks is used without.

    Args:
        folder: made if it does not exist, and removed if an exception leaves nothing in it but how it began; what a
            killed process had not finished writing in it is removed.
        patient: whether to wait for another process.

    Raises:
        BusyError: another process holds it; the message says which.
    """
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    path = folder / ".lock"
    handle = _acquire(path, patient)
    failed = True
    try:
        _sweep_up(folder)
        yield
        failed = False
    finally:
        fruitless = (
            failed and folder in made and {found.name for found in folder.iterdir()} <= {*_BEGINNINGS, path.name}
        )
        if fruitless:
            for name in _BEGINNINGS:
                (folder / name).unlink(missing_ok=True)
        # Removed while it is held: whoever opened it meanwhile sees that it is no longer the one in the folder.
        path.unlink(missing_ok=True)
        os.close(handle)
        if fruitless:
            with suppress(OSError):  # another process has put something in
                for place in made:
                    place.rmdir()


def _acquire(path: Path, patient: bool) -> int:
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:
            continue  # whoever held it has just removed the folder
        try:
            if fcntl is not None:
                fcntl.flock(handle, fcntl.LOCK_EX | (0 if patient else fcntl.LOCK_NB))
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), path.stat()):
                    os.ftruncate(handle, 0)
                    os.write(handle, f"{os.getpid()} on {socket.gethostname()}".encode())
                    return handle
        except BlockingIOError:
            holder = os.read(handle, 100).decode(errors="replace") or "another"
            os.close(handle)
            raise BusyError(
                f"{path.parent} is in use by process {holder}: wait until it is done, or stop it, and rerun"
            ) from None
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                return handle
            os.close(handle)
            raise
        os.close(handle)


def _sweep_up(folder: Path) -> None:
    for path in folder.rglob(".*"):
        if _TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)
