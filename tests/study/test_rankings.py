"""Rankings are kept by what ranked, not by the name it went by."""

from dataclasses import replace

import pytest

from colbert_zero.evaluation.ranking import rank_bm25
from colbert_zero.evaluation.runs import read_run
from colbert_zero.files import read_json, write_json
from colbert_zero.study.rankings import Rankings


class Ranker:
    """BM25 under any identity, which writes down how deep it was asked to rank."""

    def __init__(self):
        self.depths = []

    def __call__(self, collection, depth):
        self.depths.append(depth)
        return rank_bm25(collection, depth)


@pytest.fixture
def ranker(monkeypatch):
    monkeypatch.setattr("colbert_zero.study.rankings.DEPTH", 2)
    monkeypatch.setattr("colbert_zero.study.rankings.FUSION_DEPTH", 3)
    return Ranker()


def test_a_second_name_is_given_the_ranking_of_the_first(tmp_path, collection, ranker):
    rankings = Rankings(tmp_path, 1)
    first = rankings.scores("dense", "id", collection, ranker)
    assert rankings.scores("dense-only", "id", collection, ranker) == first
    assert ranker.depths == [2]
    one, other = ((tmp_path / "runs" / f"{name}.tiny.trec").read_text() for name in ("dense", "dense-only"))
    assert one.replace(" dense\n", " dense-only\n") == other != one
    assert read_json(tmp_path / "per_query" / "dense-only.tiny.json") == first
    rankings.scores("other", "other id", collection, ranker)
    assert ranker.depths == [2, 2]


@pytest.mark.parametrize("named_first", [True, False])
def test_a_part_of_a_fused_teacher_is_ranked_once_at_the_teachers_depth(tmp_path, collection, ranker, named_first):
    rankings = Rankings(tmp_path, 1)
    rankings.fusions = {"teacher": ["id", "bm25"]}
    if named_first:
        scores = rankings.scores("student", "id", collection, ranker)
    deep = rankings.deep("id", collection, ranker)
    assert max(map(len, deep.values())) == 3
    if not named_first:
        scores = rankings.scores("student", "id", collection, ranker)
    assert ranker.depths == [3]
    run = read_run(tmp_path / "runs" / "student.tiny.trec")
    assert run == {query: found[:2] for query, found in deep.items() if found}
    # As it would be without a teacher.
    assert scores == Rankings(tmp_path / "alone", 1).scores("student", "id", collection, ranker)


def test_what_a_teacher_is_made_of_is_not_ranked_deep_once_the_teacher_is_ranked(tmp_path, collection, ranker):
    rankings = Rankings(tmp_path, 1)
    rankings.scores("teacher-blend", "teacher", collection, ranker)
    rankings.fusions = {"teacher": ["id"]}
    rankings.scores("student", "id", collection, ranker)
    assert ranker.depths == [2, 2]


def test_a_ranking_without_its_files_or_of_another_collection_is_made_again(tmp_path, collection, ranker):
    rankings = Rankings(tmp_path, 1)
    rankings.scores("one", "id", collection, ranker)
    (tmp_path / "runs" / "one.tiny.trec").unlink()
    rankings.scores("one", "id", collection, ranker)
    assert ranker.depths == [2, 2]
    rankings.scores("two", "id", replace(collection, fingerprint="changed"), ranker)
    assert ranker.depths == [2, 2, 2]


def test_a_name_that_is_being_written_does_not_point_to_its_older_ranking(tmp_path, collection, ranker, monkeypatch):
    rankings = Rankings(tmp_path, 1)
    before = rankings.scores("full", "old", collection, ranker)

    def killed(path, value):
        if "per_query" in str(path):
            raise KeyboardInterrupt
        write_json(path, value)

    with monkeypatch.context() as patch:
        patch.setattr("colbert_zero.study.rankings.write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            rankings.scores("full", "new", collection, lambda collection, depth: {})
    # The recipe is changed back: the files hold neither ranking whole.
    assert rankings.scores("full", "old", collection, ranker) == before
    assert ranker.depths == [2, 2]
