"""Candidates of the Hub, and which rows a sample is drawn from."""

import json
from contextlib import nullcontext

import pytest

from colbert_zero.data.given import load_sources
from colbert_zero.errors import ColbertZeroError
from colbert_zero.models.contents import model_files
from colbert_zero.study.choosing import choose_base, find_candidates, pairs_in
from helpers import WINGS, triples

PAIRS = [(" ".join(text.split()[::-1]), text) for text in triples(WINGS, 60)]


def test_a_candidate_of_the_hub_is_measured_at_the_commit_that_is_told(hub, backbone, tmp_path):
    hub.repos["org/model"] = {"a" * 40: backbone}
    said = []
    found = choose_base(["org/model", str(backbone)], PAIRS, tell=said.append)
    one, other = found["candidates"]["org/model"], found["candidates"][str(backbone)]
    assert one["commit"] == "a" * 40
    assert f"--candidates: org/model at {'a' * 40}" in said
    assert other["commit"] is None
    assert one["hits"] == other["hits"]
    assert {one["verdict"], other["verdict"]} == {"best", "as good"}
    assert other["bytes"] == sum(file.stat().st_size for file in model_files(backbone))
    # What tokenises or sets nothing is not fetched.
    assert 0 < one["bytes"] <= other["bytes"]
    with pytest.raises(ColbertZeroError, match="the Hub has no such model"):
        find_candidates(["org/other", str(backbone)], None, "dense", said.append)


def test_rows_are_drawn_from_parts_in_proportion_to_their_sizes(tmp_path, monkeypatch):
    for name, count in (("large", 90), ("small", 30)):
        rows = [{"query": f"{name} {n}", "document": f"about {name} {n}"} for n in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [str(tmp_path / f"{name}.jsonl") for name in ("large", "small")]
    sources = load_sources(words, "--pairs", tmp_path / "copies", print, lambda _: nullcontext())
    every, whole = pairs_in(sources, "--pairs", 1)
    assert (len(every), whole) == (120, True)
    monkeypatch.setattr("colbert_zero.study.choosing.MOST_ROWS", 40)
    some, whole = pairs_in(sources, "--pairs", 1)
    assert not whole
    assert [sum(name == source for source, _ in some) for name in ("large", "small")] == [30, 10]
    assert set(some) < set(every)
    assert len(set(some)) == 40
    assert pairs_in(sources, "--pairs", 1)[0] == some
    assert pairs_in(sources, "--pairs", 2)[0] != some
