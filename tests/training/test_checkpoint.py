"""What is left after damage, full disks, signals and a second writer; real files, real processes."""

import re
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from colbert_zero import watch
from colbert_zero.errors import ColbertZeroError, Stopped
from colbert_zero.evaluation import validation
from colbert_zero.files import read_json, write_checksums, writing
from colbert_zero.recipe.reading import load_recipe
from colbert_zero.study.show import Quiet
from colbert_zero.study.study import Study
from colbert_zero.training import phase
from colbert_zero.training.checkpoint import checkpoints, damage, last_checkpoint
from helpers import data, environment, newest_step, study, wait_for, write_recipe, write_rows

TRAIN = [sys.executable, "-m", "colbert_zero", "train", "recipe.yaml", "--phase", "unsupervised", "--out", "out"]


class Stop(BaseException):
    pass


class StoppingAt(Quiet):
    """Progress that breaks off at a step, as a crash does; keeps what was said."""

    def __init__(self, step=None):
        self.step, self.said = step, []

    def say(self, text):
        self.said.append(text)

    def bar(self, name, total):
        def advance(done, values):
            if done == self.step:
                raise Stop

        return nullcontext(advance)


def unfinished(folder, crash=7, stop=Stop, **phase):
    """A study with a phase broken off after a step of 9; by default its last checkpoints are at 4 and 6."""
    write_rows(folder / "pairs.jsonl")
    recipe = data(folder)
    recipe["phases"]["unsupervised"] |= {"checkpoint_every": 2, "steps": 9, **phase}
    broken = study(folder, recipe)
    broken.prepare([("unsupervised",)])
    broken.show = StoppingAt(crash)
    with pytest.raises(stop):
        broken.train(("unsupervised",))
    return broken, broken.phase_folder(("unsupervised",)).with_suffix(".unfinished")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Weights of the same phase, trained without a break."""
    folder = tmp_path_factory.mktemp("undisturbed")
    broken, _ = unfinished(folder)
    broken.folder = folder / "whole"
    broken.show = Quiet()
    broken.train(("unsupervised",))
    return (broken.phase_folder(("unsupervised",)) / "model" / "model.safetensors").read_bytes()


def truncate(work: Path) -> None:
    file = work / "step-6" / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(work: Path) -> None:
    file = work / "step-6" / "weights.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def lose(work: Path) -> None:
    (work / "step-6" / "random.safetensors").unlink()


def empty(work: Path) -> None:
    (work / "step-6" / "checksums.json").write_bytes(b"")


def half_written(work: Path) -> None:
    (work / "step-6").rename(work / ".step-6.01234567.tmp")


def borrow(work: Path) -> None:
    """Another training's checkpoint, whole in itself."""
    file = work / "step-6" / "state.json"
    before = file.read_bytes()
    file.write_text('{"id": "another", "step": 6}')
    assert file.read_bytes() != before
    (file.parent / "checksums.json").unlink()
    write_checksums(file.parent)


FAULTS = {
    truncate: "optimizer.safetensors is not what was written",
    flip: "weights.safetensors is not what was written",
    lose: "random.safetensors is missing",
    empty: "checksums.json is not what was written",
    borrow: "it belongs to another training",
    half_written: None,
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_damaged_checkpoint_is_told_and_the_one_before_it_used(tmp_path, undisturbed, fault):
    broken, work = unfinished(tmp_path)
    assert [path.name for path in checkpoints(work)] == ["step-6", "step-4"]
    fault(work)
    broken.show = StoppingAt()
    broken.train(("unsupervised",))
    said = [text for text in broken.show.said if "damaged" in text]
    assert len(said) == (FAULTS[fault] is not None)
    assert all(f"step-6 is damaged ({FAULTS[fault]}" in text and "going on from step-4" in text for text in said)
    assert (broken.phase_folder(("unsupervised",)) / "model" / "model.safetensors").read_bytes() == undisturbed
    assert not work.exists()


def test_the_log_of_a_long_phase_is_thinned_and_its_checkpoints_know_what_was_spent(tmp_path, undisturbed, monkeypatch):
    monkeypatch.setattr("colbert_zero.training.log.LOG_ENTRIES", 3)
    broken, _ = unfinished(tmp_path, crash=6, checkpoint_every=4)
    broken.show = Quiet()
    record = broken.train(("unsupervised",))
    assert [entry["step"] for entry in record["losses"]] == [3, 4, 6, 8, 9]
    assert record["texts"] == 9 * 16 * 2
    assert record["sources"]["pairs/pairs"]["batches"] == 9
    assert (broken.phase_folder(("unsupervised",)) / "model" / "model.safetensors").read_bytes() == undisturbed


def test_without_a_whole_checkpoint_training_begins_again_and_says_so(tmp_path, undisturbed):
    broken, work = unfinished(tmp_path, keep_checkpoints=1)
    assert [path.name for path in checkpoints(work)] == ["step-6"]
    flip(work)
    assert last_checkpoint(work, "whatever")[0] is None
    broken.show = StoppingAt()
    broken.train(("unsupervised",))
    assert any("going on from the beginning" in text for text in broken.show.said)
    assert (broken.phase_folder(("unsupervised",)) / "model" / "model.safetensors").read_bytes() == undisturbed


def test_every_flipped_byte_of_a_checkpoint_is_noticed(tmp_path):
    broken, work = unfinished(tmp_path)
    phase_id, folder = broken.phase_id(("unsupervised",)), work / "step-6"
    assert damage(folder, phase_id) is None
    for file in sorted(folder.iterdir()):
        content = file.read_bytes()
        for place in range(0, len(content), max(1, len(content) // 5)):
            file.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
            assert damage(folder, phase_id) is not None, (file.name, place)
        file.write_bytes(content)
    assert damage(folder, phase_id) is None


def can_mount():
    try:
        return subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode == 0
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not can_mount(), reason="no user namespaces here to mount a small disk in")
def test_a_full_disk_stops_training_with_the_checkpoint_before_whole_and_room_lets_it_go_on(tmp_path):
    write_recipe(tmp_path, steps=40, checkpoint_every=1, keep_checkpoints=1000)
    (tmp_path / "out").mkdir()
    train = " ".join(TRAIN)
    script = f"""
        mount -t tmpfs -o size=40m tmpfs out
        # Large enough at first, by what is needed about; then another fills it.
        (until ls out/phases/*.unfinished/step-3; do sleep 0.02; done; cat /dev/zero > out/full) 2> /dev/null > ls.txt &
        {train} > first.txt 2>&1; echo $? >> first.txt
        wait; rm out/full
        ls out/phases/*.unfinished > kept.txt
        mount -o remount,size=300m out
        {train} > second.txt 2>&1; echo $? >> second.txt
        cp out/phases/unsupervised-*/phase.json .
    """
    subprocess.run(["unshare", "-rm", "sh", "-c", script], cwd=tmp_path, env=environment(), check=True)
    first, second = ((tmp_path / f"{name}.txt").read_text() for name in ("first", "second"))
    assert re.search(r"step-(\d+): this checkpoint cannot be written \(.*No space left on device", first), first
    assert "so training stops. The one before it, step-" in first
    assert "Traceback" not in first
    assert first.endswith("\n2\n")
    before = int(re.search(r"The one before it, step-(\d+), is whole", first)[1])
    assert f"step-{before}" in (tmp_path / "kept.txt").read_text()
    assert second.endswith("\n0\n"), second
    assert [entry["step"] for entry in read_json(tmp_path / "phase.json")["losses"]] == list(range(1, 41))


def test_sigterm_saves_the_step_it_came_in_and_the_same_command_ends_bit_identical(tmp_path):
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
        write_recipe(tmp_path / name, steps=120, checkpoint_every=3)
    stopped = tmp_path / "stopped"
    process = subprocess.Popen(TRAIN, cwd=stopped, env=environment(), stdout=subprocess.PIPE, text=True)
    wait_for(lambda: process.poll() is not None or newest_step(stopped) >= 3)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    step = int(re.search(r"after step (\d+) of 120, which is saved in .* The same command goes on", said)[1])
    assert step == newest_step(stopped)
    ends = []
    for folder in (tmp_path / "whole", stopped):
        again = Study(load_recipe(folder / "recipe.yaml"), folder / "out", Quiet(), folder / "cache")
        again.prepare([("unsupervised",)])
        first = again.train(("unsupervised",))["losses"][0]["step"]
        model = again.phase_folder(("unsupervised",)) / "model" / "model.safetensors"
        ends.append((first, model.read_bytes()))
    assert ends[0] == ends[1]


@pytest.mark.slow
def test_sigterm_outside_of_training_ends_with_success_too(tmp_path):
    write_recipe(tmp_path)
    process = subprocess.Popen(TRAIN, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True)
    wait_for(lambda: process.poll() is not None or (tmp_path / "out" / ".lock").exists())
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert "stopped by SIGTERM" in said


def test_two_runs_cannot_write_in_one_folder(tmp_path):
    other_run = pytest.raises(ColbertZeroError, match=r"another run \(pid \d+ on .*another --out")
    with writing(tmp_path / "out"), other_run, writing(tmp_path / "out"):
        pass
    with writing(tmp_path / "out"):
        pass


def test_what_a_killed_run_left_half_written_is_deleted_by_the_next(tmp_path):
    leftover = tmp_path / "out" / "data" / ".pairs-1.01234567.tmp"
    leftover.mkdir(parents=True)
    (leftover / "0.arrow").write_bytes(b"half")
    (tmp_path / "out" / "phases").mkdir()
    (tmp_path / "out" / "phases" / ".results.json.01234567.tmp").write_text("half")
    with writing(tmp_path / "out"):
        assert {path.name for path in (tmp_path / "out").rglob("*")} == {".lock", "data", "phases"}


def test_the_best_checkpoint_stays_beside_the_last_and_is_what_the_phase_ends_with(tmp_path, monkeypatch):
    write_rows(tmp_path / "pairs.jsonl")
    recipe = data(tmp_path)
    phase = {"checkpoint_every": 4, "evaluate_every": 3, "steps": 13, "select": "best", "keep_checkpoints": 1}
    recipe["phases"]["unsupervised"] |= phase
    scores = iter([0.2, 0.5, 0.4, 0.1, 0.3])
    best = study(tmp_path, recipe)
    best.prepare([("unsupervised",)])
    kept = []

    class Watching(Quiet):
        def bar(self, name, total):
            work = best.phase_folder(("unsupervised",)).with_suffix(".unfinished")
            return nullcontext(lambda done, values: kept.append({p.name for p in checkpoints(work)}))

    best.show = Watching()
    monkeypatch.setattr(validation, "validate", lambda model, collections: {"a": next(scores)})
    record = best.train(("unsupervised",))
    measured = [(entry["step"], entry["mean"]) for entry in record["validation"]]
    assert measured == [(3, 0.2), (6, 0.5), (9, 0.4), (12, 0.1), (13, 0.3)]
    assert (record["best_step"], record["selected_step"]) == (6, 6)
    assert [entry["step"] for entry in record["losses"]] == list(range(1, 14))
    assert kept[-1] == {"step-6", "step-12"}


def test_a_damaged_best_checkpoint_is_told_and_not_used(tmp_path, monkeypatch):
    write_rows(tmp_path / "pairs.jsonl")
    recipe = data(tmp_path)
    recipe["phases"]["unsupervised"] |= {"evaluate_every": 3, "steps": 9, "select": "best"}
    best = study(tmp_path, recipe)
    best.prepare([("unsupervised",)])
    work = best.phase_folder(("unsupervised",)).with_suffix(".unfinished")
    scores = iter([0.5, 0.4, 0.3])

    def validate(model, collections):
        score = next(scores)
        if score == 0.3:
            file = work / "step-3" / "weights.safetensors"
            content = bytearray(file.read_bytes())
            content[len(content) // 2] ^= 1
            file.write_bytes(content)
        return {"a": score}

    monkeypatch.setattr(validation, "validate", validate)
    with pytest.raises(ColbertZeroError, match=r"best checkpoint, .*step-3, is damaged \(weights"):
        best.train(("unsupervised",))
    assert not best.is_done(("unsupervised",))


@pytest.mark.parametrize("stop", [KeyboardInterrupt, Stopped])
def test_a_training_broken_off_while_its_layers_are_measured_trains_no_step_again(
    tmp_path, undisturbed, monkeypatch, stop
):
    def measure(*_):
        raise stop

    monkeypatch.setattr("colbert_zero.study.study.layers_add", measure)
    broken, work = unfinished(tmp_path, None, stop)
    monkeypatch.undo()
    assert [path.name for path in checkpoints(work)] == ["step-9", "step-8"]
    broken.show = StoppingAt(9)
    record = broken.train(("unsupervised",))
    assert [entry["step"] for entry in record["losses"]] == list(range(1, 10))
    assert record["layers"]["queries"] == 20
    assert (broken.phase_folder(("unsupervised",)) / "model" / "model.safetensors").read_bytes() == undisturbed
    assert not work.exists()


def test_sigterm_in_the_last_step_saves_it_where_there_is_still_something_to_measure(tmp_path, monkeypatch):
    broken, work = unfinished(tmp_path)
    broken.show = StoppingAt()
    monkeypatch.setattr(phase, "stop_requested", lambda: newest_step(tmp_path) == 8)
    with pytest.raises(Stopped, match="after step 9 of 9, which is saved"):
        broken.train(("unsupervised",))
    assert checkpoints(work)[0].name == "step-9"


@pytest.mark.parametrize("error", [MemoryError(), ColbertZeroError("not finite")])
def test_layers_that_cannot_be_measured_are_told_and_the_training_is_finished(
    tmp_path, undisturbed, monkeypatch, error
):
    def fail(*_):
        raise error

    write_rows(tmp_path / "pairs.jsonl")
    monkeypatch.setattr("colbert_zero.study.study.layers_add", fail)
    recipe = data(tmp_path)
    recipe["phases"]["unsupervised"] |= {"steps": 9}
    one = study(tmp_path, recipe)
    one.prepare([("unsupervised",)])
    one.show = StoppingAt()
    record = one.train(("unsupervised",))
    [told] = [text for text in record["told"] if "what its encoder's layers add cannot be measured (" in text]
    assert told in one.show.said
    assert record["layers"] is None
    assert (one.phase_folder(("unsupervised",)) / "model" / "model.safetensors").read_bytes() == undisturbed


def test_sigterm_waits_until_the_finished_model_is_written(tmp_path, monkeypatch):
    write_rows(tmp_path / "pairs.jsonl")
    one = study(tmp_path, data(tmp_path))
    one.prepare([("unsupervised",)])
    save, seen = phase.save_model, []
    monkeypatch.setattr(phase, "save_model", lambda *given: seen.append(watch._finishes_its_step) or save(*given))
    one.train(("unsupervised",))
    assert seen == [True]
