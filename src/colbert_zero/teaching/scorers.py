"""What scores a query's candidates: a cross-encoder, a dense or multi-vector checkpoint, BM25.

| | score |
|---|---|
| cross-encoder | its one logit, without the activation that comes after it |
| multi-vector | MaxSim |
| dense | the dot product of its embeddings, which are of unit length where it has a normalisation |
| BM25 | on all distinct candidates as its corpus |
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from datasets.arrow_dataset import Column
from torch import nn

from colbert_zero.errors import ColbertZeroError
from colbert_zero.files import file_fingerprint, fingerprint, place_of
from colbert_zero.maxsim.scores import packed_candidate_scores
from colbert_zero.models.bases import check_base, find_commit, is_hub_id
from colbert_zero.models.bm25 import Bm25
from colbert_zero.models.checkpoints import Encoder, load_model
from colbert_zero.models.cross_encoders import load_cross_encoder
from colbert_zero.models.encoding import encode, reorder
from colbert_zero.models.kinds import is_cross_encoder
from colbert_zero.models.precision import Arithmetic, encoding_in


def has_half() -> bool:
    """Whether cross-encoders score in bfloat16 here."""
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported()


BATCH, CUT_SAMPLE = 64, 256
"""Pairs that a cross-encoder reads at once, of like length; and of which it is seen whether it cuts them."""


class Scorer(Protocol):
    """Scores queries' candidates."""

    def scores(self, queries: Sequence[str], candidates: np.ndarray, documents: Sequence[str]) -> np.ndarray:
        """(queries, n_ways) float32.

        Args:
            queries: Texts.
            candidates: Numbers among the documents, (queries, n_ways).
            documents: All texts.
        """


class ByBm25:
    """BM25; its corpus is read once."""

    def __init__(self, documents: Sequence[str]):
        self.index = Bm25(documents)

    def scores(self, queries: Sequence[str], candidates: np.ndarray, documents: Sequence[str]) -> np.ndarray:
        """As of `Scorer`."""
        return self.index.score_pairs(list(queries), candidates)


def _texts(documents: Sequence[str], numbers: np.ndarray) -> list[str]:
    """Some of the texts; those of a column on the disk are read together."""
    return list(documents[numbers] if isinstance(documents, Column) else (documents[n] for n in numbers.tolist()))


class ByEncoder:
    """A dense or multi-vector checkpoint; each distinct candidate of a call is encoded once."""

    def __init__(self, model: Encoder):
        self.model = model

    def scores(self, queries: Sequence[str], candidates: np.ndarray, documents: Sequence[str]) -> np.ndarray:
        """As of `Scorer`."""
        distinct, places = np.unique(candidates, return_inverse=True)
        found = encode(self.model, _texts(documents, distinct), "document")
        of_each = reorder(found, torch.from_numpy(places.reshape(-1)))
        asked = encode(self.model, list(queries), "query")
        return packed_candidate_scores(asked, of_each, candidates.shape[1]).float().cpu().numpy()


class ByCrossEncoder:
    """A cross-encoder of sentence-transformers; in bfloat16 on a GPU that has it, in float32 else, if not told.

    Args:
        path: Folder or Hub id.
        revision: Of a Hub id.
        tell: Told of pairs that it cuts.
        whose: What names it, for messages.
        arithmetic: What it computes in.
    """

    def __init__(
        self,
        path: str,
        revision: str | None = None,
        tell: Callable[[str], None] = print,
        whose: str = "--teacher",
        arithmetic: Arithmetic = "float32",
    ):
        self.told = False
        self.tell: Callable[[str], None] = lambda text: tell(f"{whose} {path}: {text}")
        dtype = torch.bfloat16 if arithmetic == "bfloat16" or has_half() else torch.float32
        self.model = load_cross_encoder(path, revision, f"{whose} {path}: ", dtype)

    def scores(self, queries: Sequence[str], candidates: np.ndarray, documents: Sequence[str]) -> np.ndarray:
        """As of `Scorer`."""
        distinct, places = np.unique(candidates, return_inverse=True)
        texts = _texts(documents, distinct)
        of_each: Any = places.reshape(candidates.shape).tolist()
        pairs = [(query, texts[place]) for query, row in zip(queries, of_each, strict=True) for place in row]
        order = sorted(range(len(pairs)), key=lambda place: -len(pairs[place][0]) - len(pairs[place][1]))
        self._count_cut([pairs[place] for place in order[:CUT_SAMPLE]])
        found = np.empty(len(pairs), np.float32)
        found[order] = self.model.predict(
            [pairs[place] for place in order], batch_size=BATCH, show_progress_bar=False, activation_fn=nn.Identity()
        )
        return found.reshape(candidates.shape)

    def _count_cut(self, longest: list[tuple[str, str]]) -> None:
        """Tell once of pairs that are longer than the model reads."""
        most = self.model.max_seq_length
        if self.told or not most:
            return
        lengths = [len(ids) for ids in self.model.tokenizer(longest, truncation=False, verbose=False)["input_ids"]]
        if cut := sum(length > most for length in lengths):
            self.told = True
            self.tell(
                f"it reads {most} tokens, to which long pairs are cut: {cut} of {len(longest)}, the longest of a unit"
            )


def identity_of(name: str) -> str:
    """What a teacher is: the commit of a Hub id, the contents of a folder, or `bm25`.

    Raises:
        ColbertZeroError: It is none of these.
    """
    if name == "bm25":
        return name
    folder = Path(place_of(name))
    if folder.is_dir():
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        return fingerprint([[str(file.relative_to(folder)), file_fingerprint(file)] for file in files])
    if not is_hub_id(name):
        raise ColbertZeroError(f"--teacher {name}: no such folder; name one, a Hub id, or bm25")
    return find_commit(name, None, "--teacher")[0]


def scorer_of(
    name: str,
    documents: Sequence[str],
    revision: str | None = None,
    tell: Callable[[str], None] = print,
    whose: str = "--teacher",
    arithmetic: Arithmetic = "float32",
) -> Scorer:
    """What `bm25`, a folder or a Hub id is.

    Args:
        name: It.
        documents: All candidates.
        revision: Of a Hub id.
        tell: Told of pairs that a cross-encoder cuts.
        whose: What names it, for messages.
        arithmetic: What a model's encoder computes in; on a GPU that has bfloat16 a cross-encoder takes that anyway.

    Raises:
        ColbertZeroError: It cannot be read, or scores nothing.
    """
    if name == "bm25":
        return ByBm25(documents)
    name = place_of(name)
    if is_cross_encoder(name, revision):
        return ByCrossEncoder(name, revision, tell, whose, arithmetic)
    check_base(name, revision, whose=whose, trained=False)
    return ByEncoder(encoding_in(load_model(name, revision=revision), arithmetic))
