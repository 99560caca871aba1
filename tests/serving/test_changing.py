"""What is added, deleted and made compact is there whole or not at all, whoever reads, whenever one is killed."""

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing

import pytest

from colbert_zero.data.documents import documents_of
from colbert_zero.errors import ColbertZeroError
from colbert_zero.serving.building import Settings, add, build
from colbert_zero.serving.changing import compact, delete
from colbert_zero.serving.checking import check
from colbert_zero.serving.index import Index
from colbert_zero.serving.manifest import canonical, read_manifest
from helpers import DOCUMENTS, environment


def quiet(*_):
    pass


def corpus(folder, documents, name="corpus.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps({"_id": key, "text": text}) + "\n" for key, text in documents.items()))
    return documents_of([str(path)], "--corpus")


@pytest.fixture
def index(tiny_multi_vector, tmp_path):
    """Twenty documents in segments of six."""
    tiny_multi_vector.save_pretrained(str(tmp_path / "model"), create_model_card=False)
    build(str(tmp_path / "model"), corpus(tmp_path, DOCUMENTS), tmp_path / "i", Settings(segment_documents=6), quiet)
    return tmp_path / "i"


def opened(path):
    return Index.open(path, tell=quiet)


def ids(path):
    """Documents in their order."""
    with opened(path) as index:
        return [
            row.id for segment in index._segments.values() for row in segment.texts.rows() if segment.live[row.number]
        ]


def found(path, query="lift and drag of a wing", k=30):
    with opened(path) as index:
        return [(hit.id, pytest.approx(hit.score, abs=1e-5), hit.text) for hit in index.search(query, k)]


def files(path):
    return sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())


def test_deleted_documents_are_gone_and_their_ids_free_again(index, tmp_path):
    before = found(index)
    assert delete(index, ["lift", "sort"], quiet) == 2
    assert found(index) == [hit for hit in before if hit[0] not in ("lift", "sort")]
    assert delete(index, ["drag"], quiet) == 1
    with opened(index) as one:
        assert len(one) == 17
    added = add(index, corpus(tmp_path, {"lift": DOCUMENTS["lift"]}, "more.jsonl"), tell=quiet)
    assert (added.documents, added.there) == (1, 0)
    assert found(index) == [hit for hit in before if hit[0] not in ("drag", "sort")]


def test_deleting_an_id_that_is_not_there_deletes_nothing(index):
    with pytest.raises(ColbertZeroError, match=r"no document 'nobody' \(1 of 2 ids are not there\); nothing was"):
        delete(index, ["lift", "nobody"], quiet)
    assert len(ids(index)) == 20


def test_adding_passes_over_what_is_there_and_replaces_only_where_asked(index, tmp_path):
    more = {"lift": "Lift, told anew.", "drag": DOCUMENTS["drag"], "new": "A new wing."}
    with pytest.raises(ColbertZeroError, match=r"line 1: the id 'lift' is taken .*--replace puts this one"):
        add(index, corpus(tmp_path, more, "more.jsonl"), tell=quiet)
    assert ids(index) == list(DOCUMENTS)
    added = add(index, corpus(tmp_path, more, "more.jsonl"), True, tell=quiet)
    assert (added.documents, added.there, added.replaced) == (2, 1, 1)
    assert ids(index) == [*(key for key in DOCUMENTS if key != "lift"), "lift", "new"]
    assert {hit[0]: hit[2] for hit in found(index)}["lift"] == "Lift, told anew."
    again = add(index, corpus(tmp_path, more, "more.jsonl"), True, tell=quiet)
    assert (again.documents, again.there, again.replaced) == (0, 3, 0)


@pytest.mark.parametrize("storage", ["float16", "int8"])
@pytest.mark.parametrize("passages", [None, 8])
def test_compacting_keeps_order_texts_and_scores_and_leaves_no_deleted_document(
    index, tmp_path, storage, passages, tiny_multi_vector
):
    settings = Settings(storage, None, passages, 6)
    path = tmp_path / "other"
    long = DOCUMENTS | {"long": " ".join(DOCUMENTS.values())}
    build(str(tmp_path / "model"), corpus(tmp_path, long), path, settings, quiet)
    delete(path, ["heat", "sort", "index"], quiet)
    before, order = found(path), ids(path)
    manifest = compact(path, tell=quiet)
    assert (found(path), ids(path)) == (before, order)
    assert [entry.documents for entry in manifest.segments] == [6, 6, 6]
    assert not any(entry.deletions for entry in manifest.segments)
    assert len([name for name in files(path) if name.startswith("segments")]) == 6
    assert compact(path, tell=quiet) == manifest
    assert not check(path).damaged


def test_a_reader_keeps_its_state_while_documents_are_added_deleted_and_made_compact(index, tmp_path):
    wanted = found(index)
    with opened(index) as reader:
        delete(index, ["lift", "drag", "heat"], quiet)
        add(index, corpus(tmp_path, {"new": "A wing."}, "more.jsonl"), tell=quiet)
        compact(index, tell=quiet)
        again = reader.search("lift and drag of a wing", 30)
        assert [(hit.id, hit.score, hit.text) for hit in again] == wanted
        with reader.reopened() as newer:
            assert {hit.id for hit in newer.search("wing", 30)} == {*DOCUMENTS, "new"} - {"lift", "drag", "heat"}
            assert newer.reopened() is newer


@pytest.mark.parametrize("file", ["tokens", "texts"])
@pytest.mark.parametrize("harm", ["cut", "gone", "link"])
def test_a_damaged_segment_is_named_in_every_answer_and_the_rest_still_serves(index, file, harm, tmp_path):
    wanted = [hit for hit in found(index) if hit[0] not in list(DOCUMENTS)[6:12]]
    path = index / "segments" / "000002" / file
    if harm == "cut":
        os.truncate(path, path.stat().st_size - 1)
    else:
        path.rename(tmp_path / "elsewhere")
        if harm == "link":
            path.symlink_to(tmp_path / "elsewhere")
    assert found(index) == wanted
    with opened(index) as one:
        for query in ("wing", "heat"):
            [note] = one.search(query).notes
            assert note.startswith("segment 000002 is damaged (")
            assert "its 6 documents are not searched" in note
    assert list(check(index).damaged) == ["000002"]
    with pytest.raises(ColbertZeroError, match=r"segment 000002 is damaged.*--drop-damaged"):
        compact(index, tell=quiet)
    told = []
    compact(index, True, told.append)
    assert "segment 000002 is left out with its 6 documents" in told[0]
    assert found(index) == wanted
    assert not check(index).damaged


def test_a_turned_bit_is_found_by_check_and_a_page_that_cannot_be_read_by_the_search_that_meets_it(index):
    path = index / "segments" / "000001" / "texts"
    content = bytearray(path.read_bytes())
    content[20:2000] = bytes(1980)
    path.write_bytes(content)
    tokens = index / "segments" / "000003" / "tokens"
    content = bytearray(tokens.read_bytes())
    content[100] ^= 1
    tokens.write_bytes(content)
    state = check(index)
    assert list(state.damaged) == ["000001", "000003"]
    assert state.damaged["000003"].endswith("000003/tokens is not what was written")
    assert {hit[0] for hit in found(index)} == set(list(DOCUMENTS)[6:])


def test_vectors_that_are_not_finite_take_their_segment_out_of_the_answer(index):
    tokens = index / "segments" / "000001" / "tokens"
    content = bytearray(tokens.read_bytes())
    content[0:2] = b"\x00\x7e"
    tokens.write_bytes(content)
    with opened(index) as one:
        answer = one.search("wing", 30)
    assert {hit.id for hit in answer} == set(list(DOCUMENTS)[6:])
    assert "vectors that are not finite" in answer.notes[0]


# ---- Killed

SCRIPT = """
import sys
from colbert_zero import cli
sys.argv = ["colbert-zero", *sys.argv[1:]]
print("ready", flush=True)
cli.main()
"""


def state(path):
    """All that counts: manifest with its checksums, and a dump of every database."""
    dumps = []
    for entry in read_manifest(path).segments:
        with closing(sqlite3.connect(path / "segments" / entry.name / "texts")) as connection:
            dumps.append(list(connection.iterdump()))
    return canonical(read_manifest(path)), dumps


def kill_again_and_again(command, folder, moments, done):
    """Kill the command so many times at random moments, in a folder; then let it end."""
    random.seed(3)
    killed = 0
    while killed < moments:
        process = subprocess.Popen([sys.executable, "-c", SCRIPT, *map(str, command)], cwd=folder, env=environment(),
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
        process.stdout.readline()
        before = done()
        deadline = time.monotonic() + 120
        # Past the imports, which take seconds, at a random moment of its work.
        while process.poll() is None and done() == before and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        killed += 1
        yield
    ended = subprocess.run([sys.executable, "-c", SCRIPT, *map(str, command)], cwd=folder, env=environment(),
                           capture_output=True, text=True)  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.slow
def test_an_index_killed_at_random_moments_goes_on_and_ends_identical(tiny_multi_vector, tmp_path):
    tiny_multi_vector.save_pretrained(str(tmp_path / "model"), create_model_card=False)
    texts = {f"d{n}-{m}": f"{text} {n}" for n in range(100) for m, text in enumerate(DOCUMENTS.values())}
    corpus(tmp_path, texts)
    arguments = ["index", "model", "--corpus", "corpus.jsonl", "--segment-documents", 50, "--out"]
    whole = subprocess.run([sys.executable, "-c", SCRIPT, *map(str, [*arguments, "whole"])], cwd=tmp_path,
                           env=environment(), capture_output=True, text=True)  # fmt: skip
    assert whole.returncode == 0, whole.stdout + whole.stderr
    path = tmp_path / "killed"

    def done():
        return len(list((path / "segments").glob("0*"))), len(list((path / "segments").glob(".*")))

    acknowledged = []
    for _ in kill_again_and_again([*arguments, "killed"], tmp_path, 20, done):
        if (path / "manifest.json").exists():
            now = ids(path)
            assert now == list(texts)[: len(now)]
            assert now[: len(acknowledged)] == acknowledged
            acknowledged = now
    assert state(path) == state(tmp_path / "whole")
    assert not check(path).damaged
    assert files(path) == files(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("change", ["delete", "compact"])
def test_a_change_that_is_killed_is_made_whole_or_not_at_all(index, tmp_path, change):
    """At every step of a change: each call that alters the disk ends the process in its place."""
    delete(index, ["heat"], quiet)
    before = ids(index)
    after = [key for key in before if key not in ("lift", "lens")] if change == "delete" else before
    call = "delete(path, ['lift', 'lens'])" if change == "delete" else "compact(path)"
    script = f"""
import os, sys, shutil
from pathlib import Path
from colbert_zero.serving.changing import compact, delete
left = int(sys.argv[2])
def dying(function):
    def call(*args, **kwargs):
        global left
        left -= 1
        if left < 0: os._exit(9)
        return function(*args, **kwargs)
    return call
for module, name in ((os, "replace"), (os, "fsync"), (shutil, "rmtree"), (os, "unlink")):
    setattr(module, name, dying(getattr(module, name)))
path = Path(sys.argv[1])
{call}
"""
    outcomes = set()
    for step in range(60):
        copy = tmp_path / "copy"
        shutil.copytree(index, copy)
        ended = subprocess.run([sys.executable, "-c", script, str(copy), str(step)], env=environment(),
                               capture_output=True, text=True)  # fmt: skip
        now = ids(copy)
        assert now in (before, after)
        outcomes.add(tuple(now))
        assert not check(copy).damaged
        if change == "compact":
            compact(copy, tell=quiet)
            assert ids(copy) == after
        shutil.rmtree(copy)
        if ended.returncode == 0:
            break
        assert ended.returncode == 9, ended.stderr
    else:
        pytest.fail("never ended")
    assert outcomes == {tuple(before), tuple(after)}
