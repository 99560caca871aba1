"""Studies whose pipelines are not of training alone: a model is cut and healed, merged, adapted."""

import json
import os
import signal
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import load_file
from sentence_transformers import MultiVectorEncoder
from transformers import AutoModel

from colbert_zero.errors import ColbertZeroError
from colbert_zero.files import read_json
from colbert_zero.models.contents import contents_of
from colbert_zero.models.kept_zeros import RECORD
from colbert_zero.models.kinds import kind_of
from colbert_zero.recipe.reading import check_recipe
from colbert_zero.report import write_report
from colbert_zero.report.records import Records
from colbert_zero.report.untrained import uncut
from colbert_zero.study.comparison import run_study
from colbert_zero.study.graph import graph
from colbert_zero.study.inspection import step_rows
from colbert_zero.study.show import Quiet
from colbert_zero.study.steps import outline
from colbert_zero.study.study import Study
from colbert_zero.terminal import plan_table
from helpers import data, environment, study, write_rows

CUT, LEGAL = ("dense", "multi", "small"), ("dense", "multi", "legal")
SOUP = ("dense", "multi", "soup")


def recipe(folder, merge=False):
    """A dense and a multi-vector phase; what they end with is cut and healed, adapted, and merged if asked for."""
    made = data(folder)
    made["model"]["architecture"]["num_hidden_layers"] = 2
    phases = made["phases"]
    made["sources"] |= {
        "tickets": {"kind": "jsonl", "path": str(folder / "tickets.jsonl")},
        "same": {"kind": "jsonl", "path": str(folder / "same.jsonl")},
    }
    made["teachers"] = {"uncut": {"pipeline": ["dense", "multi"]}}
    made["sources"]["scored"]["teacher"] = "uncut"
    made["phases"] = {
        "dense": phases["dense"],
        "multi": phases["unsupervised"],
        "small": {"kind": "compress", "layers": 1, "corpus": ["pairs"], "zeros": 0.5},
        "heal": phases["distillation"],
        "legal": {"kind": "adapt", "sources": ["tickets"], "projection": 20},
    }
    made["pipelines"] = {
        "uncut": ["dense", "multi"],
        "healed": ["dense", "multi", "small", "heal"],
        "adapted": list(LEGAL),
    }
    if merge:
        made["phases"] |= {
            "longer": phases["unsupervised"] | {"steps": 3},
            "soup": {"kind": "merge", "with": ["other"]},
        }
        made["pipelines"] = {"other": ["dense", "multi", "longer"], "soup": list(SOUP)}
    return made


def write_sources(folder):
    write_rows(folder / "pairs.jsonl")
    rows = (folder / "pairs.jsonl").read_text().splitlines()
    texts = [json.loads(row)["document"].replace("key", "nut").replace("code", "bolt") for row in rows[:120]]
    tickets = [{"query": " ".join(text.split()[-4:]), "document": text} for text in texts]
    same = [{"query": text, "document": text} for text in texts]
    for name, pairs in {"tickets": tickets, "same": same}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))


class Told(Quiet):
    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kinds")
    write_sources(folder)
    told = Told()
    made = Study(check_recipe(recipe(folder)), folder / "out", told, folder / "cache")
    return folder, made, run_study(made, None, "test"), told.lines


def record_of(made, chain):
    return read_json(made.phase_folder(chain) / "phase.json")


def test_every_kind_of_phase_is_a_system_with_its_way_and_its_cost(finished):
    _, made, results, _ = finished
    systems = results["systems"]
    ways = {name: [phase["name"] for phase in system["phases"]] for name, system in systems.items()}
    assert ways == {
        "bm25": [],
        "dense": ["dense"],
        "uncut": ["dense", "multi"],
        "healed@small": ["dense", "multi", "small"],
        "healed": ["dense", "multi", "small", "heal"],
        "adapted": ["dense", "multi", "legal"],
    }
    assert systems["healed@small"]["representation"] == "multi-vector"
    kinds = [phase.get("kind", "train") for phase in systems["healed"]["phases"]]
    assert kinds == ["train", "train", "compress", "train"]
    small, legal = record_of(made, CUT), record_of(made, LEGAL)
    assert legal["texts"] >= 2 * 120 - 40
    assert legal["flops"] == pytest.approx(2 * (legal["tokens"] + legal["padding_tokens"]) * _computing(made, LEGAL))
    assert systems["adapted"]["flops"] == pytest.approx(systems["uncut"]["flops"] + legal["flops"])
    assert small["parameters"] < small["parameters_before"]
    assert small["model_bytes"] < small["bytes_before"]
    computed = [
        {key: phase["machine"].get(key) for key in ("precision", "attention", "maxsim")} for phase in (small, legal)
    ]
    assert computed[0] == {"precision": "float32", "attention": "sdpa", "maxsim": None}
    assert computed[1] == {"precision": "float32", "attention": "sdpa", "maxsim": "torch"}
    assert (small["prompts"], small["query_tokens"]) == ({"query": "q: ", "document": "d: "}, 12)


def _computing(made, chain):
    before = MultiVectorEncoder(str(made.phase_folder(chain[:-1]) / "model"), device="cpu")
    parameters = sum(p.numel() for p in before.parameters())
    return parameters - before[0].model.get_input_embeddings().weight.numel()


def test_zeros_asked_for_are_zeros_counted_also_after_the_healing(finished):
    _, made, _, _ = finished
    small, heal = record_of(made, CUT), record_of(made, (*CUT, "heal"))
    assert small["zeros"]["zeros"] >= small["zeros"]["zeros_of"] // 2
    assert heal["zeros"] == small["zeros"]
    before, after = (
        load_file(made.phase_folder(chain) / "model" / "model.safetensors") for chain in (CUT, (*CUT, "heal"))
    )
    matrices = [name for name in before if before[name].dim() == 2 and "layer." in name]
    assert sum(int((after[name] == 0).sum()) for name in matrices) == heal["zeros"]["zeros"]
    assert any(not torch.equal(before[name], after[name]) for name in matrices)
    assert read_json(made.phase_folder((*CUT, "heal")) / "model" / RECORD)["trained_by"] == "heal"
    assert not [line for line in heal["told"] if "leaves" in line]  # what is held is not what does not learn


def test_the_model_before_a_cut_teaches_the_one_after_it(finished):
    folder, made, results, _ = finished
    assert made.sources["scored"].record["teacher"] == "uncut"
    teacher = read_json(folder / "out" / "teachers.json")["uncut"]
    assert teacher["scores"] == results["systems"]["uncut"]["scores"]


def test_an_adapter_that_does_not_help_leaves_its_start_as_it_is_and_says_so(tmp_path):
    write_sources(tmp_path)
    # Without prompts a query is its document, and nothing can be gained.
    none = {"query": "", "document": ""}
    made = recipe(tmp_path) | {"prompts": none, "markers": none, "query_tokens": 24}
    made["phases"]["nothing"] = {"kind": "adapt", "sources": ["same"], "projection": 20}
    made["pipelines"] = {"before": ["multi"], "adapted": ["multi", "nothing"]}
    told, chain = Told(), ("multi", "nothing")
    one = Study(check_recipe(made), tmp_path / "out", told, tmp_path / "cache")
    results = run_study(one, None, "test")
    nothing = record_of(one, chain)
    assert not nothing["made"]["helps"]
    verdict = nothing["made"]["verdict"]
    assert verdict.startswith(("would lose ", "would change nothing in "))
    line = f"not adapted, and its model is its start's, since it {verdict}"
    assert nothing["told"] == [f"nothing: {line}"]
    assert f"multi → nothing: {line}" in told.lines
    before, after = (one.phase_folder(chain) / "model" for chain in (("multi",), chain))
    assert contents_of(before) == contents_of(after)
    assert results["systems"]["adapted"]["scores"] == results["systems"]["before"]["scores"]
    write_report(tmp_path / "out")
    page = (tmp_path / "out" / "report.md").read_text()
    assert f"- **Not adapted.** multi → nothing: {verdict}; the model is its start's." in page
    assert "Told in training.** nothing" not in page


def test_plain_sentence_transformers_and_transformers_load_what_comes_of_every_kind(finished):
    _, made, _, _ = finished
    for chain, layers in {CUT: 1, (*CUT, "heal"): 1, LEGAL: 2}.items():
        folder = made.phase_folder(chain) / "model"
        assert (folder / "README.md").is_file()
        model = MultiVectorEncoder(str(folder), device="cpu")
        assert model.encode_query(["wing lift"])[0].shape[1] == 16
        assert AutoModel.from_pretrained(folder).config.num_hidden_layers == layers


def test_a_second_run_makes_nothing_anew(finished, monkeypatch):
    folder, _, results, _ = finished
    monkeypatch.setattr("colbert_zero.study.untrained._make", None)
    monkeypatch.setattr("colbert_zero.study.study.train_phase", None)
    again = run_study(study(folder, recipe(folder)), None, "test")
    assert again["systems"] == results["systems"]


def test_a_changed_cut_makes_anew_exactly_what_follows(tmp_path):
    write_sources(tmp_path)
    before = recipe(tmp_path, merge=True)
    before["phases"]["heal"] = {**before["phases"]["heal"], "sources": ["pairs"], "objective": "contrastive"}
    before["pipelines"] |= {
        "healed": ["dense", "multi", "small", "heal"],
        "mixed": ["dense", "multi", "small", "stirred"],
    }
    before["phases"]["stirred"] = {"kind": "merge", "with": ["healed"]}
    after = json.loads(json.dumps(before))
    after["phases"]["small"]["neurons"] = 0.5
    one, other = study(tmp_path, before), study(tmp_path, after)
    nodes = graph(one.recipe, {name: tuple(chain) for name, chain in one.recipe.pipelines.items()})
    changed = {chain for chain in nodes if one.phase_id(chain) != other.phase_id(chain)}
    assert changed == {CUT, (*CUT, "heal"), (*CUT, "stirred")}
    # The others of a merge, pairs and texts are in the id as well.
    after = json.loads(json.dumps(before))
    after["phases"]["longer"]["steps"] = 4
    other = study(tmp_path, after)
    assert {chain for chain in nodes if one.phase_id(chain) != other.phase_id(chain)} == {
        ("dense", "multi", "longer"), SOUP,
    }  # fmt: skip


def test_the_report_shows_what_was_cut_and_adapted(finished):
    folder, _, _, _ = finished
    write_report(folder / "out")
    page = (folder / "out" / "report.md").read_text()
    for part in (
        "- **Smaller.** healed takes ",
        "- **Adapted.** dense → multi → legal: gains ",
        "### Cut, merged, adapted",
        "### Adapted, domain by domain",
        "| dense → multi → legal | tickets |",
        "| model | parameters |",
        "numbers in layers 0",
    ):
        assert part in page, part
    assert "Told in training.** legal" not in page
    assert len(Records(folder / "out").phases) == 5
    card = (next((folder / "out").glob("phases/heal-*/model")) / "README.md").read_text()
    assert "dense → multi → small → heal" in card
    assert "cut to layer" in card


def test_what_is_to_be_done_is_shown_before_it_is(finished, tmp_path):
    _, made, _, _ = finished
    nodes = [("dense",), ("dense", "multi"), CUT]
    shown = outline(made, nodes)
    assert [(one.steps, one.done) for one in shown] == [(6, True), (6, True), (0, True)]
    assert plan_table(shown, 200).row_count == 3
    write_sources(tmp_path)
    new = study(tmp_path, recipe(tmp_path))
    new.prepare(nodes)
    assert outline(new, [CUT])[0].done is False
    with pytest.raises(ColbertZeroError, match=r"^--phase small: of the kind compress, which trains nothing, so"):
        step_rows(made, "small", 1)


def wrong(folder, changes, phases=None, **more):
    made = recipe(folder)
    made["phases"]["small"] = {"kind": "compress", **changes}
    made["phases"] |= phases or {}
    one = study(folder, made | more)
    with pytest.raises(ColbertZeroError) as caught:
        one.prepare(graph(one.recipe, {name: tuple(chain) for name, chain in one.recipe.pipelines.items()}))
    assert not (folder / "out" / "phases").exists()
    return str(caught.value)


def test_what_cannot_be_made_is_refused_before_anything_is_trained(tmp_path):
    write_sources(tmp_path)
    assert wrong(tmp_path, {"layers": [0, 2]}) == (
        "phases.small.layers: [0, 2], and there are 0 to 1; name some of these"
    )
    twice = {"pipelines": {"full": ["multi", "first", "small"]}}
    assert wrong(tmp_path, {"layers": [1]}, {"first": {"kind": "compress", "layers": [1]}}, **twice) == (
        "phases.small.layers: [1], and there are 0 to 0; name some of these"
    )
    assert wrong(tmp_path, {"vocabulary": ["pairs"]}) == (
        "phases.small.vocabulary: a tokenizer trained from scratch is byte-level BPE, and only WordPiece's is cut; "
        "leave it out"
    )
    assert "phases.small.corpus" in wrong(tmp_path, {"layers": 1, "corpus": str(tmp_path / "none.jsonl")})
    other = data(tmp_path)["model"]
    other["architecture"] = {
        "model_type": "roberta", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 32,
    }  # fmt: skip
    assert wrong(tmp_path, {"neurons": 0.5}, model=other) == (
        "phases.small: the arrays of a 'roberta' are not known here; known are bert, modernbert, distilbert, electra"
    )


def theirs(folder, tickets):
    """A collection that asks one of the tickets' queries, and what is told of it."""
    (folder / "qrels").mkdir(parents=True)
    rows = [json.loads(row) for row in tickets.read_text().splitlines()]
    same = sum(row["query"] == rows[3]["query"] for row in rows)
    (folder / "corpus.jsonl").write_text(json.dumps({"_id": "d", "text": rows[3]["document"]}) + "\n")
    (folder / "queries.jsonl").write_text(json.dumps({"_id": "q", "text": rows[3]["query"]}) + "\n")
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\td\t1\n")
    return {"theirs": {"kind": "beir", "path": str(folder)}}, (
        f"phases.legal.sources: {same} pairs of 'tickets' have a query of the collection 'theirs' "
        f"(“{rows[3]['query']}”), so how far queries are moved would be chosen by what is tested on; "
        "`colbert-zero leaks` writes the source without them"
    )


def test_pairs_whose_query_is_tested_on_are_not_fitted_to(tmp_path):
    write_sources(tmp_path)
    collections, told = theirs(tmp_path / "beir", tmp_path / "tickets.jsonl")
    assert wrong(tmp_path, {"neurons": 0.5}, collections=collections) == told


def test_what_was_fitted_is_not_compared_on_a_collection_that_comes_later_with_its_queries(tmp_path, finished):
    folder, made, _, _ = finished
    later = recipe(folder)
    more, told = theirs(tmp_path / "beir", folder / "tickets.jsonl")
    later["collections"] = later["collections"] | more
    one = Study(check_recipe(later), made.folder, Quiet(), folder / "cache")
    with pytest.raises(ColbertZeroError) as caught:
        one.prepare(graph(one.recipe, {"adapted": LEGAL}))
    assert one.is_done(LEGAL)
    assert str(caught.value) == told


def test_a_cut_is_compared_with_the_uncut_by_the_name_that_is_tested(finished):
    records = Records(finished[1].folder)
    # A checkpoint on the way to one pipeline may be another's end, and the last of an ensemble's phases.
    systems = records.systems
    both = systems["uncut"] | {"kind": "ensemble"}
    records.systems = {"adapted@multi": systems["uncut"], **systems, "both": both}
    assert uncut(records, "healed") == "uncut"


def test_too_few_pairs_are_told_with_the_phases_key(tmp_path, finished):
    folder, _, _, _ = finished
    made = recipe(folder)
    rows = (folder / "tickets.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "few.jsonl").write_text("".join(rows[:20]))
    made["sources"]["few"] = {"kind": "jsonl", "path": str(tmp_path / "few.jsonl")}
    made["phases"]["legal"] = {"kind": "adapt", "sources": ["few"]}
    made["pipelines"] = {"adapted": list(LEGAL)}
    one = study(folder, made)
    one.prepare(graph(one.recipe, {"adapted": LEGAL}))
    with pytest.raises(ColbertZeroError, match=r"^phases.legal.sources: few has 20 different pairs; at least 100 are"):
        one.train(LEGAL)
    assert not one.phase_folder(LEGAL).exists()


def test_a_base_is_cut_and_adapted_without_any_training(tiny_multi_vector, tmp_path):
    write_sources(tmp_path)
    tiny_multi_vector.save_pretrained(str(tmp_path / "base"), create_model_card=False)
    made = recipe(tmp_path) | {"model": {"base": str(tmp_path / "base")}, "teachers": {}}
    del made["sources"]["scored"], made["prompts"], made["phases"]["heal"]
    corpus = str(tmp_path / "corpus.jsonl")
    (tmp_path / "corpus.jsonl").write_text(json.dumps({"text": "wing lift drag flow body heat panel flutter"}) + "\n")
    made["phases"]["small"] = {"kind": "compress", "layers": 1, "corpus": corpus, "vocabulary": ["pairs"], "bits": 8}
    made["pipelines"] = {"smaller": ["small"], "adapted": ["legal"]}
    one = study(tmp_path, made)
    results = run_study(one, None, "test")
    assert [phase["name"] for phase in results["systems"]["smaller"]["phases"]] == ["small"]
    small, legal = record_of(one, ("small",)), record_of(one, ("legal",))
    assert (small["representation"], small["parent"], small["base"]) == ("multi-vector", None, None)
    assert small["made"]["vocabulary"] < small["made"]["vocabulary_before"]
    assert small["sources"] == {"pairs/pairs": {"rows": 130}}
    assert len(small["made"]["layers_kept"]) == 1
    assert legal["prompts"] == {"query": "search_query: ", "document": "search_document: "}
    assert write_report(tmp_path / "out").is_file()
    # The texts are in the id, wherever they lie.
    (tmp_path / "corpus.jsonl").rename(tmp_path / "moved.jsonl")
    made["phases"]["small"]["corpus"] = str(tmp_path / "moved.jsonl")
    assert study(tmp_path, made).phase_id(("small",)) == small["id"]
    (tmp_path / "moved.jsonl").write_text(json.dumps({"text": "another"}) + "\n")
    assert study(tmp_path, made).phase_id(("small",)) != small["id"]


def test_of_a_streamed_source_the_first_rows_are_read_which_is_told(tiny_multi_vector, tmp_path, monkeypatch):
    monkeypatch.setattr("colbert_zero.study.untrained.MOST_ROWS", 50)
    write_sources(tmp_path)
    tiny_multi_vector.save_pretrained(str(tmp_path / "base"), create_model_card=False)
    made = recipe(tmp_path) | {"model": {"base": str(tmp_path / "base")}, "pipelines": {"a": ["small"]}}
    del made["prompts"]
    rows = [json.loads(line) for line in (tmp_path / "tickets.jsonl").read_text().splitlines()]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "tickets.parquet")
    made["sources"]["tickets"] = {"kind": "parquet", "path": str(tmp_path / "tickets.parquet"), "streaming": True}
    made["phases"]["small"] = {"kind": "compress", "layers": 1, "corpus": ["tickets", "pairs"]}
    one = study(tmp_path, made)
    one.show = Told()
    one.prepare([("small",)])
    record = one.train(("small",))
    said = "tickets/tickets is streamed: the first 50 of 120 rows are read"
    assert said in record["told"]
    assert one.show.lines.count(said) == 1
    assert record["sources"] == {"tickets/tickets": {"rows": 50}, "pairs/pairs": {"rows": 130}}


def test_a_plain_encoder_is_cut_and_then_trained_and_ranks_nothing_before(backbone, tmp_path):
    write_sources(tmp_path)
    made = recipe(tmp_path)
    made["model"] = {"base": str(backbone), "dim": 16}
    made["phases"]["small"] = {"kind": "compress", "layers": [1]}
    made["pipelines"] = {"cut-first": ["small", "multi"]}
    one = study(tmp_path, made)
    assert list(run_study(one, None, "test")["systems"]) == ["bm25", "cut-first"]
    assert record_of(one, ("small",))["representation"] is None
    folder = one.phase_folder(("small", "multi")) / "model"
    assert AutoModel.from_pretrained(folder).config.num_hidden_layers == 1
    made["pipelines"] = {"a": ["small"]}
    with pytest.raises(ColbertZeroError) as caught:
        study(tmp_path, made).check([("small",)])
    assert str(caught.value) == (
        "pipelines.a: none of its phases is trained, and model.base is a plain encoder, without vectors to rank by; "
        "add a phase that is"
    )
    # Nor does it teach, mine, or stand in an ensemble.
    made["pipelines"] = {"a": ["small", "multi"]}
    taught = made | {"teachers": {"uncut": {"pipeline": ["small"]}}}
    together = made | {"ensembles": {"both": {"members": {"bm25": 1, "a@small": 1}}}}
    for asked, key in ((taught, "teachers.uncut.pipeline"), (together, "ensembles.both")):
        with pytest.raises(ColbertZeroError, match=rf"^{key}: none of its phases is trained"):
            study(tmp_path, asked).check([("small",), ("small", "multi")])


def test_a_base_whose_zeros_are_held_has_another_id_than_while_they_were_not(tiny_multi_vector, tmp_path, monkeypatch):
    write_sources(tmp_path)
    tiny_multi_vector.save_pretrained(str(tmp_path / "base"), create_model_card=False)
    (tmp_path / "base" / RECORD).write_text(json.dumps({"kind": "compress", "asked": {"zeros": 0.5}}))
    made = recipe(tmp_path) | {"model": {"base": str(tmp_path / "base")}, "pipelines": {"a": ["multi"]}}
    del made["prompts"]
    held = study(tmp_path, made).start_id()
    monkeypatch.setattr("colbert_zero.study.study.keeps_zeros", lambda record: False)
    assert study(tmp_path, made).start_id() != held


@pytest.mark.parametrize("kind", ["multi-vector", "encoder"])
def test_what_is_merged_stays_what_it_is_and_zeros_that_are_lost_are_told(tiny_multi_vector, backbone, tmp_path, kind):
    pytest.importorskip("mergekit")
    write_sources(tmp_path)
    base = str(backbone)
    if kind == "multi-vector":
        base = str(tmp_path / "base")
        tiny_multi_vector.save_pretrained(base, create_model_card=False)
    made = recipe(tmp_path) | {"model": {"base": base}, "teachers": {}}
    del made["sources"]["scored"], made["prompts"], made["phases"]["heal"]
    made["phases"] |= {
        "pruned": {"kind": "compress", "zeros": 0.5},
        "coarse": {"kind": "compress", "bits": 8},
        "soup": {"kind": "merge", "with": ["other@coarse"]},
    }
    made["pipelines"] = {"other": ["coarse", "multi"], "soup": ["pruned", "soup", "multi"]}
    one = study(tmp_path, made)
    one.show = Told()
    one.find_base()
    one.train(("coarse",))
    record = one.train(("pruned", "soup"))
    told = "the zeros of its start are not kept, since not all that is merged has been cut so"
    assert record["told"] == [f"soup: {told}"]
    assert f"pruned → soup: {told}" in one.show.lines
    assert record["zeros"] is None
    assert kind_of(str(one.phase_folder(("pruned", "soup")) / "model")) == kind


def test_a_dense_base_is_not_adapted(tiny_dense, tmp_path):
    write_sources(tmp_path)
    tiny_dense.save_pretrained(str(tmp_path / "base"), create_model_card=False)
    made = recipe(tmp_path) | {"model": {"base": str(tmp_path / "base")}, "pipelines": {"a": ["legal"]}}
    del made["prompts"]
    with pytest.raises(ColbertZeroError) as caught:
        study(tmp_path, made).check([("legal",)])
    assert str(caught.value) == (
        f"phases.legal: adapts a multi-vector model's queries, and model.base {tmp_path / 'base'} is dense; put a "
        "multi-vector phase before it"
    )


def test_a_merged_pipeline_is_the_mean_of_two_and_costs_what_both_do(tmp_path):
    pytest.importorskip("mergekit")
    write_sources(tmp_path)
    made = study(tmp_path, recipe(tmp_path, merge=True))
    results = run_study(made, ["soup"], "test")
    way = [("dense",), ("dense", "multi"), ("dense", "multi", "longer"), SOUP]
    assert [phase["id"] for phase in results["systems"]["soup"]["phases"]] == list(map(made.phase_id, way))
    states = [load_file(made.phase_folder(chain) / "model" / "model.safetensors") for chain in way[1:]]
    for name, values in states[2].items():
        mean = (states[0][name].double() + states[1][name].double()) / 2
        assert float((values.double() - mean).abs().max()) < 1e-6
    record = record_of(made, SOUP)
    assert record["merged"] == {"other": made.phase_id(way[2])}
    assert record["made"]["weights"] == [0.5, 0.5]
    assert (record["texts"], record["flops"]) == (0, 0)


def test_prompts_that_differ_are_not_merged(tmp_path):
    pytest.importorskip("mergekit")
    write_sources(tmp_path)
    made = recipe(tmp_path, merge=True)
    made["phases"]["longer"] |= {"document_tokens": 20}
    one = study(tmp_path, made)
    with pytest.raises(ColbertZeroError) as caught:
        one.prepare(graph(one.recipe, {"soup": SOUP}))
    assert str(caught.value) == (
        "phases.soup.with: other has document_tokens 20, and its start 24; only models that are alike in everything "
        "but their weights are merged"
    )


@pytest.mark.parametrize(
    ("start", "seeds", "refused"), [("orthogonal", (7, 8), True), ("orthogonal", (7, 7), False), ("pca", (7, 7), True)]
)
def test_projections_that_began_otherwise_are_not_merged(tmp_path, start, seeds, refused):
    write_sources(tmp_path)
    made = recipe(tmp_path, merge=True)
    made["model"]["start"] = start
    made["phases"]["multi"] |= {"seed": seeds[0]}
    made["phases"]["longer"] |= {"seed": seeds[1]}
    made["pipelines"]["other"] = ["dense", "longer"]
    one = study(tmp_path, made)
    if not refused:
        one.prepare(graph(one.recipe, {"soup": SOUP}))
        return
    with pytest.raises(ColbertZeroError) as caught:
        one.prepare(graph(one.recipe, {"soup": SOUP}))
    assert str(caught.value) == (
        f"phases.soup.with: other has a projection that 'longer' began (seed {seeds[1]}), and its start one that "
        f"'multi' began (seed {seeds[0]}): the mean of two that began otherwise is neither; let both pipelines begin "
        "with one phase, or give these one seed and no `start: pca`"
    )
    assert not (tmp_path / "out" / "phases").exists()


KILLED = """
import os, signal, sys
from colbert_zero import cli
from colbert_zero.study import untrained
made = getattr(untrained, "_" + os.environ["DIES"])
def make(*given):
    made(*given)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(untrained, "_" + os.environ["DIES"], make)
sys.argv = ["colbert-zero", "run", "recipe.yaml", "--out", "out"]
cli.main()
"""


@pytest.mark.slow
def test_a_run_killed_at_a_step_of_each_kind_leaves_nothing_half_and_goes_on(tmp_path):
    pytest.importorskip("mergekit")
    write_sources(tmp_path)
    made = recipe(tmp_path, merge=True)
    others = recipe(tmp_path)
    made["pipelines"] |= others["pipelines"]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(made, sort_keys=False))
    phases = tmp_path / "out" / "phases"
    for kind, name in {"merge": "soup", "compress": "small", "adapt": "legal"}.items():  # in the order of the pipelines
        command = [sys.executable, "-c", KILLED]
        died = subprocess.run(command, cwd=tmp_path, env=environment(DIES=kind), capture_output=True, text=True)
        assert died.returncode == -signal.SIGKILL, died.stderr
        assert not list(phases.glob(f"{name}-*"))
    kept = {path: path.stat().st_mtime_ns for path in phases.glob("*/phase.json")}
    assert kept
    done = subprocess.run(
        [sys.executable, "-m", "colbert_zero", "run", "recipe.yaml", "--out", "out"],
        cwd=tmp_path, env=environment(), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert not [name for name in os.listdir(phases) if name.endswith((".tmp", ".unfinished"))]
    assert (tmp_path / "out" / "report.html").is_file()
