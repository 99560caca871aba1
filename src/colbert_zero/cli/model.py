"""`evaluate`: a checkpoint at work."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from colbert_zero.cli.options import start_processes
from colbert_zero.errors import ColbertZeroError
from colbert_zero.terminal import RichShow, console, evaluation_table, published_lines


def evaluate(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A checkpoint: folder or Hub id, dense or multi-vector; or `bm25`.")
    ],
    collection: Annotated[
        list[str],
        typer.Option(
            metavar="PATH|NAME",
            help="A folder in BEIR layout; a public collection (beir/scifact, nanobeir/nq, decontaminated/fiqa) or all "
            "of beir, nanobeir or decontaminated; a Hub data set; or mteb:TASK. May be given several times.",
        ),
    ],
    split: Annotated[str | None, typer.Option(help="Which qrels; test for folders, train for the Hub.")] = None,
    exclude_self: Annotated[
        bool | None,
        typer.Option(
            "--exclude-self/--include-self",
            help="Leave a query's own document, of the same id, out of its ranking; by default where its text holds "
            "the query's (ArguAna).",
        ),
    ] = None,
    on_missing: Annotated[
        Literal["error", "count"] | None,
        typer.Option(help="Judgements of documents that are not there: stop, or count them; few are counted anyway."),
    ] = None,
    bare: Annotated[
        bool,
        typer.Option(
            "--without-layers", help="Take every transformer layer out first: what its token embeddings score alone."
        ),
    ] = False,
    published: Annotated[
        bool, typer.Option("--published", help="Show others' published figures on these collections as well.")
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write scores, also of each query.")
    ] = None,
    run_file: Annotated[
        Path | None,
        typer.Option("--run", metavar="FILE|DIR", help="Write the ranking in TREC format; of several, into a folder."),
    ] = None,
) -> None:
    """Rank collections exactly with any dense or multi-vector checkpoint, and score it.

    Of several, all are read first; each is then scored, and their mean, in which CQADupStack's 12 parts count as one.

    Examples:

      colbert-zero evaluate out/quickstart/phases/distillation-0123456789ab/model --collection data/scifact
      colbert-zero evaluate lightonai/ColBERT-Zero --collection nanobeir --published --json scores.json
      BEIR_HOME=data/beir colbert-zero evaluate my/model --collection beir/scifact --collection beir/nq --run runs
      colbert-zero evaluate my/model --collection mteb:SciFact
      colbert-zero evaluate bm25 --collection data/scifact
      colbert-zero evaluate my/model --collection data/scifact --without-layers
    """
    import torch
    from sentence_transformers.util import get_device_name

    from colbert_zero.data.by_name import load_all
    from colbert_zero.data.collection import Rules
    from colbert_zero.evaluation.by_mteb import find_task, load_task
    from colbert_zero.maxsim.backends import refused, tell_refused
    from colbert_zero.models.checkpoints import load_model
    from colbert_zero.models.layers import without_layers
    from colbert_zero.processes import is_main
    from colbert_zero.recipe.named import MTEB
    from colbert_zero.watch import leave

    tasks = [word for word in dict.fromkeys(collection) if word.startswith(MTEB)]
    if model == "bm25" and (bare or tasks):
        raise ColbertZeroError(
            "--without-layers: bm25 has none; name a checkpoint" if bare else f"{tasks[0]}: mteb takes checkpoints only"
        )
    if run_file and tasks:
        raise ColbertZeroError(f"--run: mteb keeps {tasks[0]}'s ranking to itself; leave --run or the task out")
    start_processes()
    found = [find_task(word) for word in tasks]
    commit = None if model == "bm25" else checked_model(model)
    tell_refused(refused(torch.device(get_device_name())), RichShow().say)
    if is_main():
        for task in found:
            load_task(task)
    loaded = load_all([word for word in collection if word not in tasks], split, Rules(exclude_self, on_missing))
    runs = _run_files(run_file, [one.name for one in loaded])
    for one in loaded:
        for told in one.peculiarities():
            console.print(f"{one.name}: {told}", markup=False, soft_wrap=True)
    encoder = None if model == "bm25" else load_model(model, revision=commit)
    encoder = without_layers(encoder, model) if encoder is not None and bare else encoder
    records = {one.name: _ranked(encoder, one, runs.get(one.name), Path(model).name or "run") for one in loaded}
    records |= {word: _by_mteb(encoder, task) for word, task in zip(tasks, found, strict=True)}
    if bare:
        console.print(f"{model}: every transformer layer taken out", markup=False, soft_wrap=True)
    _tell({"model": model, "commit": commit, "without_layers": bare}, records, published, json_file)
    leave()


def _run_files(path: Path | None, names: list[str]) -> dict[str, Path]:
    """Where each collection's ranking goes: of one the file, of several a file each in the folder.

    Raises:
        ColbertZeroError: Several rankings cannot go into one file.
    """
    if path is None:
        return {}
    if len(names) == 1 and not path.is_dir():
        return {names[0]: path}
    if path.is_file() or (path.suffix and not path.is_dir()):
        raise ColbertZeroError(f"--run {path}: {len(names)} rankings do not go into one file; name a folder")
    return {name: path / f"{name.replace('/', '-')}.trec" for name in names}


def _ranked(encoder: Any, collection: Any, run_file: Path | None, tag: str) -> dict[str, Any]:
    """What there is to record of a model on a collection; BM25 where there is no model."""
    from colbert_zero.evaluation.ranking import rank, rank_bm25
    from colbert_zero.evaluation.runs import measure, write_run
    from colbert_zero.processes import is_main

    if encoder is None:
        ranking = rank_bm25(collection)
    else:
        with RichShow().bar(f"evaluating on {collection.name}", collection.documents_count) as advance:
            ranking = rank(encoder, collection, progress=lambda done, total: advance(done, {}))
    if run_file and is_main():
        write_run(run_file, ranking, tag)
    scores, per_query = measure(ranking, collection.qrels)
    return {
        "collection": collection.name,
        "documents": collection.documents_count,
        "queries": len(collection.qrels),
        "own_left_out": len(collection.own),
        "missing": collection.missing,
        "empty": collection.empty,
        **({"read_from": collection.place} if collection.place else {}),
        "scores": scores,
        "per_query": per_query,
    }


def _by_mteb(encoder: Any, task: Any) -> dict[str, Any]:
    """What there is to record of a model on a task of mteb's, which the main process evaluates."""
    from colbert_zero.evaluation.by_mteb import evaluate_task
    from colbert_zero.processes import from_main, is_main

    scores, about = from_main(evaluate_task(encoder, task) if is_main() else None)
    return {"collection": f"mteb:{task.metadata.name}", **about, "scores": scores}


def _tell(about: dict[str, Any], records: dict[str, dict[str, Any]], published: bool, json_file: Path | None) -> None:
    """Print the scores, the mean of several, and what others published if asked for; write them down."""
    from colbert_zero.evaluation.runs import mean_of_collections, means_of_parts
    from colbert_zero.files import write_json
    from colbert_zero.processes import is_main
    from colbert_zero.recipe.named import counted_as

    wholes = {name: counted_as(name, records) for name in records}
    scores = means_of_parts({name: record["scores"] for name, record in records.items()}, wholes.__getitem__)
    if len(records) == 1:
        [(name, record)] = records.items()
        sizes = f": {record['documents']:,} documents, {record['queries']:,} queries" if "documents" in record else ""
        console.print(f"{name}{sizes or ', by mteb ' + record.get('mteb', '')}", markup=False)
        for measure_name, value in record["scores"].items():
            console.print(f"  {measure_name:8} {value:.4f}", markup=False)
        whole = {**about, **record}
    else:
        mean = mean_of_collections(scores)
        console.print(evaluation_table(records, wholes, scores, mean))
        whole = {**about, "collections": records, "scores": scores, "mean": mean}
    if published:
        for line in published_lines(list(scores)):
            console.print(line, markup=False, soft_wrap=True)
    if json_file and is_main():
        write_json(json_file, whole)


def checked_model(model: str, whose: str = "MODEL") -> str | None:
    """The commit of a Hub id, which is told; None of a folder. What cannot be evaluated is refused."""
    from colbert_zero.models.bases import check_base, find_commit, go_offline, is_hub_id
    from colbert_zero.models.kinds import kind_of

    commit = None
    if is_hub_id(model):
        commit, silent = find_commit(model, None, whose)
        console.print(f"{whose}: {model} at {commit}{f', from the cache: {silent}' if silent else ''}", markup=False)
        if silent:
            go_offline()
    check_base(model, commit, whose=whose, trained=False)
    if kind_of(model, commit) == "encoder":
        console.print(
            f"{whose}: {model} is a plain encoder, never trained to give embeddings: it is scored by the mean of its "
            "states and their cosine",
            markup=False,
            soft_wrap=True,
        )
    return commit
