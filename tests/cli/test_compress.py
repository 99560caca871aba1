"""`compress` as a user types it, in this process."""

import json
import re

import pytest
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.base.modules import Normalize, Router
from transformers import AutoModel

from colbert_zero.data.layouts import write_beir
from colbert_zero.models.checkpoints import load_model
from helpers import DOCUMENTS


@pytest.fixture
def places(collection, tiny_multi_vector, tmp_path):
    tiny_multi_vector.save_pretrained(str(tmp_path / "model"), create_model_card=False)
    write_beir(collection, tmp_path / "tiny")
    return tmp_path


def files(folder):
    return {path.name for path in folder.iterdir()}


def test_layers_are_chosen_scored_before_and_after_and_shown(command, places):
    arguments = ("compress", places / "model", "--out", places / "cut", "--layers", "1", "--neurons", "0.5")
    code, out, error = command(*arguments, "--collection", places / "tiny")
    assert code == 0, error
    record = json.loads((places / "cut" / "compress.json").read_text())
    assert record["asked"] == {"layers": 1, "neurons": 0.5, "zeros": 0.0, "bits": None, "vocabulary": None}
    assert len(record["layers_kept"]) == 1
    assert (record["collection"], record["scored"]["queries"]) == ("tiny", 5)
    assert "cosine of token vectors without layer 0 " in out
    assert "nDCG@10 × 100 on tiny: " in out
    assert f"layers {record['layers_kept'][0]} of 2" in out
    assert (places / "cut" / "compress.layers.png").read_bytes().startswith(b"\x89PNG")
    assert files(places) == {"model", "tiny", "cut"}
    assert AutoModel.from_pretrained(places / "cut").config.num_hidden_layers == 1


def test_zeros_and_grids_are_said_to_save_no_bytes(command, places):
    code, out, _ = command("compress", places / "model", "--out", places / "cut", "--bits", "8", "--zeros", "0.5")
    assert code == 0
    assert "Zeros and grids are float numbers in the file: packed it would take" in out
    assert "texts of the program's own" in out


def test_a_vocabulary_is_cut_to_a_corpus(command, places):
    code, out, _ = command("compress", places / "model", "--out", places / "cut", "--vocabulary", places / "tiny")
    assert code == 0
    assert "words that are not in the corpus are cut into smaller pieces than before" in out
    assert load_model(places / "cut").tokenizer.tokenize("glucose") == ["glucose"]


@pytest.mark.parametrize("scored", [True, False])
def test_a_target_is_met_by_the_best_of_what_was_tried(command, places, scored):
    more = ("--collection", places / "tiny") if scored else ()
    before = sum(f.stat().st_size for f in (places / "model").rglob("*") if f.is_file())
    target = f"{0.8 * before / 1000:.1f}KB"
    arguments = ("compress", places / "model", "--out", places / "cut", "--target", target)
    code, out, error = command(*arguments, "--corpus", places / "tiny", *more)
    assert code == 0, error
    record = json.loads((places / "cut" / "compress.json").read_text())
    tried, best = record["tried"], record["tried"][record["best"]]
    assert record["measure"] == ("nDCG@10" if scored else "agreement")
    assert record["bytes"] == best["bytes"] <= record["target_bytes"] < before
    assert all(point["meets"] == (point["bytes"] <= record["target_bytes"]) for point in tried)
    assert best["score"] == max(point["score"] for point in tried if point["meets"])
    assert not tried[0]["meets"]
    assert tried[0]["difference"] == 0
    assert (tried[0]["layers"], tried[0]["neurons"], tried[0]["vocabulary"]) == (2, 1.0, False)
    assert {point["vocabulary"] for point in tried} == {True, False}
    assert all(point["documents_per_second"] > 0 for point in tried)
    for low, high, point in ((*point["times_faster_interval"], point) for point in tried):
        assert low <= point["times_faster"] <= high
    assert len([line for line in out.splitlines() if line.startswith("→")]) == 1
    assert (places / "cut" / "compress.curve.png").read_bytes().startswith(b"\x89PNG")
    assert files(places) == {"model", "tiny", "cut"}
    assert record["deviation"]["texts"] == 20
    assert load_model(places / "cut").get_embedding_dimension() == 16


@pytest.mark.parametrize("wanted", [("--layers", "1"), ("--target", "1.1x")])
def test_what_each_head_does_is_shown_in_the_folder_and_told(command, places, wanted):
    arguments = ("compress", places / "model", "--out", places / "cut", "--corpus", places / "tiny")
    code, out, error = command(*arguments, *wanted, "--sensitivity")
    assert code == 0, error
    record = json.loads((places / "cut" / "compress.json").read_text())
    assert [len(row) for row in record["sensitivity"]["heads"]] == [2, 2]
    assert record["sensitivity"]["texts"] == 8
    assert (places / "cut" / "compress.heads.png").read_bytes().startswith(b"\x89PNG")
    assert f"{places / 'cut' / 'compress.heads.png'}: 1 − mean cosine" in " ".join(out.split())
    assert "heads and layers left out: 10 in" in out
    assert "trials of layers: 2 in" in out
    assert files(places) == {"model", "tiny", "cut"}


@pytest.mark.parametrize("wanted", [("--layers", "1"), ("--target", "1.1x")])
def test_one_that_is_killed_while_it_scores_or_draws_leaves_nothing(command, places, wanted, monkeypatch):
    seen = []

    def killed(*_):
        seen.extend(files(places) - {"model", "tiny"})
        raise KeyboardInterrupt

    monkeypatch.setattr("colbert_zero.report.shrinking.layers_plot", killed)
    arguments = ("compress", places / "model", "--out", places / "cut", "--corpus", places / "tiny")
    code, _, _ = command(*arguments, *wanted)
    assert code != 0
    assert seen
    assert "cut" not in seen
    assert files(places) == {"model", "tiny"}


REFUSED = {
    "nothing is asked for; --target 2x --corpus PATH, or some of --layers, --neurons, --vocabulary, --zeros and --bits":
        (),
    "--bits 5: 8 or 4": ("--bits", "5"),
    "--layers four: write how many are kept (4), or which, with commas (0,2,3,5); one alone is 0,":
        ("--layers", "four"),
    "layers: [0, 7], and there are 0 to 1; name some of these": ("--layers", "0,7"),
    "neurons: 2, of 64; the share that is kept is above 0, at most 1": ("--neurons", "2"),
    "layers: 1: which ones hurt least is measured on texts; add --corpus or --collection, or name those that are kept "
    "(--layers 0)": ("--layers", "1"),
    "--sensitivity wants texts to encode; add --corpus PATH, or --collection": ("--bits", "8", "--sensitivity"),
    "--target wants --corpus PATH: texts to choose layers by, and to keep the tokens of": ("--target", "2x"),
    "--target tries layers, neurons and vocabulary itself, and zeros and bits make no file smaller; leave --layers, "
    "--neurons, --vocabulary, --zeros and --bits out": ("--target", "2x", "--bits", "8"),
    "--target 5: write bytes, as in 50MB, or how many times smaller, as in 2x":
        ("--target", "5", "--corpus", "{tiny}"),
    "--target 1KB: even 1 layer, 0.25 of the neurons, vocabulary cut would take about {bytes}; take a smaller model, "
    "or a larger target":
        ("--target", "1KB", "--corpus", "{tiny}"),
    "--target 1GB: the model takes {bytes} already; name less, or how many times smaller (2x)":
        ("--target", "1GB", "--corpus", "{tiny}"),
    "--corpus: {model} is a folder without corpus.jsonl; name its files, {model}/*":
        ("--layers", "1", "--corpus", "{model}"),
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_done_is_refused_and_nothing_is_written(command, places, message):
    def filled(word):
        return word.replace("{tiny}", str(places / "tiny")).replace("{model}", str(places / "model"))

    words = map(filled, REFUSED[message])
    code, _, error = command("compress", places / "model", "--out", places / "cut", *words)
    told = re.escape(filled(message)).replace(re.escape("{bytes}"), r"[\d.,]+ k?B")
    assert code == 2
    assert re.fullmatch(f"colbert-zero: {told}", " ".join(error.split())), error
    assert files(places) == {"model", "tiny"}


@pytest.mark.parametrize("option", ["--corpus", "--vocabulary"])
def test_documents_without_a_text_are_refused(command, places, option):
    empty = places.parent / "empty.jsonl"
    empty.write_text("")
    code, _, error = command("compress", places / "model", "--out", places / "cut", "--bits", "8", option, empty)
    told = f"colbert-zero: {option} {empty}: has no text; name one that has some"
    assert (code, " ".join(error.split())) == (2, told)


def test_a_vocabulary_that_nobody_asked_to_cut_is_not_to_be_left_out(command, places):
    file = places / "model" / "tokenizer.json"
    whole = json.loads(file.read_text())
    whole["model"] = {"type": "WordLevel", "vocab": whole["model"]["vocab"], "unk_token": "[UNK]"}
    file.write_text(json.dumps(whole))
    _, out, error = command("compress", places / "model", "--out", places / "cut", "--target", "1KB", "--corpus",
                            places / "tiny")  # fmt: skip
    [told] = [line for line in (out + error).splitlines() if line.startswith("the vocabulary is not among what is")]
    assert told == (
        "the vocabulary is not among what is tried: the tokenizer is of the kind WordLevel, and only WordPiece's is "
        "cut: there, texts of the corpus keep their tokens"
    )


def test_a_folder_that_is_there_is_not_written_over(command, places):
    code, _, error = command("compress", places / "model", "--out", places / "tiny", "--bits", "8")
    assert code == 2
    assert "is there already; name another, or delete it" in " ".join(error.split())


def test_a_model_that_is_none_of_the_known_types_is_refused(command, places):
    file = places / "model" / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"model_type": "roberta", "architectures": ["RobertaModel"]}))
    code, _, error = command("compress", places / "model", "--out", places / "cut", "--bits", "8")
    assert code == 2
    expected = "the arrays of a 'roberta' are not known here; known are bert, modernbert, distilbert, electra"
    assert expected in " ".join(error.split())


def test_a_corpus_of_few_texts_has_no_neighbours_to_agree_on(command, places):
    (places / "few.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in list(DOCUMENTS.values())[:5]))
    code, _, error = command("compress", places / "model", "--out", places / "cut", "--target", "1.1x", "--corpus",
                             places / "few.jsonl")  # fmt: skip
    assert code == 2
    told = "the corpus has 5 texts, and agreement needs more than 10; name more"
    assert told in " ".join(error.split())


def test_a_model_of_one_layer_has_none_to_choose_from(command, places):
    code, _, error = command("compress", places / "model", "--out", places / "one", "--layers", "0,")
    assert code == 0, error
    code, out, error = command(
        "compress", places / "one", "--out", places / "two", "--layers", "1", "--vocabulary", places / "tiny"
    )
    assert (code, "without layer" in out) == (0, False), error
    assert json.loads((places / "two" / "compress.json").read_text())["removals"] == []


def test_bytes_are_those_that_a_model_is_loaded_from(command, places):
    code, _, error = command("compress", places / "model", "--out", places / "cut", "--bits", "8")
    assert code == 0, error
    bare = json.loads((places / "cut" / "compress.json").read_text())["bytes_before"]
    (places / "model" / "notes").mkdir()
    (places / "model" / "notes" / "more.json").write_text("x" * 10_000)
    code, _, error = command("compress", places / "model", "--out", places / "again", "--bits", "8")
    assert code == 0, error
    assert json.loads((places / "again" / "compress.json").read_text())["bytes_before"] == bare


@pytest.mark.parametrize(
    ("out", "message"),
    [("model/cut", "lies in MODEL; name another folder"), ("tiny/corpus.jsonl/x", "cannot be written, because of")],
)
def test_a_place_that_cannot_be_is_refused_before_anything_is_read(command, places, out, message):
    code, _, error = command("compress", places / "model", "--out", places / out, "--bits", "8")
    assert (code, message in " ".join(error.split())) == (2, True), error


def test_an_adapted_model_is_not_cut(command, places, tiny_multi_vector):
    routed = [*tiny_multi_vector, Router.for_query_document([Normalize("token_embeddings")], [])]
    MultiVectorEncoder(modules=routed, device="cpu").save_pretrained(str(places / "routed"), create_model_card=False)
    code, _, error = command("compress", places / "routed", "--out", places / "cut", "--bits", "8")
    assert (code, "cut the model it was made of, and adapt that" in " ".join(error.split())) == (2, True), error
