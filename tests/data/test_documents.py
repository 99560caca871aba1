"""Documents with metadata: what is no text, too deep or too much poisons no index."""

from collections import Counter

import pytest

from colbert_zero.data.documents import (
    LONGEST_METADATA,
    GivenDocuments,
    documents_of,
    metadata_json,
    number_of_text,
    value_as_text,
)
from colbert_zero.errors import ColbertZeroError
from colbert_zero.files import to_json


def nested(depth, inside="x"):
    for _ in range(depth):
        inside = [inside] if depth % 2 else {"in": inside}
    return inside


def read(*rows):
    left_out = Counter()
    return [document for _, document in GivenDocuments([], [], rows=list(rows)).read(left_out)], dict(left_out)


FAULTS = [
    {"k": "\ud800"}, {"\ud800": "v"}, {"k": ["a", "\udfff"]}, {"k": {"\ud800": 1}}, {"k": {"in": {"deep": "\ud800"}}},
    {"k": "a\0b"}, {"k\0": "v"},
]  # fmt: skip


@pytest.mark.parametrize("metadata", FAULTS)
def test_metadata_that_are_no_text_are_a_bad_row(metadata):
    with pytest.raises(ColbertZeroError, match=r"^\[1\]: metadata that has (half a surrogate|a NUL)"):
        read({"id": "a", "text": "t"}, {"id": "b", "text": "t", **metadata})


@pytest.mark.parametrize("metadata", [r'{"k": "\ud800"}', r'{"\ud800": 1}', r'{"k": ["a\u0000"]}'])
def test_such_rows_of_a_file_may_be_passed_over_and_are_counted(tmp_path, metadata):
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"_id": "a", "text": "t", {metadata[1:]}\n{{"_id": "b", "text": "t"}}\n')
    with pytest.raises(ColbertZeroError, match="metadata that has "):
        list(documents_of([str(path)], "corpus").read(Counter()))
    left_out = Counter()
    found = [document.id for _, document in documents_of([str(path)], "corpus", "skip").read(left_out)]
    assert (found, sum(left_out.values())) == (["b"], 1)


@pytest.mark.parametrize("depth", [21, 900, 100_000])
def test_deep_metadata_are_left_out_and_counted(depth):
    [found], left_out = read({"id": "a", "text": "t", "deep": nested(depth), "flat": nested(20)})
    assert found.metadata == {"flat": nested(20)}
    assert left_out == {"metadata nested deeper than 20, of deep": 1}


def test_metadata_of_a_document_are_bounded_together_and_what_is_too_much_is_counted():
    many = {f"key{number}": "é" * 100 for number in range(2000)}
    [found], left_out = read({"id": "a", "text": "t", "title": "first", **many})
    assert 0.9 * LONGEST_METADATA < len(metadata_json(found.metadata)) <= LONGEST_METADATA
    assert found.metadata["title"] == "first"
    assert left_out == {"metadata beyond 65,536 characters of a document": 2001 - len(found.metadata)}


def test_the_id_of_a_given_document_is_its_id_whatever_else_it_has():
    [one, other], _ = read({"id": "a", "_id": "x", "text": "t"}, {"id": "b", "text": "t"})
    assert (one.id, one.metadata, other.id) == ("a", {"_id": "x"}, "b")


@pytest.mark.parametrize(
    "value", [1958.0, 1958, -3, 0, 1.5, -0.0, 1e20, 1e21, 1e300, 1e-7, 0.1 + 0.2, 2**53 + 1, 2**63, 10**20]
)
def test_a_number_has_one_text_form_however_it_was_written(value):
    forms = {str(value), to_json(value)}
    assert {number_of_text(form) for form in forms} == {value_as_text(value)}
