"""32 clients of a served index: python benchmarks/serve.py [--quick] [--seconds 60] [--clients 32]

A real server in a process of its own, on loopback; each client keeps one connection and asks one query after the other,
without a pause. Every answer is compared with the direct search: the same ids in order (but where scores differ by less
than 1e-4), scores to 1e-4, texts. A lost, wrong or refused answer is counted. Without --index a small index is made of
--corpus with --model.
"""

import argparse
import http.client
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil

from colbert_zero.data.documents import documents_of
from colbert_zero.serving.index.building import build
from colbert_zero.serving.index.opened import Answer, Index

TOLERANCE = 1e-4


def queries_of(index: Index, count: int) -> list[str]:
    """Beginnings of sentences of the index's documents: queries that have answers, of the texts' own words."""
    segment, chosen = index.segments[0], random.Random(0)
    texts = [row.text for row in segment.texts.rows()]
    found = []
    while len(found) < count:
        words = chosen.choice(texts).split()
        first = chosen.randrange(max(1, len(words) - 8))
        found.append(" ".join(words[first : first + 8])[:200])
    return found


def differs(found: dict, wanted: Answer, k: int) -> str | None:
    """What is wrong with an answer; equal scores, about, may stand in any order."""
    hits, scores = found["hits"], {hit.id: hit for hit in wanted}
    if found["query"] != wanted.query or len(hits) != min(k, len(wanted)):
        return "another query's answer, or not all of it"
    for place, hit in enumerate(hits):
        own = scores.get(hit["id"])
        if own is None or abs(own.score - hit["score"]) > TOLERANCE or own.text != hit["text"]:
            return f"{hit['id']} is not what the direct search found"
        if abs(wanted[place].score - hit["score"]) > TOLERANCE:
            return f"rank {place + 1} is another document"
    return None


def client(address: tuple[str, int], queries: list[str], wanted: dict[str, Answer], k: int, end: float, out: list):
    connection, order = http.client.HTTPConnection(*address, timeout=60), random.Random(threading.get_ident())
    while time.monotonic() < end:
        query = order.choice(queries)
        began = time.perf_counter()
        try:
            body = json.dumps({"query": query, "k": k})
            connection.request("POST", "/search", body, {"content-type": "application/json"})
            answer = connection.getresponse()
            content, status = answer.read(), answer.status
            fault = differs(json.loads(content), wanted[query], k) if status == 200 else f"status {status}"
        except (OSError, ValueError, http.client.HTTPException) as error:
            fault = f"lost: {error!r}"
            connection.close()
        out.append((time.perf_counter() - began, fault))
    connection.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--index", help="an index; without one is made of --corpus and --model")
    parser.add_argument("--model")
    parser.add_argument("--corpus")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("-k", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="5 seconds")
    asked = parser.parse_args()
    seconds = 5 if asked.quick else asked.seconds
    with tempfile.TemporaryDirectory() as made:
        path = Path(asked.index or f"{made}/index")
        if not asked.index:
            build(asked.model, documents_of([asked.corpus], "--corpus"), path, tell=lambda _: None)
        with Index.open(path, tell=lambda _: None) as index:
            queries = queries_of(index, asked.queries)
            print(f"{len(index):,} documents, {index.manifest.tokens:,} vectors of {index.manifest.model.dim} in "
                  f"{index.manifest.storage}; {len(queries)} queries, k {asked.k}", flush=True)  # fmt: skip
            began = time.perf_counter()
            # A few more, so that what nearly ties with the last one is known.
            wanted = {query: index.search(query, asked.k + 5) for query in queries}
            alone = (time.perf_counter() - began) / len(queries)
        print(f"direct, one at a time: {1000 * alone:.1f} ms a query", flush=True)
        command = [sys.executable, "-m", "colbert_zero", "serve", str(path), "--port", "0", "--workers",
                   str(asked.workers)]  # fmt: skip
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) as server:
            for line in server.stdout:
                if told := re.search(r"http://([\d.]+):(\d+)/ answers", line):
                    break
            else:
                sys.exit(f"the server ended with exit code {server.wait()}")
            address = told[1], int(told[2])
            wait_until_ready(server, address)
            load, end = psutil.getloadavg()[0], time.monotonic() + seconds
            outs: list[list] = [[] for _ in range(asked.clients)]
            threads = [
                threading.Thread(target=client, args=(address, queries, wanted, asked.k, end, out)) for out in outs
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            server.terminate()
            code = server.wait()
    answers = [answer for out in outs for answer in out]
    faults = [fault for _, fault in answers if fault]
    times = sorted(1000 * each for each, fault in answers if not fault)
    cuts = statistics.quantiles(times, n=100)
    print(f"{asked.clients} clients, {seconds:g} s: {len(answers):,} answers, {len(answers) / seconds:.0f} a second; "
          f"p50 {cuts[49]:.0f} ms, p99 {cuts[98]:.0f} ms, longest {times[-1]:.0f} ms; lost, refused or wrong: "
          f"{len(faults)}; exit code {code}; load before {load:.1f}, {os.cpu_count()} cores")  # fmt: skip
    for fault in sorted(set(faults))[:5]:
        print(f"  {fault}: {faults.count(fault)}")
    sys.exit(bool(faults or code))


def wait_until_ready(server: subprocess.Popen, address: tuple[str, int]) -> None:
    while server.poll() is None:
        with suppress(OSError, http.client.HTTPException):  # not yet
            connection = http.client.HTTPConnection(*address, timeout=60)
            connection.request("GET", "/ready")
            if connection.getresponse().status == 200:
                return
        time.sleep(0.1)
    sys.exit(f"the server ended with exit code {server.returncode}")


if __name__ == "__main__":
    main()
