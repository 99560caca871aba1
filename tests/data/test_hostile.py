"""Hostile data: every fault is refused before training with its place and mend, or counted; never another exception."""

import gzip
import json
import os
import re
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from colbert_zero.data import readers, rows
from colbert_zero.data.layouts import load_beir, load_hub
from colbert_zero.data.prepared import Source
from colbert_zero.errors import ColbertZeroError
from colbert_zero.files import LONGEST_TEXT
from example_sources import (
    DOCUMENTS,
    PAIRS,
    QUERIES,
    SCORED,
    TRAIN,
    hub_folder,
    jsonl,
    parquet,
    prepare,
    read,
    refusal,
)

# A long run: HOSTILE_EXAMPLES=20000 pytest tests/test_hostile.py
EXAMPLES = int(os.environ.get("HOSTILE_EXAMPLES", "40"))
fuzz = settings(
    deadline=None, max_examples=EXAMPLES, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
MEND = "Mend the row, or set `sources.s.on_bad_rows: skip` to pass over such rows and count them"


# ---- Rows: refused with file, row and mend, or passed over and counted


def bad_text(text: bytes) -> pa.Array:
    """A column of three texts, the second of which is these bytes."""
    values = [b"good", text, b"good"]
    ends = [sum(map(len, values[:n])) for n in range(4)]
    buffers = [None, pa.array(ends, pa.int32()).buffers()[1], pa.py_buffer(b"".join(values))]
    return pa.Array.from_buffers(pa.string(), 3, buffers)


def column(values: list[Any], kind: pa.DataType | None = None) -> pa.Array:
    return pa.array(values, kind)


TEXTS = column(["a", "b", "c"])
TWO_TEXTS = column([["a", "b"]] * 3)
FAR_AWAY = column([0, 1 << 60, 0], pa.timestamp("ms"))
# The second of three rows is bad: (fault, columns, how the message goes on after the place).
PARQUET_FAULTS = {
    "invalid UTF-8": ({"query": bad_text(b"\xff\xfe"), "document": TEXTS}, "invalid UTF-8: write the texts as UTF-8"),
    "NUL": ({"query": bad_text(b"a\0b"), "document": TEXTS}, "`query` has a NUL character"),
    "null": ({"query": TEXTS, "document": column(["a", None, "c"])}, "`document` is not text: found nothing (null)"),
    "white space": ({"query": column(["a", " \n\u00a0", "c"]), "document": TEXTS}, "`query` is empty"),
    "too long": ({"query": column(["a", "x" * 1_000_001, "c"]), "document": TEXTS}, "`query` is too long: 1,000,001"),
    "a date beyond Python's": ({"query": TEXTS, "document": TEXTS, "t": FAR_AWAY}, "a value that cannot be read: "),
    "a list for a text": (
        {"query": TEXTS, "document": TEXTS, "negative": column([["n"], ["n", None], []])},
        "`negative` is not text: found nothing (null)",
    ),
    "a null score": (
        {"query": TEXTS, "documents": TWO_TEXTS, "scores": column([[1.0, 2.0], [1.0, None], [1.0, 2.0]])},
        "`scores` has something that is no finite number: None",
    ),
    "a NaN score": (
        {"query": TEXTS, "documents": TWO_TEXTS, "scores": column([[1.0, 2.0], [1.0, float("nan")], [1.0, 2.0]])},
        "`scores` has something that is no finite number: nan",
    ),
    "a null list": (
        {"query": TEXTS, "documents": column([["a", "b"], None, ["a", "b"]]), "scores": column([[1.0, 2.0]] * 3)},
        "`documents` is not a list of two or more: found nothing (null)",
    ),
}


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("kind", ["parquet", "hub"])
@pytest.mark.parametrize("fault", PARQUET_FAULTS)
def test_a_bad_row_of_a_table_is_named_or_counted(tmp_path: Path, fault: str, kind: str) -> None:
    columns, message = PARQUET_FAULTS[fault]
    path = tmp_path / "r.parquet"
    if kind == "hub":
        path = Path(hub_folder(tmp_path / "hub", {"first": PAIRS[:1]})) / "first.parquet"
    pq.write_table(pa.table(columns), path)
    spec = {"kind": kind, "path": str(path if kind == "parquet" else path.parent)}
    told = refusal(tmp_path, spec)
    assert told.startswith(f"{'r.parquet' if kind == 'parquet' else 'hub (first)'}, row 2: {message}")
    assert told.endswith(MEND)
    source = prepare(tmp_path, {**spec, "on_bad_rows": "skip"})
    assert source.record["dropped"] == {message.split(":")[0]: 1}
    assert sum(source.record["parts"].values()) == 2


JSON_FAULTS: dict[str, tuple[Any, str]] = {
    "a key twice": (b'{"query": "a", "query": "b", "document": "d"}', "broken JSON: the key query stands twice;"),
    "a key twice, inside": (b'{"query": "a", "document": {"x": 1, "x": 2}}', "broken JSON: the key x stands twice;"),
    "nested deeply": (b'{"a": ' * 100_000, "broken JSON: nested too deeply;"),
    "zero-width text": ({"query": "\u200b\ufeff", "document": "d"}, "`query` is empty"),
    "control characters": ({"query": "q", "document": "\x01\x7f"}, "`document` is empty"),
    "UTF-16": ('{"query": "q", "document": "d"}'.encode("utf-16"), "a NUL byte: this is not JSON in UTF-8"),
    "Latin-1": ('{"query": "é", "document": "d"}'.encode("latin-1"), "invalid UTF-8: save the file as UTF-8"),
    "two objects in a line": (b'{"query": "a"} {"query": "b"}', "broken JSON: Extra data, column 16;"),
    "NaN for a text": (b'{"query": NaN, "document": "d"}', "`query` is not text: found a number"),
    "a cut line": (b'{"query": "q", "docum', "broken JSON: Unterminated string starting at, column 16;"),
    "a text of 50 MB": ({"query": "x" * 50_000_000, "document": "d"}, "`query` is too long: 50,000,000 characters"),
}


@pytest.mark.parametrize("name", ["r.jsonl", "r.jsonl.gz"])
@pytest.mark.parametrize("fault", JSON_FAULTS)
def test_a_bad_line_is_named_or_counted(tmp_path: Path, fault: str, name: str) -> None:
    row, message = JSON_FAULTS[fault]
    path = jsonl(tmp_path / name, [PAIRS[0], row, PAIRS[1]])
    told = refusal(tmp_path, {"kind": "jsonl", "path": path})
    assert told.startswith(f"{name}, line 2: {message}")
    assert told.endswith(MEND)
    source = prepare(tmp_path, {"kind": "jsonl", "path": path, "on_bad_rows": "skip"})
    assert source.record["dropped"] == {message.split(":")[0]: 1}
    assert source.record["parts"] == {"r": 2}


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
def test_windows_line_ends_change_nothing(tmp_path: Path, line_end: bytes) -> None:
    content = line_end.join(json.dumps(row).encode() for row in PAIRS[:3])
    (tmp_path / "r.jsonl").write_bytes(content)
    source = prepare(tmp_path, {"kind": "jsonl", "path": str(tmp_path / "r.jsonl")})
    assert read(source)["s/r"][2] == {"query": "question 2", "document": "answer 2", "negatives": []}


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())]
)
def test_text_columns_of_any_arrow_type_are_texts(tmp_path: Path, kind: pa.DataType) -> None:
    texts = TEXTS.dictionary_encode() if pa.types.is_dictionary(kind) else TEXTS.cast(kind)
    pq.write_table(pa.table({"query": texts, "document": texts}), tmp_path / "r.parquet")
    source = prepare(tmp_path, {"kind": "parquet", "path": str(tmp_path / "r.parquet")})
    assert [row["document"] for row in read(source)["s/r"]] == ["a", "b", "c"]


def test_a_row_longer_than_memory_should_hold_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "_LONGEST_ROW", 5)
    path = parquet(tmp_path / "r.parquet", [{"query": "q", "document": "d", "negative": ["abc", "def"]}])
    assert "`negative` is too long: 6 characters together, at most 5" in refusal(
        tmp_path, {"kind": "parquet", "path": path}
    )


# ---- Files: refused, whatever `on_bad_rows` says


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def wrong_footer(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-8] + (1 << 30).to_bytes(4, "little") + b"PAR1")


def column_twice(path: Path) -> None:
    pq.write_table(pa.Table.from_arrays([TEXTS, TEXTS, TEXTS], ["query", "query", "document"]), path)


def links_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


def pipe_instead(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def blank(path: Path) -> None:
    path.write_bytes(b"\n  \r\n\t\n" * 50)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def no_rows(path: Path) -> None:
    pq.write_table(pa.table({"query": column([], pa.string()), "document": column([], pa.string())}), path)


FILE_FAULTS = [
    ("r.jsonl", blank, "r.jsonl has no usable row; mend it, or take it out of sources.s"),
    ("r.jsonl", empty, "r.jsonl has no usable row"),
    ("r.jsonl", folder_instead, "sources.s.path: r.jsonl is a folder; write r.jsonl/* for its files"),
    ("r.jsonl", pipe_instead, "sources.s.path: r.jsonl is no ordinary file; copy its rows into one"),
    ("r.jsonl", links_to_itself, "r.jsonl: cannot be read (Too many levels of symbolic links)"),
    ("r.jsonl.gz", cut, "r.jsonl.gz: damaged gzip file after line "),
    ("r.jsonl.gz", empty, "r.jsonl.gz has no usable row"),
    ("r.jsonl.gz", blank, "r.jsonl.gz: damaged gzip file after line 0 (Not a gzipped file"),
    ("r.parquet", cut, "r.parquet: not a readable Parquet file ("),
    ("r.parquet", wrong_footer, "r.parquet: not a readable Parquet file ("),
    ("r.parquet", empty, "r.parquet: not a readable Parquet file ("),
    ("r.parquet", no_rows, "r.parquet has no usable row"),
    ("r.parquet", column_twice, "r.parquet: a column stands twice: query, query, document; rename or drop one"),
]


@pytest.mark.parametrize("mode", ["error", "skip"])
@pytest.mark.parametrize(("name", "damage", "message"), FILE_FAULTS, ids=lambda value: getattr(value, "__name__", None))
def test_a_bad_file_is_named_with_its_mend(
    tmp_path: Path, name: str, damage: Callable[[Path], None], message: str, mode: str
) -> None:
    kind = "parquet" if name.endswith("parquet") else "jsonl"
    path = (parquet if kind == "parquet" else jsonl)(tmp_path / name, PAIRS)
    damage(tmp_path / name)
    assert refusal(tmp_path, {"kind": kind, "path": path, "on_bad_rows": mode}).startswith(message)


def test_a_binary_column_is_told(tmp_path: Path) -> None:
    pq.write_table(pa.table({"query": column([b"a", b"b"]), "document": column(["a", "b"])}), tmp_path / "r.parquet")
    told = refusal(tmp_path, {"kind": "parquet", "path": str(tmp_path / "r.parquet")})
    assert told.startswith("r.parquet, row 1: `query` is not text: found bytes (a binary column)")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_one_may_not_read_is_named(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "r.jsonl", PAIRS)
    (tmp_path / "r.jsonl").chmod(0)
    assert refusal(tmp_path, {"kind": "jsonl", "path": path}) == (
        "r.jsonl: cannot be read (Permission denied); mend it or its rights"
    )


def test_a_file_whose_reading_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    path = jsonl(tmp_path / "r.jsonl", PAIRS)
    prepare(tmp_path, {"kind": "jsonl", "path": path})
    monkeypatch.setattr("colbert_zero.files.open", refuse, raising=False)
    told = "r.jsonl: cannot be read (Permission denied); mend it or its rights"
    assert refusal(tmp_path / "again", {"kind": "jsonl", "path": path}).endswith(told)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not allow such names")
def test_a_file_name_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    Path(jsonl(tmp_path / "r.jsonl", PAIRS)).rename(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.jsonl"))
    told = refusal(tmp_path, {"kind": "jsonl", "path": str(tmp_path / "*.jsonl")})
    assert "a name that is not UTF-8; rename it" in told


def test_a_folder_that_links_to_one_above_it_gives_each_file_once(tmp_path: Path) -> None:
    jsonl(tmp_path / "a/r.jsonl", PAIRS[:3])
    (tmp_path / "a/up").symlink_to("..")
    source = prepare(tmp_path, {"kind": "jsonl", "path": str(tmp_path / "**/*.jsonl")})
    assert source.record["parts"] == {"r": 3}


def test_folders_that_link_to_each_other_are_refused_before_the_end_of_time(tmp_path: Path) -> None:
    jsonl(tmp_path / "a/r.jsonl", PAIRS[:3])
    for name in ("a/one", "a/two"):
        (tmp_path / name).symlink_to("..")
    told = refusal(tmp_path, {"kind": "jsonl", "path": str(tmp_path / "**/*.jsonl")})
    assert told.endswith("again and again; a folder links to one above it, remove the link")


def test_a_gzip_bomb_is_refused_in_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("colbert_zero.files.LONGEST_LINE", 1 << 22)
    with gzip.open(tmp_path / "r.jsonl.gz", "wb", compresslevel=1) as file:
        for _ in range(256):
            file.write(bytes(1 << 20))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    told = refusal(tmp_path, {"kind": "jsonl", "path": str(tmp_path / "r.jsonl.gz")})
    assert told == "r.jsonl.gz, line 1: longer than 4 MB; is this JSON lines, one object a line?"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def test_long_rows_of_a_parquet_file_come_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "_BATCH_BYTES", 1 << 16)
    sizes = []
    whole = readers._python_rows
    monkeypatch.setattr(readers, "_python_rows", lambda batch: sizes.append(len(batch)) or whole(batch))
    path = parquet(tmp_path / "r.parquet", [{"query": f"q {n}", "document": f"{n:09}" * 1000} for n in range(100)])
    prepare(tmp_path, {"kind": "parquet", "path": path})
    assert sum(sizes) == 100
    assert max(sizes) < 15


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("way", ["a path", "a link"])
def test_a_hub_folder_cannot_reach_files_outside_it(tmp_path: Path, way: str, streaming: bool) -> None:
    folder = Path(hub_folder(tmp_path / "hub", {"first": PAIRS[:4]}))
    secret = parquet(tmp_path / "secret.parquet", PAIRS[:2])
    if way == "a path":
        readme = (folder / "README.md").read_text()
        (folder / "README.md").write_text(readme.replace("path: first.parquet", "path: ../secret.parquet"))
    else:
        (folder / "first.parquet").unlink()
        (folder / "first.parquet").symlink_to(secret)
    told = refusal(tmp_path, {"kind": "hub", "path": str(folder), "streaming": streaming})
    assert "(first): its README or a link leads to " in told
    assert told.endswith("outside the folder; copy the file there")


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    "content", [b"\xff", b"---\nconfigs: [\n---", b"---\nconfigs: 7\n---", b"---\nconfigs:\n- a\n---"]
)
def test_a_hub_folder_with_a_broken_readme_is_refused(tmp_path: Path, content: bytes) -> None:
    folder = Path(hub_folder(tmp_path / "hub", {"first": PAIRS[:4]}))
    (folder / "README.md").write_bytes(content)
    assert refusal(tmp_path, {"kind": "hub", "path": str(folder)}).startswith("sources.s: cannot load 'hub': ")


@pytest.mark.usefixtures("offline")
def test_a_changed_file_of_a_hub_folder_is_read_again_also_when_its_time_did_not_change(tmp_path: Path) -> None:
    folder = Path(hub_folder(tmp_path / "hub", {"first": PAIRS[:4]}))
    spec = {"kind": "hub", "path": str(folder)}
    prepare(tmp_path, spec)
    status = (folder / "first.parquet").stat()
    parquet(folder / "first.parquet", PAIRS[10:20])
    os.utime(folder / "first.parquet", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert read(prepare(tmp_path, spec))["s/first"][0]["query"] == "question 10"


# ---- Files that change


def test_a_file_that_changes_while_it_is_read_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = jsonl(tmp_path / "r.jsonl", PAIRS)
    original = readers._jsonl_rows

    def changing(file: Path) -> Any:
        yield from original(file)
        jsonl(file, PAIRS[:-1])

    monkeypatch.setattr(readers, "_jsonl_rows", changing)
    assert refusal(tmp_path, {"kind": "jsonl", "path": path}) == (
        "sources.s: a file changed while it was read; leave the files as they are and start the run again"
    )


def test_a_file_that_goes_while_it_is_read_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = jsonl(tmp_path / "r.jsonl", PAIRS)
    original = readers._jsonl_rows
    monkeypatch.setattr(readers, "_jsonl_rows", lambda file: file.unlink() or original(file))
    assert refusal(tmp_path, {"kind": "jsonl", "path": path}) == "r.jsonl does not exist"


def test_a_file_changed_since_the_last_run_is_prepared_anew(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "r.jsonl", PAIRS)
    first = prepare(tmp_path, {"kind": "jsonl", "path": path})
    jsonl(tmp_path / "r.jsonl", PAIRS[:-1])
    second = prepare(tmp_path, {"kind": "jsonl", "path": path})
    assert second.id != first.id
    assert (len(first.parts["s/r"]), len(second.parts["s/r"])) == (30, 29)


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b'{"x": 1}', b'{"x": {"state": 1}}'])
def test_a_damaged_list_of_fingerprints_is_made_anew(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "fingerprints.json").write_bytes(content)
    assert prepare(tmp_path, {"kind": "jsonl", "path": jsonl(tmp_path / "r.jsonl", PAIRS)}).record["rows"] == 30


@fuzz
@given(data=st.data())
def test_any_bit_or_end_lost_from_a_prepared_source_is_recognised(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("prepared")
    spec = {"kind": "jsonl", "path": jsonl(folder / "r.jsonl", PAIRS)}
    source = prepare(folder, spec, documents=10)
    files = sorted(f for f in source.folder.rglob("*") if f.is_file() and f.name != "checksums.json")
    file = data.draw(st.sampled_from(files))
    content = bytearray(file.read_bytes())
    # Lengths differ by how long the preparation took.
    place = data.draw(st.integers(0, 999)) * len(content) // 1000
    if data.draw(st.booleans()):
        content[place] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del content[place:]
    file.write_bytes(content)
    # A file system's clock is coarse, and this follows the writing at once.
    os.utime(file, (1, 1))
    with pytest.raises(ColbertZeroError, match=re.escape(f"{file.name}: not as it was written; delete the folder")):
        prepare(folder, spec, documents=10)


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b"7", b'{"0.arrow": 1}', b'{"gone": {"state": [1, 2]}}'])
def test_a_damaged_list_of_checksums_is_recognised(tmp_path: Path, content: bytes) -> None:
    spec = {"kind": "jsonl", "path": jsonl(tmp_path / "r.jsonl", PAIRS)}
    (prepare(tmp_path, spec).folder / "checksums.json").write_bytes(content)
    with pytest.raises(ColbertZeroError, match="not as it was written; delete the folder"):
        prepare(tmp_path, spec)


def test_a_prepared_source_that_was_copied_is_opened(tmp_path: Path) -> None:
    spec = {"kind": "jsonl", "path": jsonl(tmp_path / "r.jsonl", PAIRS)}
    source = prepare(tmp_path, spec)
    for file in source.folder.iterdir():
        os.utime(file, (1, 1))
    assert read(prepare(tmp_path, spec)) == read(source)


# ---- Fuzzing


def check_clean(source: Source) -> int:
    """The rows; every text of them must be one that training can use."""
    for part in read(source).values():
        for row in part:
            texts = [row["query"], *row.get("documents", []), *row.get("negatives", [])]
            for text in [*texts, *([row["document"]] if "document" in row else [])]:
                assert isinstance(text, str)
                assert text.strip()
                assert "\0" not in text
                assert len(text) <= LONGEST_TEXT
                assert text.encode()
            assert all(abs(score) < 3.5e38 for score in row.get("scores", []))
            assert len(row.get("scores", [])) == len(row.get("documents", []))
    return source.record["rows"]


def check_refusal(error: ColbertZeroError, path: Path) -> None:
    message = str(error)
    assert message.isprintable()
    assert len(message) < 600 + 2 * len(str(path))
    assert re.match(rf"{re.escape(str(path))}(, (line|row) \d+: |: | has no usable row)", message)


@st.composite
def mutated(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes with a few of them flipped, inserted, deleted, doubled or cut off."""
    result = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(result)))
        stop = min(len(result), start + draw(st.integers(0, 12)))
        match draw(st.sampled_from(["flip", "insert", "delete", "splice", "cut"])):
            case "flip" if start < len(result):
                result[start] ^= 1 << draw(st.integers(0, 7))
            case "insert":
                result[start:start] = draw(st.binary(max_size=8) | st.sampled_from(TOKENS))
            case "delete":
                del result[start:stop]
            case "splice":
                result[start:stop] = bytes(result[draw(st.integers(0, len(result))) :][:30])
            case "cut":
                del result[start:]
    return bytes(result)


TOKENS = [
    b"\n",
    b"\r\n",
    b"\0",
    b"\xff",
    b"\xef\xbb\xbf",
    b"NaN",
    b"1e999",
    b"null",
    b'"',
    b"}",
    b"[",
    b"\\ud800",
    b"9" * 5000,
]
LINES = (
    b"\n".join(json.dumps(row).encode() for row in [PAIRS[0], {**PAIRS[1], "negative": ["n", "m"]}, PAIRS[2]]) + b"\n"
)
SCORED_LINES = b"\n".join(json.dumps(row).encode() for row in SCORED) + b"\n"


@fuzz
@given(mutated(LINES) | mutated(SCORED_LINES), st.booleans(), st.booleans())
def test_mutated_lines_are_clean_rows_or_one_plain_message(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, skip: bool, zipped: bool
) -> None:
    folder = tmp_path_factory.mktemp("lines")
    path = folder / ("r.jsonl.gz" if zipped else "r.jsonl")
    path.write_bytes(gzip.compress(content) if zipped else content)
    spec = {"kind": "jsonl", "path": str(path), "on_bad_rows": "skip" if skip else "error"}
    try:
        source = prepare(folder, spec)
    except ColbertZeroError as error:
        check_refusal(error, path)
    else:
        kept = check_clean(source)
        assert kept + sum(source.record["dropped"].values()) == sum(bool(line.strip()) for line in content.split(b"\n"))
        assert skip or not source.record["dropped"]


@fuzz
@given(mutated(gzip.compress(SCORED_LINES, mtime=0)), st.booleans())
def test_mutated_gzip_is_clean_rows_or_one_plain_message(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, skip: bool
) -> None:
    folder = tmp_path_factory.mktemp("gzip")
    (folder / "r.jsonl.gz").write_bytes(content)
    spec = {"kind": "jsonl", "path": str(folder / "r.jsonl.gz"), "on_bad_rows": "skip" if skip else "error"}
    try:
        check_clean(prepare(folder, spec))
    except ColbertZeroError as error:
        check_refusal(error, folder / "r.jsonl.gz")


def written(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


PARQUET_BYTES = [written(pa.Table.from_pylist(rows)) for rows in (PAIRS, SCORED)]


@fuzz
@given(st.sampled_from(PARQUET_BYTES).flatmap(mutated), st.booleans())
def test_mutated_parquet_is_clean_rows_or_one_plain_message(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, skip: bool
) -> None:
    folder = tmp_path_factory.mktemp("parquet")
    (folder / "r.parquet").write_bytes(content)
    spec = {"kind": "parquet", "path": str(folder / "r.parquet"), "on_bad_rows": "skip" if skip else "error"}
    try:
        check_clean(prepare(folder, spec))
    except ColbertZeroError as error:
        check_refusal(error, folder / "r.parquet")


SCALARS: dict[pa.DataType, st.SearchStrategy[Any]] = {
    pa.string(): st.text(max_size=5),
    pa.large_string(): st.text(max_size=5),
    pa.binary(): st.binary(max_size=5),
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.float64(): st.floats(),
    pa.float32(): st.floats(width=32),
    pa.bool_(): st.booleans(),
    pa.timestamp("ns"): st.integers(-(2**63) + 1, 2**63 - 1),
    pa.decimal128(5, 2): st.decimals(-9, 9, places=2),
    pa.null(): st.none(),
}


@st.composite
def arrow_columns(draw: st.DrawFn, names: list[str]) -> pa.Table:
    """A table of one to four rows with any of these columns, each of any type, plain, in lists or in objects."""
    count = draw(st.integers(1, 4))
    table = {}
    for name in draw(st.lists(st.sampled_from(names), unique=True)):
        kind = draw(st.sampled_from(list(SCALARS)))
        value = st.none() | SCALARS[kind]
        match draw(st.sampled_from(["plain", "list", "object"])):
            case "list":
                kind, value = pa.list_(kind), st.none() | st.lists(value, max_size=3)
            case "object":
                kind, value = pa.struct([("x", kind)]), st.none() | st.fixed_dictionaries({"x": value})
        table[name] = pa.array(draw(st.lists(value, min_size=count, max_size=count)), kind)
    return pa.table(table)


@fuzz
@given(arrow_columns(["query", "document", "negative", "documents", "scores", "other"]), st.booleans())
def test_parquet_columns_of_any_type_are_clean_rows_or_one_plain_message(
    tmp_path_factory: pytest.TempPathFactory, table: pa.Table, skip: bool
) -> None:
    folder = tmp_path_factory.mktemp("columns")
    pq.write_table(table, folder / "r.parquet")
    spec = {"kind": "parquet", "path": str(folder / "r.parquet"), "on_bad_rows": "skip" if skip else "error"}
    try:
        source = prepare(folder, spec)
    except ColbertZeroError as error:
        check_refusal(error, folder / "r.parquet")
    else:
        assert check_clean(source) + sum(source.record["dropped"].values()) == len(table)


ANY_NUMBER = (
    st.none() | st.booleans() | st.floats() | st.integers() | st.integers(10**300, 10**310) | st.text(max_size=3)
)
ANY_ID = st.sampled_from(["0", 0, "d1", "d5", "x", "", "\ud800"]) | ANY_NUMBER
ANY_TRAIN = st.fixed_dictionaries(
    {
        "query_id": ANY_ID,
        "document_ids": st.lists(ANY_ID, max_size=4) | ANY_ID,
        "scores": st.lists(ANY_NUMBER, max_size=4) | ANY_NUMBER,
    }
)


@fuzz
@given(
    st.lists(ANY_TRAIN, max_size=3),
    st.lists(st.fixed_dictionaries({"query_id": ANY_ID, "text": st.text(max_size=3)}), max_size=3),
    st.booleans(),
)
def test_any_ids_and_scores_are_clean_rows_or_one_plain_message(
    tmp_path_factory: pytest.TempPathFactory, train: list[Any], queries: list[Any], skip: bool
) -> None:
    folder = tmp_path_factory.mktemp("three")
    tables = {"train": [*train, *TRAIN], "queries": [*QUERIES, *queries], "documents": DOCUMENTS}
    spec = {table: jsonl(folder / f"{table}.jsonl", rows) for table, rows in tables.items()}
    try:
        source = prepare(folder, {"kind": "jsonl", **spec, "on_bad_rows": "skip" if skip else "error"})
    except ColbertZeroError as error:
        assert not skip
        table = Path(str(error).split(",")[0]).stem
        assert table in ("train", "queries")
        check_refusal(error, folder / f"{table}.jsonl")
    else:
        dropped = sum(n for reason, n in source.record["dropped"].items() if not reason.startswith("queries: "))
        assert check_clean(source) + dropped == len(train) + len(TRAIN)


CORPUS = b"".join(json.dumps({"_id": f"d{n}", "title": "t", "text": f"text {n}"}).encode() + b"\n" for n in range(3))
ASKED = b"".join(json.dumps({"_id": f"q{n}", "text": f"query {n}"}).encode() + b"\n" for n in range(2))
QRELS = b"query-id\tcorpus-id\tscore\nq0\td1\t1\nq1\td2\t2\nq1\td0\t0\n"


def beir(folder: Path, **files: bytes) -> Path:
    (folder / "qrels").mkdir(parents=True)
    content = {"corpus": CORPUS, "queries": ASKED, "qrels": QRELS} | files
    for name, path in (("corpus", "corpus.jsonl"), ("queries", "queries.jsonl"), ("qrels", "qrels/test.tsv")):
        (folder / path).write_bytes(content[name])
    return folder


@fuzz
@given(
    st.sampled_from([("corpus", CORPUS), ("queries", ASKED), ("qrels", QRELS)]).flatmap(
        lambda file: st.tuples(st.just(file[0]), mutated(file[1]))
    )
)
def test_a_mutated_collection_is_sound_or_one_plain_message(
    tmp_path_factory: pytest.TempPathFactory, file: tuple[str, bytes]
) -> None:
    folder = beir(tmp_path_factory.mktemp("beir") / "c", **dict([file]))
    try:
        collection = load_beir(folder)
    except ColbertZeroError as error:
        message = str(error)
        assert message.isprintable()
        assert len(message) < 1200 + 10 * len(str(folder))
        assert message.startswith((str(folder), "c: "))
    else:
        documents = dict(collection.documents())
        assert len(documents) == collection.documents_count
        assert set(collection.qrels) == set(collection.queries)
        assert all(set(grades) <= set(documents) for grades in collection.qrels.values())
        assert all(isinstance(text, str) for text in [*documents.values(), *collection.queries.values()])


# ---- Collections


COLLECTION_FAULTS = {
    "nested deeply": ({"corpus": b"[" * 100_000}, "corpus.jsonl:1: broken JSON (nested too deeply)"),
    "a number of 5,000 digits": ({"corpus": b'{"_id": ' + b"9" * 5000 + b"}"}, "corpus.jsonl:1: broken JSON (Exceeds"),
    "a key twice": ({"corpus": b'{"_id": "a", "_id": "b", "text": ""}'}, "(the key _id stands twice)"),
    "a text of 1 MB": (
        {"corpus": json.dumps({"_id": "a", "text": "x" * 1_000_001}).encode()},
        "at most 1,000,000; mend the text",
    ),
    "a list as text": (
        {"corpus": json.dumps({"_id": "a", "text": [1] * 100_000}).encode()},
        "corpus.jsonl:1: text is [1, 1, 1,",
    ),
    "a grade beyond measure": (
        {"qrels": QRELS + b"q0\td2\t2000000000\n"},
        "test.tsv:5: the grade '2000000000' is beyond ±",
    ),
    "an infinite grade": ({"qrels": QRELS + b"q0\td2\tinf\n"}, "test.tsv:5: the grade 'inf' is not an integer"),
}


@pytest.mark.parametrize("fault", COLLECTION_FAULTS)
def test_a_fault_of_a_collection_is_one_short_message(tmp_path: Path, fault: str) -> None:
    files, message = COLLECTION_FAULTS[fault]
    with pytest.raises(ColbertZeroError) as caught:
        load_beir(beir(tmp_path / "c", **files))
    assert message in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(tmp_path))


def test_a_byte_order_mark_changes_no_collection(tmp_path: Path) -> None:
    plain = load_beir(beir(tmp_path / "plain"))
    marked = load_beir(beir(tmp_path / "marked", **{k: b"\xef\xbb\xbf" + v for k, v in MARKED.items()}))
    assert marked.fingerprint == plain.fingerprint


MARKED = {"corpus": CORPUS, "queries": ASKED, "qrels": QRELS}


@pytest.mark.parametrize("name", ["corpus.jsonl", "corpus.jsonl.gz"])
def test_a_line_without_end_is_refused_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("colbert_zero.files.LONGEST_LINE", 1 << 20)
    folder = beir(tmp_path / "c", corpus=b"x" * (1 << 21))
    if name.endswith(".gz"):
        (folder / name).write_bytes(gzip.compress((folder / "corpus.jsonl").read_bytes()))
        (folder / "corpus.jsonl").unlink()
    with pytest.raises(ColbertZeroError, match=f"{name}, line 1: longer than 1 MB"):
        load_beir(folder)


@pytest.mark.parametrize("when", ["between two readings", "while it is read", "gone"])
def test_a_corpus_that_changes_is_noticed(tmp_path: Path, when: str) -> None:
    collection = load_beir(beir(tmp_path / "c"))
    documents = collection.documents() if when == "while it is read" else iter(())
    next(documents, None)
    if when == "gone":
        (tmp_path / "c" / "corpus.jsonl").unlink()
    else:
        (tmp_path / "c" / "corpus.jsonl").write_bytes(CORPUS + CORPUS.replace(b'"d', b'"e'))
    with pytest.raises(ColbertZeroError, match=r"corpus.jsonl: changed since it was first read; leave it as it is"):
        list(documents if when == "while it is read" else collection.documents())


@pytest.mark.usefixtures("offline")
def test_a_bad_row_of_a_hub_collection_is_named(tmp_path: Path) -> None:
    tables = {
        "corpus": [{"_id": "good", "text": "a"}],
        "queries": [{"_id": "q", "text": "b"}],
        "qrels": [{"query-id": "q", "corpus-id": "good", "score": 1}],
    }
    folder = Path(hub_folder(tmp_path / "hub", tables))
    pq.write_table(pa.table({"_id": column(["x", "y", "z"]), "text": bad_text(b"\xff")}), folder / "corpus.parquet")
    with pytest.raises(ColbertZeroError, match=r"corpus, row 2: cannot be read"):
        load_hub(str(folder))
    (folder / "corpus.parquet").unlink()
    (folder / "corpus.parquet").symlink_to(parquet(tmp_path / "secret.parquet", tables["corpus"]))
    with pytest.raises(ColbertZeroError, match=r"leads to .*, outside the folder"):
        load_hub(str(folder))


def test_nothing_of_a_refused_source_stays_behind(tmp_path: Path) -> None:
    refusal(tmp_path, {"kind": "jsonl", "path": jsonl(tmp_path / "r.jsonl", [*PAIRS, b"broken"])})
    assert [file.name for file in (tmp_path / "data").iterdir()] == ["fingerprints.json"]
