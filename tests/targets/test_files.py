"""Files are read as they are, or not at all, and are whole at any time."""

import os

import pytest

from targets.files import NotPlainError, opened, write_atomically


def test_a_file_is_opened_only_if_it_is_one_with_one_name(tmp_path):
    path = tmp_path / "f"
    with pytest.raises(FileNotFoundError):
        opened(path)
    path.write_bytes(b"all of it")
    with opened(path) as file:
        assert file.read() == b"all of it"
    with pytest.raises(IsADirectoryError):
        opened(tmp_path)
    for link in ("f", "nothing"):
        (tmp_path / "link").symlink_to(tmp_path / link)
        with pytest.raises(NotPlainError, match="is a symbolic link"):
            opened(tmp_path / "link")
        (tmp_path / "link").unlink()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(NotPlainError, match="is no regular file"):
        opened(tmp_path / "pipe")
    os.link(path, tmp_path / "again")
    with pytest.raises(NotPlainError, match=r"has 2 names \(hard links\)"):
        opened(path)


def test_write_atomically_leaves_the_old_file_when_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "f"
    write_atomically(path, b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
