"""Public collections by name: which data set of the Hub each is, at which commit, and which folder of `BEIR_HOME`.

Sources: for BEIR and the decontaminated sets the tasks of mteb 2.26.24 (`mteb/tasks/retrieval/eng/`), whose data sets
have BEIR's texts and judgements (`BeIR/` on the Hub has scripts, which `datasets` no longer runs); for NanoBEIR
sentence-transformers' `NanoBEIREvaluator`.
"""

from collections.abc import Container, Iterator
from dataclasses import dataclass
from difflib import get_close_matches

HOME = "BEIR_HOME"
"""Environment variable: a folder with collections by name in BEIR's layout, in place of the Hub."""

NANOBEIR = "sentence-transformers/NanoBEIR-en"
"""The data set of sentence-transformers' evaluators; each set is a split of its corpus, queries and qrels."""

MTEB = "mteb:"
"""What the name of an mteb task begins with; such are evaluated by mteb itself."""


@dataclass(frozen=True)
class Named:
    """A public collection.

    Attributes:
        name: As `beir/scifact`; of a part, as `beir/cqadupstack/android`.
        dataset: On the Hub.
        revision: Its commit; None takes today's.
        split: Of the data set: which judgements; a NanoBEIR set is a split of the texts as well.
        folder: Below `BEIR_HOME`; BEIR's as its archives unpack.
        qrels: Which judgements in the folder.
    """

    name: str
    dataset: str
    revision: str | None
    split: str
    folder: str
    qrels: str = "test"

    @property
    def part(self) -> str | None:
        """Which part of a collection it is."""
        return self.name.removeprefix(f"{self.whole}/") if self.name != self.whole else None

    @property
    def whole(self) -> str:
        """The name under which it counts in a mean, if all of its parts are there: of a part the collection's."""
        return "/".join(self.name.split("/")[:2])


_BEIR = {
    "arguana": ("mteb/arguana", "c22ab2a51041ffd869aaddef7af8d8215647e41a"),
    "climate-fever": ("mteb/climate-fever", "47f2ac6acb640fc46020b02a5b59fdda04d39380"),
    "cqadupstack": None,
    "dbpedia-entity": ("mteb/dbpedia", "c0f706b76e590d620bd6618b3ca8efdd34e2d659"),
    "fever": ("mteb/fever", "bea83ef9e8fb933d90a2f1d5515737465d613e12"),
    "fiqa": ("mteb/fiqa", "27a168819829fe9bcd655c2df245fb19452e8e06"),
    "hotpotqa": ("mteb/hotpotqa", "ab518f4d6fcca38d87c25209f94beba119d02014"),
    "msmarco": ("mteb/msmarco", "c5a29a104738b98a9e76336939199e264163d4a0"),
    "nfcorpus": ("mteb/nfcorpus", "ec0fa4fe99da2ff19ca1214b7966684033a58814"),
    "nq": ("mteb/nq", "b774495ed302d8c44a3a7ea25c90dbce03968f31"),
    "quora": ("mteb/quora", "e4e08e0b7dbe3c8700f0daef558ff32256715259"),
    "scidocs": ("mteb/scidocs", "f8c2fcf00f625baaa80f62ec5bd9e1fff3b8ae88"),
    "scifact": ("mteb/scifact", "d56462d0e63a25450459c4f213e49ffdb866f7f9"),
    "trec-covid": ("mteb/trec-covid", "bb9466bac8153a0349341eb1b22e06409e78ef4e"),
    "webis-touche2020": ("mteb/touche2020", "a34f9a33db75fa0cbb21bb5cfc3dae8dc8bec93f"),
}

_CQADUPSTACK = {
    "android": ("mteb/CQADupstackAndroidRetrieval", "9be4c0e46342e8e3aff577a89b9a1ec9bc6b4af3"),
    "english": ("mteb/cqadupstack-english", "ad9991cb51e31e31e430383c75ffb2885547b5f0"),
    "gaming": ("mteb/cqadupstack-gaming", "4885aa143210c98657558c04aaf3dc47cfb54340"),
    "gis": ("mteb/cqadupstack-gis", "5003b3064772da1887988e05400cf3806fe491f2"),
    "mathematica": ("mteb/cqadupstack-mathematica", "90fceea13679c63fe563ded68f3b6f06e50061de"),
    "physics": ("mteb/cqadupstack-physics", "79531abbd1fb92d06c6d6315a0cbbbf5bb247ea4"),
    "programmers": ("mteb/cqadupstack-programmers", "6184bc1440d2dbc7612be22b50686b8826d22b32"),
    "stats": ("mteb/cqadupstack-stats", "65ac3a16b8e91f9cee4c9828cc7c335575432a2a"),
    "tex": ("mteb/cqadupstack-tex", "46989137a86843e03a6195de44b09deda022eec7"),
    "unix": ("mteb/cqadupstack-unix", "6c6430d3a6d36f8d2a829195bc5dc94d7e063e53"),
    "webmasters": ("mteb/cqadupstack-webmasters", "160c094312a0e1facb97e55eeddb698c0abe3571"),
    "wordpress": ("mteb/cqadupstack-wordpress", "4ffe81d471b1924886b33c7567bfb200e9eec5c4"),
}

_DECONTAMINATED = {
    "arguana": "137f25bbb59b60bb6807ecb11a0d7e66b92fdd11",
    "fiqa": "4e693e028398575f83c17bc91515e81b13f534a2",
    "nfcorpus": "e6f37a2687336d5b7b83d9aede6e114e9d46dad9",
    "quora": "4d1fc7a24779fdd767c54e19e5606a843d3ecec1",
    "scidocs": "5b7a380cb7c8608e8c9bf6097acbc0eccf935de3",
    "scifact": "ad05bded28ca603a0ed5e27231899dd72c1edb8e",
    "trec-covid": "0b99aeb603c9ad909564db1a80e380a2a78bc026",
    "webis-touche2020": "bc4d287a9168dfb0ab2a94866cc17fc02c0dcb73",
}

NANOBEIR_SETS = tuple(
    f"Nano{name}"
    for name in ("ClimateFEVER", "DBPedia", "FEVER", "FiQA2018", "HotpotQA", "MSMARCO", "NFCorpus", "NQ",
                 "QuoraRetrieval", "SCIDOCS", "ArguAna", "SciFact", "Touche2020")
)  # fmt: skip


def _all() -> Iterator[Named]:
    for short, entry in _BEIR.items():
        if entry is None:
            for part, (dataset, revision) in _CQADUPSTACK.items():
                yield Named(f"beir/{short}/{part}", dataset, revision, "test", f"{short}/{part}")
        else:
            # The paper takes MS MARCO's development queries, as BEIR does.
            split = "dev" if short == "msmarco" else "test"
            yield Named(f"beir/{short}", *entry, split, short, split)
    for name in NANOBEIR_SETS:
        short = name.removeprefix("Nano").lower()
        yield Named(f"nanobeir/{short}", NANOBEIR, None, name, f"nanobeir/{short}")
    for short, revision in _DECONTAMINATED.items():
        dataset = f"iamfortytwo/{short}-decontaminated"
        yield Named(f"decontaminated/{short}", dataset, revision, "test", f"decontaminated/{short}")


NAMED = {named.name: named for named in _all()}
"""Every public collection by name."""

GROUPS = {
    group: [named for named in NAMED.values() if named.name.startswith(f"{group}/")]
    for group in ("beir", "nanobeir", "decontaminated", "beir/cqadupstack")
}
"""Names of several: BEIR's 15 (of which one has 12 parts), NanoBEIR's 13, the 8 decontaminated, CQADupStack's parts."""


def members(name: str) -> list[Named]:
    """The collections that a name means; none if nobody knows it.

    Example:
        >>> [named.name for named in members("beir/scifact")]
        ['beir/scifact']
        >>> len(members("beir")), len({named.whole for named in members("beir")})
        (26, 15)
    """
    return GROUPS[name] if name in GROUPS else [NAMED[name]] if name in NAMED else []


def counted_as(name: str, names: Container[str]) -> str:
    """The name under which a collection counts among others: a part, with all other parts, as the whole.

    Args:
        name: One of the names; any.
        names: Of all that are averaged.
    """
    named = NAMED.get(name)
    whole = GROUPS.get(named.whole, []) if named and named.part else []
    return named.whole if named and whole and all(part.name in names for part in whole) else name


def meant(word: str) -> str:
    """The end of a message about a name that nobody knows."""
    alike = get_close_matches(word, [*GROUPS, *NAMED], 1, 0.7)
    return f", did you mean {alike[0]}?" if alike else " (docs/data.md lists beir/…, nanobeir/…, decontaminated/…)"
