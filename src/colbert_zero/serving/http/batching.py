"""One thread that computes, and a bounded queue before it: what waits together is computed together.

There is no waiting for a batch to fill. While one is computed the next gathers, so a batch is as large as the load
makes it: one request alone is never held up, and of many at once each costs a fraction.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

Compute = Callable[[Any, list[Any]], list[Any]]
"""Called with a group and what is asked of it; returns an answer each, in order, an exception where there is none."""

_QUICK = 0.05
"""Seconds that a request is taken to need before one was measured."""


class QueueFullError(Exception):
    """No place is free; try again after so many seconds."""

    def __init__(self, retry_seconds: int):
        super().__init__(f"{retry_seconds} s")
        self.retry_seconds = retry_seconds


@dataclass(frozen=True)
class Group:
    """Requests that can be computed together: those of an equal group.

    Attributes:
        what: Names it to who computes.
        most: Of one batch; those of a dear kind are taken few at a time, so that others come in between.
    """

    what: Hashable
    most: int


@dataclass
class _Job:
    group: Group
    asked: Any
    deadline: float
    future: Future[Any] = field(default_factory=Future)


class Batcher:
    """A queue and the thread that serves it.

    Args:
        compute: Called in that thread alone.
        waiting: Requests that may wait.
        name: Of the thread.
        batch: Told the size of each batch and its seconds.
    """

    def __init__(
        self, compute: Compute, waiting: int, name: str, batch: Callable[[int, float], None] = lambda *_: None
    ):
        self._compute, self._most_waiting, self._batch = compute, waiting, batch
        self._jobs: deque[_Job] = deque()
        self._changed, self._closing, self._request_seconds = threading.Condition(), False, _QUICK
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._jobs)

    @property
    def alive(self) -> bool:
        """Whether its thread runs."""
        return self._thread.is_alive()

    def submit(self, group: Group, asked: Any, deadline: float) -> Future[Any]:
        """Queue a request; cancelling its future gives its place back, until it is being computed.

        Args:
            group: What it can be computed together with.
            asked: Handed to `compute`.
            deadline: On the monotonic clock; a request that still waits then is dropped with TimeoutError.

        Raises:
            QueueFullError: As many wait as may.
        """
        job = _Job(group, asked, deadline)
        with self._changed:
            if self._closing or len(self._jobs) >= self._most_waiting:
                self._jobs = deque(job for job in self._jobs if not job.future.cancelled())
            if self._closing or len(self._jobs) >= self._most_waiting:
                raise QueueFullError(max(1, round(len(self._jobs) * self._request_seconds)))
            self._jobs.append(job)
            self._changed.notify()
        return job.future

    def close(self) -> None:
        """Compute what was accepted, and end."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while batch := self._next():
            began = time.monotonic()
            group, asked = batch[0].group, [job.asked for job in batch]
            for job, answer in zip(batch, self._answers(group, asked), strict=True):
                if isinstance(answer, BaseException):
                    job.future.set_exception(answer)
                else:
                    job.future.set_result(answer)
            seconds = time.monotonic() - began
            self._request_seconds += 0.1 * (seconds / len(batch) - self._request_seconds)
            self._batch(len(batch), seconds)

    def _next(self) -> list[_Job]:
        """The longest waiting request, and those that can be computed with it; nothing once all is done."""
        while True:
            with self._changed:
                while not self._jobs and not self._closing:
                    self._changed.wait()
                if not self._jobs:
                    return []
                group = self._jobs[0].group
                taken: list[_Job] = []
                left: deque[_Job] = deque()
                for job in self._jobs:
                    (taken if job.group == group and len(taken) < group.most else left).append(job)
                self._jobs = left
            now = time.monotonic()
            batch = []
            for job in taken:
                if job.future.set_running_or_notify_cancel():
                    if job.deadline < now:
                        job.future.set_exception(TimeoutError())
                    else:
                        batch.append(job)
            if batch:
                return batch

    def _answers(self, group: Group, asked: list[Any]) -> list[Any]:
        """What is computed; where a batch fails, each by itself, so that one's fault is nobody else's."""
        try:
            return self._compute(group.what, asked)
        except Exception as error:
            if len(asked) == 1:
                return [error]
        return [self._answers(group, [one])[0] for one in asked]
