"""What a study knows of leaks: which of its collections stand in the data that its models are trained on."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from colbert_zero.data.collection import Collection
from colbert_zero.data.prepared import Source
from colbert_zero.files import Progress, fingerprint, read_json, write_json
from colbert_zero.teaching.leaks import CLEAN, DOCUMENTS_SEEN, QUERIES_SEEN, find_leaks

MOST = 200_000
"""Rows of all sources, and documents of all collections, that a study looks at; told where there are more."""

_VERSION = 1


def leaks_of(
    sources: dict[str, Source], collections: dict[str, Collection], data: Path, progress: Progress | None
) -> dict[str, Any]:
    """What was found, once: it is kept beside the prepared sources, by their ids and the collections' contents."""
    made_of = [[source.id for source in sources.values()], [[n, c.fingerprint] for n, c in collections.items()]]
    file = data / f"leaks-{fingerprint(_VERSION, MOST, made_of)}.json"
    if file.is_file():
        found: dict[str, Any] = read_json(file)
        return found
    used = list(sources.values())
    record = find_leaks(used, list(collections.values()), False, MOST, MOST, progress).record
    write_json(file, record)
    return record


def told(record: dict[str, Any]) -> list[str]:
    """What to say of collections that were seen, and of what was not looked at."""
    lines = []
    for name, seen in record["collections"].items():
        if seen["verdict"] != CLEAN:
            example = seen["examples"][0]
            lines.append(
                f"collection {name}: {seen['queries_seen']:,} of {seen['queries']:,} queries and "
                f"{seen['documents_seen']:,} of {seen['documents_compared']:,} documents are in the training data, "
                f"equal or nearly ({', '.join(seen['by_source'])}); as “{example['text']}”. `colbert-zero leaks` shows "
                "them, and writes sources without them"
            )
    if not record["whole"]:
        lines.append(f"leaks: {record['rows']:,} rows were looked at, not all; `colbert-zero leaks` looks at all")
    some = [name for name, seen in record["collections"].items() if seen["documents_compared"] < seen["documents"]]
    if some:
        lines.append(f"leaks: not all documents of {', '.join(some)} were looked at; `colbert-zero leaks` looks at all")
    return lines


def together(records: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """What results.json says of a collection, of one in parts altogether: the worst verdict and the counts."""
    seen = list(records)
    verdicts = {record["verdict"] for record in seen}
    verdict = next((v for v in (QUERIES_SEEN, DOCUMENTS_SEEN) if v in verdicts), CLEAN)
    return {"verdict": verdict, **{key: sum(r[key] for r in seen) for key in ("queries_seen", "documents_seen")}}
