"""An index on Qdrant answers as the exact one does; in qdrant-client's local mode, and on a server where there is one."""

import json
import os
import signal
import subprocess
import sys
import uuid

import pytest

from colbert_zero.data.documents import documents_of
from colbert_zero.errors import ColbertZeroError
from colbert_zero.serving import building, qdrant_changing
from colbert_zero.serving.index import Index
from colbert_zero.serving.opening import open_index
from colbert_zero.serving.qdrant_changing import QdrantSettings, add, build, check, delete
from colbert_zero.serving.qdrant_collection import Collection, address_of, point_id
from colbert_zero.serving.texts import Texts, values_as_text, write_texts
from helpers import DOCUMENTS, QUERIES, environment, wait_for


@pytest.fixture(params=["local", "server"])
def address(request, tmp_path):
    """A collection that is not there yet."""
    if request.param == "local":
        return address_of(f"qdrant+file:{tmp_path}/kept/tiny")
    if not (url := os.environ.get("QDRANT_URL")):
        pytest.skip("no QDRANT_URL: nothing is tested against a Qdrant server")
    found = address_of(f"qdrant+{url}/colbert-zero-test-{uuid.uuid4().hex}")
    request.addfinalizer(lambda: Collection(found).client.delete_collection(found.collection))
    return found


@pytest.fixture
def model(tiny_multi_vector, tmp_path):
    tiny_multi_vector.save_pretrained(str(tmp_path / "m"), create_model_card=False)
    return str(tmp_path / "m")


def corpus(folder, documents, name="corpus.jsonl"):
    if isinstance(documents, dict):
        documents = [{"_id": key, "text": text} for key, text in documents.items()]
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in documents))
    return documents_of([str(folder / name)], "--corpus")


def quiet(*_):
    pass


def opened(address, **options):
    return open_index(address, tell=quiet, **options)


def ranked(index, k=20, **options):
    return {query: [(d, pytest.approx(s, abs=1e-4)) for d, s in ranking] for query, ranking in index.run(QUERIES, k, **options).items()}


LONG = {"long": " ".join(DOCUMENTS.values()), "longer": " ".join(list(DOCUMENTS.values())[::-1] * 2)}


@pytest.mark.parametrize("storage", ["float16", "float32"])
@pytest.mark.parametrize("passages", [None, 4])
def test_exact_search_gives_the_ranking_of_the_exact_index(address, model, tmp_path, storage, passages):
    documents = corpus(tmp_path, DOCUMENTS | LONG)
    build(model, documents, address, QdrantSettings(storage, passages=passages), quiet)
    building.build(model, documents, tmp_path / "i", building.Settings(storage, passages=passages), quiet)
    wanted = Index.open(tmp_path / "i", tell=quiet)
    with opened(address, exact=True) as found:
        assert len(found) == len(wanted) == 22
        assert found.run(QUERIES, 22) == ranked(wanted, 22)
        one, other = found.search(QUERIES["q1"], 22, explain=True), wanted.search(QUERIES["q1"], 22, explain=True)
        assert [(hit.id, hit.text, hit.metadata, hit.explanation.passage) for hit in one] == [
            (hit.id, hit.text, hit.metadata, hit.explanation.passage) for hit in other
        ]
        for hit in one:
            assert sum(part.score for part in hit.explanation.parts) == pytest.approx(hit.score, abs=1e-3)
