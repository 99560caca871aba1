"""`filter-pairs`: noisy pairs, filtered by a judge."""

import shutil
import tempfile
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from colbert_zero.cli.leaks import SOURCE
from colbert_zero.cli.options import refuse_existing, start_processes
from colbert_zero.errors import ColbertZeroError
from colbert_zero.terminal import RichShow, say


def filter_pairs(
    pairs: Annotated[list[str], typer.Option(metavar="SOURCE", help=f"{SOURCE} May be given several times.")],
    judge: Annotated[
        str, typer.Option(metavar="MODEL", help="A checkpoint: folder or Hub id, dense or multi-vector; or `bm25`.")
    ],
    out: Annotated[
        Path,
        typer.Option(metavar="FILE|DIR", help="JSON lines: of one file of rows a file.jsonl, of several a folder."),
    ],
    top: Annotated[int, typer.Option(min=1, help="Keep a pair whose document is among so many best.")] = 20,
    sample: Annotated[
        int, typer.Option(min=2, help="Among the documents of so many pairs, drawn at random; more is stricter.")
    ] = 10_000,
    seed: Annotated[int, typer.Option(min=0, help="Which pairs are sampled together.")] = 1,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write counts and examples.")] = None,
) -> None:
    """Keep the pairs whose document a judge finds for their query among many others (consistency filter).

    Equal documents count once. What is judged is kept beside --out until all is, so a killed run goes on.

    Examples:

      colbert-zero filter-pairs --pairs web.jsonl.gz --judge bm25 --out kept.jsonl
      colbert-zero filter-pairs --pairs 'data/*.parquet' --judge my/model --top 2 --sample 100000 --out kept
      colbert-zero filter-pairs --pairs my.yaml:tickets --judge sentence-transformers/all-MiniLM-L6-v2 --out kept
    """
    from colbert_zero.data.given import load_sources
    from colbert_zero.files import atomic_folder, write_json, writing
    from colbert_zero.models.bases import find_checkpoint
    from colbert_zero.processes import is_main
    from colbert_zero.teaching import consistency
    from colbert_zero.teaching.leaks import write_rows
    from colbert_zero.watch import leave

    if top >= sample:
        raise ColbertZeroError(f"--top {top:,}: not below --sample {sample:,}, so every pair would be kept; lower it")
    refuse_existing(out, "--out")
    start_processes()
    show, judged = RichShow(), out.with_name(f"{out.name}.judged")
    commit = None if judge == "bm25" else find_checkpoint(judge, "--judge", show.say)
    with (
        tempfile.TemporaryDirectory(prefix="colbert-zero-") as folder,
        writing(judged, show.say) if is_main() else nullcontext(),
    ):
        sources = load_sources(pairs, "--pairs", Path(folder), show.say, show.counted)
        parts = sum(len(source.parts) for source in sources)
        if out.suffix == ".jsonl" and parts > 1:
            raise ColbertZeroError(f"--out {out}: {parts} files of rows do not go into one; name a folder")
        if out.suffix not in (".jsonl", ""):
            raise ColbertZeroError(f"--out {out}: JSON lines are written; name a file.jsonl or a folder")
        rank, identity = _judge(judge, commit, Path(folder))
        kept, records = {}, {}
        for source in sources:
            with show.counted(f"judging {source.name}") as advance:
                kept[source.name], records[source.name] = consistency.filter_pairs(
                    source, rank, identity, top, sample, seed, judged, advance
                )
            for line in _lines(source.name, records[source.name], top):
                say(line)
        if is_main():
            if out.suffix:
                write_rows(sources[0], kept[sources[0].name], out.with_suffix(""))
            else:
                with atomic_folder(out) as temporary:
                    for source in sources:
                        write_rows(source, kept[source.name], temporary / source.name)
            if json_file:
                write_json(json_file, {"judge": judge, "commit": commit, "top": top, "sample": sample, "seed": seed,
                                       "sources": records})  # fmt: skip
            say(f"Written: {out}")
    if is_main():
        shutil.rmtree(judged)
    leave()


def _judge(judge: str, commit: str | None, folder: Path) -> tuple[Any, object]:
    """What ranks a sample, and what it is known by: a checkpoint by its contents or its commit."""
    from colbert_zero.data.sources import folder_fingerprints
    from colbert_zero.evaluation.ranking import rank, rank_bm25
    from colbert_zero.files import place_of
    from colbert_zero.models.checkpoints import load_model

    if judge == "bm25":
        return rank_bm25, "bm25"
    place = Path(place_of(judge))
    return partial(rank, load_model(judge, revision=commit)), commit or folder_fingerprints(place, folder)


def _lines(name: str, record: dict[str, Any], top: int) -> list[str]:
    """What was kept, of each part if there are several, and what was not, for example."""
    sizes = sorted(record["samples"])
    lines = [
        f"{name}: {record['kept']:,} of {record['rows']:,} pairs kept, {record['kept'] / record['rows']:.1%}: their "
        f"document is among the best {top} of {sizes[0]:,} to {sizes[-1]:,}"
    ]
    if len(record["parts"]) > 1:
        lines += [f"  {part}: {of['kept']:,} of {of['rows']:,}" for part, of in record["parts"].items()]
    return [*lines, *(f"  left out: {one['query']} → {one['document']}" for one in record["examples"])]
