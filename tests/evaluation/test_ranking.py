import copy
import gzip
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

from colbert_zero.data.collection import Collection
from colbert_zero.errors import ColbertZeroError
from colbert_zero.evaluation import ranking as evaluation
from colbert_zero.evaluation.ranking import rank, rank_bm25
from colbert_zero.evaluation.runs import measure, read_run, write_run
from colbert_zero.maxsim.packed import Packed
from colbert_zero.models.bm25 import Bm25
from colbert_zero.models.encoding import encode
from helpers import DOCUMENTS, QRELS, QUERIES
from oracles import maxsim, maxsim_matrix, ndcg, recall, reciprocal_rank

TEXTS = [*DOCUMENTS.values(), "", ". . .", "word " * 200, "unseen glyph ☃"]


def texts_of(packed):
    return packed.values.split(packed.lengths.tolist())


@pytest.mark.parametrize("mini_batch_tokens", [1, 100, 10_000])
@pytest.mark.parametrize("task", ["query", "document"])
def test_multi_vector_texts_are_embedded_as_the_model_itself_does(tiny_multi_vector, task, mini_batch_tokens):
    expected = getattr(tiny_multi_vector, f"encode_{task}")(TEXTS)
    embedded = encode(tiny_multi_vector, TEXTS, task, mini_batch_tokens)
    assert embedded.values.dtype == torch.float32
    for ours, theirs in zip(texts_of(embedded), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("task", ["query", "document"])
def test_dense_texts_are_embedded_as_the_model_itself_does(tiny_dense, task):
    expected = getattr(tiny_dense, f"encode_{task}")(TEXTS, convert_to_tensor=True)
    embedded = encode(tiny_dense, TEXTS, task, mini_batch_tokens=64)
    torch.testing.assert_close(embedded.values, expected, atol=1e-5, rtol=0)
    assert embedded.lengths.tolist() == [1] * len(TEXTS)


@pytest.mark.parametrize("strategy", ["fixed", "min"])
@pytest.mark.parametrize("attend", [False, True])
def test_expanded_queries_are_embedded_as_the_model_itself_does(tiny_multi_vector, strategy, attend):
    model = copy.deepcopy(tiny_multi_vector)
    model[0].query_expansion = {"strategy": strategy, "length": 24, "attend": attend}
    queries = [*QUERIES.values(), "word " * 60]
    expected = model.encode_query(queries)
    assert len(expected[3]) == 24
    for ours, theirs in zip(texts_of(encode(model, queries, "query", 60)), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_left_padding_and_other_prompt_names_are_followed(tiny_multi_vector):
    model = copy.deepcopy(tiny_multi_vector)
    model.tokenizer.padding_side = "left"
    model.prompts = {"passage": "a passage: ", "other": "other: "}
    model.default_prompt_name = "other"
    for task in ("query", "document"):
        # Like the model's own call, one batch at a time: a BERT's positions count the padding on the left.
        expected = getattr(model, f"encode_{task}")(TEXTS, batch_size=len(TEXTS))
        embedded = encode(model, TEXTS, task, mini_batch_tokens=100_000)
        for ours, theirs in zip(texts_of(embedded), expected, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_no_texts_give_no_tokens(tiny_multi_vector, tiny_dense):
    assert encode(tiny_multi_vector, [], "query").values.shape == (0, 16)
    assert encode(tiny_dense, [], "document").values.shape == (0, 32)


def test_embedding_leaves_the_model_as_it_was_and_keeps_no_graph(tiny_multi_vector):
    model = copy.deepcopy(tiny_multi_vector).train()
    model[1].eval()
    before = [module.training for module in model.modules()]
    first, second = encode(model, TEXTS, "query"), encode(model, TEXTS, "query")
    assert torch.equal(first.values, second.values)
    assert not first.values.requires_grad
    assert [module.training for module in model.modules()] == before


def test_each_text_is_tokenised_once(tiny_multi_vector, monkeypatch):
    seen = []
    original = Transformer.preprocess

    def preprocess(self, inputs, **kwargs):
        seen.extend(inputs)
        return original(self, inputs, **kwargs)

    monkeypatch.setattr(Transformer, "preprocess", preprocess)
    encode(tiny_multi_vector, TEXTS, "document", mini_batch_tokens=50)
    assert sorted(text for text in seen if text in TEXTS) == sorted(TEXTS)


def plain_ranking(scores, ids):
    return sorted(zip(ids, scores, strict=True), key=lambda pair: (-pair[1], pair[0]))


def test_ranking_agrees_with_plain_maxsim(tiny_multi_vector, collection):
    run = rank(tiny_multi_vector, collection)
    queries = tiny_multi_vector.encode_query(list(QUERIES.values()))
    documents = tiny_multi_vector.encode_document(list(DOCUMENTS.values()))
    assert list(run) == list(QUERIES)
    for query_id, query in zip(QUERIES, queries, strict=True):
        expected = plain_ranking([maxsim(query, d) for d in documents], DOCUMENTS)
        assert [d for d, _ in run[query_id]] == [d for d, _ in expected]
        np.testing.assert_allclose([s for _, s in run[query_id]], [s for _, s in expected], atol=1e-5)


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_a_dense_model_ranks_by_its_own_similarity(tiny_dense, collection, similarity):
    model = copy.deepcopy(tiny_dense)
    del model[2]
    model.similarity_fn_name = similarity
    queries, documents = (
        model.encode_query(list(QUERIES.values())),
        model.encode_document(list(DOCUMENTS.values())),
    )
    expected = model.similarity(queries, documents)
    run = rank(model, collection, depth=7)
    for query_id, row in zip(QUERIES, expected.tolist(), strict=True):
        assert [d for d, _ in run[query_id]] == [d for d, _ in plain_ranking(row, DOCUMENTS)[:7]]
        np.testing.assert_allclose([s for _, s in run[query_id]], sorted(row, reverse=True)[:7], rtol=1e-5)


def test_another_similarity_is_refused(tiny_dense, collection):
    model = copy.deepcopy(tiny_dense)
    model.similarity_fn_name = "manhattan"
    with pytest.raises(ColbertZeroError, match="similarity is 'manhattan'; set similarity_fn_name to cosine or dot"):
        rank(model, collection)


def test_the_scores_agree_with_sentence_transformers(tiny_dense, collection):
    relevant = {q: {d for d, grade in grades.items() if grade > 0} for q, grades in QRELS.items()}
    evaluator = InformationRetrievalEvaluator(QUERIES, DOCUMENTS, relevant, write_csv=False)
    expected = evaluator(tiny_dense)
    binary = {q: dict.fromkeys(documents, 1) for q, documents in relevant.items()}
    scores, _ = measure(rank(tiny_dense, collection), binary, ("nDCG@10", "RR@10", "R@10"))
    assert scores["nDCG@10"] == pytest.approx(expected["cosine_ndcg@10"])
    assert scores["RR@10"] == pytest.approx(expected["cosine_mrr@10"])
    assert scores["R@10"] == pytest.approx(expected["cosine_recall@10"])


def whole_number_encode(model, texts, task):
    """Texts that spell their own token embeddings: sums of whole numbers have no rounding, so ties abound."""
    tokens = [torch.tensor([[float(x) for x in token] for token in text.split()]) for text in texts]
    return Packed(torch.cat(tokens), torch.tensor([len(t) for t in tokens]))


spelled = st.lists(st.sampled_from(["10", "01", "11", "20"]), min_size=1, max_size=3).map(" ".join)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(spelled, min_size=1, max_size=12),
    st.lists(spelled, min_size=1, max_size=3),
    st.integers(1, 6),
    st.integers(1, 13),
)
def test_ties_are_broken_by_document_id_whatever_the_block(documents, queries, depth, block_documents):
    ids = [f"d{i}" for i in range(len(documents))]
    random.Random(0).shuffle(ids)
    judged = {f"q{i}": {ids[0]: 1} for i in range(len(queries))}
    collection = Collection.from_memory(
        "c", dict(zip(ids, documents, strict=True)), {f"q{i}": text for i, text in enumerate(queries)}, judged
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "encode", whole_number_encode)
        run = rank(None, collection, depth, block_documents=block_documents)
    q, d = (texts_of(whole_number_encode(None, texts, "")) for texts in (queries, documents))
    for row, kept in zip(maxsim_matrix(q, d).tolist(), run.values(), strict=True):
        assert kept == plain_ranking(row, ids)[:depth]


def test_block_size_changes_scores_by_rounding_only(tiny_multi_vector, collection):
    whole = rank(tiny_multi_vector, collection)
    for block_documents in (1, 3, 20):
        calls = []
        run = rank(
            tiny_multi_vector,
            collection,
            block_documents=block_documents,
            progress=lambda done, total, calls=calls: calls.append((done, total)),
        )
        assert calls == [(min(done, 20), 20) for done in range(block_documents, 20 + block_documents, block_documents)]
        for query_id in QUERIES:
            assert dict(run[query_id]) == pytest.approx(dict(whole[query_id]), abs=1e-5)


def test_a_block_ends_early_when_its_documents_are_long(monkeypatch):
    monkeypatch.setattr(evaluation, "BLOCK_CHARACTERS", 10)
    blocks = evaluation._blocks([("a", "x" * 4), ("b", "x" * 7), ("c", "x" * 30), ("d", "")], 100)
    assert [[document_id for document_id, _ in block] for block in blocks] == [["a", "b"], ["c"], ["d"]]


def test_scores_that_are_not_finite_are_an_error(tiny_dense, collection, monkeypatch):
    broken = Packed(torch.full((20, 2), float("nan")), torch.ones(20, dtype=torch.int64))
    monkeypatch.setattr(evaluation, "encode", lambda *_: broken)
    with pytest.raises(ColbertZeroError, match=r"not finite \(documents 1 to 20\); its training has diverged"):
        rank(tiny_dense, collection)


def test_bm25_ranks_what_shares_a_term_and_breaks_ties_by_id():
    documents = {"z": "wing", "a": "wing", "m": "wing wing", "other": "lens"}
    queries = {"q1": "wings", "q2": "nothing known"}
    collection = Collection.from_memory("c", documents, queries, {"q1": {"z": 1}, "q2": {"z": 1}})
    run = rank_bm25(collection)
    assert [document_id for document_id, _ in run["q1"]] == ["m", "a", "z"]
    wanted = Bm25(documents.values()).score_pairs(["wings"], np.array([[0]]))[0, 0]
    assert run["q1"][1][1] == pytest.approx(float(wanted))
    assert run["q2"] == []
    assert [document_id for document_id, _ in rank_bm25(collection, depth=2)["q1"]] == ["m", "a"]
    scores, per_query = measure(run, collection.qrels)
    assert per_query["q2"] == {"nDCG@10": 0, "R@100": 0, "RR@10": 0}
    assert scores["RR@10"] == pytest.approx(1 / 6)


documents_ids = [f"d{i:02}" for i in range(15)]
rankings = st.permutations(documents_ids).flatmap(lambda p: st.integers(0, 15).map(lambda n: p[:n]))
grades = st.dictionaries(st.sampled_from([*documents_ids, "never"]), st.integers(-1, 3), min_size=1, max_size=12)


@settings(deadline=None)
@given(st.lists(st.tuples(rankings, grades), min_size=1, max_size=4))
def test_measures_agree_with_their_definitions_and_use_our_order(queries):
    run = {f"q{i}": [(document_id, 1.0) for document_id in ranking] for i, (ranking, _) in enumerate(queries)}
    qrels = {f"q{i}": judged for i, (_, judged) in enumerate(queries)}
    scores, per_query = measure(run, qrels)
    for i, (ranking, judged) in enumerate(queries):
        assert per_query[f"q{i}"]["nDCG@10"] == pytest.approx(ndcg(ranking, judged))
        assert per_query[f"q{i}"]["R@100"] == pytest.approx(recall(ranking, judged))
        assert per_query[f"q{i}"]["RR@10"] == pytest.approx(reciprocal_rank(ranking, judged))
    for name in ("nDCG@10", "R@100", "RR@10"):
        assert scores[name] == pytest.approx(np.mean([query[name] for query in per_query.values()]))


def test_every_query_of_the_qrels_counts_and_no_other():
    run = {"answered": [("d", 2.0)], "empty": [], "unjudged": [("d", 1.0)]}
    qrels = {"answered": {"d": 1}, "empty": {"d": 1}, "missing": {"d": 1}, "irrelevant": {"d": 0}}
    scores, per_query = measure(run, qrels, ["nDCG@10"])
    assert scores == {"nDCG@10": 0.25}
    assert list(per_query) == list(qrels)


@pytest.mark.parametrize("name", ["nDGC@10", "nDCG@", "", "nDCG@10 + 1"])
def test_an_unknown_measure_is_named(name):
    with pytest.raises(ColbertZeroError, match="is no measure"):
        measure({}, QRELS, [name])


ids = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=4)
scores = st.floats(allow_nan=False, allow_infinity=False)
runs = st.dictionaries(
    ids, st.dictionaries(ids, scores, min_size=1, max_size=4).map(lambda documents: list(documents.items()))
)


@settings(deadline=None)
@given(runs)
def test_a_run_is_read_as_it_was_written(tmp_path_factory, run):
    path = tmp_path_factory.mktemp("run") / "a.run"
    write_run(path, run, "system")
    assert read_run(path) == run


def test_a_run_has_the_six_columns_of_trec(tmp_path):
    write_run(tmp_path / "a.run", {"q1": [("d2", 1.5), ("d1", -1.0)]}, "tag")
    assert (tmp_path / "a.run").read_text() == "q1 Q0 d2 1 1.5 tag\nq1 Q0 d1 2 -1.0 tag\n"


def test_a_run_in_any_line_order_is_read_by_rank(tmp_path):
    (tmp_path / "a.run").write_text("q Q0 b 2 1.0 t\nq\tQ0\ta\t1\t1.0\tt\n")
    assert read_run(tmp_path / "a.run") == {"q": [("a", 1.0), ("b", 1.0)]}


IDS = st.text(st.characters(codec="utf-8", exclude_characters="\0\ufeff"), min_size=1)


@given(IDS, IDS)
def test_ids_with_white_space_stand_in_a_run_as_in_an_address(tmp_path_factory, query, document):
    path = tmp_path_factory.mktemp("runs") / "a.run"
    run = {query: [(document, 1.0)]}
    write_run(path, run, "my model")
    assert len(path.read_text(encoding="utf-8").split()) == 6
    assert read_run(path) == run


def test_the_run_of_an_id_without_white_space_has_it_as_it_is(tmp_path):
    write_run(tmp_path / "a.run", {"q": [("Main Page", 1.0), ("d1", 0.5)]}, "t")
    assert (tmp_path / "a.run").read_text() == "q Q0 Main%20Page 1 1.0 t\nq Q0 d1 2 0.5 t\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("q Q0 d 1 1.0\n", r"a\.run:1: write query Q0 document rank score tag, not 'q Q0 d 1 1.0'"),
        ("q Q0 d 1 1.0 t\nq Q0 e first 1.0 t\n", r"a\.run:2: write query Q0"),
        ("q Q0 d 1 1.0 t\nq Q0 d 2 0.5 t\n", r"a\.run:2: document 'd' is there twice for query 'q'"),
    ],
)
def test_a_wrong_line_of_a_run_is_named(tmp_path, text, message):
    (tmp_path / "a.run").write_text(text)
    with pytest.raises(ColbertZeroError, match=message):
        read_run(tmp_path / "a.run")


def test_a_missing_run_is_named(tmp_path):
    with pytest.raises(ColbertZeroError, match=r"none\.run does not exist"):
        read_run(tmp_path / "none.run")


def test_a_run_is_gzipped_under_a_name_in_gz_with_equal_bytes_for_equal_runs(tmp_path):
    run = {"q é": [("d 1", 1.5), ("d2", 0.25)]}
    write_run(tmp_path / "plain.trec", run, "tag")
    for name in ("a.trec.gz", "b.trec.gz"):
        write_run(tmp_path / name, run, "tag")
    packed = (tmp_path / "a.trec.gz").read_bytes()
    assert gzip.decompress(packed) == (tmp_path / "plain.trec").read_bytes()
    assert packed == (tmp_path / "b.trec.gz").read_bytes()
    assert read_run(tmp_path / "a.trec.gz") == run
