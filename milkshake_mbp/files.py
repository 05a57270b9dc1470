"""Writing files so that nobody ever reads half of one."""

import csv
import hashlib
import io
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["is_temporary", "sha256", "write_atomically", "write_csv"]

# What a kill can leave of a file that was being written; no user's file is called so.
_UNFINISHED = ".mbp-unfinished"
# How a spreadsheet knows a formula. A number may begin with a sign.
_FORMULA = re.compile(r"[=+\-@\t\r]")


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write rows as a table whose columns are those of any row, in order of appearance; an absent cell is empty.

    A name that a spreadsheet would take for a formula gets an apostrophe in front, which says that it is text.
    """
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, list(dict.fromkeys(name for row in rows for name in row)), restval="")
    writer.writerow({name: _text(name) for name in writer.fieldnames})
    writer.writerows({name: _text(cell) for name, cell in row.items()} for row in rows)
    write_atomically(path, buffer.getvalue().encode())
    return path


def _text(cell: Any) -> Any:
    if not isinstance(cell, str) or not _FORMULA.match(cell):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell


def write_atomically(path: Path, content: bytes) -> None:
    """Write a temporary file beside the target, then rename it over the target.

    Raises:
        OSError: as the file system reports it, of this file; the target is then as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_UNFINISHED)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)
        raise


def is_temporary(path: Path) -> bool:
    """Whether this is what a process that was killed had not finished writing."""
    return path.name.startswith(".") and path.name.endswith(_UNFINISHED)


def sha256(path: Path) -> str:
    """The hexadecimal digest of a file's content.

    Raises:
        OSError: the file cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
