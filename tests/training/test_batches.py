"""A batch holds what the model itself makes of its rows."""

import pytest
import torch
from datasets import Dataset

from colbert_zero.data.order import Order
from colbert_zero.data.prepared import ArrowPart
from colbert_zero.errors import ColbertZeroError
from colbert_zero.models.alignment import Alignment
from colbert_zero.models.encoders import assemble, tokeniser
from colbert_zero.recipe.schema import Negatives, Phase
from colbert_zero.training.batches import Batches, check_columns, with_taken_negatives
from colbert_zero.training.near import check_near


@pytest.mark.parametrize("expansion", [None, {"strategy": "fixed", "attend": True, "length": 20}])
def test_a_batch_has_the_token_ids_that_the_model_makes_of_its_rows(backbone, expansion):
    alignment = Alignment("search_query: ", "search_document: ", "[Q]", "[D]", 20, 24)
    model = assemble(str(backbone), "multi-vector", alignment, 8, seed=0, phase="test")
    model[0].query_expansion = expansion
    rows = [{"query": f"lift of wing {n}", "document": "drag " * n, "negatives": [f"heat {n}", "x"]} for n in range(9)]
    parts = {"s/p": ArrowPart("s/p", Dataset.from_list(rows), None)}
    batches = Batches(parts, Order({"s/p": 9}, 4, seed=0), tokeniser(model), steps=2, negatives=Negatives(1, None))
    batch, drawn = batches[1], [rows[n] for n in batches.order.batch(1)[1]]
    documents = [row["document"] for row in drawn] + [row["negatives"][0] for row in drawn]
    for texts, found in (([row["query"] for row in drawn], batch.queries), (documents, batch.documents)):
        expected = model.preprocess(texts, prompt=model.prompts[found.task], task=found.task)
        for key in ("input_ids", "attention_mask"):
            assert found.inputs[key].dtype == torch.int64
            assert torch.equal(found.inputs[key], expected[key])
    assert batch.teacher_scores is None


def hard_negatives(asked):
    return Phase(
        representation="multi-vector", objective="contrastive", sources=["s"], global_batch_size=4, learning_rate=1e-3,
        negatives=asked,
    ).hard_negatives  # fmt: skip


ORDER = Order({"s/p": 40}, 8, seed=3)
ROWS = [[f"{row}-{n}" for n in range(5 + row % 3)] for row in range(8)]


def taken(negatives, *how):
    return with_taken_negatives({"negatives": negatives}, *how)["negatives"]


def test_the_first_negatives_are_taken_or_as_many_as_every_row_has():
    for asked, least, count in ((2, 0, 2), (0, 0, 0), ("all", 5, 5), ("all of 3", 5, 3), ("all of 9", 5, 5)):
        found = taken(ROWS, hard_negatives(asked), least, ORDER, 0, slice(0, 8))
        assert found == [row[:count] for row in ROWS]


def test_as_many_negatives_as_every_row_has_are_refused_where_a_row_of_each_part_has_none():
    def part(name, *counts):
        rows = [{"query": f"q{n}", "document": f"d{n}", "negatives": ["n"] * count} for n, count in enumerate(counts)]
        return ArrowPart(f"s/{name}", Dataset.from_list(rows), None)

    spec = Phase(representation="dense", objective="contrastive", sources=["s"], global_batch_size=2, learning_rate=0.1,
                 negatives="all of 10")  # fmt: skip
    check_columns("p", spec, {"s/a": part("a", 3, 4), "s/b": part("b", 1, 0)})
    with pytest.raises(ColbertZeroError, match=r"phases.p.negatives: all of 10, but every part has a row without any"):
        check_columns("p", spec, {"s/b": part("b", 1, 0)})


def test_drawn_negatives_are_anew_at_each_step_the_same_at_each_attempt_and_for_any_number_of_processes():
    asked = hard_negatives("3 of 6")
    steps = [taken(ROWS, asked, 0, ORDER, step, slice(0, 8)) for step in range(300)]
    for found in steps:
        for row, negatives in zip(ROWS, found, strict=True):
            assert len(set(negatives)) == 3
            assert set(negatives) <= set(row[:6])
    assert steps[0] != steps[1]
    assert steps[0] == taken(ROWS, asked, 0, ORDER, 0, slice(0, 8))
    halves = [taken(ROWS[own], asked, 0, ORDER, 0, own) for own in (slice(0, 4), slice(4, 8))]
    assert halves[0] + halves[1] == steps[0]
    # Each of a row's first six is drawn as often as another: 150 times of 300, give or take four deviations of 8.7.
    for place in range(6):
        assert abs(sum(f"1-{place}" in found[1] for found in steps) - 150) < 35


def test_other_draws_come_with_another_seed():
    other = Order({"s/p": 40}, 8, seed=4)
    asked, own = hard_negatives("3 of 6"), slice(0, 8)
    assert taken(ROWS, asked, 0, ORDER, 0, own) != taken(ROWS, asked, 0, other, 0, own)


def candidates(scores):
    documents = [[f"{row}-{n}" for n in range(len(of_row))] for row, of_row in enumerate(scores)]
    return {"query": ["q"] * len(scores), "documents": documents, "scores": scores}


def phase(**changes):
    plain = {"representation": "dense", "objective": "contrastive", "sources": ["s"], "global_batch_size": 4}
    return Phase(**(plain | {"learning_rate": 1e-3, "negatives": 2, "max_relative": 0.95} | changes))


def test_candidates_that_score_too_near_to_the_answer_are_taken_last():
    rows = candidates([[10.0, 9.6, 3.0, 9.5, 12.0, 1.0], [2.0, 1.95, 2.5, 0.0]])
    found = with_taken_negatives(rows, phase().hard_negatives, 0, ORDER, 0, slice(0, 2))
    assert found["documents"] == [["0-0", "0-2", "0-3"], ["1-0", "1-3", "1-1"]]
    assert found["scores"] == [[10.0, 3.0, 9.5], [2.0, 0.0, 1.95]]
    every = with_taken_negatives(rows, phase(negatives="all").hard_negatives, 3, ORDER, 0, slice(0, 2))
    assert every["documents"][0] == ["0-0", "0-2", "0-3", "0-5"]


def test_drawn_negatives_are_drawn_of_those_that_are_not_too_near():
    rows = candidates([[10.0, 9.9, 3.0, 9.8, 1.0, 2.0, 9.7]] * 4)
    asked, steps = phase(negatives="2 of 6").hard_negatives, []
    for step in range(60):
        found = with_taken_negatives(rows, asked, 0, ORDER, step, slice(0, 4))
        steps += found["documents"]
    # All four rows have the documents of row 0 but for their first digit.
    drawn = [frozenset(name[2:] for name in row[1:]) for row in steps]
    assert set(drawn) == {frozenset(pair) for pair in ("24", "25", "45")}


def test_a_phase_with_both_objectives_and_one_without_max_relative_read_candidates_as_they_are():
    rows = candidates([[10.0, 9.9, 3.0]])
    for spec in (phase(objective="contrastive + distillation", negatives=0), phase(max_relative=None)):
        assert with_taken_negatives(rows, spec.hard_negatives, 0, ORDER, 0, slice(0, 1)) == rows


def part(rows):
    return {"s/all": ArrowPart("s/all", Dataset.from_dict(rows), None)}


def test_max_relative_wants_candidates_with_scores_and_as_many_as_are_asked_for():
    scored = part(candidates([[1.0, 0.5, 0.2], [1.0, 0.5, 0.2, 0.1]]))
    check_columns("p", phase(), scored)
    with pytest.raises(ColbertZeroError, match="negatives: 3, but s/all has rows with only 2"):
        check_columns("p", phase(negatives=3), scored)
    with pytest.raises(ColbertZeroError, match="s/all has scored candidates, contrastive needs pairs"):
        check_columns("p", phase(max_relative=None), scored)
    pairs = part({"query": ["q"], "document": ["d"], "negatives": [["n", "m"]]})
    with pytest.raises(ColbertZeroError, match="s/all has pairs, `max_relative` needs candidates with scores"):
        check_columns("p", phase(), pairs)


def test_what_is_left_out_is_counted_on_a_sample_and_answers_without_shares_are_told():
    parts, said, told = part(candidates([[10.0, 9.6, 3.0], [10.0, 1.0, 3.0], [-1.0, -0.5, -0.99]])), [], []
    found = check_near("p", phase(), parts, said.append, told.append)
    assert found == {"s/all": {"rows": 3, "candidates": 6, "left_out": 3, "fewer": 2, "without_shares": 1}}
    assert said[0].startswith("phases.p.max_relative: in a sample of 3 rows of s/all, 3 of 6 candidates score above")
    assert told[0].startswith("phases.p.max_relative: in 1 of 3 rows of s/all the answer scores 0 or less")
    assert check_near("p", phase(max_relative=None), parts, said.append, told.append) == {}
