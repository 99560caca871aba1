"""`compress`: a smaller model from a trained one."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from colbert_zero.cli.options import is_first, refuse_place, start_processes
from colbert_zero.errors import ColbertZeroError
from colbert_zero.terminal import RichShow, say

if TYPE_CHECKING:
    from colbert_zero.data.collection import Collection
    from colbert_zero.models.checkpoints import Encoder
    from colbert_zero.models.shrinking import Bits, Cuts
    from colbert_zero.models.shrunk import Record, Texts, Uncut
    from colbert_zero.report.drawing import Plot


def compress(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A dense or multi-vector checkpoint: a folder, a study's, or a Hub id."),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder to write.")],
    layers: Annotated[
        str | None,
        typer.Option(metavar="N|0,2,…", help="How many layers to keep, chosen by what hurts least; or which, from 0."),
    ] = None,
    neurons: Annotated[float, typer.Option(metavar="SHARE", help="Of each layer's neurons, to keep.")] = 1.0,
    zeros: Annotated[
        float, typer.Option(metavar="SHARE", help="Of each matrix in layers, the smallest, to make 0; no fewer bytes.")
    ] = 0.0,
    bits: Annotated[
        int | None, typer.Option(metavar="8|4", help="Put every matrix on a grid of so many bits; no fewer bytes.")
    ] = None,
    vocabulary: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Keep the tokens of this corpus: JSON lines, Parquet or a BEIR folder."),
    ] = None,
    collection: Annotated[
        str | None, typer.Option(metavar="PATH|NAME", help="To score before and after, as for `evaluate`.")
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(metavar="50MB|2x", help="Try layers, neurons and vocabulary; write the best of so few bytes."),
    ] = None,
    corpus: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Texts by which layers are chosen and --target tries; as for --vocabulary."),
    ] = None,
    sensitivity: Annotated[
        bool, typer.Option("--sensitivity", help="Show what each head and layer of MODEL does, on texts of --corpus.")
    ] = False,
) -> None:
    """Cut a model: fewer layers, neurons and tokens, zeros, weights on a grid. Nothing is trained.

    What is written is an ordinary checkpoint, with compress.json in it: what was asked, done, and lost. Fewer layers
    and neurons make it smaller and faster, fewer tokens smaller; zeros and grids stay float numbers in the file, and
    show what a model would lose if it were stored so.

    Examples:

      colbert-zero compress my/model --out smaller --target 2x --corpus notes.jsonl
      colbert-zero compress my/model --out smaller --target 50MB --corpus data/scifact --collection data/scifact
      colbert-zero compress out/quickstart --out four-layers --layers 4 --corpus notes.jsonl
      colbert-zero compress my/model --out cut --layers 0,2,3,5 --neurons 0.75 --collection data/scifact
      colbert-zero compress my/model --out cut --vocabulary notes.jsonl
      colbert-zero compress my/model --out coarse --bits 8 --zeros 0.5 --collection data/scifact
      colbert-zero compress my/model --out cut --layers 4 --corpus notes.jsonl --sensitivity
    """
    from colbert_zero.models.shrinking import Cuts

    if not is_first():
        raise ColbertZeroError("compress: one process does it; start it without torchrun")
    kept, count = _layers(layers)
    cuts = Cuts(kept, neurons, zeros, _bits(bits), count)
    _check(cuts, vocabulary, target, corpus)
    refuse_place(out, model)
    start_processes()
    from colbert_zero.models.shrunk import Uncut, check_asked

    folder, commit = _found(model)
    source = Uncut(folder, commit)
    place = corpus or vocabulary
    read = _corpus(place, "--corpus" if corpus else "--vocabulary") if place else None
    of_tokens = read if vocabulary == place else _corpus(vocabulary, "--vocabulary") if vocabulary else None
    loaded = _collection(collection)
    texts = list(read.texts()) if read else [text for _, text in loaded.documents()] if loaded else None
    if texts is not None and not texts:
        option = "--corpus" if corpus else "--vocabulary" if vocabulary else "--collection"
        raise ColbertZeroError(f"{option} {place or collection}: has no text; name one that has some")
    if sensitivity and not texts:
        raise ColbertZeroError("--sensitivity wants texts to encode; add --corpus PATH, or --collection")
    shown = _Shown(source, None if target else loaded, texts if sensitivity else None)
    if target and read:
        _smallest(source, out, target, read, loaded, shown)
        return
    check_asked(source, cuts, of_tokens, texts)
    _cut(source, out, cuts, of_tokens, texts, shown)


def _layers(asked: str | None) -> tuple[tuple[int, ...] | None, int | None]:
    """Which layers are kept, or how many."""
    if asked is None:
        return None, None
    words = [word.strip() for word in asked.split(",")]
    try:
        numbers = tuple(int(word) for word in (words if words[-1] else words[:-1]))
    except ValueError:
        numbers = ()
    if not numbers:
        raise ColbertZeroError(
            f"--layers {asked}: write how many are kept (4), or which, with commas (0,2,3,5); one alone is 0,"
        )
    return (numbers, None) if "," in asked else (None, numbers[0])


def _bits(asked: int | None) -> "Bits | None":
    if asked is None:
        return None
    if asked == 8:
        return 8
    if asked == 4:
        return 4
    raise ColbertZeroError(f"--bits {asked}: 8 or 4")


def _check(cuts: "Cuts", vocabulary: str | None, target: str | None, corpus: str | None) -> None:
    """Refuse what does not go together, before anything is read."""
    from colbert_zero.models.shrinking import Cuts

    if target and (cuts != Cuts() or vocabulary):
        raise ColbertZeroError(
            "--target tries layers, neurons and vocabulary itself, and zeros and bits make no file smaller; leave "
            "--layers, --neurons, --vocabulary, --zeros and --bits out"
        )
    if target and not corpus:
        raise ColbertZeroError("--target wants --corpus PATH: texts to choose layers by, and to keep the tokens of")
    if not target and cuts == Cuts() and not vocabulary:
        raise ColbertZeroError("nothing is asked for; --target 2x --corpus PATH, or some of --layers, --neurons, "
                               "--vocabulary, --zeros and --bits")  # fmt: skip


def _found(model: str) -> tuple[str, str | None]:
    """The folder, or Hub id and commit, of a model; a study's folder means its best pipeline."""
    from colbert_zero.files import place_of
    from colbert_zero.models.bases import find_checkpoint
    from colbert_zero.report.trained import find_model

    place = place_of(model)
    if os.path.isdir(place) or os.path.isdir(os.path.expanduser(model.rpartition(":")[0])):
        place = str(find_model(model).folder)
    return place, find_checkpoint(place, "MODEL", say)


def _corpus(place: str, option: str) -> "Texts":
    from colbert_zero.data.corpus import corpus_files, corpus_texts
    from colbert_zero.models.shrunk import Texts

    files = corpus_files([place], option)
    return Texts(Path(place).name, lambda: (text for text in corpus_texts(files) if text))


def _collection(name: str | None) -> "Collection | None":
    if name is None:
        return None
    from colbert_zero.data.by_name import load_all

    loaded = load_all([name])
    if len(loaded) != 1:
        raise ColbertZeroError(f"--collection {name}: has {len(loaded)} collections; name one of them")
    return loaded[0]


def _smallest(
    source: "Uncut", out: Path, target: str, corpus: "Texts", collection: "Collection | None", shown: "_Shown"
) -> None:
    from colbert_zero.evaluation.smallest import find_smallest
    from colbert_zero.report.shrinking import curve_lines, layer_lines

    record = find_smallest(source, out, target, corpus, collection, say, RichShow().counted, shown.finish)
    for line in [*layer_lines(record["removals"]), *curve_lines(record)]:
        say(line)
    shown.tell(out, record)


def _cut(
    source: "Uncut",
    out: Path,
    cuts: "Cuts",
    vocabulary: "Texts | None",
    texts: list[str] | None,
    shown: "_Shown",
) -> None:
    from colbert_zero.models.shrunk import write_shrunk
    from colbert_zero.report.shrinking import layer_lines

    with RichShow().counted("trials of layers") as tried:
        record = write_shrunk(source, out, cuts, vocabulary, texts, say, tried, shown.finish)
    for line in layer_lines(record["removals"]):
        say(line)
    shown.tell(out, record)


class _Shown:
    """What is measured and drawn besides, before the folder appears, and told once it is there."""

    def __init__(self, source: "Uncut", collection: "Collection | None", texts: list[str] | None) -> None:
        self.source, self.collection, self.texts = source, collection, texts
        self.plots: list[Plot] = []

    def finish(self, folder: Path, written: "Encoder", record: "Record") -> Mapping[str, Any]:
        """The scores and sensitivities that were asked for; pictures go into the folder."""
        from colbert_zero.report.shrinking import curve_plot, heads_plot, layers_plot

        more: Record = {}
        if self.collection is not None:
            more |= self._scored(self.collection, written)
        if self.texts is not None:
            more["sensitivity"] = self._sensitivity(self.texts)
            self.plots.append(heads_plot(more["sensitivity"]))
        if "tried" in record:
            self.plots.append(curve_plot(record))
        if record["removals"]:
            self.plots.append(layers_plot(record["removals"]))
        for plot in self.plots:
            (folder / _picture(plot)).write_bytes(plot.png)
        return more

    def _scored(self, collection: "Collection", written: "Encoder") -> "Record":
        from colbert_zero.evaluation.shrinking import loss, scores_of
        from colbert_zero.report.records import MEASURE

        found = loss(scores_of(self.source.model, collection), scores_of(written, collection))
        return {"collection": collection.name, "measure": MEASURE, "scored": found}

    def _sensitivity(self, texts: list[str]) -> Mapping[str, Any]:
        from colbert_zero.models.sensitivity import FEW_TEXTS, sensitivity
        from colbert_zero.models.shrunk import sample_of

        with RichShow().counted("heads and layers left out") as done:
            return sensitivity(self.source.model, sample_of(texts, FEW_TEXTS), f"MODEL: {self.source.folder}", done)

    def tell(self, out: Path, record: "Record") -> None:
        """What was written, what it lost, and the pictures."""
        _tell(out, record)
        if "scored" in record:
            _tell_scored(record)
        for plot in self.plots:
            say(f"{out / _picture(plot)}: {plot.shows}")


def _picture(plot: "Plot") -> str:
    return f"compress.{plot.name}.png"


def _tell_scored(record: "Record") -> None:
    from colbert_zero.report.words import points

    found = record["scored"]
    before = found["score"] - found["difference"]
    low, high = (points(bound, signed=True) for bound in found["interval"])
    apart = points(found["difference"], signed=True)
    say(f"  {record['measure']} × 100 on {record['collection']}: {points(before)} before, {points(found['score'])} "
         f"after: {apart} (95 % {low} to {high}, {found['queries']:,} queries)")  # fmt: skip


def _tell(out: Path, record: "Record") -> None:
    from colbert_zero.report.words import size

    lost = record["deviation"]
    kept = f"layers {', '.join(map(str, record['layers_kept']))} of {record['layers_before']}"
    say(f"{out}: {size(record['bytes'])}, of {size(record['bytes_before'])}; {record['parameters']:,} parameters, of "
         f"{record['parameters_before']:,}; {kept}")  # fmt: skip
    if record["vocabulary"] != record["vocabulary_before"]:
        say(f"  vocabulary: {record['vocabulary']:,} tokens, of {record['vocabulary_before']:,}; words that are not "
             "in the corpus are cut into smaller pieces than before")  # fmt: skip
    if record["asked"]["zeros"] or record["bits"]:
        say(f"  zeros: {record['zeros']:,} of the {record['zeros_of']:,} numbers in the layers' matrices. Zeros and "
             f"grids are float numbers in the file: packed it would take {size(record['packed_bytes'])}")  # fmt: skip
    other = f"; {lost['retokenised']} of {2 * lost['texts']} have other tokens" if lost["retokenised"] else ""
    say(f"  token vectors of {lost['texts']} {record['deviation_on']}: mean cosine {lost['cosine']:.4f} with those "
         f"before, at least {lost['least']:.4f}{other}")  # fmt: skip
