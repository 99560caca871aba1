"""The commands as a user types them, in this process."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
import yaml

from colbert_zero.data.collection import Collection
from colbert_zero.data.layouts import write_beir
from colbert_zero.evaluation.ranking import rank_bm25
from colbert_zero.evaluation.runs import measure as measured
from colbert_zero.evaluation.runs import read_run
from colbert_zero.models.pooling import with_pooling
from colbert_zero.recipe.named import NAMED
from colbert_zero.recipe.reading import RECIPES, load_recipe, shipped_recipes
from helpers import DOCUMENTS, QRELS, QUERIES, ROOT, data, environment, launch, write_rows


@pytest.mark.parametrize("option", ["--json", "--run"])
def test_a_place_that_cannot_be_written_is_told_before_anything_is_ranked(command, tmp_path, option):
    (tmp_path / "file").write_text("x")
    code, _, error = command("evaluate", "bm25", "--collection", "nowhere", option, str(tmp_path / "file" / "x.json"))
    assert code == 2
    assert f"{option} " in error
    assert "cannot be written; name another place" in error.replace("\n", " ")


def test_every_command_is_in_the_help_and_teaches_by_example(command):
    code, out, _ = command("--help")
    assert code == 0
    for name in (
        "run",
        "plan",
        "train",
        "sweep",
        "data",
        "evaluate",
        "index",
        "search",
        "serve",
        "mine",
        "teach",
        "leaks",
        "filter-pairs",
        "choose-base",
        "compress",
        "report",
        "doctor",
        "recipes",
        "schema",
    ):
        assert name in out
        if name not in ("recipes", "schema"):
            assert f"colbert-zero {name}" in command(name, "--help")[1]


def test_recipes_are_listed_a_line_each_and_shown_as_they_are(command):
    _, *lines = command("recipes")[1].split("\n\n")[0].splitlines()
    assert [line.split()[0] for line in lines] == list(shipped_recipes())
    assert any(re.match(r"paper/full  +\d+ to \d+  The paper's pipeline", line) for line in lines)
    assert {"paper/full", "quickstart", "small", "smoke"} < set(shipped_recipes())
    assert command("recipes", "show", "paper/kd-only")[1].startswith("extends: paper/full")
    assert command("recipes", "show", "smoke")[1] == (RECIPES / "smoke.yaml").read_text()
    code, _, error = command("recipes", "show", "../pyproject")
    assert code == 2
    assert "no shipped recipe" in error


def test_the_schema_is_the_recipes_or_of_one_that_extends_another(command):
    schema = json.loads(command("schema")[1])
    assert "extends" in schema["properties"]
    extending, whole = schema["anyOf"]
    assert extending == {"required": ["extends"]}
    assert set(whole["required"]) == {"name", "model", "sources", "collections", "phases", "pipelines"}


def test_evaluate_writes_scores_of_every_query(command, collection, tiny_multi_vector, tmp_path):
    write_beir(collection, tmp_path / "tiny")
    tiny_multi_vector.save_pretrained(str(tmp_path / "model"), create_model_card=False)
    arguments = ("evaluate", tmp_path / "model", "--collection", tmp_path / "tiny", "--json", tmp_path / "s.json")
    code, out, _ = command(*arguments, "--run", tmp_path / "s.trec")
    assert code == 0
    found = json.loads((tmp_path / "s.json").read_text())
    assert (found["collection"], found["documents"], found["queries"]) == ("tiny", 20, 5)
    assert set(found["per_query"]) == set(collection.queries)
    mean = sum(scores["nDCG@10"] for scores in found["per_query"].values()) / 5
    assert found["scores"]["nDCG@10"] == pytest.approx(mean)
    computed = {key: found["machine"][key] for key in ("device", "maxsim", "precision", "attention")}
    assert computed == {"device": "cpu", "maxsim": "torch", "precision": "float32", "attention": "sdpa"}
    assert f"nDCG@10  {mean:.4f}" in out
    assert len((tmp_path / "s.trec").read_text().splitlines()) == 5 * 20


def test_evaluate_takes_the_layers_out_where_asked_and_says_so(command, collection, tiny_multi_vector, tmp_path):
    tiny_multi_vector.save_pretrained(str(tmp_path / "model"), create_model_card=False)
    write_beir(collection, tmp_path / "tiny")
    arguments = ("evaluate", tmp_path / "model", "--collection", tmp_path / "tiny", "--json", tmp_path / "s.json")
    scores = []
    for more in ((), ("--without-layers",)):
        code, out, _ = command(*arguments, *more)
        assert code == 0
        assert ("every transformer layer taken out" in out) == bool(more)
        scores.append(json.loads((tmp_path / "s.json").read_text()))
    assert [record["without_layers"] for record in scores] == [False, True]
    assert scores[0]["per_query"] != scores[1]["per_query"]
    code, _, err = command("evaluate", "bm25", "--collection", tmp_path / "tiny", "--without-layers")
    assert (code, "--without-layers: bm25 has none" in err) == (2, True)


def test_evaluate_pools_documents_where_asked_and_says_so(command, collection, tiny_multi_vector, tiny_dense, tmp_path):
    pooled = with_pooling(tiny_multi_vector, 3)
    for name, model in {"whole": tiny_multi_vector, "pooled": pooled, "dense": tiny_dense}.items():
        model.save_pretrained(str(tmp_path / name), create_model_card=False)
    write_beir(collection, tmp_path / "tiny")
    cases = [("whole", (), 1), ("whole", ("--pool", 3), 3), ("pooled", (), 3), ("pooled", ("--pool", 1), 1)]
    records = []
    for name, more, factor in cases:
        arguments = ("--collection", tmp_path / "tiny", "--json", tmp_path / "s.json", *more)
        code, out, _ = command("evaluate", tmp_path / name, *arguments)
        assert code == 0
        assert ("documents' tokens pooled, about 3 into one" in out) == (factor == 3)
        records.append(json.loads((tmp_path / "s.json").read_text()))
        assert records[-1]["pool"] == factor
    scores = [record["per_query"] for record in records]
    assert scores[0] == scores[3] != scores[1] == scores[2]
    for name, message in (("dense", "no multi-vector checkpoint"), ("bm25", "--pool: bm25 has no token vectors")):
        path = name if name == "bm25" else tmp_path / name
        code, _, err = command("evaluate", path, "--collection", tmp_path / "tiny", "--pool", 2)
        assert (code, message in err) == (2, True)


def test_evaluate_records_which_model_it_was_and_what_it_did_unasked(command, tmp_path):
    texts = {"a": "lift of a wing", "b": "drag of a wing", "c": ""} | {f"d{n}": f"heat {n}" for n in range(20)}
    judged = {f"d{n}": 1 for n in range(20)}
    qrels = {"a": {"b": 1, "gone": 1}, "q": judged}
    folder, record = tmp_path / "mine", tmp_path / "s.json"
    collection = Collection.from_memory("mine", texts, {"a": "lift of a wing", "q": "heat"}, qrels)
    write_beir(collection, folder)
    assert command("evaluate", "bm25", "--collection", folder, "--json", record)[0] == 0
    found = json.loads(record.read_text())
    kept = {key: found[key] for key in ("model", "commit", "own_left_out", "missing", "empty")}
    assert kept == {"model": "bm25", "commit": None, "own_left_out": 1, "missing": 1, "empty": 1}


def test_evaluate_says_how_it_scores_a_plain_encoder_that_says_nothing_of_it(command, collection, backbone, tmp_path):
    write_beir(collection, tmp_path / "tiny")
    code, out, _ = command("evaluate", backbone, "--collection", tmp_path / "tiny")
    assert code == 0
    assert "is a plain encoder, never trained to give embeddings: it is scored by the mean of its states" in out


@pytest.fixture
def cross(tiny_cross_encoder, collection, tmp_path):
    """A folder with a saved cross-encoder and a collection."""
    tiny_cross_encoder.save_pretrained(str(tmp_path / "cross"), create_model_card=False)
    write_beir(collection, tmp_path / "tiny")
    return tmp_path


@pytest.mark.parametrize("most", [3, None])
def test_evaluate_ranks_bm25s_best_anew_by_a_cross_encoder(command, cross, collection, tiny_cross_encoder, most):
    more = ("--rerank", most) if most else ()
    files = ("--json", cross / "s.json", "--run", cross / "s.trec")
    code, out, _ = command("evaluate", cross / "cross", "--collection", cross / "tiny", *more, *files)
    assert code == 0
    assert f"a cross-encoder, which ranked BM25's best {most or 50} anew" in out.replace("\n", " ")
    record, run = json.loads((cross / "s.json").read_text()), read_run(cross / "s.trec")
    assert (record["rerank"], record["commit"], record["model"]) == (most or 50, None, str(cross / "cross"))
    assert "pool" not in record
    first = rank_bm25(collection, most or 50)
    assert {query: {document for document, _ in ranked} for query, ranked in run.items()} == {
        query: {document for document, _ in ranked} for query, ranked in first.items()
    }
    for query, ranked in run.items():
        pairs = [(QUERIES[query], DOCUMENTS[document]) for document, _ in ranked]
        logits = tiny_cross_encoder.predict(pairs, activation_fn=torch.nn.Identity()).tolist()
        assert [score for _, score in ranked] == pytest.approx(logits, abs=1e-4)
        assert logits == sorted(logits, reverse=True)
    assert record["per_query"] == measured(run, QRELS)[1]


def test_what_a_cross_encoder_has_not_and_what_it_alone_has_is_refused(command, cross, tiny_dense, monkeypatch):
    monkeypatch.setattr("colbert_zero.evaluation.by_mteb.find_task", lambda word: None)  # as if mteb were installed
    tiny_dense.save_pretrained(str(cross / "dense"), create_model_card=False)
    own = f"{cross / 'cross'} is a cross-encoder, which has no embeddings; leave it out"
    cases = [
        ("cross", ("--pool", 2), f"--pool: {own}"),
        ("cross", ("--without-layers",), f"--without-layers: {own}"),
        ("cross", ("--collection", "mteb:SciFact"), own),
        ("dense", ("--rerank", 5), f"--rerank: {cross / 'dense'} ranks whole collections by itself; leave it out"),
        ("bm25", ("--rerank", 5), "--rerank: bm25 ranks whole collections by itself; leave it out"),
        ("nowhere", ("--rerank", 5), "no such folder"),
        ("nowhere", (), "no such folder"),
    ]
    for name, more, message in cases:
        model = name if name == "bm25" else cross / name
        code, _, error = command("evaluate", model, "--collection", cross / "tiny", *more)
        assert (code, message in error.replace("\n", " "), "Traceback" in error) == (2, True, False), error


def test_a_cross_encoder_of_the_hub_is_one_of_the_commit_that_is_told(command, cross, hub):
    hub.repos["me/cross"] = {"a" * 40: cross / "cross"}
    arguments = ("evaluate", "me/cross", "--collection", cross / "tiny", "--rerank", 4, "--json", cross / "s.json")
    code, out, error = command(*arguments)
    assert code == 0, error
    assert f"MODEL: me/cross at {'a' * 40}" in out
    assert json.loads((cross / "s.json").read_text())["commit"] == "a" * 40


@pytest.fixture
def several(tmp_path, monkeypatch, collection):
    """Public collections in BEIR_HOME, two of CQADupStack's parts of their own, and a folder."""
    other = Collection.from_memory("x", DOCUMENTS, {"q": "wing"}, {"q": {"flutter": 1, "lift": 1}})
    for named in NAMED.values():
        few = named.name in ("beir/cqadupstack/tex", "beir/cqadupstack/gis")
        write_beir(other if few else collection, tmp_path / "home" / named.folder, named.qrels)
    write_beir(other, tmp_path / "mine")
    monkeypatch.setenv("BEIR_HOME", str(tmp_path / "home"))
    return tmp_path


def test_several_collections_are_evaluated_at_once_each_and_their_mean(command, several):
    options = [
        word for name in ("beir/scifact", "beir/cqadupstack", several / "mine") for word in ("--collection", name)
    ]
    code, out, err = command("evaluate", "bm25", *options, "--json", several / "s.json", "--run", several / "runs")
    assert code == 0, err
    found = json.loads((several / "s.json").read_text())
    assert len(found["collections"]) == 14
    assert set(found["collections"]["beir/cqadupstack/tex"]["per_query"]) == {"q"}
    assert list(found["scores"]) == ["beir/scifact", "beir/cqadupstack", "mine"]
    for measure in ("nDCG@10", "R@100", "RR@10"):
        parts = [r["scores"][measure] for n, r in found["collections"].items() if n.startswith("beir/cqa")]
        assert found["scores"]["beir/cqadupstack"][measure] == pytest.approx(sum(parts) / 12)
        counted = [scores[measure] for scores in found["scores"].values()]
        assert found["mean"][measure] == pytest.approx(sum(counted) / 3)
    rows = {line.split("  ")[0].strip(): line.split() for line in out.splitlines() if line[-4:].isdigit()}
    assert rows["mean of 3"][-3:] == [f"{found['mean'][m]:.4f}" for m in ("nDCG@10", "R@100", "RR@10")]
    assert "beir/cqadupstack, mean of 12 parts" in rows
    assert len(list((several / "runs").glob("*.trec"))) == 14
    assert len((several / "runs" / "beir-scifact.trec").read_text().splitlines()) > 5
    assert "beir/scifact: from " in out


def test_a_group_is_all_of_its_collections_and_its_published_figures_stand_apart(command, several):
    code, out, _ = command("evaluate", "bm25", "--collection", "beir", "--published", "--json", several / "s.json")
    assert code == 0
    assert "mean of 15" in out
    published = out[out.index("published nDCG@10, not measured here:") :]
    assert "ColBERT-Zero, pipeline (c) after KD: mean of beir 0.5543, beir/fiqa 0.4262" in published
    assert "lightonai/LateOn: mean of beir 0.5722" in published
    assert "(arXiv 2602.16609" in published
    assert "published" not in (several / "s.json").read_text()
    one = command("evaluate", "bm25", "--collection", "nanobeir/scifact", "--published")[1]
    assert "published nDCG@10: none on these collections" in one


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--collection", "beir/scifact", "--collection", "beir/nq", "--run", "s.trec"), "--run s.trec: 2 rankings do"),
        (("--collection", "beir/scifact", "--collection", "beir/nqq"), "beir/nqq: no such folder, no public collec"),
        (("--collection", "mteb:SciFact"), "mteb:SciFact: mteb takes checkpoints only"),
        (("--collection", "mteb:SciFact", "--run", "s.trec"), "mteb"),
    ],
)
def test_what_cannot_be_evaluated_is_told_before_anything_is(command, several, monkeypatch, words, message):
    monkeypatch.chdir(several)
    monkeypatch.setattr("colbert_zero.evaluation.ranking.rank_bm25", None)
    code, _, error = command("evaluate", "bm25", *words)
    assert (code, message in error, "Traceback" in error) == (2, True, False), error


def test_bm25_is_a_model_to_evaluate_too(command, collection, tmp_path):
    write_beir(collection, tmp_path / "tiny")
    code, out, _ = command("evaluate", "bm25", "--collection", tmp_path / "tiny")
    assert code == 0
    assert "20 documents, 5 queries" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("run", "nowhere.yaml"), "nowhere.yaml: no such file, no shipped recipe"),
        (("run", "smoke", "--only", "fulll"), "--only fulll: no such pipeline (there are: kd-only"),
        (("train", "smoke", "--phase", "distillation"), "starts differently in each of several pipelines"),
        (("report", "nowhere"), "colbert-zero run"),
        (("run", "smoke", "--set", "phases.unsupervised.temprature=1"), "did you mean temperature?"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(command, words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, error = command(*words)
    assert code == 2
    assert message in error
    assert "Traceback" not in error


def test_a_full_disk_is_told_without_a_traceback(command, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("colbert_zero.cli.study.load_recipe", full)
    code, _, error = command("run", "smoke")
    assert code == 1
    assert "No space left on device" in error


def test_a_recipes_mistakes_are_told_before_torch_is_imported(tmp_path):
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump({"nam": "x"}))
    program = "import sys; from colbert_zero.cli import main\ntry:\n main()\nfinally: print('torch' in sys.modules)"
    arguments = [sys.executable, "-c", program, "run", str(tmp_path / "wrong.yaml")]
    result = subprocess.run(arguments, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stdout.strip() == "False"
    assert "did you mean name?" in result.stderr


def test_the_readmes_recipe_is_a_valid_one(tmp_path):
    readme = (RECIPES.parent / "README.md").read_text()
    (tmp_path / "mine.yaml").write_text(readme.split("```yaml\n")[1].split("```")[0])
    assert load_recipe(tmp_path / "mine.yaml").name == "mine"


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_a_terminal_that_cannot_hold_a_character_gets_another(encoding):
    variables = environment(PYTHONIOENCODING=encoding, PYTHONPATH=ROOT / "src")
    command = [sys.executable, "-m", "colbert_zero", "run", "→.yaml"]
    done = subprocess.run(command, capture_output=True, env=variables, check=False)
    assert done.returncode == 2
    assert b"colbert-zero: ?.yaml: no such file" in done.stderr


@pytest.mark.parametrize("columns", ["0", "19"])
def test_columns_in_which_nothing_can_be_printed_count_as_none(columns, tmp_path):
    variables = environment(COLUMNS=columns, PYTHONPATH=ROOT / "src")
    command = [sys.executable, "-m", "colbert_zero"]
    done = subprocess.run([*command, "--help"], capture_output=True, text=True, env=variables, check=False)
    assert "Train and evaluate a recipe's pipelines, and write the report." in done.stdout
    done = subprocess.run([*command, "run", "no.yaml"], capture_output=True, text=True, env=variables, check=False)
    assert "colbert-zero: no.yaml: no such file" in done.stderr


@pytest.mark.parametrize("words", [("recipes",), ("recipes", "show", "quickstart"), ("schema",)])
@pytest.mark.parametrize("state", ["nobody reads", "closed"])
def test_a_command_to_which_nobody_listens_ends_quietly(words, state):
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "colbert_zero", *words]
    if state == "closed":
        command = ["sh", "-c", 'exec "$@" >&-', "sh", *command]
    variables = environment(PYTHONPATH=ROOT / "src")
    done = subprocess.run(command, env=variables, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("ending", ["2>&-", "2>/dev/full"])
def test_a_mistake_that_cannot_be_told_is_still_one(ending):
    command = ["sh", "-c", f'exec "$@" {ending}', "sh", sys.executable, "-m", "colbert_zero", "run", "no.yaml"]
    assert subprocess.run(command, env=environment(PYTHONPATH=ROOT / "src"), check=False).returncode not in (0, -6)


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_a_run_whose_reader_has_gone_ends_quietly(tmp_path, world):
    write_rows(tmp_path / "pairs.jsonl")
    recipe = data(tmp_path, pipelines={"full": ["unsupervised"]})
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    command = launch(world, "-m", "colbert_zero", "run", "r.yaml")
    with subprocess.Popen(command, cwd=tmp_path, env=environment(), stdout=-1, stderr=-1, text=True) as run:
        run.stdout.close()
        error = run.stderr.read()
    assert (run.returncode, "Traceback" in error, "colbert-zero:" in error) == (0, False, False), error


def test_sigterm_while_torch_is_imported_ends_with_success(tmp_path):
    write_rows(tmp_path / "pairs.jsonl")
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(data(tmp_path)))
    code = (
        "import os, signal, sys\nfrom colbert_zero import cli\n"
        "class Finder:\n    def find_spec(self, name, *_):\n"
        "        name == 'torch' and os.kill(os.getpid(), signal.SIGTERM)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "sys.argv = ['colbert-zero', 'run', 'r.yaml']\ncli.main()\n"
    )
    variables = environment(PYTHONPATH=ROOT / "src")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=variables)
    assert (done.returncode, done.stderr) == (0, "")
    assert "stopped by SIGTERM" in done.stdout
