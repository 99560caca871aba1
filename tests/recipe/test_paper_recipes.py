"""The recipes of the paper and of others: each is planned, and each of its phases trained, on small data in the layouts
that theirs have on the Hub."""

import json
import re
import subprocess
import sys

import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling

from colbert_zero.models.scratch import train_tokenizer, write_scratch
from colbert_zero.recipe.named import NAMED
from colbert_zero.recipe.reading import load_recipe, shipped_recipes
from colbert_zero.study.show import Quiet
from colbert_zero.study.study import Study
from colbert_zero.study.sweep import plan_sweep
from helpers import ROOT

NAMES = [name for name in shipped_recipes() if "/" in name and name != "others/shrink"]  # reads own pairs, not the Hub
PROMPTS = {"query": "search_query: ", "document": "search_document: "}
TEXTS = [f"the lift of wing {n} in a flow of heat" for n in range(12)]


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """Folders in the layouts of the Hub's data sets and bases, by Hub id."""
    root = tmp_path_factory.mktemp("hub")
    recipe = load_recipe("paper/full")
    folders = {source.path: root / source.path for source in recipe.sources.values()}
    named = [NAMED[collection.name] for collection in recipe.collections.values()]
    folders |= {collection.dataset: root / collection.dataset for collection in named}
    pairs, hard, scored = (folders[recipe.sources[name].path] for name in ("pairs", "hard", "scored"))
    for split in recipe.sources["pairs"].splits:
        rows = [
            {"query": f"{split} {n}", "document": text, "dataset": split, "shard": 0} for n, text in enumerate(TEXTS)
        ]
        _parquet(pairs / "data" / f"{split}-00000-of-00001.parquet", rows)
    for number, split in enumerate(recipe.sources["hard"].splits):
        negatives = [[f"{split} {k}" for k in range(n % 3 + [1, 5, 7, 15][number % 4])] for n in range(12)]
        rows = [
            {"query": f"{split} {n}", "document": text, "negative": negatives[n], "dataset": split}
            for n, text in enumerate(TEXTS)
        ]
        _parquet(hard / "data" / f"{split}-00000-of-00001.parquet", rows)
    ids = list(range(40))
    tables = {
        "train": [
            {"query_id": n, "document_ids": ids[: 33 + n % 2], "scores": [1 - k / 40 for k in range(33 + n % 2)]}
            for n in range(4)
        ],
        "queries": [{"query_id": n, "text": TEXTS[n]} for n in range(4)],
        "documents": [{"document_id": n, "text": f"heat {n}"} for n in ids],
    }
    _configurations(scored, {(name, "train"): rows for name, rows in tables.items()})
    splits = [collection.split for collection in named]
    tables = {
        "corpus": [{"_id": f"d{n}", "text": text} for n, text in enumerate(TEXTS)],
        "queries": [{"_id": f"q{n}", "text": text[:20]} for n, text in enumerate(TEXTS[:3])],
        "qrels": [{"query-id": f"q{n}", "corpus-id": f"d{n}"} for n in range(3)],
    }
    nano = folders["sentence-transformers/NanoBEIR-en"]
    _configurations(nano, {(name, split): rows for name, rows in tables.items() for split in splits})
    _lighton(folders, root)
    plain, dense = root / "plain", root / "dense"
    architecture = {
        "model_type": "modernbert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 16, "max_position_embeddings": 8704,
    }  # fmt: skip
    write_scratch(plain, architecture, train_tokenizer([*TEXTS, *PROMPTS.values()] * 4, 400, [], 8704), 3)
    modules = [Transformer(str(plain)), Pooling(16, pooling_mode="mean"), Normalize()]
    SentenceTransformer(modules=modules, prompts=PROMPTS, device="cpu").save_pretrained(str(dense))
    folders["answerdotai/ModernBERT-base"] = plain
    for name in ("modernbert-embed-base", "modernbert-embed-base-unsupervised"):
        folders[f"nomic-ai/{name}"] = dense
    for name in ("Alibaba-NLP/gte-modernbert-base", "jhu-clsp/mmBERT-base", "jhu-clsp/ettin-encoder-32m"):
        folders[name] = plain
    return folders


def _lighton(folders, root):
    """LightOn's mixtures, a configuration a group, and the rows made of its three tables of the fine-tuning data."""
    for name in ("embeddings-pre-training-curated", "contrastive-multilingual"):
        rows = [{"query": f"{n}", "document": text} for n, text in enumerate(TEXTS)]
        folders[f"lightonai/{name}"] = root / name
        _configurations(root / name, {(group, "train"): rows for group in ("agnews", "paq")})
    ids, tables = [f"d{n}" for n in range(60)], root / "tables"
    for split in ("nq_en", "fiqa_en"):
        scores = [
            {"query_id": f"q{n}", "document_ids": ids[n:] + ids[:n], "scores": [0.9, 0.899, *([0.5] * 58)],
             "rerank_scores": [3.0, *(k / 20 for k in range(59))]}
            for n in range(5)
        ]  # fmt: skip
        scores[4]["scores"] = [0.9] * 60  # no negative is left
        _parquet(tables / "scores" / f"{split}-00000-of-00001.parquet", scores)
        queries = [{"query_id": f"q{n}", "query": TEXTS[n]} for n in range(5)]
        _parquet(tables / "queries" / f"{split}-00000-of-00001.parquet", queries)
        documents = [{"document_id": name, "document": f"heat {name}"} for name in ids]
        _parquet(tables / "documents" / f"{split}-00000-of-00001.parquet", documents)
    for name, options in {
        "lateon": ["--below", "0.99", "--keep", "50"],
        "mlateon": ["--below", "0.95", "--keep", "10", "--teacher", "rerank_scores"],
    }.items():
        made = lighton_rows(tables, root / name, *options)
        assert made.stdout.splitlines()[1].startswith("nq_en: 4 of 5 rows"), made.stderr
        folders[f"data/{name}/*.parquet"] = root / name / "*.parquet"


def lighton_rows(*words):
    command = [sys.executable, str(ROOT / "examples" / "lighton_rows.py"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _parquet(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_list(rows).to_parquet(path)


def _configurations(folder, tables):
    lines = ["---", "configs:"]
    for config in dict.fromkeys(config for config, _ in tables):
        lines += [f"- config_name: {config}", "  data_files:"]
        lines += [f"  - split: {split}\n    path: {config}/{split}.parquet" for c, split in tables if c == config]
    for (config, split), rows in tables.items():
        _parquet(folder / config / f"{split}.parquet", rows)
    (folder / "README.md").write_text("\n".join([*lines, "---"]))


def small(name, theirs, tmp_path, monkeypatch, collections=None):
    """A recipe's study with each of the Hub's names replaced by a folder, and small batches; of all its collections, or
    of these."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    whole = load_recipe(name)
    changes = [f"model.base={theirs[whole.model.base]}"]
    paths = {key: source.path for key, source in whole.sources.items()}
    changes += [f"sources.{k}.path={theirs[p[0] if isinstance(p, list) else p]}" for k, p in paths.items()]
    named = {k: NAMED[v.name] for k, v in whole.collections.items() if k in (collections or whole.collections)}
    entries = {k: {"kind": "hub", "path": str(theirs[v.dataset]), "split": v.split} for k, v in named.items()}
    changes.append(f"collections={json.dumps(entries)}")
    for phase in whole.phases:
        changes += [f"phases.{phase}.global_batch_size=4", f"phases.{phase}.steps=1", f"phases.{phase}.epochs=null"]
        changes += [f"phases.{phase}.evaluate_every=null"]
    changes.append("validation.layers=false")
    return Study(load_recipe(name, changes), tmp_path / "out", Quiet(), tmp_path / "docstrings")


def chains(study):
    return [tuple(chain) for chain in study.recipe.pipelines.values()]


@pytest.mark.parametrize(
    "name",
    [name if name == "others/gte-moderncolbert" else pytest.param(name, marks=pytest.mark.slow) for name in NAMES],
)
def test_a_recipe_reads_data_and_base_as_they_lie_on_the_hub(name, theirs, tmp_path, monkeypatch):
    # The others have the collections of paper/full.
    study = small(name, theirs, tmp_path, monkeypatch, None if name == "paper/full" else ["nanobeir-scifact"])
    study.prepare(chains(study))
    parts = {name: list(source.parts) for name, source in study.sources.items()}
    if "lateon" in name:
        assert parts.pop("pairs") == ["pairs/agnews", "pairs/paq"]
        [(of, rows)] = parts.items()
        assert rows == [f"{of}/fiqa_en", f"{of}/nq_en"]
        lengths = {tuple(part.lengths()) for part in study.sources[of].parts.values()}
        assert lengths == {(50,) if of == "hard" else (8,)}
        return
    assert len(parts.get("pairs", range(29))) == 29
    assert len(parts.get("hard", range(10))) == 10
    lengths = {name: part.lengths() for name, part in study.sources["scored"].parts.items()}
    assert lengths == {"scored/train": [32]}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_phase_of_a_recipe_trains(name, theirs, tmp_path, monkeypatch):
    study = small(name, theirs, tmp_path, monkeypatch, ["nanobeir-scifact"])
    study.prepare(chains(study))
    for chain in chains(study):
        record = study.train(chain)
        assert torch.isfinite(torch.tensor(record["final_loss"]))
        for length in range(1, len(chain) + 1):
            told = json.loads((study.phase_folder(chain[:length]) / "phase.json").read_text())
            asked = study.recipe.phases[chain[length - 1]]
            assert (told["weight_decay"], told["seed"], told["lengths"]) == (0, 42, "all")
            assert told["warmup"] == asked.warmup
            if name.startswith("paper/"):
                assert asked.warmup == 0
                assert told["query_tokens"] == (39 if any(told["prompts"].values()) or "length" in name else 32)
            assert told["objective"] == asked.objective


def test_the_lengths_are_the_scripts_with_their_seven_tokens_for_prompts(theirs, tmp_path, monkeypatch):
    study = small("paper/full", theirs, tmp_path, monkeypatch)
    whole = {name: study.recipe.longest(phase) for name, phase in study.recipe.phases.items()}
    assert whole == {
        "unsupervised": {"query": 39, "document": 187},
        "supervised": {"query": 39, "document": 519},
        "distillation": {"query": 39, "document": 519},
    }
    assert study.recipe.lengths == "all"


def test_a_variant_differs_from_what_it_extends_in_what_it_says_alone():
    full, bare = load_recipe("paper/full"), load_recipe("paper/full-no-prompts")
    changed = {key for key in type(full).model_fields if getattr(full, key) != getattr(bare, key)}
    assert changed == {"name", "description", "prompts", "query_tokens", "phases"}
    for name, phase in full.phases.items():
        other = bare.phases[name]
        assert {k for k in type(phase).model_fields if getattr(phase, k) != getattr(other, k)} == {"document_tokens"}
    assert list(load_recipe("paper/kd-only").phases) == ["distillation"]
    assert list(load_recipe("paper/equal").pipelines) == ["full", "kd-only", "supervised-kd"]


def test_the_grids_of_the_paper_are_planned_as_they_are_documented():
    page = (ROOT / "docs" / "paper.md").read_text()
    commands = re.findall(r"^ {4}colbert-zero sweep (\S+) (.*) --steps (\d+)$", page, re.MULTILINE)
    planned = {}
    for recipe, grids, steps in commands:
        sweep = plan_sweep(recipe, grids.replace("--grid ", "").split(), None, int(steps), [])
        planned[sweep.phase] = (sweep.points, load_recipe(recipe).phases[sweep.phase])
    assert list(planned) == ["unsupervised", "supervised", "distillation"]
    for phase, (points, chosen) in planned.items():
        keys = {f"phases.{phase}.{key}": getattr(chosen, key) for key in ("learning_rate", "temperature")}
        assert keys in [values for values, _ in points]


def test_the_arms_of_equal_data_read_the_same_rows_at_the_same_lengths():
    recipe = load_recipe("paper/equal")
    for phase in ("unsupervised", "supervised"):
        arms = [recipe.phases[phase], recipe.phases[f"dense-{phase}"]]
        keys = (
            "sources",
            "global_batch_size",
            "epochs",
            "steps",
            "document_tokens",
            "query_tokens",
            "negatives",
            "seed",
        )
        assert {key: getattr(arms[0], key) for key in keys} == {key: getattr(arms[1], key) for key in keys}


def test_rows_cannot_be_made_of_a_folder_without_tables(tmp_path):
    made = lighton_rows(tmp_path, tmp_path / "out", "--below", "0.99", "--keep", "50")
    assert made.returncode == 2
    assert "download the data set there first" in made.stderr


def test_the_page_names_every_source_of_the_paper():
    page, recipe = (ROOT / "docs" / "paper.md").read_text(), load_recipe("paper/full")
    named = page.split("## Its sources")[1].split("\n## ")[0]
    for source in ("pairs", "hard"):
        assert all(split in named for split in recipe.sources[source].splits)
