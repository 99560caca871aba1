"""Every answer can be explained: by words of the document, with parts that sum to the score."""

import itertools
import json

import pytest

from colbert_zero.data.documents import documents_of
from colbert_zero.errors import ColbertZeroError
from colbert_zero.models.checkpoints import load_model
from colbert_zero.models.pooling import with_pooling
from colbert_zero.serving.explaining import Explainer
from colbert_zero.serving.explaining import _scored as scored
from colbert_zero.serving.index.building import DEFAULTS, Settings, build
from colbert_zero.serving.index.opened import Index
from colbert_zero.serving.passages import Cutter
from example_bases import DENSE, MULTI_VECTOR
from helpers import DOCUMENTS, QUERIES


def index_of(folder, make, backbone, settings=DEFAULTS, documents=DOCUMENTS):
    (folder / "model").mkdir()
    make(folder / "model", backbone)
    path = folder / "corpus.jsonl"
    path.write_text("".join(json.dumps({"_id": key, "text": text}) + "\n" for key, text in documents.items()))
    added = build(
        str(folder / "model"), documents_of([str(path)], "corpus"), folder / "index", settings, lambda _: None
    )
    return Index.open(folder / "index", tell=lambda _: None), added


SUMMED = [name for name in MULTI_VECTOR if "mean of maxima" not in name]


@pytest.mark.parametrize("storage", ["float16", "int8"])
@pytest.mark.parametrize("layout", SUMMED)
def test_parts_sum_to_the_score_and_name_words_where_they_stand(tmp_path, backbone, layout, storage):
    index, _ = index_of(tmp_path, MULTI_VECTOR[layout], backbone, Settings(storage))
    for hit in index.search(QUERIES["q1"], 5, explain=True):
        parts = hit.explanation.parts
        assert sum(part.score for part in parts) == pytest.approx(hit.score, abs=1e-4)
        assert "lift" in [part.token.strip("Ġ") for part in parts]
        words = [QUERIES["q1"][slice(*part.query)] for part in parts if part.query]
        assert list(dict.fromkeys(words)) == QUERIES["q1"].split()
        for part in (part for part in parts if part.begin is not None):
            assert hit.text[part.begin : part.end] == part.word.split(" + ")[0]


@pytest.mark.parametrize("layout", SUMMED)
@pytest.mark.parametrize("word", ["Flutter", "panel", "side"])
def test_the_word_that_is_shown_is_the_one_whose_vector_was_chosen(tmp_path, backbone, layout, word):
    MULTI_VECTOR[layout](tmp_path, backbone)
    explainer, text = Explainer(with_pooling(load_model(tmp_path), 1), "wing drag"), DOCUMENTS["flutter"]
    tokens, vectors = scored(explainer._model, text, "document")
    query = [token.word for token in explainer._tokens]
    vectors[[token.word for token in tokens].index(word)] = 9 * explainer._vectors[query.index("wing")]
    part = explainer.explain(text, (0, len(text)), vectors).parts[query.index("wing")]
    assert (part.word, part.begin, part.end) == (word, text.index(word), text.index(word) + len(word))


def test_pooled_vectors_are_explained_by_the_words_they_stand_for(tmp_path, backbone):
    index, _ = index_of(tmp_path, MULTI_VECTOR["colbert-zero, multi-vector"], backbone, Settings(pool=2.0))
    for hit in index.search(QUERIES["q3"], 5, explain=True):
        assert sum(part.score for part in hit.explanation.parts) == pytest.approx(hit.score, abs=1e-4)
        assert all(part.word and part.word != "?" for part in hit.explanation.parts)


def test_a_dense_index_has_no_words_to_show(tmp_path, backbone):
    index, _ = index_of(tmp_path, next(iter(DENSE.values())), backbone)
    with pytest.raises(ColbertZeroError, match="model is dense, with one vector a text"):
        index.search("wing", explain=True)


def test_a_notebook_shows_text_as_text(tmp_path, backbone):
    documents = {"<b>": "A wing <script>alert(1)</script> & drag"}
    index, _ = index_of(tmp_path, MULTI_VECTOR["colbert-zero, multi-vector"], backbone, documents=documents)
    for explain in (False, True):
        shown = index.search("wing <i>", explain=explain)._repr_html_()
        assert "<script>" not in shown
        assert "<b>" not in shown
        assert "<i>" not in shown
        assert ("<mark" in shown) == explain


# ---- Passages

LONG = {"long": " ".join(DOCUMENTS.values()), "short": "A wing."}


def test_a_long_document_is_told_as_cut_off_or_found_by_its_best_passage(tmp_path, backbone):
    make = MULTI_VECTOR["colbert-zero, multi-vector"]
    for name in ("cut", "passages"):
        (tmp_path / name).mkdir()
    cut, added = index_of(tmp_path / "cut", make, backbone, documents=LONG)
    assert (added.cut, cut.manifest.cut) == (1, 1)
    whole, added = index_of(tmp_path / "passages", make, backbone, Settings("float32", None, 6), LONG)
    assert added.cut == 0
    found = {}
    for index in (cut, whole):
        hits = index.search("a time sharing system lets several people use one computer", explain=True)
        found[index] = {hit.id: hit for hit in hits}
        for hit in hits:
            assert sum(part.score for part in hit.explanation.parts) == pytest.approx(hit.score, abs=1e-3)
    better, worse = found[whole]["long"], found[cut]["long"]
    assert better.score > worse.score
    begin, end = better.explanation.passage
    passages = {"the best": better.text[begin:end]}
    (tmp_path / "one").mkdir()
    alone, _ = index_of(tmp_path / "one", make, backbone, Settings("float32"), passages)
    assert alone.search("a time sharing system lets several people use one computer")[0].score == pytest.approx(
        better.score, abs=1e-4
    )


@pytest.mark.parametrize("overlap", [0, 3, 8])
def test_passages_cover_the_text_overlap_fit_the_model_and_begin_with_words(tmp_path, backbone, overlap):
    make = MULTI_VECTOR["colbert-zero, multi-vector"]
    make(tmp_path, backbone)
    model = load_model(tmp_path)
    text = " ".join(DOCUMENTS.values())
    [[*passages], [only]], cut = Cutter(model, overlap).cut([text, "short"])
    assert (only, cut) == ((0, 5), [])
    assert (passages[0].begin, passages[-1].end) == (0, len(text))
    room = 20 - 2
    for before, after in itertools.pairwise(passages):
        assert before.begin < after.begin <= before.end + 1
        assert (before.end - after.begin > 0) == (overlap > 0)
        assert not (text[after.begin - 1].isalnum() and text[after.begin].isalnum())
    for begin, end in passages:
        assert len(model.tokenizer(text[begin:end], add_special_tokens=False)["input_ids"]) <= room


def test_an_overlap_that_leaves_no_room_is_refused(tmp_path, backbone):
    MULTI_VECTOR["colbert-zero, multi-vector"](tmp_path, backbone)
    with pytest.raises(ColbertZeroError, match=r"--passages 19: the model reads \d+ tokens of a text, so"):
        Cutter(load_model(tmp_path), 19)


# ---- Every word of a document


@pytest.mark.parametrize("storage", [Settings("float32"), Settings("int8"), Settings("float32", pool=2.0)])
def test_every_scored_word_names_the_token_of_the_query_that_is_nearest_to_it(tmp_path, backbone, storage):
    index, _ = index_of(tmp_path, MULTI_VECTOR["colbert-zero, multi-vector"], backbone, storage)
    for hit in index.search(QUERIES["q1"], 5, explain=True):
        parts, words = hit.explanation.parts, hit.explanation.words
        spans = [(word.begin, word.end) for word in words]
        assert spans == sorted(set(spans))
        assert all(hit.text[word.begin : word.end].strip() for word in words)
        chosen = {(part.begin, part.end): part.score for part in parts if part.begin is not None}
        found = dict(zip(spans, words, strict=True))
        for span, score in chosen.items():
            assert found[span].score >= score - 1e-5
        for word in words:
            assert word.score <= parts[word.token].score + 1e-5


def test_words_are_those_of_an_oracle_over_all_pairs_of_tokens(tmp_path, backbone):
    index, _ = index_of(tmp_path, MULTI_VECTOR["colbert-zero, multi-vector"], backbone, Settings("float32"))
    model = with_pooling(load_model(tmp_path / "model"), 1)
    [hit] = index.search("lift of a wing", 1, explain=True)
    _, query = scored(model, "lift of a wing", "query")
    tokens, document = scored(model, hit.text, "document")
    wanted = {}
    for token, vector in zip(tokens, document, strict=True):
        if token.begin is not None:
            best = max(range(len(query)), key=lambda place, vector=vector: float(query[place] @ vector))
            pair = float(query[best] @ vector), best
            span = token.begin, token.end
            wanted[span] = max(wanted.get(span, pair), pair)
    found = {(word.begin, word.end): (word.score, word.token) for word in hit.explanation.words}
    assert {span: place for span, (_, place) in found.items()} == {span: place for span, (_, place) in wanted.items()}
    assert [s for s, _ in found.values()] == pytest.approx([wanted[span][0] for span in found], abs=1e-4)


def test_a_document_is_explained_by_its_id_as_the_search_explains_it(tmp_path, backbone):
    index, _ = index_of(tmp_path, MULTI_VECTOR["colbert-zero, multi-vector"], backbone, Settings(segment_documents=7))
    for hit in index.search(QUERIES["q1"], 20, explain=True):
        alone = index.explain(QUERIES["q1"], hit.id)
        assert (alone.id, alone.rank, alone.explanation.passage) == (hit.id, 1, hit.explanation.passage)
        assert alone.score == pytest.approx(hit.score, abs=1e-5)
        assert [part.word for part in alone.explanation.parts] == [part.word for part in hit.explanation.parts]
    with pytest.raises(ColbertZeroError, match="has no document 'nowhere'"):
        index.explain("wing", "nowhere")
