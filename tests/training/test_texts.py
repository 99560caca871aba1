"""Texts that cutting makes equal are refused or told, and what it takes is counted."""

import re
from types import SimpleNamespace

import pytest
from datasets import Dataset

from colbert_zero.data.prepared import ArrowPart
from colbert_zero.errors import ColbertZeroError
from colbert_zero.models.alignment import Alignment, align
from colbert_zero.models.encoders import assemble, read_own, tokeniser
from colbert_zero.recipe.schema import Phase
from colbert_zero.training.log import Log
from colbert_zero.training.texts import check_texts
from example_bases import MULTI_VECTOR

PREFIX = "wing lift drag of a wing in heat and flow "
WORDS = ("lift", "drag", "heat", "flow", "lens", "root", "lung", "rank")


def pairs(query=lambda n: WORDS[n], document=lambda n: f"{WORDS[n]} of a wing"):
    return [{"query": query(n), "document": document(n), "negatives": []} for n in range(8)]


def candidates(query, document):
    return [{"query": query(n), "documents": [document(n)] * 2, "scores": [1.0, 0.0]} for n in range(8)]


def check(base, said, own=None, spec=None, **parts):
    """What is found in these parts, and told; with a base's own prompts, markers and lengths where it has some."""
    alignment, dim = Alignment("q: ", "", "[Q]", "[D]", query_tokens=8, document_tokens=16), 8
    if own:
        alignment, dim = align(own, "multi-vector", None, None, dict.fromkeys(("query", "document"))), own.dim
    model = assemble(str(base), "multi-vector", alignment, dim, seed=0, phase="one")
    scored = any("scores" in row for rows in parts.values() for row in rows)
    asked = {"objective": "distillation" if scored else "contrastive"} | (spec or {})
    phase = Phase(representation="multi-vector", sources=["s"], global_batch_size=4, learning_rate=1e-3, **asked)
    training = SimpleNamespace(name="one", alignment=alignment, spec=phase)
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


SCORED = candidates(lambda n: PREFIX + WORDS[n], lambda n: WORDS[n])
TAUGHT = {
    "contrastive": (pairs(query=lambda n: "lift"), {}, True),
    "contrastive, duplicates count": (pairs(query=lambda n: "lift"), {"mask_duplicates": False}, True),
    "distillation": (SCORED, {}, False),
    "both": (SCORED, {"objective": "contrastive + distillation"}, False),
}


@pytest.mark.parametrize(("rows", "spec", "refused"), TAUGHT.values(), ids=TAUGHT)
def test_equal_queries_are_refused_only_where_no_teacher_tells_their_candidates_apart(backbone, rows, spec, refused):
    message = "all 8 queries .*with equal queries nothing says which document answers which"
    if refused:
        with pytest.raises(ColbertZeroError, match=message):
            check(backbone, [], spec=spec, rows=rows)
    else:
        _, [told] = check(backbone, [], spec=spec, rows=rows)
        assert re.search(message, told)


@pytest.mark.parametrize("layout", ["Stanford ColBERT", "PyLate", "sentence-transformers, queries filled up"])
def test_queries_cut_to_the_width_that_they_are_filled_up_to_count_as_cut(backbone, tmp_path, layout):
    MULTI_VECTOR[layout](tmp_path / "base", backbone)
    own = read_own(str(tmp_path / "base"))
    rows = pairs(query=lambda n: f"{WORDS[n]} {PREFIX * 3}")
    found, _ = check(tmp_path / "base", said := [], own, rows=rows)
    assert found["query"]["cut"] == 8
    assert 0 < found["query"]["lost"] < found["query"]["tokens"]
    assert f"8 of 8 queries to {own.tokens['query']} tokens" in said[0]
    rows = pairs(query=lambda n: PREFIX * 3 + WORDS[n])
    with pytest.raises(ColbertZeroError, match=r"one\.query_tokens: all 8 queries looked at are equal once cut"):
        check(tmp_path / "base", [], own, rows=rows)


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
    assert [text.split(", and the model")[0] for text in told] == [
        "phases.one.query_tokens: of 8 different queries looked at, cutting leaves 3 that differ"
    ]


def test_texts_of_which_the_tokenizer_makes_most_equal_are_told_as_such(backbone):
    _, [told] = check(backbone, [], rows=pairs(query=lambda n: f"{n + 1}" if n > 1 else WORDS[n]))
    assert told == (
        "phases.one.sources: of 8 different queries looked at, the tokenizer leaves 3 that differ, and the model "
        "cannot tell equal ones apart; take a base whose tokenizer knows their language"
    )
