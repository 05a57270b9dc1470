"""The checkpoint from which an interrupted run continues."""

import zipfile
import zlib
from pathlib import Path

from milkshake_mbp.framework.checkpoints import LAST_CHECKPOINT
from milkshake_mbp.runs.files import RunFiles

__all__ = ["last_checkpoint", "unsealed"]


def last_checkpoint(files: RunFiles) -> str:
    """The last that is sound; "" if there is none.

    Lightning writes one in the system's temporary folder and moves it, which over file systems is a copy that a kill
    can cut short; and torch does not look at the check sums that it writes.
    """
    last = files.folder / LAST_CHECKPOINT
    kept = sorted(last.parent.glob("epoch=*.ckpt"), key=lambda path: (len(path.name), path.name), reverse=True)
    return next((str(path) for path in (last, *kept) if path.exists() and _sound(path)), "")


def _sound(checkpoint: Path) -> bool:
    try:
        with zipfile.ZipFile(checkpoint) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError, EOFError, zlib.error):
        return False


def unsealed(files: RunFiles) -> bool:
    """Whether a run has its numbers but no sound manifest, and a checkpoint to make both again from.

    It was stopped between the two, or the manifest is damaged: nothing tells whether its files are as it wrote them.
    """
    return files.result.exists() and files.altered(files.result.name) is None and bool(last_checkpoint(files))
