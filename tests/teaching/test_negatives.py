import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colbert_zero.data.order import evenly_spaced
from colbert_zero.data.prepared import Source, arrow_file, open_source
from colbert_zero.data.rows import PAIRS, SCORED_TEXTS
from colbert_zero.errors import ColbertZeroError
from colbert_zero.models.bm25 import Bm25
from colbert_zero.recipe.data import Mined
from colbert_zero.teaching.derived import share_out
from colbert_zero.teaching.mined import mine_source
from colbert_zero.teaching.mining import told_of

WORDS = ["wing", "lift", "drag", "panel", "heat", "flow", "speed", "wall", "body", "shock"]


def make_source(folder: Path, parts: dict[str, list[tuple[str, str]]]) -> Source:
    """A prepared source of pairs."""
    folder.mkdir()
    for number, rows in enumerate(parts.values()):
        with arrow_file(folder / f"{number}.arrow", PAIRS) as write:
            for query, document in rows:
                write({"query": query, "document": document, "negatives": []})
    (folder / "source.json").write_text(json.dumps({"id": "x", "parts": {p: len(r) for p, r in parts.items()}}))
    return open_source("pairs", folder)


def mined(tmp_path: Path, source: Source, name: str = "hard", **settings: Any) -> Source:
    spec = Mined.model_validate({"kind": "mined", "of": "pairs", **settings})
    return mine_source(name, spec, source, 1, "id", tmp_path / "data", {}, {}, lambda *_: nullcontext(lambda *_: None))


def rows_of(source: Source) -> list[tuple[str, str, list[str]]]:
    rows = []
    for part in source.parts.values():
        columns = part.read(range(len(part)))
        rows += list(zip(columns["query"], columns["document"], columns["negatives"], strict=True))
    return rows


@pytest.fixture
def pairs(tmp_path: Path) -> Source:
    rows = [(f"{a} {b}", f"The {a} and the {b}.") for a in WORDS for b in WORDS if a != b]
    # A second answer of an equal query, a second query with an equal document, and a query without a known term.
    rows += [("wing lift", "Wing lift explained."), ("lift of a wing", "Wing lift explained."), ("zzz", "Qqq.")]
    return make_source(tmp_path / "source", {"first": rows[:60], "second": rows[60:]})


def test_answers_of_a_query_are_never_its_negatives(tmp_path: Path, pairs: Source) -> None:
    rows = rows_of(mined(tmp_path, pairs))
    answers: dict[str, set[str]] = {}
    for query, document, _ in rows:
        answers.setdefault(query, set()).add(document)
    assert answers["wing lift"] == {"The wing and the lift.", "Wing lift explained."}
    for query, _, negatives in rows:
        assert not answers[query] & set(negatives)
        assert len(set(negatives)) == len(negatives) == 7


def test_negatives_are_what_bm25_ranks_highest_of_the_rest(tmp_path: Path, pairs: Source) -> None:
    source = mined(tmp_path, pairs, negatives=3)
    documents = list(dict.fromkeys(document for _, document, _ in rows_of(source)))
    index = Bm25(documents)
    for query, document, negatives in rows_of(source):
        if query in ("wing lift", "zzz"):
            continue
        ranked = [documents[n] for n in index.top([query], 50)[0][0]]
        assert negatives == [text for text in ranked if text != document][:3]


def test_a_query_that_shares_no_term_is_filled_up_with_random_documents_and_told(tmp_path: Path, pairs: Source) -> None:
    source = mined(tmp_path, pairs)
    assert (source.record["filled_up"], source.record["random"]) == (1, 7)
    told = " ".join(told_of(source.record, Mined(kind="mined", of="pairs")))
    assert "warning: 7 hard negatives are random documents, in 1 rows for which fewer than 7 were found" in told
    assert len(set(rows_of(source)[-1][2])) == 7


def test_parts_keep_their_names_and_rows_and_are_spread_in_proportion(tmp_path: Path, pairs: Source) -> None:
    source = mined(tmp_path, pairs, queries=31)
    assert {name: len(part) for name, part in source.parts.items()} == {"hard/first": 20, "hard/second": 11}
    assert source.record["parts"] == {"first": 20, "second": 11}
    assert source.record["rows"] == 31
    first = pairs.parts["pairs/first"]
    assert [row[0] for row in rows_of(source)][:20] == first.read(evenly_spaced(len(first), 20))["query"]


def test_mining_twice_gives_the_same_and_the_second_time_is_only_opened(tmp_path: Path, pairs: Source) -> None:
    first = rows_of(mined(tmp_path, pairs))
    assert rows_of(mined(tmp_path, pairs, name="again")) == first
    assert rows_of(mined(tmp_path, None)) == first  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("q", "a"), ("r", "b")], r"sources\.hard\.negatives: 7 a query, but there are 2 documents to mine in"),
        ([("same", f"text {n}") for n in range(40)], r"sources\.hard: no row is left: for none of 40 were 7 negatives"),
    ],
)
def test_too_few_documents_are_refused(tmp_path: Path, rows: list[tuple[str, str]], message: str) -> None:
    source = make_source(tmp_path / "source", {"only": rows})
    with pytest.raises(ColbertZeroError, match=message):
        mined(tmp_path, source)
    assert not (tmp_path / "data" / "hard-id").exists()


def test_just_enough_documents_are_all_used(tmp_path: Path) -> None:
    rows = [(f"q {n % 4}", f"text {n}") for n in range(9)]
    source = mined(tmp_path, make_source(tmp_path / "source", {"only": rows}), negatives=6)
    for query, _, negatives in rows_of(source):
        own = {document for q, document in rows if q == query}
        assert set(negatives) <= {document for _, document in rows} - own
        assert len(set(negatives)) == 6


def test_scored_candidates_cannot_be_mined(tmp_path: Path) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    with arrow_file(folder / "0.arrow", SCORED_TEXTS) as write:
        write({"query": "q", "documents": ["a", "b"], "scores": [1.0, 2.0]})
    (folder / "source.json").write_text('{"id": "x", "parts": {"only": 1}}')
    with pytest.raises(ColbertZeroError, match=r"sources\.hard\.of: pairs has scored candidates, not pairs to mine"):
        mined(tmp_path, open_source("pairs", folder))


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=3), st.integers(0, 10**9), min_size=1), st.none() | st.integers(1, 10**9))
def test_shares_add_up_and_are_within_one_of_the_proportion(rows: dict[str, int], total: int | None) -> None:
    shares = share_out(rows, total)
    size = sum(rows.values())
    assert list(shares) == list(rows)
    assert sum(shares.values()) == (size if total is None else min(total, size))
    for name, count in rows.items():
        assert 0 <= shares[name] <= count
        if total is not None and total < size:
            assert abs(shares[name] * size - count * total) < size
    assert share_out(dict(reversed(rows.items())), total) == shares


@given(st.integers(1, 10_000), st.data())
def test_spread_rows_are_distinct_and_even(size: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, size))
    rows = evenly_spaced(size, count)
    assert len(rows) == count
    assert all(0 <= row < size for row in rows)
    gaps = {int(gap) for gap in rows[1:] - rows[:-1]}
    assert not gaps or (min(gaps) >= 1 and max(gaps) - min(gaps) <= 1)


def test_skipping_leaves_out_the_best_and_keeps_the_next(tmp_path: Path, pairs: Source) -> None:
    best, later = (rows_of(mined(tmp_path, pairs, f"s{skip}", negatives=3, skip=skip)) for skip in (0, 1))
    for (query, _, first), (_, _, second) in zip(best, later, strict=True):
        assert query == "zzz" or first[1:] == second[:2]
