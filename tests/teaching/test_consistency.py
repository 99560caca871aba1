"""Noisy pairs, filtered by a judge."""

import json
import random

import numpy as np
import pytest
import torch

from colbert_zero.data.prepared import ArrowPart
from colbert_zero.evaluation.ranking import rank, rank_bm25
from colbert_zero.teaching.consistency import filter_pairs
from colbert_zero.teaching.leaks import write_rows
from example_sources import SCORED, jsonl, prepare
from helpers import rows
from oracles import maxsim


def noisy(tmp_path, count=120):
    """Pairs of which every tenth has another's document."""
    table = list(rows(count))
    documents = [row["document"] for row in table]
    for number in range(0, count, 10):
        table[number] |= {"document": documents[(number + 5) % count], "negative": ["a negative"]}
    for number in range(5, count, 10):
        table[number] |= {"negative": ["b negative"]}
    for row in table:
        row.setdefault("negative", ["c negative"])
    return prepare(tmp_path, {"kind": "jsonl", "path": jsonl(tmp_path / "pairs.jsonl", table)})


def filtered(source, folder, judge=rank_bm25, top=3, sample=60, seed=1, identity="bm25"):
    return filter_pairs(source, judge, identity, top, sample, seed, folder, None)


def test_pairs_whose_document_the_judge_does_not_find_are_left_out_and_counted(tmp_path):
    kept, record = filtered(noisy(tmp_path), tmp_path / "judged")
    ((part, flags),) = kept.items()
    assert np.flatnonzero(~flags).tolist() == list(range(0, 120, 10))
    assert (record["rows"], record["kept"], record["parts"]) == (120, 108, {part: {"rows": 120, "kept": 108}})
    assert len(record["samples"]) == 2
    assert len(record["examples"]) == 3
    assert all(example["row"] % 10 == 0 for example in record["examples"])


def test_a_pair_is_kept_as_an_oracle_that_ranks_each_sample_by_itself_says(tmp_path, tiny_multi_vector):
    """The judge is a model; the oracle scores every pair of its sample one by one."""
    source = noisy(tmp_path, 24)
    seen = []

    def judge(collection, top):
        seen.append(collection)
        return rank(tiny_multi_vector, collection, top)

    kept, _ = filtered(source, tmp_path / "judged", judge, top=2, sample=9, identity="tiny")
    assert [len(collection.queries) for collection in seen] == [8, 8, 8]
    (part,) = source.parts.values()
    ((_, flags),) = kept.items()
    columns, decided = part.read(range(24)), 0
    for query, document, keep in zip(columns["query"], columns["document"], flags.tolist(), strict=True):
        (sample,) = [c for c in seen if query in c.queries.values()]
        texts = [text for _, text in sample.documents()]
        asked = torch.as_tensor(tiny_multi_vector.encode_query([query])[0])
        scores = [maxsim(asked, torch.as_tensor(d)) for d in tiny_multi_vector.encode_document(texts)]
        own = scores[texts.index(document)]
        better, equal = (sum(score > own + by for score in scores) for by in (1e-4, -1e-4))
        assert keep if equal <= 2 else not keep if better >= 2 else True  # the equal ones with it
        decided += equal <= 2 or better >= 2
    assert decided > 18


def test_a_dense_model_judges_too(tmp_path, tiny_dense):
    kept, record = filtered(noisy(tmp_path, 24), tmp_path / "judged", lambda c, k: rank(tiny_dense, c, k), identity="d")
    assert sum(int(flags.sum()) for flags in kept.values()) == record["kept"]


def test_a_killed_filter_goes_on_and_judges_nothing_twice(tmp_path):
    source, calls = noisy(tmp_path), []

    def judge(collection, top):
        calls.append(len(collection.queries))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return rank_bm25(collection, top)

    whole, _ = filtered(source, tmp_path / "whole", sample=40)
    with pytest.raises(KeyboardInterrupt):
        filtered(source, tmp_path / "judged", judge, sample=40)
    again, record = filtered(source, tmp_path / "judged", judge, sample=40)
    assert len(calls) == 4  # three samples, the killed one twice
    assert len(record["samples"]) == 3
    assert [flags.tolist() for flags in again.values()] == [flags.tolist() for flags in whole.values()]
    for change in ({"identity": "other"}, {"top": 4}, {"seed": 2}):
        calls.clear()
        calls.extend([0] * 3)
        filtered(source, tmp_path / "judged", judge, sample=40, **change)
        assert len(calls) == 6, change


def test_equal_documents_count_once_and_each_answer_of_a_query_by_itself(tmp_path):
    table = [{"query": "wing lift", "document": "lift of a wing"}, {"query": "wing drag", "document": "lift of a wing"}]
    table += [{"query": "wing lift", "document": f"other words number{n}"} for n in range(8)]
    random.Random(1).shuffle(table)
    source = prepare(tmp_path, {"kind": "jsonl", "path": jsonl(tmp_path / "pairs.jsonl", table)})
    kept, record = filtered(source, tmp_path / "judged", top=1, sample=10)
    assert record["samples"] == [9]
    assert [row["document"] == "lift of a wing" for row in table] == next(iter(kept.values())).tolist()


def test_what_is_kept_is_written_as_rows_that_are_read_again(tmp_path):
    source = noisy(tmp_path)
    kept, record = filtered(source, tmp_path / "judged")
    assert write_rows(source, kept, tmp_path / "out") == record["kept"]
    again = prepare(tmp_path / "again", {"kind": "jsonl", "path": str(tmp_path / "out.jsonl")})
    (part,), (before,) = again.parts.values(), source.parts.values()
    assert isinstance(part, ArrowPart)
    numbers = np.flatnonzero(next(iter(kept.values())))
    assert part.read(range(len(part))) == before.read(numbers)


# ---- The command


@pytest.fixture
def folder(tmp_path, monkeypatch):
    noisy(tmp_path)
    jsonl(tmp_path / "scored.jsonl", SCORED)
    (tmp_path / "two").mkdir()
    for name in ("a", "b"):
        jsonl(tmp_path / "two" / f"{name}.jsonl", list(rows(60)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_command_writes_what_is_kept_and_tells_how_much(command, folder):
    arguments = ("filter-pairs", "--pairs", "pairs.jsonl", "--judge", "bm25", "--top", 3, "--sample", 60)
    code, out, _ = command(*arguments, "--out", "kept.jsonl", "--json", "about.json")
    assert code == 0
    assert "pairs: 108 of 120 pairs kept, 90.0%: their document is among the best 3 of" in out
    assert out.count("left out: ") == 3
    assert len((folder / "kept.jsonl").read_text().splitlines()) == 108
    assert json.loads((folder / "about.json").read_text())["sources"]["pairs"]["kept"] == 108
    assert not (folder / "kept.jsonl.judged").exists()


def test_of_several_files_a_folder_is_written(command, folder):
    code, out, _ = command(
        "filter-pairs",
        "--pairs",
        "two/*.jsonl",
        "--pairs",
        "pairs.jsonl",
        "--judge",
        "bm25",
        "--seed",
        3,
        "--out",
        "kept",
    )
    assert code == 0
    assert {str(p.relative_to(folder / "kept")) for p in (folder / "kept").rglob("*.jsonl")} == {
        "pairs.jsonl", "two/a.jsonl", "two/b.jsonl",
    }  # fmt: skip
    assert "two/a: " in out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"--pairs": "none.jsonl"}, "--pairs none.jsonl: no such file"),
        ({"--pairs": "scored.jsonl"}, "candidates with scores, not pairs"),
        ({"--judge": "no/such/model"}, "--judge"),
        ({"--top": "20", "--sample": "20"}, "--top 20: not below --sample 20"),
        ({"--top": "500"}, "lower --top"),
        ({"--top": "0"}, "--top"),
        ({"--out": "kept.csv"}, "JSON lines are written"),
        ({"--out": "pairs.jsonl"}, "--out pairs.jsonl: is there already"),
        ({"--pairs": "two/*.jsonl"}, "do not go into one; name a folder"),
    ],
)
def test_a_mistake_is_told_with_its_mend(command, folder, arguments, told):
    asked = {"--pairs": "pairs.jsonl", "--judge": "bm25", "--out": "kept.jsonl"} | arguments
    code, _, error = command("filter-pairs", *(word for pair in asked.items() for word in pair))
    assert code == 2
    assert told in " ".join(error.split())
    assert "Traceback" not in error
