"""Several systems as one: fused runs, candidates' scores, and a greedy choice against plain versions."""

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from colbert_zero.errors import ColbertZeroError
from colbert_zero.evaluation.ensembles import choose_greedily, fuse, weighted_sum

ranked = st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 5)), max_size=6, unique_by=lambda item: item[0])
runs = st.lists(
    st.tuples(st.sampled_from([0.3, 0.5, 1.0, 2.5]), st.dictionaries(st.sampled_from("xy"), ranked)),
    min_size=1, max_size=3,
)  # fmt: skip


def best_first(found):
    return sorted(((d, float(s)) for d, s in found), key=lambda item: (-item[1], item[0]))


@given(runs, st.sampled_from([1e-3, 0.1, 1 / 3, 2.0, 7.0, 1e4]))
def test_an_order_does_not_change_where_all_weights_are_multiplied_by_one_number(runs, factor):
    runs = [(weight, {q: best_first(found) for q, found in run.items()}) for weight, run in runs]
    plain, scaled = fuse(runs, 10), fuse([(factor * weight, run) for weight, run in runs], 10)
    for query, found in plain.items():
        scores = dict(found)
        assert dict(scaled[query]) == pytest.approx({d: factor * s for d, s in found}, abs=1e-9 * factor)
        # Two that differ by rounding alone may change places.
        in_its_order = [scores[document] for document, _ in scaled[query]]
        assert in_its_order == pytest.approx(sorted(in_its_order, reverse=True), abs=1e-9)


def test_candidates_scores_are_to_the_bit_what_teachers_scores_were_before_they_were_ensembles():
    """A stored expectation: float32, members in their order, from the loop that was in `teaching.teacher.score`."""
    dice = np.random.default_rng(14)
    members = [(0.7, dice.normal(size=(3, 4)).astype(np.float32)), (2.0, dice.uniform(size=(3, 4)).astype(np.float32))]
    members[1][1][2] = 0.5  # a member that scores all alike
    found = weighted_sum(members, (3, 4))
    assert [[value.hex() for value in row] for row in found.tolist()] == EXPECTED


EXPECTED = [
    ["0x1.15e9fc0000000p+1", "0x1.3025b00000000p+1", "0x1.0b92600000000p-2", "0x1.4929860000000p-1"],
    ["0x0.0p+0", "0x1.d5ceb00000000p+0", "0x1.159f2a0000000p+1", "0x1.2232140000000p-1"],
    ["0x1.826bca0000000p-2", "0x0.0p+0", "0x1.6666660000000p-1", "0x1.0fecc20000000p-10"],
]


# ---- The greedy choice


def plain_loss(names, runs, qrels, temperature):
    """Mean cross-entropy of relevant documents, written out for members that are named as often as they count."""
    losses = []
    for query, grades in qrels.items():
        documents = {document for run in runs.values() for document, _ in run.get(query, [])}
        relevant = [document for document in documents if grades.get(document, 0) > 0]
        if not relevant:
            continue
        score = dict.fromkeys(documents, 0.0)
        for name in names:
            values = [s for _, s in runs[name].get(query, [])]
            for document, value in runs[name].get(query, []):
                alike = max(values) == min(values) > 0  # found is more than not found
                normal = 1.0 if alike else (value - min(values)) / max(max(values) - min(values), 1e-9)
                score[document] += normal / len(names) / temperature
        total = math.log(sum(math.exp(value) for value in score.values()))
        losses.append(sum(total - score[document] for document in relevant) / len(relevant))
    return sum(losses) / len(losses)


def run_of(*orders):
    """A run of queries q0, q1, …, each a string of documents, best first, a point apart."""
    return {
        f"q{n}": [(d, float(len(order) - place)) for place, d in enumerate(order)] for n, order in enumerate(orders)
    }


QRELS = {"q0": {"a": 1}, "q1": {"b": 2, "c": 0}, "q2": {"d": 1, "a": 1}, "q3": {"z": 1}}
RUNS = {
    "first": run_of("abcd", "acbd", "bcda"),
    "second": run_of("cbad", "bacd", "dabc"),
    "third": run_of("dcba", "dcab", "bcad"),
}


def test_each_round_takes_what_lowers_the_loss_most_and_the_path_says_so():
    found = choose_greedily(RUNS, QRELS, 0.2, 12)
    chosen, before = [], math.inf
    while len(chosen) < 12:
        losses = {name: plain_loss([*chosen, name], RUNS, QRELS, 0.2) for name in RUNS}
        name = min(losses, key=losses.__getitem__)
        if losses[name] >= before:
            break
        chosen, before = [*chosen, name], losses[name]
        assert found.path[len(chosen) - 1] == (name, pytest.approx(before, abs=1e-12))
    assert [name for name, _ in found.path] == chosen
    assert found.single == pytest.approx({name: plain_loss([name], RUNS, QRELS, 0.2) for name in RUNS})
    assert set(found.weights) == set(chosen)
    assert all(found.weights[name] == chosen.count(name) for name in found.weights)
    assert (found.queries, found.left_out) == (3, 1)  # nobody retrieved z
    assert len(found.weights) == 2
    assert "third" not in found.weights


def test_a_member_that_is_chosen_twice_has_weight_two():
    # `good` is right wherever it speaks clearly, `other` settles the one query where it does not.
    strong = {
        "q0": [("a", 9.0), ("b", 0.0)],
        "q1": [("a", 9.0), ("b", 0.0)],
        "q2": [("b", 1.0), ("a", 0.9), ("c", 0.0)],
    }
    other = {"q0": [("b", 1.0), ("a", 0.5), ("c", 0.0)], "q1": [("a", 1.0), ("b", 0.0)], "q2": [("a", 1.0), ("b", 0.0)]}
    qrels = {query: {"a": 1} for query in ("q0", "q1", "q2")}
    found = choose_greedily({"strong": strong, "other": other}, qrels, 0.5, 3)
    assert [name for name, _ in found.path].count("strong") == 2
    assert found.weights == {"strong": 2, "other": 1}
    fused = fuse([(w, {"strong": strong, "other": other}[m]) for m, w in found.weights.items()], 5)
    assert fused["q2"][0] == ("a", pytest.approx(2 * 0.9 + 1))


def test_as_many_rounds_as_are_allowed_and_no_fewer_where_each_helps():
    paths = [choose_greedily(RUNS, QRELS, 0.2, rounds).path for rounds in (1, 2, 12)]
    assert [len(path) for path in paths[:2]] == [1, 2]
    assert paths[2][:2] == paths[1]
    losses = [loss for _, loss in paths[2]]
    assert losses == sorted(losses, reverse=True)
    assert len(set(losses)) == len(losses)


def test_of_equal_members_the_first_is_taken_and_nothing_is_added_to_it():
    found = choose_greedily({"one": RUNS["first"], "two": RUNS["first"]}, QRELS, 0.2, 9)
    assert found.weights == {"one": 1}


@given(st.lists(st.dictionaries(st.sampled_from(["q0", "q1", "q2"]), ranked), min_size=2, max_size=3))
def test_what_is_chosen_is_never_worse_on_its_queries_than_any_single_member(members):
    runs = {f"m{n}": {q: best_first(found) for q, found in run.items()} for n, run in enumerate(members)}
    qrels = {"q0": {"a": 1}, "q1": {"b": 1}, "q2": {"c": 1}}
    retrieved = {(q, d) for run in runs.values() for q, found in run.items() for d, _ in found}
    if not retrieved & {("q0", "a"), ("q1", "b"), ("q2", "c")}:
        with pytest.raises(ColbertZeroError, match="no query to choose on has a relevant document"):
            choose_greedily(runs, qrels, 0.1, 5)
        return
    found = choose_greedily(runs, qrels, 0.1, 5)
    assert found.path[-1][1] <= min(found.single.values())
    for name, temperature in product(runs, (0.1,)):
        assert found.single[name] == pytest.approx(plain_loss([name], runs, qrels, temperature), abs=1e-9)
