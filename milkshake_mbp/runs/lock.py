"""One process at a time in a run's folder."""

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows, where nothing is locked
    fcntl = None  # type: ignore[assignment]

from milkshake_mbp.errors import UserError
from milkshake_mbp.files import is_temporary

__all__ = ["BusyError", "locked"]

# What a run writes before it has anything to show for.
_BEGINNINGS = {"config.yaml", "initial.safetensors", "wandb_id"}
# What says that a run is complete, which one is not that went on writing where its folder had been removed.
_ENDINGS = ("manifest.json", "result.json")
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


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
        UserError: .lock is a link; or the folder was removed meanwhile, and what was written into it is lost.
    """
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    path = folder / ".lock"
    handle, held = _acquire(path, patient)
    failed = True
    try:
        _sweep_up(folder)
        yield
        if held and not _same(handle, path):
            if not path.exists():  # otherwise another process is at it
                for name in _ENDINGS:
                    (folder / name).unlink(missing_ok=True)
            raise UserError(f"{folder} was removed during the run, and what it held is lost: run the command again")
        failed = False
    finally:
        fruitless = failed and folder in made and _names(folder) <= {*_BEGINNINGS, path.name}
        if fruitless:
            for name in _BEGINNINGS:
                (folder / name).unlink(missing_ok=True)
        # Removed while it is held: whoever opened it meanwhile sees that it is no longer the one in the folder.
        if not held or _same(handle, path):
            path.unlink(missing_ok=True)
        os.close(handle)
        if fruitless:
            with suppress(OSError):  # another process has put something in
                for place in made:
                    place.rmdir()


def _acquire(path: Path, patient: bool) -> tuple[int, bool]:
    """The open file, and whether it is locked, which not every file system can do."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        except FileNotFoundError:
            continue  # whoever held it has just removed the folder
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise UserError(f"{path} is a link to another file, which is left alone: remove it") from error
            raise
        try:
            if fcntl is not None:
                fcntl.flock(handle, fcntl.LOCK_EX | (0 if patient else fcntl.LOCK_NB))
            if _same(handle, path):
                os.ftruncate(handle, 0)
                with suppress(OSError):  # on a full disk nobody is told who holds it
                    os.write(handle, f"{os.getpid()} on {socket.gethostname()}".encode())
                return handle, fcntl is not None
        except BlockingIOError:
            holder = os.read(handle, 100).decode(errors="replace") or "another"
            os.close(handle)
            raise BusyError(
                f"{path.parent} is in use by process {holder}: wait until it is done, or stop it, and rerun"
            ) from None
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                return handle, False
            os.close(handle)
            raise
        os.close(handle)


def _same(handle: int, path: Path) -> bool:
    """Whether the open file is still the one at that place."""
    try:
        return os.path.samestat(os.fstat(handle), path.lstat())
    except FileNotFoundError:
        return False


def _names(folder: Path) -> set[str]:
    try:
        return {found.name for found in folder.iterdir()}
    except FileNotFoundError:
        return set()


def _sweep_up(folder: Path) -> None:
    for path in folder.rglob(".*"):
        if is_temporary(path):
            path.unlink(missing_ok=True)
