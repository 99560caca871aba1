"""What cutting leaves of a phase's texts, found on a sample before its first step: how much is lost, what is equal."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from colbert_zero.data.order import evenly_spaced
from colbert_zero.data.prepared import Part
from colbert_zero.errors import ColbertZeroError
from colbert_zero.models.checkpoints import Encoder
from colbert_zero.models.encoders import Tokenise
from colbert_zero.models.encoding import Task
from colbert_zero.training.log import Log
from colbert_zero.training.training import Training

SAMPLE = 512
"""Rows of all parts together; at least 16 of each."""

_PLURAL = {"query": "queries", "document": "documents"}

_NOTHING = {
    "query": "with equal queries nothing says which document answers which",
    "document": "equal documents score alike, so there is nothing to learn",
}

_UNKNOWN = "sources", "the tokenizer", "take a base whose tokenizer knows their language"


class Sampled(NamedTuple):
    """What is known of a sample of texts of one task.

    Attributes:
        texts: How many.
        cut: Of them, longer than allowed.
        tokens: Of all, before cutting.
        lost: Of these, cut off.
        different: Different texts before cutting.
        different_cut: And after.
    """

    texts: int
    cut: int
    tokens: int
    lost: int
    different: int
    different_cut: int

    @property
    def equal(self) -> bool:
        """Whether there are several and the model sees one."""
        return self.texts > 1 and self.different_cut == 1


def check_texts(
    training: Training, model: Encoder, parts: Mapping[str, Part], tokenise: Tokenise, log: Log
) -> dict[str, dict[str, int]]:
    """Refuse texts that the model cannot tell apart; say what is cut; returns what the record says of the sample.

    Equal queries are refused where only other queries' documents teach; a teacher tells a query's own candidates apart
    all the same.

    Raises:
        ColbertZeroError: All queries, or all documents, are equal in every part; names the mend.
    """
    rows = max(16, SAMPLE // max(1, len(parts)))
    texts = {name: _texts(part, rows) for name, part in parts.items()}
    found, cut = dict[Task, Sampled](), list[str]()
    tasks: tuple[Task, Task] = ("query", "document")
    for task in tasks:
        sampled = {name: _sampled(model, tokenise, of_part[task], task) for name, of_part in texts.items()}
        equal = {name: sample for name, sample in sampled.items() if sample.equal}
        if len(equal) == len(sampled) and (task == "document" or not training.spec.distils):
            raise ColbertZeroError(_equal(training, task, equal))
        if equal:
            log.tell(_equal(training, task, equal))
        found[task] = every = Sampled(*map(sum, zip(*sampled.values(), strict=True)))
        if not equal:
            _tell_alike(training, f"{task}_tokens", _PLURAL[task], every, log)
        if every.cut:
            cut.append(_cut(every, _PLURAL[task], getattr(training.alignment, f"{task}_tokens")))
    if cut:
        log.say(f"phases.{training.name}: cut, in a sample of the rows: {'; '.join(cut)}")
    return {task: sample._asdict() for task, sample in found.items()}


def check_pairs(training: Training, model: Any, parts: Mapping[str, Part], log: Log) -> dict[str, dict[str, int]]:
    """As `check_texts` of a model that reads a query and a document together.

    Raises:
        ColbertZeroError: All documents are equal, so that nothing tells an answer from a negative.
    """
    rows, pairs = max(16, SAMPLE // max(1, len(parts))), list[tuple[str, str]]()
    asked = training.spec.hard_negatives
    for part in parts.values():
        read = some_rows(part, rows)
        for query, document, negatives in zip(read["query"], read["document"], read["negatives"], strict=True):
            pairs += [(query, text) for text in (document, *negatives[: asked.of or asked.taken])]
    if len({document for _, document in pairs}) == 1:
        raise ColbertZeroError(
            f"phases.{training.name}.sources: all {len(pairs):,} documents looked at are the same text "
            f"({', '.join(parts)}); {_NOTHING['document']}. Check which column is the document"
        )
    whole = model.tokenizer(pairs, truncation=False, verbose=False)["input_ids"]
    lost, tokens = [max(0, len(ids) - model.max_seq_length) for ids in whole], sum(map(len, whole))
    cut = {tuple(ids) for ids in model.tokenizer(pairs, truncation="longest_first")["input_ids"]}
    sample = Sampled(len(pairs), sum(map(bool, lost)), tokens, sum(lost), len(set(pairs)), len(cut))
    if sample.cut:
        said = _cut(sample, "pairs", model.max_seq_length)
        log.say(f"phases.{training.name}: cut, in a sample of the rows: {said}")
    _tell_alike(training, "document_tokens", "pairs", sample, log)
    return {"pair": sample._asdict()}


def _cut(sample: Sampled, plural: str, tokens: int) -> str:
    """What cutting takes away, in words."""
    return (
        f"{sample.cut:,} of {sample.texts:,} {plural} to {tokens} tokens, which loses "
        f"{sample.lost / sample.tokens:.1%} of all theirs"
    )


def _tell_alike(training: Training, key: str, plural: str, sample: Sampled, log: Log) -> None:
    """Tell of many texts that the model cannot tell apart."""
    if 2 * sample.different_cut > sample.different:
        return
    key, what, mend = (key, "cutting", "raise it") if sample.cut else _UNKNOWN
    log.tell(
        f"phases.{training.name}.{key}: of {sample.different:,} different {plural} looked at, {what} leaves "
        f"{sample.different_cut:,} that differ, and the model cannot tell equal ones apart; {mend}"
    )


def some_rows(part: Part, most: int) -> dict[str, list[Any]]:
    """Columns of rows spread over a part, or of its first ones where it is streamed."""
    count = min(most, len(part))
    return part.read(evenly_spaced(len(part), count)) if part.block is None else next(part.sample(count))


def _texts(part: Part, rows: int) -> dict[str, list[str]]:
    """Queries and documents of some rows of a part."""
    read = some_rows(part, rows)
    documents = read["document"] if "document" in read else [text for row in read["documents"] for text in row]
    return {"query": read["query"], "document": documents}


def _sampled(model: Encoder, tokenise: Tokenise, texts: list[str], task: Task) -> Sampled:
    transformer: Any = model[0]
    expansion = transformer.query_expansion if task == "query" else None
    fixed = expansion["length"] if expansion and expansion["strategy"] == "fixed" else None
    limit = fixed or getattr(transformer, f"{task}_length", None) or transformer.max_seq_length
    prompt = model.prompts.get(task) or ""
    whole = transformer.tokenizer([prompt + text for text in texts], truncation=False, verbose=False)["input_ids"]
    lost = [max(0, len(ids) - limit) for ids in whole] if limit else [0] * len(texts)
    return Sampled(
        texts=len(texts),
        cut=sum(map(bool, lost)),
        tokens=sum(map(len, whole)),
        lost=sum(lost),
        different=len(set(texts)),
        different_cut=len(set(map(tuple, tokenise(texts, task)["input_ids"].tolist()))),
    )


def _equal(training: Training, task: Task, sampled: dict[str, Sampled]) -> str:
    """The sentence on parts whose texts of a task are all equal."""
    count, names = sum(sample.texts for sample in sampled.values()), ", ".join(sampled)
    nothing = _NOTHING[task]
    if all(sample.different == 1 for sample in sampled.values()):
        return (
            f"phases.{training.name}.sources: all {count:,} {_PLURAL[task]} looked at are the same text ({names}); "
            f"{nothing}. Check which column is the {task}"
        )
    if not any(sample.cut for sample in sampled.values()):
        key, what, mend = _UNKNOWN
        return (
            f"phases.{training.name}.{key}: {what} makes the same tokens of all {count:,} different {_PLURAL[task]} "
            f"looked at ({names}); {nothing}. {mend.capitalize()}"
        )
    tokens = getattr(training.alignment, f"{task}_tokens")
    return (
        f"phases.{training.name}.{task}_tokens: all {count:,} {_PLURAL[task]} looked at are equal once cut to {tokens} "
        f"tokens ({names}); {nothing}. Raise it, or take what all begin with out of the texts and into `prompts`"
    )
