"""A model's card: what is on it, that it is safe to show, and that it is no part of the model."""

import pytest
from huggingface_hub import ModelCard

from colbert_zero.errors import ColbertZeroError
from colbert_zero.files import read_json, write_json
from colbert_zero.report.card import CARD, MARK, card_of, is_card, licence_of, with_licence, write_card, write_cards
from colbert_zero.report.trained import find_model
from example_records import ALL, result_record, write_records


@pytest.fixture
def study(tmp_path):
    """A study's records, and the folder of a model for each of its phases."""
    write_records(tmp_path, result_record(ALL))
    sources = {"paq": {"kind": "hub", "path": "org/paq", "revision": None}}
    write_json(tmp_path / "recipe.json", {"model": {"base": "/home/me/models/mine", "dim": 64}, "sources": sources})
    for phase in tmp_path.glob("phases/*"):
        (phase / "model").mkdir()
    return tmp_path


def model_of(study, identity):
    return next(study.glob(f"phases/*-{identity}/model"))


def test_a_card_says_what_a_user_of_the_model_needs_and_what_its_study_found(study):
    assert write_cards(study) == []
    card = ModelCard.load(model_of(study, "k3") / CARD)
    assert card.data.tags == [
        "sentence-transformers", "multi-vector", "ColBERT", "late-interaction", "information-retrieval", "colbert-zero",
    ]  # fmt: skip
    assert (card.data.library_name, card.data.pipeline_tag) == ("sentence-transformers", "feature-extraction")
    assert card.data.datasets == ["org/paq"]
    found = {(r.dataset_name, r.metric_name): r.metric_value for r in card.data.eval_results}
    assert found["scifact", "nDCG@10"] == 0.765
    for words in (
        "# study-full", 'MultiVectorEncoder("path/to/this/folder")', "colbert-zero search",
        "from colbert_zero import Index",
        '"\\[Q\\] search_query: "', "queries 39 tokens, documents 187", "| scifact | 76.50 |",
        "unsupervised → supervised",
        "points above supervised-kd: 95 % interval", "Holm-corrected p = 0.200: not significant", " PFLOP |",
        "numbers a token | 64", "the folder mine", "| paq | hub | org/paq |", "licence",
    ):  # fmt: skip
        assert words in card.text, words
    assert "/home" not in card.content


def test_every_scored_model_has_a_card_under_the_name_of_its_system(study):
    write_cards(study)
    names = {p.parents[1].name: p.read_text().split("\n# ")[1].split("\n")[0] for p in study.glob(f"phases/*/*/{CARD}")}
    assert names["distillation-k1"] == "study-kd-only"
    assert names["supervised-s2"] == "study-supervised-kd-supervised"
    assert names["dense-supervised-ds"] == "study-dense-unsupervised-dense-supervised"
    dense = ModelCard.load(model_of(study, "ds") / CARD)
    assert (dense.data.tags[1], dense.data.pipeline_tag) == ("dense", "sentence-similarity")
    assert "SentenceTransformer(" in dense.text


def test_the_same_records_give_the_same_card_and_a_text_of_ones_own_is_left(study):
    write_cards(study)
    card = model_of(study, "k3") / CARD
    first = card.read_bytes()
    assert card_of(card.parent).encode() == first
    card.write_text("# Mine\n")
    assert write_cards(study) == [f"{card} is not this program's and is left as it is"]
    assert card.read_text() == "# Mine\n"
    card.unlink()
    assert write_cards(study) == []
    assert card.read_bytes() == first


def test_a_model_that_was_not_evaluated_yet_has_a_card_of_its_phases(study):
    phase = model_of(study, "k3").parent
    write_json(phase / "phase.json", read_json(phase / "phase.json") | {"parent": "s3", "base": None})
    write_card(phase)
    text = (phase / "model" / CARD).read_text()
    assert "# distillation" in text
    assert "supervised → distillation" in text
    assert "Not evaluated" in text
    assert "Phases before these were trained elsewhere" in text  # s3's own parent is not named in these records


@pytest.mark.parametrize("name", ["a | b", "<script>alert(1)</script>", "`x`", "line\nbreak", "a: [b, {c", "---"])
def test_names_from_elsewhere_are_text_on_a_card_and_in_its_yaml(study, name):
    results = read_json(study / "results.json")
    results["collections"][name] = results["collections"].pop("scifact")
    for system in results["systems"].values():
        system["scores"][name] = system["scores"].pop("scifact")
    write_json(study / "results.json", results)
    write_cards(study)
    card = ModelCard.load(model_of(study, "k3") / CARD)
    assert name in {result.dataset_name for result in card.data.eval_results}
    assert "<script>" not in card.text
    [row] = [line for line in card.text.splitlines() if "76.50" in line and line.startswith("|")]
    assert row.replace("\\|", "").count("|") == 8


def test_a_licence_is_put_into_a_card_and_read_from_it(study):
    text = card_of(model_of(study, "k3"))
    assert licence_of(text) is None
    assert licence_of(with_licence(text, "apache-2.0")) == "apache-2.0"
    assert licence_of(with_licence(with_licence(text, "mit"), "apache-2.0")) == "apache-2.0"
    assert with_licence(text, "mit").replace("license: mit\n", "") == text
    with pytest.raises(ColbertZeroError, match="no YAML"):
        with_licence("---\na: [\n---\n", "mit")


def test_only_what_this_program_wrote_is_its_card(tmp_path):
    for name, text, ours in (("README.md", MARK, True), ("README.md", "# Mine", False), ("other.md", MARK, False)):
        (tmp_path / name).write_text(text)
        assert is_card(tmp_path / name) == ours
    assert not is_card(tmp_path / "none" / "README.md")


def test_a_model_of_two_systems_goes_by_one_name_wherever_it_is_named(study):
    results = read_json(study / "results.json")
    results["systems"]["short"] = results["systems"]["supervised-kd@supervised"]
    write_json(study / "results.json", results)
    folder = model_of(study, "s2")
    assert find_model(str(folder)).name == "study-short"
    assert "\n# study-short\n" in card_of(folder)


def test_a_place_means_a_model_and_gives_it_a_name(study):
    best, kd = model_of(study, "k3"), model_of(study, "k1")
    assert find_model(str(study)) == (best, "study-full")
    assert find_model(f"{study}:kd-only") == (kd, "study-kd-only")
    assert find_model(str(kd)) == find_model(str(kd.parent)) == (kd, "study-kd-only")
    (study / "results.json").unlink()
    assert find_model(str(kd)) == (kd, "distillation-k1")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("nowhere", r"MODEL: no such folder 'nowhere'"),
        ("{study}:kd-onyl", r"no trained system 'kd-onyl', did you mean kd-only\?"),
        ("{study}:bm25", r"no trained system 'bm25' \(there are: "),
        ("{study}/phases:full", r"phases holds no results.json, so 'full' is no system there"),
    ],
)
def test_a_place_without_a_model_is_told_with_what_there_is(study, place, message):
    with pytest.raises(ColbertZeroError, match=message):
        find_model(place.format(study=study))
