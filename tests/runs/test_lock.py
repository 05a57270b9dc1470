import shutil
import threading

import pytest

from milkshake_mbp.errors import UserError
from milkshake_mbp.files import write_atomically
from milkshake_mbp.runs.lock import BusyError, locked


def test_one_at_a_time_and_nothing_left(tmp_path):
    with (
        locked(tmp_path / "run"),
        pytest.raises(BusyError, match="in use by process") as refused,
        locked(tmp_path / "run"),
    ):
        pass
    assert len(str(refused.value).splitlines()) == 1
    with locked(tmp_path / "run"):
        pass
    assert not list((tmp_path / "run").iterdir())


def test_what_a_dead_process_left_is_taken_over_and_swept_up(tmp_path, monkeypatch):
    with pytest.raises(OSError), monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(OSError))
        patch.setattr("pathlib.Path.unlink", lambda *_, **__: None)
        write_atomically(tmp_path / "result.json", b"half")
    assert len(list(tmp_path.iterdir())) == 1
    for name in (".lock", ".notes.ab12cd34", ".nfs1", "result.json"):
        (tmp_path / name).write_text("1")
    with locked(tmp_path):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [".nfs1", ".notes.ab12cd34", "result.json"]


def test_patience(tmp_path):
    order = []

    def second():
        with locked(tmp_path, patient=True):
            order.append("second")

    with locked(tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.2)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    monkeypatch.setattr("milkshake_mbp.runs.lock.fcntl", None)
    with locked(tmp_path), locked(tmp_path):
        pass


def test_a_folder_that_nothing_came_of_is_gone(tmp_path):
    folder = tmp_path / "out" / "run"
    for names, gone in (
        ((), True),
        (("config.yaml", "initial.safetensors"), True),
        (("config.yaml", "epochs.csv"), False),
    ):
        with pytest.raises(KeyError), locked(folder):
            for name in names:
                (folder / name).write_text("1")
            raise KeyError
        assert (tmp_path / "out").exists() != gone
    # What was there before stays, whatever happens.
    (folder / "epochs.csv").unlink()
    with pytest.raises(KeyError), locked(folder):
        raise KeyError
    assert [path.name for path in folder.iterdir()] == ["config.yaml"]


def test_a_folder_that_vanishes_under_those_who_wait(tmp_path):
    folder, order = tmp_path / "run", []

    def second():
        with locked(folder, patient=True):
            order.append(folder.is_dir())

    with pytest.raises(KeyError), locked(folder):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.2)
        raise KeyError
    thread.join()
    assert order == [True]


@pytest.mark.parametrize("other", [False, True])
def test_a_folder_removed_meanwhile_is_said(tmp_path, other):
    """And what was written there afterwards is not taken for all of a run, unless another process has written it."""
    folder = tmp_path / "run"
    with pytest.raises(UserError, match="was removed during the run"), locked(folder):
        shutil.rmtree(folder)
        folder.mkdir()
        (folder / "result.json").touch()
        (folder / "model.safetensors").touch()
        if other:
            (folder / ".lock").touch()
    assert (folder / "result.json").exists() == other and (folder / "model.safetensors").exists()


def test_a_link_in_place_of_the_lock_is_not_followed(tmp_path):
    theirs = tmp_path / "theirs"
    theirs.write_text("precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(theirs)
    with pytest.raises(UserError, match="is a link"), locked(tmp_path / "run"):
        pass
    assert theirs.read_text() == "precious"
