"""Disks as they exist: without locks, without renames, without a folder's sync, read-only."""

import errno
import os
import stat

import pytest

from colbert_zero import files
from colbert_zero.errors import ColbertZeroError
from colbert_zero.files import atomic_file, atomic_folder, is_commit, place_of, read_json, write_json, writing


def failing(number, where=lambda *_: True, right=None):
    def call(*arguments, **more):
        if where(*arguments):
            raise OSError(number, os.strerror(number))
        return right(*arguments, **more)

    return call


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_disk_without_locks_is_told_and_written_to(number, tmp_path, monkeypatch):
    monkeypatch.setattr(files.fcntl, "flock", failing(number))
    told = []
    with writing(tmp_path / "out", told.append):
        write_json(tmp_path / "out" / "a.json", 1)
    assert read_json(tmp_path / "out" / "a.json") == 1
    assert [text.split(": ")[1] for text in told] == [
        f"its disk has no locks ({os.strerror(number)}); see to it that no second run writes there"
    ]


@pytest.mark.parametrize("number", [errno.EEXIST, errno.EPERM, errno.ENOTSUP, errno.ENOSYS])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_disk_without_renames_is_refused_before_anything_is_made(kind, number, tmp_path, monkeypatch):
    def concerned(old, new):
        return os.path.isdir(old) == (kind == "folder")

    monkeypatch.setattr(files.os, "replace", failing(number, concerned, os.replace))
    with (
        pytest.raises(ColbertZeroError, match=r"its disk cannot put a finished file.*network disk such as NFS"),
        writing(tmp_path / "out"),
    ):
        pass
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_disk_that_cannot_sync_a_folder_is_written_to(number, tmp_path, monkeypatch):
    def is_folder(descriptor):
        return stat.S_ISDIR(os.fstat(descriptor).st_mode)

    monkeypatch.setattr(files.os, "fsync", failing(number, is_folder, os.fsync))
    with atomic_file(tmp_path / "a") as file:
        file.write("whole")
    with atomic_folder(tmp_path / "b") as folder:
        (folder / "c").write_text("whole")
    assert ((tmp_path / "a").read_text(), (tmp_path / "b" / "c").read_text()) == ("whole", "whole")


def test_a_disk_that_fails_to_sync_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(files.os, "fsync", failing(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"), atomic_file(tmp_path / "a"):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_folder_that_cannot_be_written_is_one_message(number, tmp_path, monkeypatch):
    monkeypatch.setattr(files.Path, "mkdir", failing(number))
    with (
        pytest.raises(ColbertZeroError, match=rf"--out .*cannot be written \({os.strerror(number)}\); "),
        writing(tmp_path),
    ):
        pass


def test_only_a_whole_hash_is_a_commit():
    revisions = ("a" * 40, "A" * 40, "v" * 40, "main", "abc1234", None)
    assert [is_commit(revision) for revision in revisions] == [True, *[False] * 5]


def test_a_name_is_its_folder_where_there_is_one(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "here").mkdir()
    places = {"~/here": str(tmp_path / "here"), "~/gone": "~/gone", "org/name": "org/name"}
    assert {name: place_of(name) for name in places} == places
