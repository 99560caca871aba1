"""What a server counts, for Prometheus. Of several processes any one tells the sums of all."""

import os

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

SHARED = "PROMETHEUS_MULTIPROC_DIR"
"""Names the folder in which several processes count; read when prometheus_client is imported."""


class Metrics:
    """Counters of a server."""

    def __init__(self) -> None:
        self._own = own = CollectorRegistry()
        self._requests = Counter(
            "colbert_zero_requests", "Answered requests.", ["method", "path", "status"], registry=own
        )
        self._seconds = Histogram(
            "colbert_zero_request_seconds", "From a request's head to its answer.", ["path"], buckets=_SECONDS,
            registry=own,
        )  # fmt: skip
        self._batch_size = Histogram(
            "colbert_zero_batch_requests", "Requests computed together.", buckets=(1, 2, 4, 8, 16, 32, 64), registry=own
        )
        self._batch_seconds = Histogram(
            "colbert_zero_batch_seconds", "Of computing a batch.", buckets=_SECONDS, registry=own
        )
        self._waiting = Gauge(
            "colbert_zero_waiting_requests", "Requests in the queue.", multiprocess_mode="livesum", registry=own
        )
        self._documents = Gauge(
            "colbert_zero_documents", "Documents that are searched.", multiprocess_mode="livemax", registry=own
        )
        self._generation = Gauge(
            "colbert_zero_index_generation", "Of the index that is searched; of several processes the oldest.",
            multiprocess_mode="livemin", registry=own,
        )  # fmt: skip

    def request(self, method: str, path: str, status: int, seconds: float) -> None:
        """A request was answered; of an unknown path it is "other"."""
        self._requests.labels(method, path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def waiting(self, requests: int) -> None:
        """So many are in the queue."""
        self._waiting.set(requests)

    def index(self, documents: int, generation: int) -> None:
        """Searches are in this index now."""
        self._documents.set(documents)
        self._generation.set(generation)

    def batch(self, requests: int, seconds: float) -> None:
        """A batch was computed."""
        self._batch_size.observe(requests)
        self._batch_seconds.observe(seconds)

    def text(self) -> bytes:
        """All of it, in Prometheus' text format."""
        if SHARED in os.environ:
            shared = CollectorRegistry()
            multiprocess.MultiProcessCollector(shared)  # type: ignore[no-untyped-call]
            return generate_latest(shared)
        return generate_latest(self._own)


def forget(process: int) -> None:
    """A process of several has ended: what it was doing counts no more, what it did does."""
    multiprocess.mark_process_dead(process)  # type: ignore[no-untyped-call]
