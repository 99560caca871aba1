"""`adapt`: a model's queries fitted to a domain."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from colbert_zero.cli.leaks import SOURCE
from colbert_zero.cli.options import refuse_place, start_processes
from colbert_zero.errors import ColbertZeroError
from colbert_zero.terminal import RichShow, say

if TYPE_CHECKING:
    from colbert_zero.evaluation.adapting import Domain, Fitted
    from colbert_zero.models.adapting import Way


def adapt(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A multi-vector checkpoint: folder or Hub id.")],
    pairs: Annotated[
        list[str],
        typer.Option(metavar="SOURCE", help=f"{SOURCE} Of each, 100 at least; each is a domain. Several times."),
    ],
    out: Annotated[Path, typer.Option(metavar="MODEL2", help="The adapted checkpoint; a new folder.")],
    corpus: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH",
            help="Documents of the domain, among which held-out queries are ranked, and whose tokens --decorrelate "
            "counts: JSON lines, Parquet or a folder in BEIR layout. By default those of the pairs.",
        ),
    ] = None,
    projection: Annotated[
        int | None,
        typer.Option(min=0, help="Fit to pairs, with so many random features of queries; 0: none, a linear map."),
    ] = None,
    decorrelate: Annotated[
        bool,
        typer.Option("--decorrelate", help="Fit to documents alone; pairs choose how far, and judge. The default."),
    ] = False,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of the features, and of which pairs are held out; 1 by default.")
    ] = None,
) -> None:
    """Fit a model's queries to a new domain in closed form; documents and indexes stay as they are.

    A fifth of each domain's documents is held out with its pairs: they choose how far queries are moved, and show
    whether it helps. Where it does not, nothing is written. An adapted model is adapted further without the old pairs,
    and searches the indexes of the one it was made of: search INDEX "…" --model MODEL2.

    Examples:

      colbert-zero adapt my/model --pairs tickets.jsonl.gz --out my/model-for-tickets
      colbert-zero adapt my/model --pairs few.jsonl --corpus docs.jsonl --out adapted
      colbert-zero adapt my/model --pairs a.jsonl --pairs b.jsonl --projection 2000 --out adapted
    """
    from colbert_zero.data.corpus import corpus_files
    from colbert_zero.data.given import find_source
    from colbert_zero.evaluation.adapting import verdict
    from colbert_zero.processes import world_size
    from colbert_zero.study.adapting import adapt as make
    from colbert_zero.study.adapting import check_model

    refuse_place(out, model)
    if decorrelate and projection is not None:
        raise ColbertZeroError("--projection: --decorrelate has no random features; leave one out")
    start_processes()
    if world_size() > 1:
        raise ColbertZeroError("adapt: takes one process; start it without torchrun")
    show = RichShow()
    for word in pairs:
        find_source(word, "--pairs", lambda _: None)
    files = corpus_files(corpus or [], "--corpus")
    way: Way | None = "decorrelate" if decorrelate else None
    if projection is not None:
        way = "projection" if projection else "linear"
    given = check_model(model, way, projection or None, seed, show.say)
    with tempfile.TemporaryDirectory(prefix="colbert-zero-") as folder:
        domains = _domains(pairs, files, Path(folder), show, given.said.seed)
    with show.counted("pairs encoded") as advance:
        fitted = make(given, domains, out, advance)
    _tell(fitted)
    if fitted.helps:
        say(f"{verdict(fitted)}. Written: {out}")
    else:
        say(f"not adapted: {verdict(fitted)}; nothing is written")


def _domains(words: list[str], corpus: list[Path], folder: Path, show: RichShow, seed: int) -> "list[Domain]":
    """The pairs, a domain each source."""
    from colbert_zero.data.corpus import corpus_texts
    from colbert_zero.data.given import load_sources
    from colbert_zero.evaluation.adapting import MOST_SUMMED, Domain, sampled

    found = []
    texts = sampled((text for text in corpus_texts(corpus) if text), MOST_SUMMED, seed) if corpus else []
    if corpus and not texts:
        raise ColbertZeroError(f"--corpus {corpus[0]}: has no text; name documents, or leave it out")
    for source in load_sources(words, "--pairs", folder, show.say, show.counted):
        rows: list[tuple[str, str]] = []
        for part in source.parts.values():
            if part.scored:
                raise ColbertZeroError(
                    f"--pairs: {source.name} has candidates with scores; name pairs of query and document"
                )
            for columns in part.sample(1 << 62):
                rows += zip(columns["query"], columns["document"], strict=True)
        found.append(Domain(source.name, rows, texts))
    return found


def _tell(fitted: "Fitted") -> None:
    for name, about in fitted.domains.items():
        low, high = (100 * value for value in about["interval"])
        same = f", {about['left_out']:,} left out (their query is held out)" if about["left_out"] else ""
        counts = f"{about['fitted']:,} pairs fitted to, {about['held_out']:,} held out{same}"
        scores = f"{100 * about['before']:.1f} → {100 * about['after']:.1f} ({100 * about['difference']:+.1f}"
        say(
            f"{name}: {counts}; held-out queries among {about['documents']:,} documents, nDCG@10 {scores}, 95 % "
            f"interval {low:+.1f} to {high:+.1f}, p = {about['p_value']:.3f})"
        )
        if about["difference"] < 0 < fitted.difference:
            say(
                f"{name} loses where others gain: adapt MODEL to it alone, in a folder of its own")  # fmt: skip
    say(f"ridge {fitted.ridge:g}, step {fitted.step:g}, {fitted.seconds:.0f} s")
