"""What `leaks` finds of planted copies, and how long it takes.

Recall: of a collection's texts of 8, 30 and 150 words, each edited in one way and put into a training source, how many
are found. Time: 200,000 pairs against 20,000 documents by the command, reading and comparing the sources inside too.

With DATA, a folder with `pairs/*.jsonl.gz` and `collections/*/corpus.jsonl`, the texts are real; without, words are
drawn from 50,000 by Zipf's law, each document of 100 words.

    python benchmarks/leaks.py [DATA] [--only recall|time]
"""

import argparse
import gzip
import itertools
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil

from colbert_zero.data.overlap import Index, blocks, compare, normalised

PAIRS, DOCUMENTS, COPIES = 200_000, 20_000, 1000

Words = list[str]


def zipf(seed: int) -> Iterator[str]:
    """Texts of 100 words without end."""
    draw = np.random.default_rng(seed)
    words = np.array(
        ["".join(draw.choice(list("abcdefghijklmnopqrstuvwxyz"), draw.integers(2, 10))) for _ in range(50_000)]
    )
    shares = 1 / np.arange(1, len(words) + 1)
    while True:
        for text in words[draw.choice(len(words), (1000, 100), p=shares / shares.sum())]:
            yield " ".join(text)


def real_pairs(data: Path) -> Iterator[dict[str, str]]:
    """Rows of all sources, spread over them as they come."""
    for file in sorted(data.glob("pairs/*.jsonl.gz")):
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line)
                yield {"query": row["query"], "document": row["document"]}


def real_documents(data: Path) -> Iterator[str]:
    """Documents of all collections, of a title and a text."""
    for file in sorted(data.glob("collections/*/corpus.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            yield f"{row.get('title') or ''} {row['text']}".strip()


# ---- Recall


def replaced(words: Words, places: list[int], draw: random.Random, pool: Words) -> Words:
    return [draw.choice(pool) if place in set(places) else word for place, word in enumerate(words)]


def a_fifth(words: Words, draw: random.Random, pool: Words) -> Words:
    count = round(len(words) / 5)
    start = draw.randrange(len(words) - count + 1)
    return replaced(words, list(range(start, start + count)), draw, pool)


def a_tenth(words: Words, draw: random.Random, pool: Words) -> Words:
    return replaced(words, draw.sample(range(len(words)), max(1, round(len(words) / 10))), draw, pool)


def shuffled(words: Words, draw: random.Random, pool: Words) -> Words:
    return draw.sample(words, len(words))


def apart(words: Words, draw: random.Random, pool: Words) -> Words:
    """Shuffled so that hardly any two words follow each other that did: the best of 100 draws."""
    pairs = set(itertools.pairwise(words))
    draws = (draw.sample(words, len(words)) for _ in range(100))
    return min(draws, key=lambda mixed: sum(pair in pairs for pair in itertools.pairwise(mixed)))


EDITS: dict[str, Callable[[Words, random.Random, Words], str]] = {
    "equal": lambda words, draw, pool: " ".join(words),
    "in capitals": lambda words, draw, pool: " ".join(words).upper(),
    "re-spaced": lambda words, draw, pool: "\n  ".join(words) + "\t",
    "a contiguous fifth replaced": lambda words, draw, pool: " ".join(a_fifth(words, draw, pool)),
    "a tenth replaced at random": lambda words, draw, pool: " ".join(a_tenth(words, draw, pool)),
    "shuffled": lambda words, draw, pool: " ".join(shuffled(words, draw, pool)),
    "shuffled, the best of 100 draws": lambda words, draw, pool: " ".join(apart(words, draw, pool)),
}


def recall(texts: list[str]) -> None:
    """Print a row an edit, a column a length."""
    draw = random.Random(1)
    pool = [word for text in draw.sample(texts, 2000) for word in normalised(text).split()]
    found: dict[str, list[str]] = {edit: [] for edit in EDITS}
    for words in (8, 30, 150):
        beginnings: dict[str, Words] = {}
        for text in draw.sample(texts, min(len(texts), 20 * COPIES)):
            split = re.findall(r"\w+", text)
            if len(split) >= words and len(normalised(" ".join(split[:words])).split()) == words:
                beginnings.setdefault(normalised(" ".join(split[:words])), split[:words])
            if len(beginnings) == COPIES:
                break
        chosen = list(beginnings.values())
        index = Index(blocks(" ".join(text) for text in chosen))
        for edit, change in EDITS.items():
            edited = [change(text, draw, pool) for text in chosen]
            pairs, seen = compare(index, edited)
            met = set(zip(pairs.texts.tolist(), pairs.found.tolist(), strict=True))
            first = {value: place for place, value in reversed(list(enumerate(seen.hashes.tolist())))}
            hits = sum((first[h], s) in met for h, s in zip(seen.hashes.tolist(), index.same.tolist(), strict=True))
            found[edit].append(f"{hits / len(chosen):.1%}" + ("" if len(chosen) == COPIES else f" of {len(chosen)}"))
    print("| found | 8 words | 30 words | 150 words |\n|---|---:|---:|---:|")
    for edit, cells in found.items():
        print(f"| {edit} | {' | '.join(cells)} |")


# ---- Time


def timed(pairs: Iterator[dict[str, str]], documents: Iterator[str]) -> None:
    """Print how long the command takes, and the load of the machine meanwhile."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        count = characters = 0
        with open(folder / "pairs.jsonl", "w", encoding="utf-8") as file:
            for count, row in enumerate(itertools.islice(pairs, PAIRS), 1):  # noqa: B007
                file.write(json.dumps(row) + "\n")
                characters += len(row["query"]) + len(row["document"])
        collection = folder / "collection"
        (collection / "qrels").mkdir(parents=True)
        texts = list(itertools.islice(documents, DOCUMENTS))
        rows = (json.dumps({"_id": str(n), "text": text}) for n, text in enumerate(texts))
        (collection / "corpus.jsonl").write_text("\n".join(rows), encoding="utf-8")
        queries = (json.dumps({"_id": f"q{n}", "text": text[:60]}) for n, text in enumerate(texts[:500]))
        (collection / "queries.jsonl").write_text("\n".join(queries), encoding="utf-8")
        qrels = "".join(f"q{n}\t{n}\t1\n" for n in range(min(500, len(texts))))
        (collection / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + qrels)
        command = [sys.executable, "-m", "colbert_zero", "leaks", "--train", str(folder / "pairs.jsonl")]
        before, started, peak = psutil.getloadavg()[0], time.monotonic(), 0
        process = psutil.Popen([*command, "--collection", str(collection)], stdout=subprocess.PIPE, text=True)
        cpu = 0.0
        while process.poll() is None:
            try:
                peak = max(peak, process.memory_info().rss)
                cpu = sum(process.cpu_times()[:2])
            except psutil.Error:
                break
            time.sleep(0.2)
        out, _ = process.communicate()
        print(out)
        print(
            f"{count:,} pairs ({characters / 1e6:.0f} M characters) against {len(texts):,} documents: "
            f"{time.monotonic() - started:.0f} s wall-clock, {cpu:.0f} s of CPU, peak {peak / 1e9:.1f} GB; load of the "
            f"machine {before:.1f} before, {psutil.getloadavg()[0]:.1f} after, {psutil.cpu_count()} cores"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?", help="a folder of real texts; without, they are drawn")
    parser.add_argument("--only", choices=["recall", "time"])
    asked = parser.parse_args()
    if asked.only != "time":
        drawn = list(itertools.islice((a + " " + b for a, b in zip(zipf(1), zipf(2), strict=False)), 5000))
        recall([row["document"] for row in real_pairs(asked.data)] if asked.data else drawn)
    if asked.only != "recall":
        drawn_pairs = ({"query": a[:50], "document": a} for a in zipf(3))
        timed(
            real_pairs(asked.data) if asked.data else drawn_pairs, real_documents(asked.data) if asked.data else zipf(4)
        )


if __name__ == "__main__":
    main()
