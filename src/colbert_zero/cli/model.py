"""`evaluate`: a checkpoint at work."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from colbert_zero.cli.options import start_processes
from colbert_zero.errors import ColbertZeroError
from colbert_zero.terminal import RichShow, console


def evaluate(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A checkpoint: folder or Hub id, dense or multi-vector; or `bm25`.")
    ],
    collection: Annotated[
        str,
        typer.Option(metavar="PATH|NAME", help="A folder in BEIR layout, or a Hub data set such as a NanoBEIR one."),
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
    pool: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Pool documents' tokens, about N into one; 1 pools none, also where MODEL does."
        ),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write scores, also of each query.")
    ] = None,
    run_file: Annotated[
        Path | None, typer.Option("--run", metavar="FILE", help="Write the ranking in TREC format.")
    ] = None,
) -> None:
    """Rank a collection exactly with any dense or multi-vector checkpoint, and score it.

    Examples:

      colbert-zero evaluate out/quickstart/phases/distillation-0123456789ab/model --collection data/scifact
      colbert-zero evaluate lightonai/GTE-ModernColBERT-v1 --collection zeta-alpha-ai/NanoSciFact --json scores.json
      colbert-zero evaluate bm25 --collection data/scifact
      colbert-zero evaluate my/model --collection data/scifact --without-layers
      colbert-zero evaluate my/model --collection data/scifact --pool 2
    """
    import torch
    from sentence_transformers.util import get_device_name

    from colbert_zero.data.collection import Rules
    from colbert_zero.data.layouts import load_collection
    from colbert_zero.evaluation.ranking import rank, rank_bm25
    from colbert_zero.evaluation.runs import measure, write_run
    from colbert_zero.files import write_json
    from colbert_zero.maxsim.backends import refused, tell_refused
    from colbert_zero.models.checkpoints import load_model
    from colbert_zero.models.layers import without_layers
    from colbert_zero.models.pooling import pooling_of, with_pooling
    from colbert_zero.processes import is_main
    from colbert_zero.watch import leave

    if bare and model == "bm25":
        raise ColbertZeroError("--without-layers: bm25 has none; name a checkpoint")
    if pool and model == "bm25":
        raise ColbertZeroError("--pool: bm25 has no token vectors; name a multi-vector checkpoint")
    start_processes()
    commit = None if model == "bm25" else _checked(model)
    tell_refused(refused(torch.device(get_device_name())), RichShow().say)
    loaded = load_collection(collection, split, Rules(exclude_self, on_missing))
    for told in loaded.peculiarities():
        console.print(f"{loaded.name}: {told}", markup=False, soft_wrap=True)
    pooled = 1.0
    if model == "bm25":
        ranking = rank_bm25(loaded)
    else:
        encoder = load_model(model, revision=commit)
        encoder = without_layers(encoder, model) if bare else encoder
        encoder = with_pooling(encoder, pool) if pool else encoder
        pooled = pooling_of(encoder)
        with RichShow().bar(f"evaluating on {loaded.name}", loaded.documents_count) as advance:
            ranking = rank(encoder, loaded, progress=lambda done, total: advance(done, {}))
    scores, per_query = measure(ranking, loaded.qrels)
    record = {
        "model": model,
        "commit": commit,
        "without_layers": bare,
        "pool": pooled,
        "collection": loaded.name,
        "documents": loaded.documents_count,
        "queries": len(loaded.qrels),
        "own_left_out": len(loaded.own),
        "missing": loaded.missing,
        "empty": loaded.empty,
    }
    console.print(f"{loaded.name}: {loaded.documents_count:,} documents, {len(loaded.qrels):,} queries", markup=False)
    if bare:
        console.print(f"{model}: every transformer layer taken out", markup=False, soft_wrap=True)
    if pooled > 1:
        console.print(f"{model}: documents' tokens pooled, about {pooled:g} into one", markup=False, soft_wrap=True)
    for name, value in scores.items():
        console.print(f"  {name:8} {value:.4f}", markup=False)
    if run_file and is_main():
        write_run(run_file, ranking, Path(model).name or "run")
    if json_file and is_main():
        write_json(json_file, {**record, "scores": scores, "per_query": per_query})
    leave()


def _checked(model: str) -> str | None:
    """The commit of a Hub id, which is told; None of a folder. What cannot be evaluated is refused."""
    from colbert_zero.models.bases import check_base, find_commit, go_offline, is_hub_id
    from colbert_zero.models.kinds import kind_of

    commit = None
    if is_hub_id(model):
        commit, silent = find_commit(model, None, "MODEL")
        console.print(f"MODEL: {model} at {commit}{f', from the cache: {silent}' if silent else ''}", markup=False)
        if silent:
            go_offline()
    check_base(model, commit, whose="MODEL", trained=False)
    if kind_of(model, commit) == "encoder":
        console.print(
            f"MODEL: {model} is a plain encoder, never trained to give embeddings: it is scored by the mean of its "
            "states and their cosine",
            markup=False,
            soft_wrap=True,
        )
    return commit
