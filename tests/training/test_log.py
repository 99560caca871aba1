"""A phase's clocks and entries."""

import time

import pytest

from colbert_zero.training.gradcache import Work
from colbert_zero.training.log import Log


@pytest.fixture
def clock(monkeypatch):
    """Wall-clock and processor time that the test moves on."""
    now = [0.0, 0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "process_time", lambda: now[1])
    return now


def move(clock, wall, cpu):
    clock[0] += wall
    clock[1] += cpu


def test_an_evaluation_counts_in_no_clock_and_the_optimiser_before_it_in_both(clock):
    log = Log(2, threads=2)
    for loss in (2.0, 1.0):
        move(clock, 3, 5)  # the loss and its gradient
        seconds = log.clocks()
        move(clock, 1, 2)  # the optimiser
        log.add(loss, Work(8, 100, 10, 0), seconds, 0.5, keep=True)
        move(clock, 100, 190)  # the evaluation
        log.validated({"a": loss / 4, "b": 0.0})
    spent = {
        key: log.entries[-2][key] for key in ("elapsed_seconds", "cpu_seconds", "thread_seconds", "device_seconds")
    }
    assert spent == {"elapsed_seconds": 7, "cpu_seconds": 12, "thread_seconds": 14, "device_seconds": 7}
    assert log.best()["validation"] == 0.25
    assert (log.spent["texts"], log.spent["tokens"], log.spent["padding"]) == (16, 200, 20)


def test_what_is_spent_is_of_all_processes_also_of_attempts_by_other_numbers_of_them(clock, monkeypatch):
    monkeypatch.setattr("colbert_zero.training.log.world_size", lambda: 8)
    first = Log(2, threads=2)
    first.add(1.0, Work(8, 100, 0, 0), (80.0, 160.0), 0.0, keep=True)
    monkeypatch.setattr("colbert_zero.training.log.world_size", lambda: 1)
    second = Log(2, threads=2)
    second.restore(first.state())
    second.add(1.0, Work(8, 100, 0, 0), (80.0, 160.0), 0.0, keep=True)
    spent = second.entries[-1]
    assert spent["elapsed_seconds"] == 10 + 80
    assert spent["device_seconds"] == 160
    assert spent["cpu_seconds"] == spent["thread_seconds"] == 320
