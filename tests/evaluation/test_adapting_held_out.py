"""Held-out pairs that choose how far queries are moved, and judge."""

import re

import numpy as np
import pytest
from sentence_transformers import MultiVectorEncoder

from colbert_zero.errors import ColbertZeroError
from colbert_zero.evaluation import adapting
from colbert_zero.evaluation.adapting import Domain, fit, ndcg, sampled, split, verdict
from colbert_zero.models.adapting import form_of, with_route
from colbert_zero.models.encoding import encode
from helpers import BODIES, WINGS, triples
from oracles import ndcg as ndcg_of

# The tiny encoder gives queries other vectors than documents of the same text, by their marker and prompt.
PAIRS = [(text, text) for text in triples(WINGS, 200)]


def numbered(count, documents=None):
    return Domain("d", [(f"q{i}", f"d{i % (documents or count)}") for i in range(count)])


def test_no_document_and_no_query_of_the_held_out_pairs_is_fitted_to():
    domain = Domain("d", [(f"q{i % 150}", f"d{i % 170}") for i in range(400)])
    fitted, held_out, shared = split(domain, 1)
    assert len(fitted) + len(held_out) + shared == len(set(domain.pairs))
    assert shared > 0
    for side in (0, 1):
        assert not {pair[side] for pair in fitted} & {pair[side] for pair in held_out}


def test_a_split_is_of_texts_and_the_seed_alone():
    domain = numbered(300)
    turned = Domain("other name", [*reversed(domain.pairs), *domain.pairs[:5]])
    assert split(domain, 1) == split(turned, 1)
    assert split(domain, 1) != split(domain, 2)
    assert 30 < len(split(domain, 1).held_out) < 90
    assert domain.digest == turned.digest
    assert domain.digest != numbered(301).digest


def test_more_than_enough_held_out_pairs_are_fitted_to(monkeypatch):
    monkeypatch.setattr(adapting, "MOST_HELD_OUT", 20)
    fitted, held_out, _ = split(numbered(300), 1)
    assert (len(fitted), len(held_out)) == (280, 20)


@pytest.mark.parametrize(
    ("domain", "told"),
    [
        (
            numbered(99),
            "99 different pairs; at least 100 are needed, since a fifth of them is held out; add some",
        ),
        (
            Domain("d", numbered(50).pairs * 3),
            "50 different pairs; at least 100 are needed, since a fifth of them is held out; add some",
        ),
        (
            numbered(120, documents=1),
            "1 different documents and 120 different queries, too few to hold some out (NUMBERS); add pairs of others",
        ),
        (
            Domain("d", [("q", f"d{i}") for i in range(200)]),
            "200 different documents and 1 different queries, too few to hold some out (NUMBERS); add pairs of others",
        ),
    ],
)
def test_too_few_pairs_are_refused(domain, told):
    told = re.escape(told).replace("NUMBERS", r"\d+ pairs would be, \d+ left to fit to")
    with pytest.raises(ColbertZeroError, match=f"^--pairs: d has {told}$"):
        split(domain, 1)


def test_ndcg_is_that_of_the_definition_and_ties_do_not_help():
    generator = np.random.default_rng(0)
    scores, positive = generator.normal(size=(30, 25)), generator.random((30, 25)) < 0.2
    positive[:, 3] = True
    for row, found in enumerate(ndcg(scores, positive)):
        ranking = [str(i) for i in np.argsort(-scores[row])]
        grades = {str(i): int(right) for i, right in enumerate(positive[row])}
        assert found == pytest.approx(ndcg_of(ranking, grades))
    assert ndcg(np.zeros((1, 2)), np.array([[True, False]])) == pytest.approx(1 / np.log2(3))


def test_texts_are_sampled_alike_in_any_order():
    texts = [f"t{i}" for i in range(50)]
    assert sampled(texts, 10, 1) == sampled(reversed(texts * 2), 10, 1)
    assert sampled(texts, 10, 1) != sampled(texts, 10, 2)
    assert sorted(sampled(texts, 100, 1)) == sorted(texts)


def test_queries_that_a_model_puts_elsewhere_than_their_documents_are_brought_there(tiny_multi_vector):
    form = form_of(tiny_multi_vector, "linear", 0, 1)
    fitted = fit(tiny_multi_vector, tiny_multi_vector, [Domain("d", PAIRS)], form, 1)
    about = fitted.domains["d"]
    assert fitted.helps
    assert about["interval"][0] > 0
    assert about["p_value"] < 0.05
    assert fitted.difference == pytest.approx(about["difference"])
    assert about["difference"] == pytest.approx(about["after"] - about["before"])
    assert verdict(fitted).startswith(f"gains {100 * fitted.difference:.1f} points")
    # What was measured is what the modules do.
    adapted, parts = with_route(tiny_multi_vector, form, fitted.weights), split(Domain("d", PAIRS), 1)
    right = []
    for model in (tiny_multi_vector, adapted):
        queries = encode(model, [q for q, _ in parts.held_out], "query")
        scores = adapting.packed_scores(queries, encode(model, [d for _, d in parts.held_out], "document"))
        right.append(ndcg(scores.numpy(), np.eye(len(scores), dtype=bool)).mean())
    assert right[1] > right[0]


def test_the_order_of_domains_changes_nothing(tiny_multi_vector):
    form = form_of(tiny_multi_vector, "projection", 50, 1)
    domains = [Domain("a", PAIRS[:100]), Domain("b", PAIRS[100:])]
    one, other = (fit(tiny_multi_vector, tiny_multi_vector, d, form, 1) for d in (domains, domains[::-1]))
    assert (one.ridge, one.step) == (other.ridge, other.step)
    assert (one.weights - other.weights).abs().max() < 1e-9
    assert one.domains == other.domains


def test_domains_one_after_the_other_sum_to_what_they_do_together(tiny_multi_vector):
    form = form_of(tiny_multi_vector, "linear", 0, 1)
    a, b = Domain("a", PAIRS[:100]), Domain("b", PAIRS[100:])
    both = fit(tiny_multi_vector, tiny_multi_vector, [a, b], form, 1).statistics
    first = fit(tiny_multi_vector, tiny_multi_vector, [a], form, 1)
    model = with_route(tiny_multi_vector, form, first.weights)
    second = fit(model, tiny_multi_vector, [b], form, 1, known=first.statistics)
    assert (second.statistics.gram - both.gram).abs().max() < 1e-9
    assert (second.statistics.cross - both.cross).abs().max() < 1e-9
    # It is compared with the model as it was given, which has an adapter already.
    plain = fit(tiny_multi_vector, tiny_multi_vector, [b], form, 1).domains["b"]["before"]
    assert second.domains["b"]["before"] != plain


def test_queries_that_find_all_they_ask_for_cannot_gain(tiny_multi_vector):
    alike = MultiVectorEncoder(modules=list(tiny_multi_vector), device="cpu")  # no prompt: a query is its document
    fitted = fit(alike, alike, [Domain("d", PAIRS)], form_of(alike, "linear", 0, 1), 1)
    assert fitted.domains["d"]["before"] == 1
    assert not fitted.helps


def test_decorrelation_reads_the_corpus_and_no_query_of_the_fitted(tiny_multi_vector):
    form = form_of(tiny_multi_vector, "decorrelate", 0, 1)
    corpus = triples(BODIES, 150)
    found = fit(tiny_multi_vector, tiny_multi_vector, [Domain("d", PAIRS, corpus)], form, 1)
    tokens = int(encode(tiny_multi_vector, corpus, "document").lengths.sum())
    assert found.statistics.tokens == tokens
    assert found.step == 1
    assert not found.statistics.cross.any()


def test_the_verdict_says_what_would_be_lost(tiny_multi_vector):
    form = form_of(tiny_multi_vector, "linear", 0, 1)
    fitted = fit(tiny_multi_vector, tiny_multi_vector, [Domain("d", PAIRS)], form, 1)
    lost = fitted._replace(difference=-0.0131, interval=(-0.02, 0.001))
    assert verdict(lost) == ("would lose 1.3 points of nDCG@10 on its own held-out pairs (95 % interval -2.0 to +0.1)")
    assert verdict(fitted._replace(difference=0.0)).startswith("would change nothing")
    unsure = fitted._replace(difference=0.01, interval=(-0.01, 0.03))
    assert verdict(unsure).endswith("(95 % interval -1.0 to +3.0); that it helps is not shown")
