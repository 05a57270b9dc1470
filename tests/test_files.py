"""Files are written whole or not at all."""

import errno
import resource
import signal
import subprocess
import sys
import threading

import pytest

from milkshake_mbp.files import is_temporary, write_atomically


def test_a_reader_sees_the_old_or_the_new(tmp_path):
    path, contents = tmp_path / "file", [bytes([65 + i]) * 300_000 for i in range(2)]
    write_atomically(path, contents[0])
    seen, done = set(), threading.Event()

    def read():
        while not done.is_set():
            seen.add(path.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for turn in range(60):
            write_atomically(path, contents[turn % 2])
    finally:
        done.set()
        reader.join()
    assert seen <= set(contents)


def test_a_disk_that_is_really_full(small_disk):
    path = small_disk(64) / "result.json"
    write_atomically(path, b"old")
    with pytest.raises(OSError) as full:
        write_atomically(path, bytes(100_000))
    assert full.value.errno == errno.ENOSPC and full.value.filename == str(path)
    assert path.read_bytes() == b"old" and list(path.parent.iterdir()) == [path]
    write_atomically(path, bytes(20_000))
    assert path.read_bytes() == bytes(20_000)


def test_a_limit_on_the_size_of_files(tmp_path):
    path = tmp_path / "model.safetensors"
    write_atomically(path, b"old")
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
        with pytest.raises(OSError) as full:
            write_atomically(path, bytes(20_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert full.value.errno == errno.EFBIG
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_killed_while_writing(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    code = (
        "import os, signal, sys; from pathlib import Path; from milkshake_mbp import files\n"
        "files.os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)\n"
        "files.write_atomically(Path(sys.argv[1]), b'new')\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"
    assert [is_temporary(left) for left in tmp_path.iterdir() if left != path] == [True]
