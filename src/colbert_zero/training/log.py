"""A phase's log: what each step found and what was spent until then."""

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from colbert_zero.processes import world_size
from colbert_zero.training.gradcache import Work

LOG_ENTRIES = 10_000
"""Most entries of a phase's log: a checkpoint of a long phase would otherwise be mostly log, and slow to read."""
Entry = dict[str, Any]
_SECONDS = ("elapsed_seconds", "device_seconds", "cpu_seconds", "thread_seconds", "waited_seconds")


class Log:
    """Entries of losses (`loss`) and of evaluations while training (`validation`), and the clocks of training.

    The clocks stand still while the model is evaluated; the last step's optimiser is not in them.

    Args:
        steps: Of the whole phase; a long one's losses are logged as means over some steps.
        threads: Of a process, that may compute at once.
        takers: Called with each new entry.
        say: Tells the user.

    Attributes:
        told: What the user was told of this training (`tell`).
    """

    def __init__(
        self,
        steps: int,
        threads: int,
        takers: Sequence[Callable[[Entry], None]] = (),
        say: Callable[[str], None] = print,
    ):
        self.steps, self.threads, self.takers, self.every = steps, threads, takers, math.ceil(steps / LOG_ENTRIES)
        self.step, self.entries, self.told, self.say = 0, list[Entry](), list[str](), say
        self.spent = Counter[str](dict.fromkeys(_SECONDS, 0))
        self._losses: list[float] = []
        self.start()

    def state(self) -> dict[str, Any]:
        """All of it, for a checkpoint; JSON."""
        return {"step": self.step, "entries": self.entries, "spent": dict(self.spent), "told": self.told}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint's."""
        self.step, self.entries, self.spent = state["step"], list(state["entries"]), Counter(state["spent"])
        self.told = list(state.get("told", []))

    def tell(self, text: str) -> None:
        """Tell the user, and keep it for the record; once, also in a training that goes on."""
        if text not in self.told:
            self.told.append(text)
            self.say(text)

    def start(self) -> None:
        """Let the clocks go on from here."""
        self._clocks = time.monotonic(), time.process_time()
        self._done = self._clocks

    def clocks(self) -> tuple[float, float]:
        """Seconds that have passed, and that this process's threads have computed, since the clocks were last read."""
        wall, cpu = self._clocks
        self._clocks = time.monotonic(), time.process_time()
        return self._clocks[0] - wall, self._clocks[1] - cpu

    def add(
        self, loss: float, counted: Work, seconds: tuple[float, float], waited: float, keep: bool, **more: Any
    ) -> None:
        """A step is done.

        Args:
            loss: Mean over all queries, in nats.
            counted: By all processes.
            seconds: What `clocks` read before the optimiser's step, summed over the processes.
            waited: Seconds for the batch.
            keep: Log it, whatever the interval.
            more: Other figures of the step.
        """
        self.step += 1
        self._losses.append(loss)
        device, cpu = seconds
        values = (device / world_size(), device, cpu, device * self.threads, waited)
        self.spent.update(dict(zip(_SECONDS, values, strict=True)) | counted._asdict())
        self._done = time.monotonic(), time.process_time()
        if keep or self.step % self.every == 0 or self.step == self.steps:
            mean = math.fsum(self._losses) / len(self._losses)
            self._losses = []
            self._append({"step": self.step, "loss": mean, **more, **self.spent})

    def validated(self, scores: dict[str, float]) -> bool:
        """The model was scored since the step; returns whether it is the best so far. The clocks stood still."""
        now = time.monotonic(), time.process_time()
        self._clocks = self._clocks[0] + now[0] - self._done[0], self._clocks[1] + now[1] - self._done[1]
        before, mean = self.best(), math.fsum(scores.values()) / len(scores)
        named = {f"validation/{name}": score for name, score in scores.items()}
        self._append({"step": self.step, "validation": mean, **named})
        return before is None or mean > before["validation"]

    def best(self) -> Entry | None:
        """The entry of the best score while training, the first of equals."""
        scored = (entry for entry in self.entries if "validation" in entry)
        return max(scored, key=lambda entry: entry["validation"], default=None)

    def _append(self, entry: Entry) -> None:
        self.entries.append(entry)
        for take in self.takers:
            take(entry)
