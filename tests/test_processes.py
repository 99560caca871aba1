"""Training by real processes: what they agree on, and what happens when one of them dies."""

import json
import random
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file

from colbert_zero import watch
from colbert_zero.errors import ColbertZeroError, Stopped
from colbert_zero.evaluation.ranking import rank, rank_bm25
from colbert_zero.files import read_json
from colbert_zero.processes import appears, share
from helpers import (
    STEPS,
    data,
    environment,
    free_port,
    launch,
    newest_step,
    study,
    succeed,
    wait_for,
    with_cross_encoder,
    write_recipe,
    write_rows,
)

# Writes, for every batch that is read: its step, the reader's rank, and which rows of which part.
LOGGING = """
import json, os, sys, time
from colbert_zero import cli
from colbert_zero.data import prepared
from colbert_zero.training import batches

read_now = []
read, get = prepared.ArrowPart.read, batches.Batches.__getitem__

def logged_read(part, rows):
    read_now.append([part.name, [int(row) for row in rows]])
    return read(part, rows)

def logged_get(self, step):
    time.sleep(0.05)  # so that a step takes long enough to be killed in
    read_now.clear()
    batch = get(self, step)
    [[part, rows]] = read_now
    line = {"step": step, "rank": int(os.environ.get("RANK", 0)), "part": part, "rows": rows}
    with open(os.environ["BATCH_LOG"] + "." + str(os.getpid()), "a") as file:
        file.write(json.dumps(line) + "\\n")
    return batch

prepared.ArrowPart.read, batches.Batches.__getitem__ = logged_read, logged_get
sys.argv[0] = "colbert-zero"
cli.main()
"""


@contextmanager
def two_in_training(folder):
    """Two processes in a long training, which no launcher would end; yielded when it has begun."""
    write_recipe(folder, steps=100_000, checkpoint_every=2, keep_checkpoints=3)
    command = [sys.executable, "-m", "colbert_zero", "train", "recipe.yaml", "--phase", "unsupervised", "--out", "out"]
    port, both = free_port(), []
    for number in (0, 1):
        variables = {
            "RANK": number,
            "LOCAL_RANK": number,
            "WORLD_SIZE": 2,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        with open(folder / f"process-{number}.txt", "w") as output:
            streams = {"stdout": output, "stderr": subprocess.STDOUT}
            both.append(subprocess.Popen(command, cwd=folder, env=environment(**variables), **streams))
    try:
        wait_for(lambda: newest_step(folder) > 0)
        yield both
    finally:
        for process in both:
            process.kill()
            process.wait()


def weights(folder, phase):
    [file] = folder.glob(f"phases/{phase}-*/model/model.safetensors")
    return load_file(file)


def assert_same_training(folder, other, phases):
    for phase in phases:
        [[one], [two]] = [[read_json(p) for p in f.glob(f"phases/{phase}-*/phase.json")] for f in (folder, other)]
        for a, b in zip(one["losses"], two["losses"], strict=True):
            assert (a["step"], a["source"]) == (b["step"], b["source"])
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        assert (one["texts"], one["tokens"]) == (two["texts"], two["tokens"])
        for name, tensor in weights(folder, phase).items():
            assert torch.allclose(tensor, weights(other, phase)[name], atol=2e-4), (phase, name)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The study as one process makes it."""
    folder = tmp_path_factory.mktemp("alone")
    write_recipe(folder)
    succeed(launch(1, "-m", "colbert_zero", "run", "recipe.yaml", "--out", "out"), folder)
    return folder


@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.slow)], ids=["two", "three"])
def test_several_processes_train_and_evaluate_as_one_does(alone, tmp_path, world):
    write_recipe(tmp_path)
    said = succeed(launch(world, "-m", "colbert_zero", "run", "recipe.yaml", "--out", "out"), tmp_path)
    assert said.count("Report: out/report.html") == 1
    assert_same_training(alone / "out", tmp_path / "out", ["unsupervised", "supervised", "distillation"])
    found, expected = (read_json(folder / "out" / "results.json")["systems"] for folder in (tmp_path, alone))
    assert list(found) == list(expected)
    for name, system in expected.items():
        assert found[name]["scores"]["held-out"] == pytest.approx(system["scores"]["held-out"], abs=0.03), name
    record = read_json(next((tmp_path / "out").glob("phases/supervised-*/phase.json")))
    assert record["processes"] == world
    about = read_json(tmp_path / "out" / "environment.json")
    assert (about["processes"], about["maxsim"]) == (world, "torch")
    assert set(about["cpu_features"]) <= {"avx2", "avx512f", "avx512_bf16", "amx_bf16"}


@pytest.mark.slow
def test_several_processes_train_and_rerank_by_a_cross_encoder_as_one_does(tmp_path):
    scores = {}
    for world in (1, 2):
        folder = tmp_path / str(world)
        folder.mkdir()
        write_rows(folder / "pairs.jsonl")
        # The phase before leaves each process with random numbers of its own. Not listwise: no softmax depends on the
        # head's bias, so that rounding alone would move it.
        phase = {"objective": "binary", "mini_batch_tokens": 100}
        recipe = with_cross_encoder(folder, phase, {"rerank": 10})
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        succeed(launch(world, "-m", "colbert_zero", "run", "recipe.yaml", "--out", "out"), folder)
        scores[world] = read_json(folder / "out" / "teachers.json")["blend"]["scores"]["held-out"]
    assert_same_training(tmp_path / "1" / "out", tmp_path / "2" / "out", ["dense", "reranker"])
    assert scores[1] == pytest.approx(scores[2], abs=0.03)


def test_a_batch_that_cannot_be_shared_out_evenly_is_refused_with_the_nearest_sizes(monkeypatch):
    monkeypatch.setattr("colbert_zero.processes.world_size", lambda: 3)
    assert share(12, "key") == 4
    with pytest.raises(ColbertZeroError, match=r"phases.x.global_batch_size: 16 queries.*3 processes.*15 and 18"):
        share(16, "phases.x.global_batch_size")
    with pytest.raises(ColbertZeroError, match=r"nearest sizes that can are 3$"):
        share(2, "key")


@pytest.mark.slow
def test_a_recipes_mistake_is_told_once_by_several_processes(tmp_path):
    write_recipe(tmp_path)
    command = ("-m", "colbert_zero", "run", "recipe.yaml", "--set", "phases.supervised.global_batch_size=7")
    done = subprocess.run(launch(2, *command), cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert done.returncode != 0
    told = [line for line in done.stderr.splitlines() if "the nearest sizes that can are 6 and 8" in line]
    assert len(told) == 1, done.stderr
    assert "colbert_zero/" not in done.stderr, done.stderr


@pytest.mark.parametrize("dies", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_process_that_is_killed_ends_the_other_with_a_message_that_names_it(tmp_path, dies):
    with two_in_training(tmp_path) as both:
        both[dies].kill()
        assert both[1 - dies].wait(60) == 1
    said = (tmp_path / f"process-{1 - dies}.txt").read_text()
    assert f"process {dies} (pid {both[dies].pid} on " in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_a_process_that_hangs_ends_the_other_within_a_minute(tmp_path):
    with two_in_training(tmp_path) as both:
        both[1].send_signal(signal.SIGSTOP)
        assert both[0].wait(60) == 1
    said = (tmp_path / "process-0.txt").read_text()
    assert f"process 1 (pid {both[1].pid} on " in said
    assert "has not answered for" in said


@pytest.mark.slow
def test_sigterm_to_one_process_saves_ends_all_with_success_and_says_how_to_go_on(tmp_path):
    with two_in_training(tmp_path) as both:
        both[1].terminate()
        assert [process.wait(60) for process in both] == [0, 0]
    said = (tmp_path / "process-0.txt").read_text()
    step = int(re.search(r"stopped by SIGTERM after step ([\d,]+) of 100,000", said)[1].replace(",", ""))
    assert "The same command goes on from there" in said
    [work] = tmp_path.glob("out/phases/unsupervised-*.unfinished")
    assert read_json(work / f"step-{step}" / "state.json")["step"] == step == newest_step(tmp_path)


def test_a_ranking_shared_out_among_processes_is_the_ranking_of_one(tiny_multi_vector, collection, monkeypatch):
    whole = rank(tiny_multi_vector, collection, depth=7, block_documents=3)
    parts = []
    monkeypatch.setattr("colbert_zero.evaluation.ranking.world_size", lambda: 3)
    for process in (0, 1, 2):
        monkeypatch.setattr("colbert_zero.evaluation.ranking.process_rank", lambda process=process: process)
        monkeypatch.setattr("colbert_zero.evaluation.ranking.gather_objects", lambda best: parts.append(best) or parts)
        shared = rank(tiny_multi_vector, collection, depth=7, block_documents=3)
    assert shared == whole


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_training_killed_at_ten_moments_and_resumed_by_one_or_three_sees_the_same_batches(tmp_path):
    # Few enough steps that rounding, which differs between one, two and three processes, turns no maximum over.
    phase = {"steps": STEPS, "checkpoint_every": 4, "learning_rate": 1e-4}
    seen, moments = {}, random.Random(4)
    for name in ("whole", "killed"):
        folder = tmp_path / name
        folder.mkdir()
        write_recipe(folder, **phase)
        (folder / "driver.py").write_text(LOGGING)
    command = ("driver.py", "train", "recipe.yaml", "--phase", "unsupervised", "--out", "out")

    def log(name, attempt):
        return {"BATCH_LOG": tmp_path / name / f"batches-{attempt}"}

    succeed(launch(1, *command), tmp_path / "whole", **log("whole", 0))
    killed = tmp_path / "killed"
    steps_before = 0
    for attempt in range(10):
        world = 2 if attempt == 0 else (1, 3)[attempt % 2]
        process = subprocess.Popen(
            launch(world, *command), cwd=killed, env=environment(**log("killed", attempt)),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        goal = steps_before + moments.randrange(2, 10)
        wait_for(lambda goal=goal, process=process: process.poll() is not None or newest_step(killed) >= goal, 240)
        time.sleep(moments.random() / 5)
        assert process.poll() is None
        # All at once: the launcher and what it launched, in no order.
        for victim in [process, *psutil.Process(process.pid).children(recursive=True)]:
            victim.kill()
        process.wait()
        steps_before = newest_step(killed)
    assert 20 < steps_before < STEPS
    succeed(launch(3, *command), killed, **log("killed", 10))
    for name, attempts in (("whole", 1), ("killed", 11)):
        seen[name] = [global_batches(tmp_path / name, attempt) for attempt in range(attempts)]
    [expected] = seen["whole"]
    assert set(expected) == set(range(STEPS))
    for attempt in seen["killed"]:
        assert all(batch == expected[step] for step, batch in attempt.items())
    # Together the attempts leave out no step, and none begins at the beginning again.
    assert set().union(*seen["killed"]) == set(expected)
    assert all(min(attempt, default=0) > 0 for attempt in seen["killed"][3:])
    assert_same_training(tmp_path / "whole" / "out", killed / "out", ["unsupervised"])


def global_batches(folder: Path, attempt: int):
    """{step: (part, rows)} of the steps that all processes of an attempt have read."""
    shares: dict[int, dict[int, tuple[str, list[int]]]] = {}
    for file in folder.glob(f"batches-{attempt}.*"):
        for line in file.read_text().splitlines():
            if line.endswith("}"):
                entry = json.loads(line)
                shares.setdefault(entry["step"], {})[entry["rank"]] = entry["part"], entry["rows"]
    whole = {}
    for step, parts in shares.items():
        rows = [row for rank in sorted(parts) for row in parts[rank][1]]
        if len(rows) == 12:
            assert len({part for part, _ in parts.values()}) == 1
            whole[step] = parts[0][0], rows
    return whole


# Writes what it is asked to make, and who made it; the second process would make something else.
MAKING = """
import os, sys, time
from pathlib import Path
from colbert_zero import processes, watch

watch.start()
folder = Path("made")

def make():
    folder.mkdir()
    (folder / "by").write_text(os.environ["RANK"])
    return folder

seen = processes.made_by_main(make, lambda where: (where / "by").read_text())
Path(f"seen-{os.environ['RANK']}").write_text(seen)
watch.leave()
"""


def test_what_the_main_process_makes_no_other_makes_again(tmp_path):
    (tmp_path / "making.py").write_text(MAKING)
    succeed(launch(2, "making.py"), tmp_path)
    assert [(tmp_path / f"seen-{rank}").read_text() for rank in (0, 1)] == ["0", "0"]


LEAVING = """
import os, threading
from colbert_zero import watch

watch.start()
watch.leave()
with open(f"left-{os.environ['RANK']}", "w") as file:
    file.write(" ".join(thread.name for thread in threading.enumerate()))
"""


@pytest.mark.slow
def test_who_has_left_watches_no_more_so_that_the_end_of_the_interpreter_meets_no_thread_in_the_store(tmp_path):
    (tmp_path / "leaving.py").write_text(LEAVING)
    succeed(launch(2, "leaving.py"), tmp_path)
    for number in (0, 1):
        assert "watch" not in (tmp_path / f"left-{number}").read_text().split()


def test_a_disk_that_is_not_shared_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("colbert_zero.processes.LAG_SECONDS", 0.1)
    with pytest.raises(ColbertZeroError, match=r"nowhere: made by the main process.*on a disk that all machines share"):
        appears(tmp_path / "nowhere")


@pytest.fixture
def asked_to_stop():
    """As if the exception of SIGTERM had been swallowed: the wish is there, and nothing was raised."""
    watch._stop.set()
    yield
    watch._stop.clear()


def test_a_swallowed_sigterm_ends_ranking_mining_preparing_and_the_way_to_the_next_phase(
    asked_to_stop, tiny_multi_vector, collection, tmp_path
):
    write_rows(tmp_path / "pairs.jsonl")
    stopped = pytest.raises(Stopped, match="stopped by SIGTERM")
    with stopped:
        rank(tiny_multi_vector, collection)
    with stopped:
        rank_bm25(collection)
    one = study(tmp_path, data(tmp_path))
    with stopped:
        one.train(("unsupervised",))
    with stopped:
        one._make("title", "pairs", lambda report: report(0, 1))
    one.collections = {"tiny": collection}
    with stopped:
        one.evaluate("bm25", "bm25", lambda collection: pytest.fail("ranked"))
