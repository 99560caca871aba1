import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from colbert_zero.data.corpus import corpus_files, corpus_texts
from colbert_zero.errors import ColbertZeroError

ROWS = [{"_id": "1", "title": "A wing", "text": "lifts."}, {"text": "Heat flows."}, {"text": " "}, {"text": None}]
TEXTS = ["A wing lifts.", "Heat flows.", None, None]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def test_documents_are_read_from_every_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_text(LINES)
    (tmp_path / "more.jsonl.gz").write_bytes(gzip.compress(LINES.encode()))
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "more.parquet")
    for path in (tmp_path, tmp_path / "corpus.jsonl", tmp_path / "more.jsonl.gz", tmp_path / "more.parquet"):
        assert list(corpus_texts(corpus_files([str(path)], "--corpus"))) == TEXTS
    assert len(corpus_files([str(tmp_path / "*"), str(tmp_path)], "--corpus")) == 3


def test_documents_of_mined_pairs_are_a_corpus_too(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text('{"query": "q", "document": "a text"}\n')
    assert list(corpus_texts([tmp_path / "pairs.jsonl"])) == ["a text"]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"body": "x"}', r"line 1: no `text`: the row has body; mend the row, or take it out"),
        ('{"text": 7}', "line 1: `text` is not text: found a number"),
        ('{"text": "x', "line 1: broken JSON"),
        ('{"title": 3, "text": "x"}', "line 1: `title` is not text"),
    ],
)
def test_a_document_that_cannot_be_used_is_told_with_its_place(tmp_path: Path, line: str, told: str) -> None:
    (tmp_path / "corpus.jsonl").write_text(line + "\n")
    with pytest.raises(ColbertZeroError, match=told):
        list(corpus_texts([tmp_path / "corpus.jsonl"]))
