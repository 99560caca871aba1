"""`mine`: hard negatives for pairs, from a corpus."""

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from pydantic import ValidationError

from colbert_zero.cli.leaks import SOURCE
from colbert_zero.cli.options import PrecisionOption, start_processes
from colbert_zero.errors import ColbertZeroError
from colbert_zero.recipe.data import Mined
from colbert_zero.recipe.miners import RANDOM
from colbert_zero.recipe.mistakes import explain
from colbert_zero.terminal import RichShow

if TYPE_CHECKING:
    from colbert_zero.data.given import Given


def mine(
    pairs: Annotated[
        str,
        typer.Option(
            metavar="SOURCE",
            help=f"Of queries and documents. {SOURCE} Its held-out pairs are left out.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The Parquet file to write; its record goes to FILE.json.")],
    miners: Annotated[
        str,
        typer.Option(
            "--with",
            metavar="MIX",
            help="bm25, a checkpoint (folder or Hub id; dense or multi-vector), random; or a mix by shares that sum to "
            "100: bm25:50,my/model:35,random:15",
        ),
    ] = "bm25",
    corpus: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH",
            help="Documents to mine in: .jsonl, .jsonl.gz or .parquet with `text` (and `title`), or a folder in BEIR "
            "layout; may be given several times. By default the pairs' own documents.",
        ),
    ] = None,
    negatives: Annotated[
        int, typer.Option(min=1, max=200, help="Kept a query; a phase's `negatives: 7 of 50` draws from them anew.")
    ] = 50,
    depth: Annotated[int, typer.Option(min=1, max=1000, help="Of a miner's best documents look at so many.")] = 100,
    skip: Annotated[int, typer.Option(min=0, help="Leave out so many of a miner's best first.")] = 0,
    max_relative: Annotated[
        float | None,
        typer.Option(
            help="Keep a negative only if its score is below this share of the positive's, by the judge; above are "
            "often answers nobody marked. 0 keeps all. By default 0.95 where a model judges, and 0 where bm25 does."
        ),
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL|bm25",
            help="What scores positives and candidates; by default the first model of --with, else bm25.",
        ),
    ] = None,
    queries: Annotated[int | None, typer.Option(min=1, help="Use so many of the pairs, evenly spread.")] = None,
    precision: PrecisionOption = "float32",
    on_bad_rows: Annotated[
        Literal["error", "skip"],
        typer.Option(
            help="A row of --pairs that cannot be used: stop, or pass over it; a recipe's source says so itself."
        ),
    ] = "error",
    seed: Annotated[int, typer.Option(min=0, help="Of random documents.")] = 1,
) -> None:
    """Mine hard negatives for pairs: what BM25, models or chance find, without what may be an answer.

    Every known positive of a query and near-duplicates of it are left out, and what scores nearly as high. What each
    filter removed is told, with examples. A killed run goes on with the same command; torchrun shares the work out.

    Examples:

      colbert-zero mine --pairs pairs.jsonl --out n.parquet
      colbert-zero mine --pairs pairs.jsonl --corpus data/scifact --with my/model --skip 10 --out n.parquet
      colbert-zero mine --pairs 'data/*.parquet' --with bm25:50,my/model:35,random:15 --out n.parquet
      colbert-zero mine --pairs pairs.jsonl --with bm25 --judge my/model --max-relative 0.9 --out n.parquet
      colbert-zero mine --pairs my.yaml:tickets --with my/model --out n.parquet
      torchrun --nproc-per-node 8 -m colbert_zero mine --pairs pairs.jsonl --with my/model --out n.parquet
    """
    if out.suffix != ".parquet":
        raise ColbertZeroError(f"--out {out}: a Parquet file is written; name it {out.name}.parquet")
    if skip + negatives > depth:
        raise ColbertZeroError(
            f"--depth: {depth} documents hold no {negatives} negatives{f' after {skip} skipped' if skip else ''}; "
            "raise it, or lower --negatives"
        )
    asked = {
        "kind": "mined", "of": "pairs", "negatives": negatives, "skip": skip, "depth": depth, "queries": queries,
        "miners": miners, "corpus": corpus, "max_relative": max_relative, "judge": judge, "precision": precision,
    }  # fmt: skip
    spec = _checked(asked)
    if spec.phases:
        name = spec.phases[0]
        raise ColbertZeroError(
            f"--{'judge' if name == judge else 'with'} {name}: a phase is known to its recipe alone "
            f"(sources.X.miners); name its checkpoint's folder, OUT/phases/{name.rpartition('@')[2]}-ID/model"
        )
    if precision != "float32" and not spec.models:
        raise ColbertZeroError("--precision: no model mines or judges, and bm25 encodes nothing; leave it out")
    start_processes()
    from colbert_zero.data.corpus import corpus_files
    from colbert_zero.data.given import find_source
    from colbert_zero.data.prepared import open_source
    from colbert_zero.files import writing
    from colbert_zero.models.bases import find_checkpoint
    from colbert_zero.processes import is_main, made_by_main
    from colbert_zero.teaching.mined import mine_file, unfinished
    from colbert_zero.teaching.mining import told_of
    from colbert_zero.watch import leave

    show = RichShow()
    given = find_source(pairs, "--pairs", show.say, on_bad_rows)
    if given.of_recipe and on_bad_rows == "skip":
        raise ColbertZeroError(f"--on-bad-rows: {pairs} is read as its recipe says; leave it out")
    if spec.corpus:
        corpus_files(spec.corpus, "--corpus")
    commits = {name: find_checkpoint(name, "--judge" if name == judge else "--with", show.say) for name in spec.models}
    with writing(unfinished(out), show.say) if is_main() else nullcontext():
        prepared = partial(_prepared, given, unfinished(out) / "data", show)
        source = made_by_main(prepared, partial(open_source, given.name, spec=given.spec))
        record = mine_file(spec, source, out, commits, show.bar, seed)
    for line in told_of(record, spec):
        show.say(line)
    show.say(f"{out}: {record['rows']:,} rows of {record['negatives']} negatives")
    leave()


def _prepared(given: "Given", folder: Path, show: RichShow) -> Path:
    """The folder of a source's rows, or of what is known of a streamed one."""
    return given.load(folder, show.counted, "--on-bad-rows skip").folder


def _checked(asked: dict[str, Any]) -> Mined:
    """The options as the entry that a recipe would have; mistakes in the options' names."""
    if asked["judge"] == RANDOM:
        raise ColbertZeroError("--judge: random scores nothing; name bm25 or a checkpoint")
    try:
        return Mined.model_validate(asked)
    except ValidationError as error:
        told = [explain(mistake, lambda *_: ()) for mistake in error.errors()]
    options = {"miners": "--with", "max_relative": "--max-relative"}
    raise ColbertZeroError("\n".join(options[line.split(":")[0]] + line[line.index(":") :] for line in told))
