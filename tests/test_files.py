"""Files survive a crash: what a new name points to is on disk before the name is."""

import os
import stat
from pathlib import Path

import pytest

from mmrec_jax.files import is_leftover, new_folder, write_text


@pytest.fixture
def events(monkeypatch):
    """What happens on disk, in order: a file (and its size) or folder is synced, or named."""
    events = []

    def seen(function, event):
        def spy(first, *rest):
            events.append(event(first))
            return function(first, *rest)

        return spy

    def synced(descriptor):
        status = os.fstat(descriptor)
        return ("folder", None) if stat.S_ISDIR(status.st_mode) else ("file", status.st_size)

    monkeypatch.setattr(os, "fsync", seen(os.fsync, synced))
    for name in ("replace", "rename"):
        monkeypatch.setattr(Path, name, seen(getattr(Path, name), lambda _: ("name", None)))
    return events


def test_a_file_gets_its_name_after_its_data_are_on_disk(tmp_path, events):
    write_text(tmp_path / "a.txt", "12345")
    assert events == [("file", 5), ("name", None), ("folder", None)]


def test_a_folder_gets_its_name_after_its_files_are_on_disk(tmp_path, events):
    with new_folder(tmp_path / "new") as folder:
        (folder / "a.txt").write_text("12")
        (folder / "b.txt").write_text("123")
    assert sorted(events[:2]) == [("file", 2), ("file", 3)]
    assert events[2:] == [("folder", None), ("name", None), ("folder", None)]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "a.txt", "\ud800")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.txt", "old")]
    assert is_leftover(tmp_path / "a.txt.123.tmp")
    assert not is_leftover(tmp_path / "a.txt")
