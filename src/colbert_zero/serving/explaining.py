"""Why a document was found: which of its words each token of the query chose, and what that adds to the score.

The parts are computed from the vectors that are stored, so they sum to the score, whatever they were rounded to. Which
word a vector stands for is told by encoding the document's text again: the n-th scored token has the n-th vector. Of
pooled vectors each stands for those tokens that are nearest to it.
"""

from dataclasses import dataclass
from html import escape
from typing import Any, NamedTuple

import torch
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.util import batch_to_device
from torch import Tensor

from colbert_zero.errors import ColbertZeroError
from colbert_zero.maxsim.packed import pack
from colbert_zero.models.checkpoints import Encoder
from colbert_zero.models.encoding import evaluating, prompt_of
from colbert_zero.models.pooling import with_pooling

_MOST_WORDS = 3
"""Of those that a pooled vector stands for."""


@dataclass(frozen=True)
class Part:
    """What a token of the query adds to a score.

    Attributes:
        token: Of the query, as its tokenizer writes it.
        word: Of the document, which it chose; a special token in brackets.
        begin: Where the word stands in the document's text, in characters; None of what the model puts before it.
        end: Likewise.
        score: The dot product of their vectors.
        query: Where the token's word stands in the query, in characters; None of what the model puts around it.
    """

    token: str
    word: str
    begin: int | None
    end: int | None
    score: float
    query: tuple[int, int] | None


@dataclass(frozen=True)
class Word:
    """A word of a document, and the token of the query that is nearest to it.

    Attributes:
        begin: Where it stands in the document's text, in characters.
        end: Likewise.
        token: Of the query: its place among the parts.
        score: The dot product of their vectors; of a word of several, the largest.
    """

    begin: int
    end: int
    token: int
    score: float


@dataclass(frozen=True)
class Explanation:
    """Why a document has its score.

    Attributes:
        parts: One a token of the query; their scores sum to the document's.
        passage: The part of the text that was scored, in characters.
        words: All words of the passage that have a vector, in order, chosen or not.
    """

    parts: list[Part]
    passage: tuple[int, int]
    words: list[Word]

    def html(self, text: str) -> str:
        """The passage, its chosen words shaded by what they add; all text escaped."""
        shades: dict[tuple[int, int], float] = {}
        for part in self.parts:
            if part.begin is not None and part.end is not None:
                shades[part.begin, part.end] = shades.get((part.begin, part.end), 0.0) + max(part.score, 0.0)
        most, place, pieces = max(shades.values(), default=1.0) or 1.0, self.passage[0], []
        for (begin, end), score in sorted(shades.items()):
            if begin >= place:
                style = f"background:rgba(255,170,0,{0.15 + 0.65 * score / most:.2f})"
                chosen = f'<mark style="{style}" title="{score:.3f}">{escape(text[begin:end])}</mark>'
                pieces += [escape(text[place:begin]), chosen]
                place = end
        return "".join([*pieces, escape(text[place : self.passage[1]])])


class _Token(NamedTuple):
    """A scored token: as the tokenizer writes it, its word, and where that stands in the text."""

    token: str
    word: str
    begin: int | None
    end: int | None

    @property
    def place(self) -> tuple[int, int] | None:
        """Where the word stands."""
        return None if self.begin is None or self.end is None else (self.begin, self.end)


class Explainer:
    """Explains the documents of one query.

    Args:
        model: Multi-vector.
        query: Text.

    Raises:
        ColbertZeroError: The model is dense.
    """

    def __init__(self, model: Encoder, query: str):
        if not isinstance(model, MultiVectorEncoder):
            raise ColbertZeroError(
                "explain: the index's model is dense, with one vector a text, so there are no words to show; leave it "
                "out, or index with a multi-vector model"
            )
        self._model = with_pooling(model, 1)
        self._tokens, self._vectors = _scored(self._model, query, "query")

    def explain(self, text: str, passage: tuple[int, int], stored: Tensor) -> Explanation:
        """Why a document has its score.

        Args:
            text: Of the document.
            passage: Its best one.
            stored: Vectors of that passage, (tokens, dim).
        """
        begin, end = passage
        tokens, vectors = _scored(self._model, text[begin:end], "document")
        stored = stored.float()
        similarities = self._vectors @ stored.T
        scores, chosen = similarities.max(1)
        # The stored vector that has each token in it.
        rows = list(range(len(tokens)))
        if len(tokens) != len(stored):
            rows = (vectors @ stored.T).argmax(1).tolist()
        stands_for: list[list[int]] = [[] for _ in range(len(stored))]
        for token_place, row in enumerate(rows):
            stands_for[row].append(token_place)
        parts = []
        for token, score, place in zip(self._tokens, scores.tolist(), chosen.tolist(), strict=True):
            words = [tokens[t] for t in stands_for[place]]
            one = words[0] if words else _Token("", "?", None, None)
            word = " + ".join(list(dict.fromkeys(word.word for word in words))[:_MOST_WORDS]) or one.word
            first, last = one.place or (None, None)
            parts.append(
                Part(
                    token.token,
                    word,
                    None if first is None else begin + first,
                    None if last is None else begin + last,
                    score,
                    token.place,
                )
            )
        return Explanation(parts, passage, _nearest(tokens, rows, similarities, begin))


def _nearest(tokens: list[_Token], rows: list[int], similarities: Tensor, before: int) -> list[Word]:
    """Each word of a passage, with the query's token that is nearest to it.

    Args:
        tokens: Of the passage.
        rows: The vector of each.
        similarities: (tokens of the query, vectors).
        before: Characters of the text before the passage.
    """
    best, nearest = (values.tolist() for values in similarities.max(0))
    words: dict[tuple[int, int], Word] = {}
    for token, row in zip(tokens, rows, strict=True):
        if token.begin is not None and token.end is not None:
            span = before + token.begin, before + token.end
            if span not in words or best[row] > words[span].score:
                words[span] = Word(*span, nearest[row], best[row])
    return [words[span] for span in sorted(words)]


@torch.no_grad()
def _scored(model: Encoder, text: str, task: Any) -> tuple[list[_Token], Tensor]:
    """The scored tokens of a text, and their vectors on the CPU, (tokens, dim)."""
    prompt = prompt_of(model, task) or ""
    with evaluating(model):
        features = model.preprocess([text], prompt=prompt or None, task=task)
        ids = torch.as_tensor(features["input_ids"])[0].tolist()
        out = model(batch_to_device(features, next(model.parameters()).device), task=task)
    vectors = pack(out["token_embeddings"], out["attention_mask"]).values.cpu().float()
    words = _words(model.tokenizer, prompt, text, ids)
    return [words[place] for place in out["attention_mask"][0].nonzero().flatten().tolist()], vectors


def _words(tokenizer: Any, prompt: str, text: str, ids: list[int]) -> list[_Token]:
    """Each token of a text that was tokenised with a prompt before it."""
    names = tokenizer.convert_ids_to_tokens(ids)
    found = [_Token(name, name, None, None) for name in names]
    if not getattr(tokenizer, "is_fast", False):
        return found
    again = tokenizer(prompt + text, truncation=True, max_length=len(ids), return_offsets_mapping=True, verbose=False)
    first = next((n for n, token in enumerate(ids) if token != tokenizer.pad_token_id), 0)
    count = len(again["input_ids"])
    # Otherwise the words are known by the tokenizer's own names alone.
    if ids[first : first + count] != again["input_ids"]:
        return found
    spans: dict[int, tuple[int, int]] = {}
    numbers = again.word_ids()
    for number, (begin, end) in zip(numbers, again["offset_mapping"], strict=True):
        if number is not None:
            before = spans.get(number, (begin, end))
            spans[number] = min(begin, before[0]), max(end, before[1])
    for place, number in enumerate(numbers):
        if number is not None:
            begin, end = spans[number]
            word, inside = (prompt + text)[begin:end], begin >= len(prompt)
            lead = len(word) - len(word.lstrip())
            here = (begin + lead - len(prompt), end - len(prompt)) if inside else (None, None)
            found[first + place] = _Token(names[first + place], word.strip() or names[first + place], *here)
    return found
