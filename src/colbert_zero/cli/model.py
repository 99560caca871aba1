"""`evaluate`: a checkpoint at work."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import typer

from colbert_zero.cli.options import PrecisionOption, refuse_unwritable, start_processes
from colbert_zero.errors import ColbertZeroError
from colbert_zero.recipe.entry import Precision
from colbert_zero.recipe.schema import RERANKED
from colbert_zero.terminal import RichShow, console, evaluation_table, published_lines, say


def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A checkpoint: folder or Hub id, dense, multi-vector or a cross-encoder; or `bm25`.",
        ),
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
    pool: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Pool documents' tokens, about N into one; 1 pools none, also where MODEL does."
        ),
    ] = None,
    precision: PrecisionOption = "float32",
    rerank: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help=f"Of a cross-encoder: how many of BM25's best it ranks anew; {RERANKED} by default.",
        ),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write scores, also of each query.")
    ] = None,
    run_file: Annotated[
        Path | None,
        typer.Option("--run", metavar="FILE|DIR", help="Write the ranking in TREC format; of several, into a folder."),
    ] = None,
) -> None:
    """Rank collections exactly with any dense or multi-vector checkpoint, and score it; a cross-encoder as a reranker.

    Of several, all are read first; each is then scored, and their mean, in which CQADupStack's 12 parts count as one.

    Examples:

      colbert-zero evaluate out/quickstart/phases/distillation-0123456789ab/model --collection data/scifact
      colbert-zero evaluate lightonai/ColBERT-Zero --collection nanobeir --published --json scores.json
      BEIR_HOME=data/beir colbert-zero evaluate my/model --collection beir/scifact --collection beir/nq --run runs
      colbert-zero evaluate my/model --collection mteb:SciFact
      colbert-zero evaluate bm25 --collection data/scifact
      colbert-zero evaluate my/model --collection data/scifact --without-layers
      colbert-zero evaluate my/model --collection data/scifact --pool 2
      colbert-zero evaluate my/model --collection data/scifact --precision auto
      colbert-zero evaluate cross-encoder/ms-marco-MiniLM-L6-v2 --collection beir/scifact --rerank 100
    """
    import torch
    from sentence_transformers.util import get_device_name

    from colbert_zero.data.by_name import load_all
    from colbert_zero.data.collection import Rules
    from colbert_zero.evaluation.by_mteb import find_task, load_task
    from colbert_zero.files import place_of
    from colbert_zero.maxsim.backends import refused, tell_refused
    from colbert_zero.models.bases import find_checkpoint
    from colbert_zero.models.kinds import kind_of
    from colbert_zero.processes import is_main
    from colbert_zero.recipe.named import MTEB
    from colbert_zero.watch import leave

    tasks = [word for word in dict.fromkeys(collection) if word.startswith(MTEB)]
    _check_options(model, tasks, bare, pool, json_file, run_file)
    if model == "bm25" and precision != "float32":
        raise ColbertZeroError("--precision: bm25 encodes nothing; leave it out")
    start_processes()
    found = [find_task(word) for word in tasks]
    commit = None if model == "bm25" else find_checkpoint(model, "MODEL", RichShow().say, cross_encoder=True)
    reranks = _reranks(model, commit, bool(tasks), bare, pool, precision, rerank)
    if pool and pool > 1 and kind_of(place_of(model), commit) != "multi-vector":
        raise ColbertZeroError(f"--pool: {model} is no multi-vector checkpoint, so it has no token vectors to pool")
    tell_refused(refused(torch.device(get_device_name())), RichShow().say)
    if is_main():
        for task in found:
            load_task(task)
    loaded = load_all([word for word in collection if word not in tasks], split, Rules(exclude_self, on_missing))
    runs = _run_files(run_file, [one.name for one in loaded])
    for one in loaded:
        for told in one.peculiarities():
            say(f"{one.name}: {told}")
    evaluated = _evaluated(model, commit, bare, pool, precision, (rerank or RERANKED) if reranks else None)
    tag, several = Path(model).name or "run", len(loaded) + len(tasks) > 1
    records = {one.name: _ranked(evaluated.rank, one, runs.get(one.name), tag, several) for one in loaded}
    records |= {word: _by_mteb(evaluated.encoder, task) for word, task in zip(tasks, found, strict=True)}
    for told in evaluated.told:
        say(f"{model}: {told}")
    _tell({"model": model, "commit": commit, **evaluated.about}, records, published, json_file)
    leave()


class _Evaluated(NamedTuple):
    """What is evaluated.

    Attributes:
        rank: Ranks a collection, and tells how far it is.
        encoder: The model, where it has embeddings.
        about: For the record.
        told: What to say of it beside the scores.
    """

    rank: Callable[[Any, Any], Any]
    encoder: Any
    about: dict[str, Any]
    told: list[str]


def _evaluated(
    model: str, commit: str | None, bare: bool, pool: int | None, precision: Precision, most: int | None
) -> _Evaluated:
    """BM25, a cross-encoder that ranks `most` of BM25's best anew, or a checkpoint."""
    from colbert_zero.evaluation.ranking import rank, rank_bm25
    from colbert_zero.files import place_of
    from colbert_zero.maxsim.backends import scoring_with
    from colbert_zero.models.checkpoints import load_model
    from colbert_zero.models.layers import without_layers
    from colbert_zero.models.pooling import pooling_of, with_pooling
    from colbert_zero.models.precision import decided, encoding_in, why
    from colbert_zero.teaching.reranking import rerank
    from colbert_zero.teaching.scorers import ByCrossEncoder
    from colbert_zero.training.machine import machine_of

    if most:
        scorer = ByCrossEncoder(place_of(model), commit, RichShow().say, "MODEL")
        told = [f"a cross-encoder, which ranked BM25's best {most} anew"]
        return _Evaluated(
            lambda collection, progress: rerank(scorer, collection, rank_bm25(collection, most), most, progress),
            None, {"rerank": most}, told,
        )  # fmt: skip
    about = {"without_layers": bare, "pool": 1.0, "precision": "float32"}
    if model == "bm25":
        return _Evaluated(lambda collection, progress: rank_bm25(collection), None, about, [])
    encoder = load_model(model, revision=commit)
    encoder = without_layers(encoder, model) if bare else encoder
    encoder = with_pooling(encoder, pool) if pool else encoder
    arithmetic = decided(precision, encoder.device)
    encoder = encoding_in(encoder, arithmetic)
    told = ["every transformer layer taken out"] if bare else []
    if precision != "float32":
        told.append(f"encoded in {why(arithmetic) if precision == 'auto' else arithmetic}")
    if (pooled := pooling_of(encoder)) > 1:
        told.append(f"documents' tokens pooled, about {pooled:g} into one")
    machine = machine_of(encoder, arithmetic)

    def ranked(collection: Any, progress: Any) -> Any:
        with scoring_with(machine["maxsim"]):
            return rank(encoder, collection, progress=progress)

    return _Evaluated(ranked, encoder, about | {"pool": pooled, "precision": arithmetic, "machine": machine}, told)


def _reranks(
    model: str, commit: str | None, tasks: bool, bare: bool, pool: int | None, precision: Precision, rerank: int | None
) -> bool:
    """Whether the model is a cross-encoder; options that are none of its, or of its alone, are refused."""
    from colbert_zero.files import place_of
    from colbert_zero.models.kinds import is_cross_encoder

    if model == "bm25" or not is_cross_encoder(place_of(model), commit):
        if rerank:
            raise ColbertZeroError(f"--rerank: {model} ranks whole collections by itself; leave it out")
        return False
    half = precision != "float32"
    given = {"--without-layers": bare, "--pool": pool, "--precision": half, "--collection mteb:…": tasks}
    for option in (option for option, value in given.items() if value):
        raise ColbertZeroError(f"{option}: {model} is a cross-encoder, which has no embeddings; leave it out")
    return True


def _check_options(
    model: str, tasks: list[str], bare: bool, pool: int | None, json_file: Path | None, run_file: Path | None
) -> None:
    """Refuse what does not go together, and places that cannot be written, before anything is read."""
    if model == "bm25" and bare:
        raise ColbertZeroError("--without-layers: bm25 has none; name a checkpoint")
    if model == "bm25" and pool:
        raise ColbertZeroError("--pool: bm25 has no token vectors; name a multi-vector checkpoint")
    if model == "bm25" and tasks:
        raise ColbertZeroError(f"{tasks[0]}: mteb takes checkpoints only")
    if run_file and tasks:
        raise ColbertZeroError(f"--run: mteb keeps {tasks[0]}'s ranking to itself; leave --run or the task out")
    for path, option in ((json_file, "--json"), (run_file, "--run")):
        refuse_unwritable(path, option)


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
    files = {name: path / f"{name.replace('/', '-')}.trec" for name in names}
    if twice := [name for name, file in files.items() if list(files.values()).count(file) > 1]:
        raise ColbertZeroError(f"--run {path}: {' and '.join(twice)} would be one file; rename a folder")
    return files


def _ranked(rank: Any, collection: Any, run_file: Path | None, tag: str, told: bool) -> dict[str, Any]:
    """What there is to record of a model on a collection."""
    from colbert_zero.evaluation.runs import measure, write_run
    from colbert_zero.processes import is_main

    with RichShow().counted(f"evaluating on {collection.name}") as advance:
        ranking = rank(collection, advance)
    if run_file and is_main():
        write_run(run_file, ranking, tag)
    scores, per_query = measure(ranking, collection.qrels)
    # Of several the first is told before the last one is ranked, which may take hours, or fail.
    if told:
        console.print(f"  {collection.name}: nDCG@10 {scores['nDCG@10']:.4f}", markup=False)
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
            say(line)
    if json_file and is_main():
        write_json(json_file, whole)
