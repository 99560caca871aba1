"""A graph by `export` that encodes in PyTorch's place (the extra `cpu`, else most are skipped)."""

import importlib.util
import json
import re
import shutil
import warnings

import pytest
import torch
from fastapi.testclient import TestClient

from colbert_zero.data.documents import documents_of
from colbert_zero.errors import ColbertZeroError
from colbert_zero.evaluation.exporting import export_checked
from colbert_zero.files import file_fingerprint
from colbert_zero.models import graphs
from colbert_zero.models.checkpoints import load_model
from colbert_zero.models.encoding import encode
from colbert_zero.models.graphs import computed_by, graph_at
from colbert_zero.models.pooling import with_pooling
from colbert_zero.models.precision import faster
from colbert_zero.serving.http.api import make_app
from colbert_zero.serving.http.service import Limits, Service
from colbert_zero.serving.index.building import Settings, add, build
from colbert_zero.serving.index.manifest import read_manifest
from colbert_zero.serving.index.opened import Index
from helpers import DOCUMENTS


def quiet(_):
    pass


PACKAGES = ("onnx", "onnxruntime", "onnxscript", "openvino")
INSTALLED = [
    pytest.mark.skipif(any(importlib.util.find_spec(name) is None for name in PACKAGES), reason="needs the extra cpu"),
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),
]  # fmt: skip
RUNTIMES = pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "openvino-bfloat16"])


def installed(test):
    for mark in INSTALLED:
        test = mark(test)
    return test


@pytest.fixture(scope="module")
def exported(served_folder, collection, tmp_path_factory):
    """Of the served index's model; float32 and int8."""
    folder = tmp_path_factory.mktemp("graphs") / "onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        export_checked(served_folder.parent / "model", collection, folder, 100.0, lambda *_: None)
    return folder


def tolerance(runtime):
    """Of a vector's numbers, and of a score: where bfloat16 is computed in, that of its eight bits."""
    half = runtime == "openvino-bfloat16" and faster(torch.device("cpu")) == "bfloat16"
    return (0.02, 0.2) if half else (1e-5, 1e-4)


@installed
@RUNTIMES
def test_a_search_by_a_graph_finds_what_a_search_by_pytorch_finds(exported, served_folder, runtime):
    queries = ["lift of a wing", "heat", "shock waves in a supersonic flow"]
    with (
        Index.open(served_folder, tell=quiet) as plain,
        Index.open(served_folder, tell=quiet, graph=graph_at(exported, runtime)) as fast,
    ):
        _, near = tolerance(runtime)
        for own, other in zip(plain.search_all(queries, 10), fast.search_all(queries, 10), strict=True):
            if near < 1e-3:
                assert [hit.id for hit in own] == [hit.id for hit in other]
            assert len({hit.id for hit in own} & {hit.id for hit in other}) >= 9
            assert [hit.score for hit in own] == pytest.approx([hit.score for hit in other], abs=near)
        parts = fast.explain(queries[0], fast.search(queries[0], 1)[0].id)
        assert parts.score == pytest.approx(fast.search(queries[0], 1)[0].score, abs=1e-4)


@installed
@RUNTIMES
def test_documents_are_encoded_and_pooled_alike_and_a_second_call_leaves_the_first_ones_vectors(
    exported, served_folder, runtime
):
    model = load_model(served_folder.parent / "model", device="cpu")
    own = computed_by(model, graph_at(exported, runtime))
    texts = list(DOCUMENTS.values())
    first = encode(own, texts[:2], "document")
    before = first.values.clone()
    encode(own, texts[2:4], "document")
    assert torch.equal(first.values, before)
    for one, other in ((model, own), (with_pooling(model, 2), with_pooling(own, 2))):
        wanted, found = encode(one, texts, "document"), encode(other, texts, "document")
        assert torch.equal(wanted.lengths, found.lengths)
        near, _ = tolerance(runtime)
        if one is model or near < 1e-3:  # in bfloat16 other tokens may be the nearest, and are pooled
            torch.testing.assert_close(wanted.values, found.values, rtol=0, atol=near)


@installed
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_vectors_of_an_int8_graph_are_near_those_of_pytorch(exported, served_folder, runtime):
    model = load_model(served_folder.parent / "model", device="cpu")
    own = computed_by(model, graph_at(exported / "model_int8.onnx", runtime))
    texts = list(DOCUMENTS.values())
    wanted, found = encode(model, texts, "document"), encode(own, texts, "document")
    assert torch.equal(wanted.lengths, found.lengths)
    assert not torch.equal(wanted.values, found.values)
    assert torch.cosine_similarity(wanted.values, found.values).min() > 0.9


@installed
def test_an_index_says_what_encoded_it_and_takes_no_vectors_of_another_arithmetic(exported, served_folder, tmp_path):
    model, graph = str(served_folder.parent / "model"), graph_at(exported / "model_int8.onnx")
    for name, texts in (("first", ["A wing.", "Heat."]), ("more", ["Drag."])):
        rows = (f'{{"_id": "{text}", "text": "{text}"}}\n' for text in texts)
        (tmp_path / f"{name}.jsonl").write_text("".join(rows))
    first, more = (documents_of([str(tmp_path / f"{name}.jsonl")], "--corpus") for name in ("first", "more"))
    index = tmp_path / "index"
    build(model, first, index, Settings(graph=graph), quiet)
    assert re.fullmatch(r"model_int8.onnx \([0-9a-f]{12}\) by onnxruntime", read_manifest(index).encoded_by)
    with pytest.raises(ColbertZeroError, match=r"encoded by model_int8.onnx \(.*\) by onnxruntime, not PyTorch; name"):
        add(index, more, tell=quiet)
    with pytest.raises(ColbertZeroError, match=r"whose encoded_by is model_int8.onnx \(.*\) by onnxruntime"):
        build(model, first, index, Settings(), quiet)
    assert add(index, more, tell=quiet, graph=graph).documents == 1


@installed
def test_a_server_says_that_a_graph_encodes_its_queries(exported, served_folder):
    graph = graph_at(exported / "model_int8.onnx")
    service = Service(served_folder, Limits(), tell=quiet, graph=graph)
    with TestClient(make_app(service), base_url="http://127.0.0.1:8000") as client:
        assert client.get("/ready").json()["queries_encoded_by"] == graph.words
    assert graph.words.startswith("model_int8.onnx (")


@installed
def test_a_graph_of_another_model_is_refused(exported, served_folder, tiny_multi_vector, tmp_path):
    other = load_model(served_folder.parent / "model", device="cpu")
    with torch.no_grad():
        next(other.parameters())[0, 0] += 1
    with pytest.raises(ColbertZeroError, match="is not a graph of this model; export the model that the index has"):
        computed_by(other, graph_at(exported))


@installed
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_file_that_is_no_graph_is_one_message(exported, served_folder, tmp_path, runtime):
    model = load_model(served_folder.parent / "model", device="cpu")
    shutil.copy(exported / "model_int8.onnx", tmp_path / "model.onnx")
    shutil.copy(exported / "onnx.json", tmp_path)
    with pytest.raises(ColbertZeroError, match="is not as it was exported; export the model again"):
        computed_by(model, graph_at(tmp_path, runtime))
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    said = json.loads((exported / "onnx.json").read_text())
    said["graphs"]["model.onnx"] = file_fingerprint(tmp_path / "model.onnx")
    (tmp_path / "onnx.json").write_text(json.dumps(said))
    with pytest.raises(ColbertZeroError, match=f"{runtime} cannot load it"):
        computed_by(model, graph_at(tmp_path, runtime))


@installed
def test_a_server_does_not_write_to_an_index_that_a_graph_encoded(exported, served_folder, command, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"_id": "a", "text": "A wing."}\n')
    corpus, index = documents_of([str(tmp_path / "a.jsonl")], "--corpus"), tmp_path / "index"
    build(str(served_folder.parent / "model"), corpus, index, Settings(graph=graph_at(exported)), quiet)
    code, _, err = command("serve", index, "--writable", "--key", "k", "--port", "0")
    assert (code, "which the server does not do; leave --writable out" in " ".join(err.split())) == (2, True), err
    code, out, err = command("index", "check", index)
    assert (code, "documents were encoded by model.onnx (" in out) == (0, True), out + err


WRONG = [b"", b"{", b"[]", b"\xff", b'{"graphs": 1}', b"[" * 100_000, b'{"a": "' + b"x" * 3_000_000]


@pytest.mark.parametrize("content", WRONG, ids=range(len(WRONG)))
def test_settings_that_are_none_are_one_message(tiny_multi_vector, tmp_path, content, monkeypatch):
    monkeypatch.setattr(graphs, "find_spec", lambda name: True)
    (tmp_path / "model.onnx").write_bytes(b"")
    (tmp_path / "onnx.json").write_bytes(content)
    with pytest.raises(ColbertZeroError, match=r"onnx.json: cannot be read .*; export the model again"):
        computed_by(tiny_multi_vector, graph_at(tmp_path))


@installed
def test_int8_that_loses_more_than_is_allowed_is_refused_and_nothing_is_kept(served_folder, collection, tmp_path):
    # Whatever it loses is more than this.
    with pytest.raises(
        ColbertZeroError, match=r"--int8: loses -?\d+\.\d\d points of nDCG@10 on .*, more than -101; leave"
    ):
        export_checked(served_folder.parent / "model", collection, tmp_path / "out", -101.0, lambda *_: None)
    assert not (tmp_path / "out").exists()


@installed
def test_the_commands_take_a_graph(exported, served_folder, command):
    code, plain, err = command("search", served_folder, "lift of a wing", "--json")
    assert code == 0, err
    code, fast, err = command("search", served_folder, "lift of a wing", "--json", "--graph", exported)
    assert code == 0, err
    found, wanted = ([hit["id"] for hit in json.loads(out)["hits"]] for out in (fast, plain))
    assert found == wanted


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("search", "INDEX", "wing", "--graph", "nowhere"), "--graph nowhere: has no nowhere; name a folder by"),
        (("search", "INDEX", "wing", "--runtime", "openvino"), "--runtime: runs a graph; name that too"),
        (("serve", "INDEX", "--graph", "x", "--writable", "--key", "k"), "--graph: encodes queries; what is added"),
        (("index", "add", "qdrant+file:x/y", "--corpus", "INDEX.jsonl", "--graph", "x"), "on Qdrant it is for search"),
    ],
)  # fmt: skip
def test_a_graph_that_is_not_there_or_does_not_go_with_the_rest_is_one_message(
    served_folder, command, arguments, message, monkeypatch, tmp_path
):
    pytest.importorskip("qdrant_client")
    monkeypatch.chdir(tmp_path)
    code, _, err = command(*(word.replace("INDEX", str(served_folder)) for word in arguments))
    assert (code, message in " ".join(err.split())) == (2, True), err


def test_a_runtime_that_is_not_installed_is_told(monkeypatch, tmp_path):
    for name in ("onnx.json", "model.onnx"):
        (tmp_path / name).write_text("{}")
    monkeypatch.setattr(graphs, "find_spec", lambda name: None)
    for runtime in ("onnxruntime", "openvino-bfloat16"):
        package = runtime.removesuffix("-bfloat16")
        with pytest.raises(ColbertZeroError, match=rf"{package} is not installed; pip install 'colbert-zero\[cpu\]'"):
            graph_at(tmp_path, runtime)
