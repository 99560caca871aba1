"""What is added, deleted and made compact is there whole or not at all, whoever reads, whenever one is killed."""

import errno
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing, suppress

import psutil
import pytest

from colbert_zero import processes
from colbert_zero.data.documents import documents_of
from colbert_zero.errors import ColbertZeroError
from colbert_zero.files import file_fingerprint
from colbert_zero.serving.index import building, checking, segments
from colbert_zero.serving.index.building import Settings, add, build
from colbert_zero.serving.index.changing import compact, delete
from colbert_zero.serving.index.checking import check
from colbert_zero.serving.index.manifest import canonical, read_manifest
from colbert_zero.serving.index.opened import Index
from helpers import DOCUMENTS, Commands, alive, environment, launch, succeed


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


def turn_bit(path, place=100):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("file", ["tokens", "texts"])
@pytest.mark.parametrize("segment", ["000002", "000004"], ids=["stays", "rewritten"])
def test_compacting_gives_no_turned_bit_a_fresh_checksum_and_drops_what_check_found(index, file, segment):
    path = index / "segments" / segment / file
    turn_bit(path, path.stat().st_size - 5 if file == "texts" else 100)
    if segment == "000004":
        delete(index, ["heat"], quiet)
        before = files(index)
        with pytest.raises(
            ColbertZeroError, match=r"segment 000004 is damaged: .*not what was written.*--drop-damaged"
        ):
            compact(index, tell=quiet)
        assert files(index) == before
    [damaged] = check(index).damaged
    told = []
    compact(index, True, told.append)
    assert damaged == segment
    assert f"segment {segment} is left out" in told[0]
    assert not check(index).damaged
    assert not any(key in list(DOCUMENTS)[6:12] for key in ids(index)) or segment == "000004"


def with_fresh_checksums(index, segment):
    """What is harmed looks as if it had been written so."""
    content = json.loads((index / "manifest.json").read_text())
    [entry] = [entry for entry in content["segments"] if entry["name"] == segment]
    for file in ("tokens", "texts"):
        entry[f"{file}_checksum"] = file_fingerprint(index / "segments" / segment / file)
    (index / "manifest.json").write_text(json.dumps(content))


@pytest.mark.parametrize("part", ["texts", "passages"])
@pytest.mark.parametrize("change", ["compact", "delete", "add"])
def test_a_writer_that_meets_content_it_cannot_read_says_so_with_the_mend(index, tmp_path, part, change):
    if part == "texts":
        path = index / "segments" / "000004" / "texts"
        content = bytearray(path.read_bytes())
        page = 4096
        content[page:] = b"\xff" * (len(content) - page)
    else:
        with opened(index) as one:
            place = one._segments["000004"]._places["lengths"]
        path = index / "segments" / "000004" / "tokens"
        content = bytearray(path.read_bytes())
        content[place.offset : place.offset + 4] = (2**31 - 1).to_bytes(4, "little")
    delete(index, ["heat"], quiet)
    path.write_bytes(content)
    with_fresh_checksums(index, "000004")
    changes = {
        "compact": lambda: compact(index, tell=quiet),
        "delete": lambda: delete(index, ["lift"], quiet),
        "add": lambda: add(index, corpus(tmp_path, {"new": "A wing."}, "more.jsonl"), tell=quiet),
    }
    if part == "passages" and change != "compact":
        changes[change]()
        return
    with pytest.raises(ColbertZeroError, match=r"segment 000004 is damaged: its .*--drop-damaged"):
        changes[change]()
    told = []
    compact(index, True, told.append)
    assert "segment 000004 is left out" in told[0]
    assert ids(index) == [key for key in list(DOCUMENTS)[:18] if key != "heat"]


def test_an_id_that_is_named_again_far_away_is_deleted_once(index, tmp_path):
    names = {f"n{n}": f"Wing {n}." for n in range(600)}
    add(index, corpus(tmp_path, names, "more.jsonl"), tell=quiet)
    assert delete(index, [*names, "n0", "n599", "n0"], quiet) == 600
    assert ids(index) == list(DOCUMENTS)


def test_making_a_finished_index_again_undoes_no_deletion_and_no_replacement(index, tmp_path):
    delete(index, ["drag"], quiet)
    add(index, corpus(tmp_path, {"lift": "Lift, told anew."}, "more.jsonl"), True, tell=quiet)
    before = state(index)
    again = build(str(tmp_path / "model"), corpus(tmp_path, DOCUMENTS), index, Settings(segment_documents=6), quiet)
    assert "it was finished before with this corpus, and nothing is changed" in again.told(index)[0]
    assert state(index) == before


@pytest.fixture
def dated(index, tmp_path):
    """The index, with documents of metadata."""
    rows = [{"_id": f"y{n}", "text": f"Wing {n}.", "year": 1958 + n, "even": n % 2 == 0} for n in range(3)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    add(index, documents_of([str(tmp_path / "rows.jsonl")], "--corpus"), tell=quiet)
    return index


@pytest.mark.parametrize(
    "ask",
    [
        lambda one: one.search("wing", where={"year": [1958]}),
        lambda one: one.search("wing", where={"year": None}),
        lambda one: one.search("wing", where={"year": "\udcff"}),
        lambda one: one.search("wing \udcff"),
        lambda one: one.search("wing \udcff", first="bm25:5"),
        lambda one: one.run({"q": "wing"}, where={"year": {}}),
        lambda one: one.explain("wing", "\udcff"),
        lambda one: one.explain("\udcff", "lift"),
    ],
)
def test_what_is_asked_wrongly_is_told_and_damages_nothing(dated, ask):
    with opened(dated) as one:
        with pytest.raises(ColbertZeroError, match=r"year: |half a surrogate pair|has no document"):
            ask(one)
        assert (one.damaged, len(one)) == ({}, 23)
        assert [hit.id for hit in one.search("wing", where={"year": 1959})] == ["y1"]
        assert {hit.id for hit in one.search("wing", where={"even": True})} == {"y0", "y2"}


def test_check_beside_a_writer_that_makes_the_index_compact_tells_no_damage(index, monkeypatch):
    delete(index, ["lift", "heat"], quiet)
    left = [lambda: compact(index, tell=quiet)]

    def read(path):
        manifest = read_manifest(path)
        while left:
            left.pop()()
        return manifest

    monkeypatch.setattr(checking, "read_manifest", read)
    state = check(index)
    assert (state.damaged, state.manifest) == ({}, read_manifest(index))


@pytest.mark.parametrize("step", ["_mapped", "Segment._read_deleted", "Texts"])
@pytest.mark.parametrize("use", [opened, check])
def test_an_index_made_compact_at_any_step_of_its_opening_is_opened_as_it_is_then(index, monkeypatch, step, use):
    delete(index, ["lift", "heat"], quiet)
    holder, name = (segments.Segment, "_read_deleted") if "." in step else (segments, step)
    plain, left = getattr(holder, name), [lambda: compact(index, tell=quiet)]

    def late(*args):
        while left:
            left.pop()()
        return plain(*args)

    monkeypatch.setattr(holder, name, late)
    state = use(index)
    assert (state.damaged, state.manifest) == ({}, read_manifest(index))


def test_an_index_that_never_stays_as_it_is_tells_what_it_lacks_and_answers_from_the_rest(index, monkeypatch):
    """As many segments come and go while it is opened as it has patience for."""
    manifest = read_manifest(index)
    (index / "segments/000001/texts").unlink()
    generations = iter(range(manifest.generation, 10_000))
    newer = lambda _: manifest.model_copy(update={"generation": next(generations)})  # noqa: E731
    monkeypatch.setattr("colbert_zero.serving.index.opened.read_manifest", newer)
    with opened(index) as one:
        assert list(one.damaged) == ["000001"]
        assert list(one._segments) == ["000002", "000003", "000004"]


@pytest.mark.parametrize("error", [errno.EMFILE, errno.EACCES, errno.ENOMEM])
@pytest.mark.parametrize("use", [opened, check, lambda index: compact(index, True, quiet)])
def test_a_file_that_the_system_does_not_open_is_told_and_not_taken_for_damage(index, monkeypatch, error, use):
    def refused(path, size):
        raise OSError(error, os.strerror(error), str(path))

    before = files(index)
    with monkeypatch.context() as patch:
        patch.setattr(segments, "_mapped", refused)
        with pytest.raises(ColbertZeroError, match=r"tokens: cannot be opened \(.*ulimit -n 8192"):
            use(index)
    assert files(index) == before
    assert not check(index).damaged


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOENT])
def test_a_file_that_the_disk_does_not_give_is_damage(index, monkeypatch, error):
    def refused(path):
        raise OSError(error, os.strerror(error), str(path))

    monkeypatch.setattr(segments, "file_fingerprint", refused)
    assert list(check(index).damaged) == ["000001", "000002", "000003", "000004"]


# ---- Made by several processes


def as_process(monkeypatch, rank, world):
    """This process becomes one of so many, the main one too, and none of the others ever comes."""
    monkeypatch.setattr(building, "process_rank", lambda: rank)
    monkeypatch.setattr(building, "world_size", lambda: world)
    monkeypatch.setattr(processes, "LAG_SECONDS", 0)


@pytest.mark.parametrize("rank", [0, 1, 2])
@pytest.mark.parametrize("step", ["build", "add"])
def test_what_one_of_three_processes_made_is_kept_and_the_index_ends_identical(index, tmp_path, step, rank):
    """Segments that are made out of order are named in order, whoever makes the others later."""
    settings, more = (
        Settings(segment_documents=3),
        DOCUMENTS | {"lift": "Lift, anew.", "new": "A wing.", "rib": "A rib."},
    )
    texts = DOCUMENTS if step == "build" else more

    def run(path):
        if step == "build":
            return build(str(tmp_path / "model"), corpus(tmp_path, texts), path, settings, quiet)
        return add(path, corpus(tmp_path, {key: f"{text} More." for key, text in texts.items()}), True, tell=quiet)

    ended, stopped = tmp_path / "ended", tmp_path / "stopped"
    if step == "add":
        shutil.copytree(index, ended)
        shutil.copytree(index, stopped)
    run(ended)
    with pytest.MonkeyPatch.context() as patch:
        as_process(patch, rank, 3)
        with pytest.raises(ColbertZeroError, match=r"coming/0.*made by the main process, but after 0 s not to be seen"):
            run(stopped)
    assert len(read_manifest(stopped).segments) < len(read_manifest(ended).segments)
    made = len(list((stopped / "segments").iterdir()))
    added = run(stopped)
    assert len(list((stopped / "segments").iterdir())) > made
    assert added.documents + added.there == len(texts)
    assert state(stopped) == state(ended)
    assert files(stopped) == files(ended)


def test_a_slow_process_takes_what_the_main_one_has_named_meanwhile_as_new(index, tmp_path, monkeypatch):
    """Two processes: this one opens the index only after the main one's first segment is in the manifest."""
    more = {f"new{n}": f"Wing {n}." for n in range(24)}
    ended, slow = tmp_path / "ended", tmp_path / "slow"
    shutil.copytree(index, ended)
    shutil.copytree(index, slow)
    add(ended, corpus(tmp_path, more, "more.jsonl"), tell=quiet)
    begun = building._begun

    def broadcast(path, seen):
        """What the main process says, which then goes on before this one does."""
        said = begun(path, seen)
        main = building._Adding(path, encoder, said[0], seen)
        documents = [building.New(document, None) for _, document in documents_of(paths, "x").read(Counter())]
        main.make(said[0].next_segment, iter(documents[:6]))
        main.name_made()
        assert len(read_manifest(path).segments) == len(said[0].segments) + 1
        return said

    paths = [str(tmp_path / "more.jsonl")]
    with opened(slow) as one:
        encoder = one.encoder
    monkeypatch.setattr(building, "_begun", broadcast)
    with pytest.MonkeyPatch.context() as patch:
        as_process(patch, 1, 2)
        with suppress(ColbertZeroError):
            add(slow, corpus(tmp_path, more, "more.jsonl"), tell=quiet)
    monkeypatch.setattr(building, "_begun", begun)
    add(slow, corpus(tmp_path, more, "more.jsonl"), tell=quiet)
    assert ids(slow) == ids(ended)
    assert state(slow) == state(ended)


def test_what_a_killed_addition_made_goes_when_something_else_is_written(index, tmp_path, monkeypatch):
    more = corpus(tmp_path, {f"new{n}": f"Wing {n}." for n in range(20)}, "more.jsonl")
    with pytest.MonkeyPatch.context() as patch:
        as_process(patch, 1, 2)
        with pytest.raises(ColbertZeroError, match="not to be seen"):
            add(index, more, tell=quiet)
    assert (index / "coming" / "000006.json").exists()
    delete(index, ["lift"], quiet)
    assert not list((index / "coming").iterdir())
    add(index, more, tell=quiet)
    assert ids(index) == [key for key in DOCUMENTS if key != "lift"] + [f"new{n}" for n in range(20)]
    assert not check(index).damaged


@pytest.mark.parametrize("content", ["{}", "[", '{"entry": null}'])
def test_a_broken_record_of_a_made_segment_is_told_with_its_mend(index, tmp_path, content):
    more = corpus(tmp_path, {"new": "A wing."}, "more.jsonl")
    (index / "coming").mkdir(exist_ok=True)
    (index / "coming" / "000005.json").write_text(content)
    with pytest.raises(ColbertZeroError, match=r"000005.json: cannot be used .*; remove it, and start again"):
        add(index, more, tell=quiet)


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


def kill_again_and_again(command, folder, moments, done, worlds=(1,)):
    """Kill the command so many times at random moments, in a folder; then let it end."""
    random.seed(3)
    (folder / "script.py").write_text(SCRIPT)
    with Commands(folder) as commands:
        for moment in range(moments):
            before, world = done(), worlds[moment % len(worlds)]
            if world == 1:
                number = commands.start(*command)
            else:
                process = subprocess.Popen(launch(world, "script.py", *map(str, command)), cwd=folder,
                                           env=environment(), start_new_session=True, stdout=subprocess.DEVNULL,
                                           stderr=subprocess.DEVNULL)  # fmt: skip
                number = process.pid
            deadline = time.monotonic() + 120
            # Past its beginning, at a random moment of its work.
            while alive(number) and done() == before and time.monotonic() < deadline:
                time.sleep(0.005)
            time.sleep(random.uniform(0, 0.3))
            # torchrun's processes are sessions of their own.
            with suppress(psutil.NoSuchProcess):
                for one in [*psutil.Process(number).children(recursive=True), psutil.Process(number)]:
                    one.kill()
            commands.ended() if world == 1 else process.wait()
            yield
        if worlds[moments % len(worlds)] == 1:
            commands.succeed(*command)
        else:
            succeed(launch(worlds[moments % len(worlds)], "script.py", *map(str, command)), folder)


def random_moments(path):
    """Something to see of a run that writes an index: it has begun or made a segment."""
    return lambda: sorted(file.name for file in (path / "segments").glob("*"))


@pytest.fixture
def many(tiny_multi_vector, tmp_path):
    """A model and 2,000 documents in a folder; the arguments that index them, but --out."""
    tiny_multi_vector.save_pretrained(str(tmp_path / "model"), create_model_card=False)
    texts = {f"d{n}-{m}": f"{text} {n}" for n in range(100) for m, text in enumerate(DOCUMENTS.values())}
    corpus(tmp_path, texts)
    (tmp_path / "script.py").write_text(SCRIPT)
    return texts, ["index", "model", "--corpus", "corpus.jsonl", "--segment-documents", "50", "--out"]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("worlds", "moments"), [([1], 20), ([2, 3, 1], 3)])
def test_an_index_killed_at_random_moments_goes_on_and_ends_identical(many, tmp_path, worlds, moments):
    texts, arguments = many
    succeed([sys.executable, "script.py", *arguments, "whole"], tmp_path)
    path, acknowledged = tmp_path / "killed", []
    for _ in kill_again_and_again([*arguments, "killed"], tmp_path, moments, random_moments(path), worlds):
        if (path / "manifest.json").exists():
            now = ids(path)
            assert now == list(texts)[: len(now)]
            assert now[: len(acknowledged)] == acknowledged
            acknowledged = now
    assert state(path) == state(tmp_path / "whole")
    assert not check(path).damaged
    assert files(path) == files(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])
def test_several_processes_make_the_same_index_as_one(many, tmp_path, world):
    _, arguments = many
    succeed([sys.executable, "script.py", *arguments, "one"], tmp_path)
    out = succeed(launch(world, "script.py", *arguments, "several"), tmp_path)
    assert out.count("several: 2,000 documents added") == 1
    assert state(tmp_path / "several") == state(tmp_path / "one")
    assert files(tmp_path / "several") == files(tmp_path / "one")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_addition_killed_at_random_moments_goes_on_and_ends_identical(many, tmp_path):
    """Half of its documents are new, the others take the place of those that are there."""
    texts, arguments = many
    more = {key if n % 2 else f"{key}-new": f"{text} More." for n, (key, text) in enumerate(texts.items())}
    corpus(tmp_path, more, "more.jsonl")
    succeed([sys.executable, "script.py", *arguments, "whole"], tmp_path)
    path = tmp_path / "killed"
    shutil.copytree(tmp_path / "whole", path)
    addition = ["--corpus", "more.jsonl", "--replace"]
    succeed([sys.executable, "script.py", "index", "add", "whole", *addition], tmp_path)
    wanted, seen = ids(tmp_path / "whole"), 0
    for _ in kill_again_and_again(
        ["index", "add", "killed", *addition], tmp_path, 10, random_moments(path), [1, 1, 1, 2]
    ):
        now = ids(path)
        assert sorted(key.removesuffix("-new") for key in now if not key.endswith("-new")) == sorted(texts)
        assert len(now) >= seen
        seen = len(now)
    assert ids(path) == wanted
    assert state(path) == state(tmp_path / "whole")
    assert files(path) == files(tmp_path / "whole")


WRITER = """
import json, sys
from pathlib import Path
from colbert_zero import processes
from colbert_zero.data.documents import documents_of
from colbert_zero.serving.index import building
from colbert_zero.serving.index.building import add
from colbert_zero.serving.index.changing import compact, delete
path, more = Path(sys.argv[1]), Path("more.jsonl")
names = lambda n: [f"{n}-{m}" for m in range(5)]
for n in range(12):
    more.write_text("".join(json.dumps({"_id": name, "text": f"The wing {name}."}) + "\\n" for name in names(n)))
    add(path, documents_of([str(more)], "--corpus"), tell=lambda _: None)
    if n:
        delete(path, names(n - 1), lambda _: None)
    compact(path, tell=lambda _: None)
"""


@pytest.mark.slow
def test_a_reader_beside_a_writing_process_sees_whole_states_and_never_damage(index, tmp_path):
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(index)], cwd=tmp_path, env=environment())
    seen, reader = set(), opened(index)
    while writer.poll() is None:
        answer = reader.search("wing", 100)
        groups = Counter(hit.id.split("-")[0] for hit in answer if "-" in hit.id)
        assert {hit.id for hit in answer if "-" not in hit.id} == set(DOCUMENTS)
        assert all(count == 5 for count in groups.values())
        assert len(groups) <= 2
        assert answer.notes == []
        seen |= set(groups)
        newer = reader.reopened()
        if newer is not reader:
            reader.close()
        reader = newer
    assert writer.returncode == 0
    assert len(seen) > 1


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
from colbert_zero.serving.index.changing import compact, delete
left = 0
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
for line in sys.stdin:
    if not (child := os.fork()):
        left = int(line)
        {call}
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
    copy = tmp_path / "copy"
    with subprocess.Popen([sys.executable, "-c", script, str(copy)], env=environment(), text=True,
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as forking:  # fmt: skip
        outcomes = kill_at_every_step(forking, index, copy, change, before, after)
    assert outcomes == {tuple(before), tuple(after)}


def kill_at_every_step(forking, index, copy, change, before, after):
    outcomes = set()
    for step in range(60):
        shutil.copytree(index, copy)
        forking.stdin.write(f"{step}\n")
        forking.stdin.flush()
        code = int(forking.stdout.readline())
        now = ids(copy)
        assert now in (before, after)
        outcomes.add(tuple(now))
        assert not check(copy).damaged
        if change == "compact":
            compact(copy, tell=quiet)
            assert ids(copy) == after
        shutil.rmtree(copy)
        if code == 0:
            return outcomes
        assert code == 9
    pytest.fail("never ended")
