import errno
import io
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from milkshake_mbp.errors import UserError
from milkshake_mbp.framework.cli import run_cli


class OutOfMemoryError(RuntimeError):
    """Stands for torch's exception of this name."""


def raising(error: BaseException) -> Callable[[], Any]:
    def entry() -> None:
        raise error

    return entry


def interrupted_training() -> None:
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        sys.exit(1)


@pytest.fixture(autouse=True)
def _command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["mbp.py", "--debug", "False", "--lr", "1"])


@pytest.mark.parametrize(("returned", "status"), [(None, None), (0, 0), (3, 3)])
def test_the_status_is_what_the_entry_returns(returned: int | None, status: int | None) -> None:
    with pytest.raises(SystemExit) as stop:
        run_cli(lambda: returned)
    assert stop.value.code == status


@pytest.mark.parametrize(
    ("entry", "status", "line"),
    [
        (raising(UserError("lr: expected\n a number")), 2, "error: lr: expected a number"),
        (raising(KeyboardInterrupt()), 130, "interrupted"),
        (interrupted_training, 130, "interrupted"),
        (
            raising(OSError(errno.ENOSPC, "No space left on device", "out/run")),
            2,
            "error: disk full: free space at out/run and rerun; what was already written is kept",
        ),
        (
            raising(OSError(errno.ENOSPC, "No space left on device")),
            2,
            "error: disk full: free space and rerun; what was already written is kept",
        ),
        (
            raising(PermissionError(errno.EACCES, "Permission denied", "out")),
            2,
            "error: Permission denied: out",
        ),
        (raising(FileNotFoundError(errno.ENOENT, "No such file", "w.pt")), 2, "error: No such file: w.pt"),
        (
            raising(OutOfMemoryError("CUDA out of memory.\nTried to allocate")),
            1,
            "error: the device is out of memory: lower batch_size or the width of the network",
        ),
        (
            raising(RuntimeError("shapes differ\nsecond line")),
            1,
            "error: RuntimeError: shapes differ (rerun with --debug for the traceback)",
        ),
        (
            raising(OSError("connection lost")),
            1,
            "error: OSError: connection lost (rerun with --debug for the traceback)",
        ),
        (
            raising(AssertionError()),
            1,
            "error: AssertionError: no message (rerun with --debug for the traceback)",
        ),
    ],
)
def test_an_exception_becomes_one_line(
    entry: Callable[[], Any], status: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        run_cli(entry)
    assert stop.value.code == status
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", f"{line}\n")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_second_signal_leaves_alone_what_is_being_written(
    number: signal.Signals, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    before, written = signal.getsignal(number), []

    def entry() -> None:
        try:
            signal.raise_signal(number)
        finally:
            signal.raise_signal(number)
            written.append(1)

    with pytest.raises(SystemExit) as stop:
        run_cli(entry)
    assert stop.value.code == status and written == [1] and signal.getsignal(number) == before
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_that_comes_while_garbage_is_collected(
    number: signal.Signals, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where Python drops what is raised."""

    class Garbage:
        def __del__(self) -> None:
            signal.raise_signal(number)

    def entry() -> None:
        Garbage()
        time.sleep(30)

    before = sys.unraisablehook
    with pytest.raises(SystemExit) as stop:
        run_cli(entry)
    assert stop.value.code == status and sys.unraisablehook == before
    assert capsys.readouterr().err == "interrupted\n"


def test_an_exit_passes_through(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run_cli(raising(SystemExit(5)))
    assert stop.value.code == 5
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("words", [["--debug"], ["--debug", "True"], ["--debug=yes"], ["--debug", "--lr", "1"]])
@pytest.mark.parametrize("error", [UserError("no"), RuntimeError("no"), KeyboardInterrupt()])
def test_debug_lets_exceptions_through(words: list[str], error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["mbp.py", *words])
    with pytest.raises(type(error)):
        run_cli(raising(error))


def test_a_script_may_be_called_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["mbp.py"])
    with pytest.raises(SystemExit) as stop:
        run_cli(raising(UserError("no")))
    assert stop.value.code == 2


def test_a_terminal_without_unicode_is_no_reason_to_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="ascii") for _ in range(2))
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setattr("sys.stderr", err)

    def entry() -> None:
        Console().print("error ≤ 3% of Ψ")
        raise UserError("d: expected ≥ 0")

    with pytest.raises(SystemExit) as stop:
        run_cli(entry)
    assert stop.value.code == 2
    for stream, text in ((out, b"error <= 3% of ?\n"), (err, b"error: d: expected >= 0\n")):
        stream.flush()
        assert stream.buffer.getvalue() == text  # type: ignore[attr-defined]


def test_no_line_colours_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    for error in (UserError("no \x1b[1mbold\x1b[0m"), RuntimeError("no \x1b[1mbold\x1b[0m")):
        with pytest.raises(SystemExit):
            run_cli(raising(error))
        assert "no bold" in capsys.readouterr().err


def test_torch_is_not_loaded_to_end_a_script() -> None:
    code = "import sys, milkshake_mbp.framework.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
