import gzip
import io
import json
import tracemalloc

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colbert_zero.data.collection import Collection, Rules
from colbert_zero.data.layouts import load_beir, load_collection, load_hub, write_beir
from colbert_zero.errors import ColbertZeroError
from colbert_zero.evaluation.ranking import rank_bm25
from helpers import DOCUMENTS, QRELS, QUERIES

CORPUS = ['{"_id": "d1", "title": "T", "text": "one"}', '{"_id": "d2", "text": "two"}']
QUERY_LINES = ['{"_id": "q1", "text": "first"}', '{"_id": "q2", "text": "never judged"}']
HEADER = "query-id\tcorpus-id\tscore"


@pytest.fixture
def beir(tmp_path):
    """Write a collection in BEIR layout, any part of which may be given, and return its folder."""

    def write(corpus=CORPUS, queries=QUERY_LINES, qrels=(HEADER, "q1\td1\t2", "q1\td2\t0")):
        (tmp_path / "qrels").mkdir()
        for name, lines in (("corpus.jsonl", corpus), ("queries.jsonl", queries), ("qrels/test.tsv", qrels)):
            raw = [line if isinstance(line, bytes) else line.encode() for line in lines]
            (tmp_path / name).write_bytes(b"".join(line + b"\n" for line in raw))
        return tmp_path

    return write


def test_a_beir_folder_is_read(beir):
    collection = load_beir(beir())
    assert list(collection.documents()) == [("d1", "T one"), ("d2", "two")]
    assert list(collection.documents()) == list(collection.documents())
    assert collection.documents_count == 2
    assert collection.qrels == {"q1": {"d1": 2, "d2": 0}}


def test_only_judged_queries_are_kept(beir):
    assert load_beir(beir()).queries == {"q1": "first"}


def test_gzip_windows_line_ends_and_blank_lines_change_nothing(beir):
    folder = beir()
    expected = load_beir(folder).fingerprint
    (folder / "corpus.jsonl.gz").write_bytes(gzip.compress(("\r\n".join(CORPUS) + "\r\n\r\n").encode()))
    (folder / "corpus.jsonl").unlink()
    assert load_beir(folder).fingerprint == expected


@pytest.mark.parametrize(
    ("title", "text", "expected"),
    [("", "b", "b"), (None, "b", "b"), ("a", "", "a"), ("", "", ""), ("a", "b", "a b")],
)
def test_the_title_comes_first_when_there_is_one(beir, title, text, expected):
    row = json.dumps({"_id": "d1", "title": title, "text": text})
    folder = beir(corpus=[row], qrels=[HEADER, "q1\td1\t1"])
    assert list(load_beir(folder).documents()) == [("d1", expected)]


MISTAKES = {
    "broken JSON": ({"corpus": [CORPUS[0], '{"_id": "d2", ']}, r"corpus\.jsonl:2: broken JSON \(.*column 15"),
    "no object": ({"corpus": ["[1]"]}, r"corpus\.jsonl:1: not an object"),
    "no id": (
        {"corpus": ['{"id": "d1", "text": "x"}']},
        r"corpus\.jsonl:1: no '_id', only 'id', 'text'; add it, or rename 'id'",
    ),
    "no text": ({"queries": ['{"_id": "q1"}']}, r"queries\.jsonl:1: no 'text', only '_id'; add it"),
    "fraction as id": (
        {"corpus": ['{"_id": 1.5, "text": "x"}']},
        r'corpus\.jsonl:1: _id is 1\.5, not a string; write "1\.5"',
    ),
    "empty id": ({"corpus": ['{"_id": "", "text": "x"}']}, r"corpus\.jsonl:1: the _id is empty"),
    "text of another type": ({"corpus": ['{"_id": "d1", "text": [1]}']}, r"corpus\.jsonl:1: text is \[1\]"),
    "title of another type": (
        {"corpus": ['{"_id": "d1", "title": 5, "text": ""}']},
        r":1: title is 5, not a string",
    ),
    "document twice": (
        {"corpus": [*CORPUS, CORPUS[0]]},
        r"corpus\.jsonl:3: the document id 'd1' is there twice",
    ),
    "query twice": ({"queries": QUERY_LINES * 2}, r"queries\.jsonl:3: the query id 'q1' is there twice"),
    "not UTF-8": (
        {"corpus": [CORPUS[0], b'{"_id": "d2", "text": "\xff"}']},
        r"corpus\.jsonl:2: not UTF-8 \(invalid",
    ),
    "NUL byte": ({"corpus": [b'{"_id": "d1", "text": "\0"}']}, r"corpus\.jsonl:1: a NUL byte"),
    "NUL escaped": (
        {"corpus": [r'{"_id": "d1", "text": "\u0000"}']},
        r"corpus\.jsonl:1: text has a NUL character",
    ),
    "half a surrogate": (
        {"corpus": [r'{"_id": "d1", "text": "\ud800"}']},
        r"corpus\.jsonl:1: text has half a surr",
    ),
    "empty corpus": ({"corpus": []}, r"the corpus has no document"),
    "columns": (
        {"qrels": [HEADER, "q1\td1\t1", "q1 0 d1 1"]},
        r"test\.tsv:3: 4 column\(s\), not 3; write query-id",
    ),
    "another header": (
        {"qrels": ["qid\tdocid\trel", "q1\td1\t1"]},
        r"test\.tsv:1: the first line is 'qid\\tdocid\\trel'; write query-id TAB",
    ),
    "column of TREC's missing": (
        {"qrels": ["q1 0 d1 1", "q1 d2 0"]},
        r"test\.tsv:2: 3 column\(s\), not 4; write query 0 document grade",
    ),
    "grade": ({"qrels": [HEADER, "q1\td1\t0.5"]}, r"test\.tsv:2: the grade '0.5' is not an integer"),
    "grade in words": (
        {"qrels": [HEADER, "q1\td1\thigh"]},
        r"test\.tsv:2: the grade 'high' is not an integer",
    ),
    "two grades": ({"qrels": [HEADER, "q1\td1\t1", "q1\td1\t2"]}, r":3: .*'q1' and .*'d1' are judged twice"),
    "unknown query": (
        {"qrels": [HEADER, "q1\td1\t1", "q8\td1\t1", "q9\td1\t1"]},
        r"2 judgement\(s\) of a query that does not exist: 'q8' \(.*test\.tsv:3\), 'q9' \(.*:4\); add the",
    ),
    "unknown document": (
        {"qrels": [HEADER, *(f"q1\tx{i}\t1" for i in range(9))]},
        r"9 judgement\(s\) of a document that does not exist: 'x0' .*'x4' \(.*:6\), …; add the document, delete",
    ),
    "nothing judged": ({"qrels": [HEADER]}, r"no query is judged; the qrels are empty"),
    "empty qrels": ({"qrels": []}, r"test\.tsv:1: the first line is ''"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_message_with_its_place_and_mend(beir, mistake):
    parts, message = MISTAKES[mistake]
    with pytest.raises(ColbertZeroError, match=message) as error:
        load_beir(beir(**parts))
    assert "\n" not in str(error.value)


def test_missing_files_are_named(beir):
    folder = beir()
    with pytest.raises(ColbertZeroError, match=r"dev\.tsv does not exist; the splits of this collection: test"):
        load_beir(folder, split="dev")
    (folder / "corpus.jsonl").unlink()
    with pytest.raises(ColbertZeroError, match=r"has no corpus\.jsonl, corpus\.jsonl\.gz or corpus\.parquet"):
        load_beir(folder)


def test_a_damaged_gzip_file_is_named(beir):
    folder = beir()
    (folder / "corpus.jsonl").unlink()
    for damaged in (gzip.compress(b'{"_id": "d1", "text": "x"}\n')[:-9], b"plain"):
        (folder / "corpus.jsonl.gz").write_bytes(damaged)
        with pytest.raises(ColbertZeroError, match=r"corpus\.jsonl\.gz: damaged gzip"):
            load_beir(folder)


def test_whole_grades_written_as_floats_are_grades(beir):
    assert load_beir(beir(qrels=[HEADER, "q1\td1\t2.0", "q1\td2\t-1"])).qrels == {"q1": {"d1": 2, "d2": -1}}


words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
ids = st.text("abc 1é", min_size=1, max_size=3)


@settings(deadline=None, max_examples=30)
@given(
    st.dictionaries(ids, words, min_size=1, max_size=4),
    st.dictionaries(ids, words, min_size=1, max_size=3),
    st.data(),
)
def test_writing_and_reading_gives_the_same_collection(tmp_path_factory, documents, queries, data):
    grades = st.dictionaries(st.sampled_from(sorted(documents)), st.integers(-1, 3), min_size=1)
    qrels = {query_id: data.draw(grades) for query_id in queries}
    collection = Collection.from_memory("c", documents, queries, qrels)
    folder = tmp_path_factory.mktemp("collection") / "c"
    write_beir(collection, folder)
    again = load_beir(folder)
    assert dict(again.documents()) == documents
    assert (again.queries, again.qrels) == (queries, qrels)
    assert (again.name, again.fingerprint) == ("c", collection.fingerprint)


def test_any_change_of_content_changes_the_fingerprint():
    original = Collection.from_memory("tiny", DOCUMENTS, QUERIES, QRELS).fingerprint
    changes = [
        (DOCUMENTS | {"lift": "other"}, QUERIES, QRELS),
        (DOCUMENTS | {"new": ""}, QUERIES, QRELS),
        (DOCUMENTS, QUERIES | {"q1": "other"}, QRELS),
        (DOCUMENTS, QUERIES, QRELS | {"q5": {"rank": 2}}),
    ]
    fingerprints = {Collection.from_memory("tiny", *parts).fingerprint for parts in changes}
    assert len(fingerprints | {original}) == 5
    assert Collection.from_memory("other name", DOCUMENTS, QUERIES, QRELS).fingerprint == original


def test_in_memory_mistakes_are_told_too():
    with pytest.raises(ColbertZeroError, match="tiny: document 1: text is 5, not a string"):
        Collection.from_memory("tiny", {"d": 5}, {"q": "x"}, {"q": {"d": 1}})
    with pytest.raises(ColbertZeroError, match=r"1 judgement\(s\) of a document that does not exist: 'e'"):
        Collection.from_memory("tiny", {"d": "x"}, {"q": "x"}, {"q": {"e": 1}})


def test_the_corpus_is_streamed(beir):
    rows = [json.dumps({"_id": str(i), "text": f"{i} " * 5_000}) for i in range(400)]
    folder = beir(corpus=rows, qrels=[HEADER, "q1\t1\t1"])
    size = (folder / "corpus.jsonl").stat().st_size
    del rows
    tracemalloc.start()
    collection = load_beir(folder)
    assert sum(1 for _ in collection.documents()) == 400
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < size / 10


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Write parquet files and the README that names them, one configuration each, and return the folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "hub"

    def write(qrels_name="qrels", qrels_splits=("NanoTiny",), score=True, corpus_id="d1"):
        qrels = {"query-id": ["q1", "q1"], "corpus-id": ["d1", "d2"]} | ({"score": [2.0, 1.0]} if score else {})
        tables = {
            ("corpus", "NanoTiny"): {"_id": [corpus_id, "d2"], "title": ["T", ""], "text": ["one", "two"]},
            ("queries", "NanoTiny"): {"_id": ["q1"], "text": ["first"]},
        } | {(qrels_name, split): qrels for split in qrels_splits}
        lines = ["---", "configs:"]
        for config in dict.fromkeys(config for config, _ in tables):
            lines += [f"- config_name: {config}", "  data_files:"]
            lines += [f"  - split: {s}\n    path: {c}/{s}.parquet" for c, s in tables if c == config]
        for (config, split), table in tables.items():
            (folder / config).mkdir(parents=True, exist_ok=True)
            datasets.Dataset.from_dict(table).to_parquet(folder / config / f"{split}.parquet")
        (folder / "README.md").write_text("\n".join([*lines, "---"]))
        return str(folder)

    return write


def test_a_data_set_in_nanobeir_layout_is_read(hub):
    collection = load_hub(hub(), "NanoTiny")
    assert list(collection.documents()) == list(collection.documents()) == [("d1", "T one"), ("d2", "two")]
    assert (collection.queries, collection.qrels) == ({"q1": "first"}, {"q1": {"d1": 2, "d2": 1}})
    assert collection.name.endswith("hub/NanoTiny")


def test_a_data_set_in_mteb_layout_is_read(hub):
    collection = load_hub(hub("default", ("dev", "test")), "test")
    assert collection.qrels == {"q1": {"d1": 2, "d2": 1}}


def test_judgements_without_a_score_have_grade_1(hub):
    assert load_hub(hub(score=False)).qrels == {"q1": {"d1": 1, "d2": 1}}


def test_a_beir_folder_and_a_data_set_of_equal_content_have_one_fingerprint(hub, beir):
    folder = beir(qrels=[HEADER, "q1\td1\t2", "q1\td2\t1"])
    assert load_hub(hub()).fingerprint == load_beir(folder).fingerprint


def test_mistakes_in_a_data_set_are_told(hub, tmp_path):
    with pytest.raises(ColbertZeroError, match=r"qrels: the split None does not exist; there are 'dev', 'test'"):
        load_hub(hub(qrels_splits=("dev", "test")))
    with pytest.raises(ColbertZeroError, match=r"cannot read the data set .*nowhere"):
        load_hub(str(tmp_path / "nowhere"))


def test_a_data_set_without_qrels_is_told(hub):
    with pytest.raises(ColbertZeroError, match="has no configuration default but corpus, queries, judgements"):
        load_hub(hub("judgements"))


def test_a_wrong_row_of_a_data_set_is_named(hub):
    with pytest.raises(ColbertZeroError, match=r"corpus, row 1: the _id is empty"):
        load_hub(hub(corpus_id=""))


def test_whole_numbers_as_ids_are_text(tmp_path):
    rows = {"corpus": [{"_id": 7, "text": "wing"}, {"_id": "8", "text": "lift"}], "queries": [{"_id": 1, "text": "q"}]}
    for name, table in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n1\t7\t1\n")
    loaded = load_beir(tmp_path)
    assert loaded.queries == {"1": "q"}
    assert [document_id for document_id, _ in loaded.documents()] == ["7", "8"]
    assert loaded.qrels == {"1": {"7": 1}}


# A query that is a document (ArguAna), a number that both have by chance, a query that is answered by its own id.
ASKED = {"a": "it is said that wings lift", "1": "what lifts", "h": "held out"}
TEXTS = {"a": "Title: it is said that wings lift", "b": "wings lift", "1": "another text", "h": "held out, at length"}
ANSWERS = {"a": {"b": 1}, "1": {"b": 1}, "h": {"h": 1}}


@pytest.mark.parametrize(("rule", "own"), [(None, {"a"}), (True, {"a", "1"}), (False, set())])
def test_a_querys_own_document_is_left_out_where_it_is_the_query(tmp_path, rule, own):
    write_beir(Collection.from_memory("c", TEXTS, ASKED, ANSWERS), tmp_path / "c")
    loaded = load_beir(tmp_path / "c", rules=Rules(exclude_self=rule))
    assert loaded.own == own
    assert ("left out of their own rankings" in " ".join(loaded.peculiarities())) == bool(own)
    run = rank_bm25(loaded, 2)
    assert all(query not in [document for document, _ in run[query]] for query in own)
    assert run["h"][0][0] == "h"
    plain = load_beir(tmp_path / "c", rules=Rules(exclude_self=False))
    assert (loaded.fingerprint == plain.fingerprint) == (not own)


@pytest.mark.parametrize(
    ("rule", "missing", "told"), [(None, 1, True), (None, 3, False), ("error", 1, False), ("count", 30, True)]
)
def test_judgements_of_missing_documents_are_counted_where_few_or_asked_for(tmp_path, rule, missing, told):
    documents = {f"d{n}": f"note {n}" for n in range(40)}
    write_beir(
        Collection.from_memory("c", documents, {"q": "text"}, {"q": dict.fromkeys(documents, 1)}), tmp_path / "c"
    )
    with open(tmp_path / "c" / "qrels" / "test.tsv", "a") as file:
        file.writelines(f"q\tgone{n}\t1\n" for n in range(missing))
    if told:
        loaded = load_beir(tmp_path / "c", rules=Rules(on_missing=rule))
        assert loaded.missing == missing
        assert len(loaded.qrels["q"]) == 40 + missing
        assert f"{missing} judgements of documents that are not there" in loaded.peculiarities()[0]
    else:
        with pytest.raises(ColbertZeroError, match=r"of a document that does not exist.*on_missing: count"):
            load_beir(tmp_path / "c", rules=Rules(on_missing=rule))


def test_judged_queries_that_are_not_there_are_counted_told_and_left_out(beir):
    folder = beir(qrels=[HEADER, "q1\td1\t1", "q8\td1\t1", "q8\td2\t1", "q9\tgone\t1"])
    loaded = load_beir(folder, rules=Rules(on_missing="count"))
    assert set(loaded.qrels) == set(loaded.queries) == {"q1"}
    assert (loaded.missing_queries, loaded.missing) == (2, 0)
    assert loaded.peculiarities() == ["2 judged queries are not there, and left out (on_missing)"]


@pytest.mark.parametrize("rule", [None, "error", "count"])
def test_a_collection_of_which_no_judged_query_is_there_is_refused(beir, rule):
    folder = beir(qrels=[HEADER, "q8\td1\t1", "q9\td1\t1"])
    message = "none of the 2 judged queries is among the queries" if rule == "count" else "of a query that does not"
    with pytest.raises(ColbertZeroError, match=message):
        load_beir(folder, rules=Rules(on_missing=rule))


# ---- Layouts

TABLES = {
    "corpus": [{"_id": "d1", "title": "T", "text": "one"}, {"_id": "d2", "title": None, "text": "two"}],
    "queries": [{"_id": "q1", "text": "first"}, {"_id": "q2", "text": "never judged"}],
    "qrels": [
        {"query-id": "q1", "corpus-id": "d1", "score": 2},
        {"query-id": "q1", "corpus-id": "d2", "score": 0},
    ],
}


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet_bytes(rows):
    pq.write_table(pa.Table.from_pylist(rows), file := io.BytesIO())
    return file.getvalue()


def tabs(rows):
    return "".join("\t".join(map(str, row)) + "\n" for row in rows).encode()


WRITTEN = {
    ".jsonl": lines,
    ".jsonl.gz": lambda rows: gzip.compress(lines(rows)),
    ".parquet": parquet_bytes,
}

JUDGED = [tuple(row.values()) for row in TABLES["qrels"]]

QRELS_FILES = {
    "header": ("qrels/test.tsv", tabs([HEADER.split("\t"), *JUDGED])),
    "header, gzipped": ("qrels/test.tsv.gz", gzip.compress(tabs([HEADER.split("\t"), *JUDGED]))),
    "three columns": ("qrels/test.tsv", tabs(JUDGED)),
    "three words": ("qrels/test.txt", b"q1 d1 2\nq1  d2 0\n"),
    "four columns": ("qrels/test.tsv", tabs((q, 0, d, grade) for q, d, grade in JUDGED)),
    "four words": ("qrels/test.trec", b"q1 0 d1 2\r\nq1 Q0 d2 0\r\n"),
    "four words, gzipped": ("qrels/test.txt.gz", gzip.compress(b"q1 0 d1 2.0\nq1 0 d2 0\n")),
    **{f"objects{suffix}": (f"qrels/test{suffix}", write(TABLES["qrels"])) for suffix, write in WRITTEN.items()},
    "Parquet of MTEB": ("default/test-00000-of-00001.parquet", WRITTEN[".parquet"](TABLES["qrels"])),
}


def folder_of(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("qrels", QRELS_FILES)
@pytest.mark.parametrize("suffix", WRITTEN)
@pytest.mark.parametrize("place", ["{}", "{0}/{0}", "{}/test"])
def test_a_collection_is_the_same_in_every_layout(tmp_path, beir, place, suffix, qrels):
    name, content = QRELS_FILES[qrels]
    tables = {place.format(t) + suffix: WRITTEN[suffix](TABLES[t]) for t in ("corpus", "queries")}
    loaded = load_collection(str(folder_of(tmp_path / "other", {**tables, name: content})))
    assert loaded.fingerprint == load_beir(beir()).fingerprint
    assert list(loaded.documents()) == list(loaded.documents()) == [("d1", "T one"), ("d2", "two")]


def test_shards_are_read_in_order_and_of_their_split(tmp_path, beir):
    write = WRITTEN[".parquet"]
    shards = {f"corpus/test-0000{n}-of-00002.parquet": write([row]) for n, row in enumerate(TABLES["corpus"])}
    others = {"corpus/dev.parquet": write([{"_id": "x", "text": "of another split"}])}
    name, content = QRELS_FILES["Parquet of MTEB"]
    folder = folder_of(tmp_path / "p", shards | others | {"queries.jsonl": lines(TABLES["queries"]), name: content})
    assert load_beir(folder).fingerprint == load_beir(beir()).fingerprint
    with pytest.raises(ColbertZeroError, match=r"qrels/dev\.tsv does not exist; the splits of this collection: test$"):
        load_beir(folder, "dev")


def test_a_shard_that_changed_is_told(tmp_path):
    name, content = QRELS_FILES["three columns"]
    folder = folder_of(
        tmp_path, {"corpus/a.jsonl": lines(TABLES["corpus"]), "queries.jsonl": lines(TABLES["queries"]), name: content}
    )
    loaded = load_beir(folder)
    (folder / "corpus" / "a.jsonl").write_bytes(b"{}\n")
    with pytest.raises(ColbertZeroError, match=r"corpus/a\.jsonl: changed since it was first read"):
        list(loaded.documents())


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("corpus.parquet", b"PAR1 this is none PAR1", r"corpus\.parquet: not a readable Parquet file"),
        ("corpus.parquet", WRITTEN[".parquet"]([{"id": "d1", "text": "x"}]), r"corpus\.parquet, row 1: no '_id', only"),
        (
            "qrels/test.parquet",
            WRITTEN[".parquet"]([{"qid": "q1"}]),
            r"row 1: no 'query-id' and 'corpus-id', only 'qid'",
        ),
        ("qrels/test.jsonl", b"[1]\n", r"test\.jsonl:1: no 'query-id' and 'corpus-id', only \[1\]; rename"),
        ("qrels/test.txt.gz", b"q1 0 d1 1", r"test\.txt\.gz: damaged gzip"),
    ],
)
def test_a_wrong_file_of_another_layout_is_named(tmp_path, file, content, message):
    whole = {"corpus.jsonl": lines(TABLES["corpus"]), "queries.jsonl": lines(TABLES["queries"])}
    whole |= {"qrels/test.tsv": tabs(JUDGED)}
    if "/" in file or file.startswith("corpus"):
        whole = {name: data for name, data in whole.items() if name.split(".")[0] != file.split(".")[0]}
    with pytest.raises(ColbertZeroError, match=message):
        load_beir(folder_of(tmp_path, whole | {file: content}))


@pytest.mark.parametrize("nothing", [{"title": None, "text": None}, {"text": None}, {"title": "", "text": " "}])
def test_documents_and_queries_without_a_text_are_read_and_counted(tmp_path, nothing):
    tables = {t: lines([*TABLES[t][:1], {"_id": "e", **nothing}]) for t in ("corpus", "queries")}
    loaded = load_beir(
        folder_of(tmp_path, {f"{t}.jsonl": c for t, c in tables.items()} | {"qrels/test.tsv": tabs([("e", "d1", 1)])})
    )
    assert loaded.empty == 2
    assert "2 documents or queries have no text" in loaded.peculiarities()
    assert rank_bm25(loaded, 2)
