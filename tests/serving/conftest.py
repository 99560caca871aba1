"""An index to serve, made once."""

import json

import pytest

from colbert_zero.data.documents import documents_of
from colbert_zero.serving.index.building import Settings, build
from helpers import DOCUMENTS


@pytest.fixture(scope="session")
def write_index(tiny_multi_vector):
    """Write an index of rows, or of {id: text}, into a folder; returns the index's folder."""

    def write(folder, rows, model=tiny_multi_vector, name="index", **settings):
        if isinstance(rows, dict):
            rows = [{"_id": key, "text": text, "length": len(text) // 100} for key, text in rows.items()]
        model.save_pretrained(str(folder / "model"), create_model_card=False)
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        corpus = documents_of([str(path)], "corpus")
        build(str(folder / "model"), corpus, folder / name, Settings(**settings), lambda _: None)
        return folder / name

    return write


@pytest.fixture(scope="session")
def served_folder(write_index, tmp_path_factory):
    """An index of the small collection in three segments, which no test changes."""
    return write_index(tmp_path_factory.mktemp("served"), DOCUMENTS, segment_documents=7)
