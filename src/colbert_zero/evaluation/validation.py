"""The small collections that training and sweeps are judged on: NanoBEIR, or a sample of the recipe's own."""

import hashlib
import heapq
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi

from colbert_zero.data.collection import Collection, Rules
from colbert_zero.data.layouts import load_beir, load_hub, write_beir
from colbert_zero.errors import reason
from colbert_zero.evaluation.ranking import rank
from colbert_zero.evaluation.runs import measure
from colbert_zero.files import atomic_folder, fingerprint, read_json, write_json
from colbert_zero.models.checkpoints import Encoder
from colbert_zero.models.encoders import with_own_tokenizer
from colbert_zero.recipe.named import NANOBEIR, NANOBEIR_SETS
from colbert_zero.recipe.schema import Recipe
from colbert_zero.report.records import MEASURE

_TIMEOUT_SECONDS = 5

_VERSION = 1

_RECORD = "validation.json"


def choose(recipe: Recipe, collections: dict[str, Collection], folder: Path, say: Callable[[str], None]) -> Path:
    """The folder of what was chosen earlier for these collections, else NanoBEIR, else a sample; kept in BEIR layout.

    Args:
        recipe: Its `validation` entry says what is wanted.
        collections: The recipe's own, by name. A change in one means a new sample.
        folder: Where the choice is kept: a folder each, with validation.json, which says where it came from.
        say: Told what is used and why.
    """
    sample, nanobeir = folder / f"sample-{_sample_id(recipe, collections)}", folder / "nanobeir"
    kept = [sample, nanobeir] if recipe.validation.nanobeir else [sample]
    found = next((path for path in kept if (path / _RECORD).is_file()), None)
    if found is None:
        why = "`validation.nanobeir` is false"
        if recipe.validation.nanobeir:
            say(f"validation: asking the Hub for {NANOBEIR}")
            why = _fetch_nanobeir(nanobeir)
        found = sample if why else nanobeir
        if why:
            _write_sample(sample, recipe, collections, why)
    say(_description(read_json(found / _RECORD), recipe, found))
    return found


def own_sample(recipe: Recipe, collections: dict[str, Collection], folder: Path) -> Path:
    """The folder of a sample of the recipe's own collections, made at first use; the Hub is not asked.

    It is never what `choose` finds: which collections were chosen is part of a phase's id.
    """
    found = folder / f"layers-{_sample_id(recipe, collections)}"
    if not (found / _RECORD).is_file():
        _write_sample(found, recipe, collections, "what layers add is measured on the recipe's own collections")
    return found


def _sample_id(recipe: Recipe, collections: dict[str, Collection]) -> str:
    contents = {name: collection.fingerprint for name, collection in collections.items()}
    return fingerprint(_VERSION, recipe.validation.asked(exclude={"layers"}), contents)


def chosen(folder: Path) -> list[Collection]:
    """The collections of a folder that `choose` returned."""
    record = read_json(folder / _RECORD)
    rules = record.get("rules", {})
    return [load_beir(folder / name, name=name, rules=Rules(**rules.get(name, {}))) for name in record["collections"]]


def validate(
    model: Encoder, collections: Iterable[Collection], progress: Callable[[int], None] | None = None
) -> dict[str, float]:
    """nDCG@10 of a model on each collection. Its mode, its tokenizer and the random state stay as they were.

    Args:
        model: Dense or multi-vector; may be in training.
        collections: Small ones.
        progress: Called with the documents done in all.
    """
    own, done, scores = with_own_tokenizer(model), 0, {}
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        for collection in collections:
            report = (lambda ranked, _, before=done: progress(before + ranked)) if progress else None
            run = rank(own, collection, 10, report)
            scores[collection.name] = measure(run, collection.qrels, (MEASURE,))[0][MEASURE]
            done += collection.documents_count
    return scores


# ---- NanoBEIR


def _fetch_nanobeir(folder: Path) -> str:
    """Write NanoBEIR as the Hub has it today; returns "", or why it cannot be had."""
    try:
        revision = HfApi().dataset_info(NANOBEIR, timeout=_TIMEOUT_SECONDS).sha
        with atomic_folder(folder) as temporary:
            sizes = {}
            for name in NANOBEIR_SETS:
                collection = load_hub(NANOBEIR, name, revision)
                write_beir(collection, temporary / name)
                sizes[name] = _size(collection)
            record = {"schema": 1, "from": "nanobeir", "dataset": NANOBEIR, "revision": revision, "why": None}
            write_json(temporary / _RECORD, {**record, "collections": sizes})
    except Exception as error:  # the Hub's client lets through the errors of its HTTP library, which changed
        return f"NanoBEIR cannot be had from the Hub ({reason(error)})"
    return ""


# ---- A sample of the recipe's own


def _write_sample(folder: Path, recipe: Recipe, collections: dict[str, Collection], why: str) -> None:
    with atomic_folder(folder) as temporary:
        sizes, rules = {}, {}
        for name, collection in collections.items():
            small = sample(name, collection, recipe.validation.documents, recipe.validation.queries)
            write_beir(small, temporary / name)
            sizes[name], rules[name] = _size(small), asdict(small.rules)
        record = {"schema": 1, "from": "sample", "dataset": None, "revision": None, "why": why, "rules": rules}
        write_json(temporary / _RECORD, {**record, "collections": sizes})


def sample(name: str, collection: Collection, documents: int, queries: int) -> Collection:
    """A part of a collection, the same in every order and on every machine.

    Queries and filling documents are those whose ids have the smallest hashes. One pass over the corpus; memory
    holds the sample and nothing else.

    Args:
        name: Of the sample.
        collection: Stays as it is.
        documents: As many, or as many as are judged for the chosen queries if those are more.
        queries: At most.
    """
    smallest = set(heapq.nsmallest(queries, collection.queries, key=_hash))
    asked = {query_id: text for query_id, text in collection.queries.items() if query_id in smallest}
    qrels = {query_id: collection.qrels[query_id] for query_id in asked}
    judged = {document_id for grades in qrels.values() for document_id in grades}
    kept: list[tuple[int, str, str]] = []
    others: list[tuple[int, int, str, str]] = []  # a heap, the largest hash first
    for place, (document_id, text) in enumerate(collection.documents()):
        if document_id in judged:
            kept.append((place, document_id, text))
        elif len(judged) + len(others) < documents:
            heapq.heappush(others, (-_hash(document_id), place, document_id, text))
        elif others:
            heapq.heappushpop(others, (-_hash(document_id), place, document_id, text))
    corpus = {document_id: text for _, document_id, text in sorted(kept + [entry[1:] for entry in others])}
    # Few missing documents of the whole may be many of a part.
    return Collection.from_memory(name, corpus, asked, qrels, replace(collection.rules, on_missing="count"))


def _hash(identifier: str) -> int:
    return int.from_bytes(hashlib.blake2b(identifier.encode(), digest_size=8).digest(), "big")


# ---- What is said


def _size(collection: Collection) -> dict[str, int]:
    return {"documents": collection.documents_count, "queries": len(collection.qrels)}


def _description(record: dict[str, Any], recipe: Recipe, folder: Path) -> str:
    sizes = record["collections"].values()
    counts = ", ".join(f"{sum(size[key] for size in sizes):,} {key}" for key in ("documents", "queries"))
    if record["from"] == "nanobeir":
        return f"validation: NanoBEIR ({len(sizes)} sets, {counts}; {record['dataset']} at {record['revision'][:7]})"
    text = f"validation: a sample of {', '.join(record['collections'])} ({counts}), because {record['why']}"
    if recipe.validation.nanobeir:
        text += f"; delete {folder} to ask the Hub again"
    if any(phase.select == "best" for phase in recipe.phases.values()):
        text += ". With `select: best` the phases then choose by test queries, and their scores are too good"
    return text
