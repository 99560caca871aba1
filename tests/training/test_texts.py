"""Texts that cutting makes equal are refused or told, and what it takes is counted."""

from types import SimpleNamespace

import pytest
from datasets import Dataset

from colbert_zero.data.prepared import ArrowPart
from colbert_zero.errors import ColbertZeroError
from colbert_zero.models.encoders import Alignment, assemble, tokeniser
from colbert_zero.training.log import Log
from colbert_zero.training.texts import check_texts

PREFIX = "wing lift drag of a wing in heat and flow "
WORDS = ("lift", "drag", "heat", "flow", "lens", "root", "lung", "rank")


def pairs(query=lambda n: WORDS[n], document=lambda n: f"{WORDS[n]} of a wing"):
    return [{"query": query(n), "document": document(n), "negatives": []} for n in range(8)]


def candidates(query, document):
    return [{"query": query(n), "documents": [document(n)] * 2, "scores": [1.0, 0.0]} for n in range(8)]


def check(backbone, said, query_tokens=8, document_tokens=16, **parts):
    alignment = Alignment("q: ", "", "[Q]", "[D]", query_tokens, document_tokens)
    model = assemble(str(backbone), "multi-vector", alignment, 8, seed=0, phase="one")
    training = SimpleNamespace(name="one", alignment=alignment)
    log = Log(5, 1, say=said.append)
    parts = {f"s/{name}": ArrowPart(f"s/{name}", Dataset.from_list(rows), None) for name, rows in parts.items()}
    return check_texts(training, model, parts, tokeniser(model), log), log.told


EQUAL = {
    "queries cut": (pairs(query=lambda n: PREFIX + WORDS[n]), "one.query_tokens: all 8 queries .* cut to 8 tokens"),
    "documents cut": (
        pairs(document=lambda n: PREFIX * 2 + WORDS[n]),
        "one.document_tokens: all 8 documents .* 16 tok",
    ),
    "queries unknown": (
        pairs(query=lambda n: f"{n + 1}"),
        "one.sources: the tokenizer makes the same tokens of all 8 d",
    ),
    "queries": (pairs(query=lambda n: "lift"), "one.sources: all 8 queries looked at are the same text"),
    "documents": (pairs(document=lambda n: "lift"), "one.sources: all 8 documents looked at are the same text"),
    "candidates": (candidates(lambda n: WORDS[n], lambda n: "lift"), "one.sources: all 16 documents .* the same text"),
}


@pytest.mark.parametrize(("rows", "message"), EQUAL.values(), ids=EQUAL)
def test_equal_texts_are_refused_and_told_where_another_part_has_others(backbone, rows, message):
    with pytest.raises(ColbertZeroError, match=message):
        check(backbone, [], rows=rows)
    if "documents" not in rows[0]:
        _, told = check(backbone, said := [], rows=rows, others=pairs())
        assert len(told) == 1
        assert told[0] in said
        assert "(s/rows)" in told[0]


def test_what_is_cut_is_counted_said_and_no_warning(backbone):
    found, told = check(backbone, said := [], rows=pairs(document=lambda n: WORDS[n] + " of a wing" * 10))
    assert told == []
    # [CLS], [D] and [SEP] beside 31 words, six pieces more where a word is not known; 16 tokens and [D] are kept.
    tokens = 8 * 34 + 6
    counts = {"texts": 8, "cut": 8, "tokens": tokens, "lost": tokens - 8 * 17, "different": 8, "different_cut": 8}
    assert found["document"] == counts
    assert found["query"]["cut"] == 0
    assert said == [
        "phases.one: cut, in a sample of the rows: 8 of 8 documents to 16 tokens, which loses 51.1% of all theirs"
    ]


def test_texts_that_fit_are_not_spoken_of(backbone):
    found, told = check(backbone, said := [], rows=pairs())
    assert (said, told) == ([], [])
    assert found["query"]["lost"] == found["document"]["lost"] == 0


def test_texts_of_which_cutting_makes_most_equal_are_told(backbone):
    _, told = check(backbone, [], rows=pairs(query=lambda n: (PREFIX if n > 1 else "") + WORDS[n]))
    assert [text.split(", and equal")[0] for text in told] == [
        "phases.one.query_tokens: of 8 different queries looked at, cutting leaves 3 that differ"
    ]
