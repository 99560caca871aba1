"""Which terms stand in which documents of a segment: what BM25 needs of it (`first_stage`)."""

from array import array
from collections import Counter
from collections.abc import Iterator

import numpy as np

from colbert_zero.models.bm25 import terms_of


class Postings:
    """Collects the postings of a segment's documents, which come in their order.

    Of each term the documents that have it: number, how often, and how many terms the document has.
    """

    def __init__(self) -> None:
        self._of: dict[str, array[int]] = {}
        self._documents = 0
        self.terms = 0

    def add(self, texts: list[str]) -> None:
        """Take more documents."""
        for terms in terms_of(texts):
            for term, count in Counter(terms).items():
                self._of.setdefault(term, array("i")).extend((self._documents, count, len(terms)))
            self._documents += 1
            self.terms += len(terms)

    def __iter__(self) -> Iterator[tuple[str, bytes]]:
        """(term, its postings, int32) by term."""
        return ((term, np.asarray(self._of[term], "<i4").tobytes()) for term in sorted(self._of))
