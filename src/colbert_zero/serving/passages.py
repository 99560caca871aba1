"""Texts longer than the model reads: counted, or cut into passages that overlap."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from colbert_zero.errors import ColbertZeroError
from colbert_zero.models.checkpoints import Encoder
from colbert_zero.models.encoding import Task, prompt_of

LEAST_TOKENS = 8
"""Of a passage beside what the next one repeats of it."""


class Passage(NamedTuple):
    """A part of a text, in characters."""

    begin: int
    end: int


class Cutter:
    """Where texts end that a model reads, and where their passages are.

    Args:
        model: Its longest text counts, less the prompt and what the tokenizer adds.
        overlap: Tokens that a passage repeats of the one before; None: a text is one passage, whose end is cut off.
        task: Whether texts are documents or queries.

    Raises:
        ColbertZeroError: The overlap leaves passages no room, or the tokenizer cannot say where its tokens stand.
    """

    def __init__(self, model: Encoder, overlap: int | None, task: Task = "document"):
        self._tokenizer: Any = model.tokenizer
        first: Any = model[0]
        length: Any = getattr(first, f"{task}_length", None) or getattr(first, "max_seq_length", None)
        prompt = prompt_of(model, task) or ""
        self._overlap, self._cuts = overlap, bool(length and length < 10**9)
        self._room = 0
        if self._cuts and getattr(self._tokenizer, "is_fast", False):
            around = self._tokenizer.num_special_tokens_to_add(False)
            before = len(self._tokenizer(f"{prompt}a", add_special_tokens=False)["input_ids"])
            before -= len(self._tokenizer("a", add_special_tokens=False)["input_ids"])
            self._room = int(length) - around - before
        elif overlap is not None and self._cuts:
            raise ColbertZeroError("--passages: the model's tokenizer cannot say where its tokens stand; leave it out")
        if overlap is not None and self._cuts and self._room - overlap < LEAST_TOKENS:
            raise ColbertZeroError(
                f"--passages {overlap}: the model reads {self._room} tokens of a text, so passages overlap by at most "
                f"{max(0, self._room - LEAST_TOKENS)}"
            )

    def cut(self, texts: list[str]) -> tuple[list[list[Passage]], list[int]]:
        """The passages of each text, and the numbers of the texts that have an end that the model does not read."""
        found = [[Passage(0, len(text))] for text in texts]
        # A token has at least one character.
        long = [number for number, text in enumerate(texts) if len(text) > self._room] if self._room > 0 else []
        if not long:
            return found, []
        tokenised = self._tokenizer(
            [texts[number] for number in long],
            add_special_tokens=False, truncation=False, padding=False, return_offsets_mapping=self._overlap is not None,
            return_attention_mask=False, return_token_type_ids=False, verbose=False,
        )  # fmt: skip
        over = [place for place, ids in enumerate(tokenised["input_ids"]) if len(ids) > self._room]
        if self._overlap is None:
            return found, [long[place] for place in over]
        for place in over:
            offsets, words = tokenised["offset_mapping"][place], tokenised.word_ids(place)
            found[long[place]] = list(self._windows(offsets, words, len(texts[long[place]])))
        return found, []

    def _windows(self, offsets: list[tuple[int, int]], words: list[int | None], characters: int) -> Iterator[Passage]:
        """Passages of a text of so many tokens, from the beginning of a word to the end of one where that is near."""
        start, overlap = 0, self._overlap or 0
        while True:
            # One token less than there is room: cut in the middle, a word may come apart in other pieces.
            end = min(start + self._room - 1, len(offsets))
            if end < len(offsets):
                end = _word_start(words, end, start + self._room // 2)
            yield Passage(offsets[start][0] if start else 0, offsets[end - 1][1] if end < len(offsets) else characters)
            if end == len(offsets):
                return
            # At least half of what is new in a passage is also new in the next.
            least = start + max(1, (end - start - overlap) // 2)
            start = max(least, _word_start(words, end - overlap, least))


def _word_start(words: list[int | None], token: int, least: int) -> int:
    """The first token of a token's word; the token itself, where that is before `least`."""
    first = token
    while first > least and words[first] is not None and words[first] == words[first - 1]:
        first -= 1
    return first if first == 0 or words[first] is None or words[first] != words[first - 1] else token
