"""Disks as they exist: without locks, without renames, without a folder's sync, read-only."""

import errno
import os
import stat
import subprocess
import sys
from functools import partial

import pytest

from colbert_zero import files
from colbert_zero.errors import ColbertZeroError
from colbert_zero.files import atomic_file, atomic_folder, is_commit, place_of, read_json, write_json, writing
from helpers import environment


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


LEAVING = """
import os, sys, time
from pathlib import Path
from colbert_zero.files import atomic_folder
with atomic_folder(Path("made")) as folder:
    (folder / "half").write_text("x")
    print(folder.name, flush=True)
    os._exit(9) if sys.argv[1] == "dies" else time.sleep(600)
"""


def test_what_a_dead_process_left_is_deleted_and_what_one_at_work_has_is_not(tmp_path):
    alike = [".made.old.tmp", ".made.v2.01234567.tmp", ".other.01234567.tmp"]
    for name in alike:
        (tmp_path / name).mkdir()
    start = partial(subprocess.Popen, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True)
    with (
        start([sys.executable, "-c", LEAVING, "dies"]) as dead,
        start([sys.executable, "-c", LEAVING, "works"]) as alive,
    ):
        left, held = (process.stdout.readline().strip() for process in (dead, alive))
        assert dead.wait() == 9
        with atomic_folder(tmp_path / "made") as own:
            with atomic_folder(tmp_path / "made") as other:
                (other / "a").write_text("other")
            (own / "a").write_text("own")
        assert sorted(os.listdir(tmp_path)) == sorted([*alike, held, "made"])
        assert left != held
        alive.kill()
    assert (tmp_path / "made" / "a").read_text() == "own"


def test_on_a_disk_without_locks_nothing_of_others_is_deleted(tmp_path, monkeypatch):
    (tmp_path / ".made.01234567.tmp").mkdir()
    monkeypatch.setattr(files.fcntl, "flock", failing(errno.ENOLCK))
    with atomic_folder(tmp_path / "made") as folder:
        (folder / "a").write_text("whole")
    assert sorted(os.listdir(tmp_path)) == [".made.01234567.tmp", "made"]


def test_a_folder_that_another_deletes_before_it_is_locked_is_made_anew(tmp_path, monkeypatch):
    right, taken = files.fcntl.flock, []

    def late(*arguments):
        if not taken:
            taken.extend(tmp_path.iterdir())
            taken[0].rmdir()
        return right(*arguments)

    monkeypatch.setattr(files.fcntl, "flock", late)
    with atomic_folder(tmp_path / "made") as folder:
        assert folder.is_dir()
        assert folder != taken[0]
    assert os.listdir(tmp_path) == ["made"]


def test_only_a_whole_hash_is_a_commit():
    revisions = ("a" * 40, "A" * 40, "v" * 40, "main", "abc1234", None)
    assert [is_commit(revision) for revision in revisions] == [True, *[False] * 5]


def test_a_name_is_its_folder_where_there_is_one(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "here").mkdir()
    places = {"~/here": str(tmp_path / "here"), "~/gone": "~/gone", "org/name": "org/name"}
    assert {name: place_of(name) for name in places} == places
