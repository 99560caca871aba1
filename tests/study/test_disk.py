"""Disk space against what a study will need."""

import gzip
import json
from collections import namedtuple

import pytest
import yaml
from datasets import Dataset

from colbert_zero.errors import ColbertZeroError
from colbert_zero.models.scratch import train_tokenizer, write_scratch
from colbert_zero.study.disk import disk_for
from helpers import data, rows, study, write_rows

Usage = namedtuple("Usage", "total used free")


def have(monkeypatch, free):
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(1 << 40, 0, free))


def needed(folder, chains=((("unsupervised"),),), sources=("pairs",), **changes):
    return disk_for(study(folder, data(folder, **changes)).recipe, folder / "out", chains, sources)


@pytest.fixture
def parameters(tmp_path):
    """Of the tiny recipe's encoder, counted from what is written."""
    write_rows(tmp_path / "pairs.jsonl")
    model = data(tmp_path)["model"]
    texts = (row["document"] for row in rows(160))
    write_scratch(tmp_path / "start", model["architecture"], train_tokenizer(texts, 600, [], 64), 1)
    return (tmp_path / "start" / "model.safetensors").stat().st_size / 4


def test_the_need_is_of_models_checkpoints_and_data(tmp_path, parameters):
    size = (tmp_path / "pairs.jsonl").stat().st_size
    found = needed(tmp_path)
    # 6 steps are fewer than one checkpoint's 200: the start and the model that the phase ends with.
    assert found.checkpoints == pytest.approx(parameters * 2 * 4, rel=0.02)
    assert found.data == size
    phases = data(tmp_path)["phases"]
    for keep, at_once in ((1, 2), (9, 5)):
        phases["unsupervised"] |= {"checkpoint_every": 1, "keep_checkpoints": keep}
        found = needed(tmp_path, phases=phases)
        assert found.checkpoints == pytest.approx(parameters * (2 * 4 + at_once * 12), rel=0.02)
    phases["unsupervised"] |= {"evaluate_every": 2, "keep_checkpoints": 3}
    assert needed(tmp_path, phases=phases).checkpoints == pytest.approx(parameters * (2 * 4 + 5 * 12), rel=0.02)
    full = (("unsupervised",), ("unsupervised", "supervised"), ("unsupervised", "supervised", "distillation"))
    found = needed(tmp_path, full, ("pairs", "hard", "scored"))
    assert found.checkpoints == pytest.approx(parameters * 4 * 4, rel=0.02)
    assert found.data == 3 * size


@pytest.mark.parametrize("kind", ["folder", "unknown layout", "Hub id, no connection"])
def test_a_base_counts_where_its_configuration_says_how_large_it_is(kind, tmp_path, parameters, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    base = {"folder": tmp_path / "start", "unknown layout": tmp_path / "no", "Hub id, no connection": "no/such"}[kind]
    (tmp_path / "no").mkdir()
    (tmp_path / "no" / "config.json").write_text(
        '{"model_type": "of-its-own", "auto_map": {"AutoConfig": "own.Config"}}'
    )
    found = needed(tmp_path, model={"base": str(base), "dim": 16})
    if kind == "folder":
        assert found.checkpoints == pytest.approx(parameters * 4, rel=0.02)
    else:
        assert found.checkpoints is None
        assert "models of unknown size" in found.words()


@pytest.mark.parametrize(("form", "times"), [("gz", 4), ("parquet", 3), ("hub folder", 3), ("streamed", 0)])
def test_packed_data_count_as_what_they_become(form, times, tmp_path):
    folder = tmp_path / "rows"
    folder.mkdir()
    file = folder / ("rows.jsonl.gz" if form == "gz" else "rows.parquet")
    if form == "gz":
        file.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows(99)).encode()))
    else:
        Dataset.from_list(list(rows(99))).to_parquet(file)
    spec = {
        "gz": {"kind": "jsonl", "path": str(file)},
        "parquet": {"kind": "parquet", "path": str(file)},
        "hub folder": {"kind": "hub", "path": str(folder)},
        "streamed": {"kind": "parquet", "path": str(file), "streaming": True},
    }[form]
    sources = {**data(tmp_path)["sources"], "other": spec}
    recipe = study(tmp_path, data(tmp_path, sources=sources)).recipe
    assert disk_for(recipe, tmp_path / "out", [], ["other"]).data == times * file.stat().st_size


@pytest.mark.parametrize(("share", "outcome"), [(0.4, "refused"), (0.6, "told"), (1.1, "told"), (1.5, "silent")])
def test_a_disk_that_is_surely_too_small_is_refused_before_data_are_prepared(share, outcome, tmp_path, monkeypatch):
    write_rows(tmp_path / "pairs.jsonl")
    one, told = study(tmp_path, data(tmp_path)), []
    one.show.say = told.append
    found = disk_for(one.recipe, one.folder, [("unsupervised",)], ["pairs"])
    have(monkeypatch, int(found.needed * share))
    if outcome == "refused":
        with pytest.raises(
            ColbertZeroError, match=r"its disk is too small, it needs about .* free; make room, name a la"
        ):
            one.prepare([("unsupervised",)])
        assert not one.folder.exists()
        return
    for _ in range(2):
        one.prepare([("unsupervised",)])
    assert ["may be too small" in text for text in told if "its disk" in text] == [True] * (outcome == "told")


def test_what_is_made_needs_no_room_again_and_a_finished_study_asks_nobody_for_its_base(tmp_path, monkeypatch):
    write_rows(tmp_path / "pairs.jsonl")
    one = study(tmp_path, data(tmp_path))
    one.prepare([("unsupervised",)])
    one.train(("unsupervised",))
    have(monkeypatch, 0)
    monkeypatch.setattr("colbert_zero.study.disk._parameters", lambda model: pytest.fail("asked"))
    again = study(tmp_path, data(tmp_path))
    again.prepare([("unsupervised",)])
    assert again.disk.needed == 0


def test_a_begun_phases_checkpoints_are_there_already(tmp_path):
    write_rows(tmp_path / "pairs.jsonl")
    before = needed(tmp_path).checkpoints
    step = tmp_path / "out" / "phases" / "unsupervised-0.unfinished" / "step-2"
    step.mkdir(parents=True)
    (step / "weights.safetensors").write_bytes(bytes(1000))
    assert needed(tmp_path).checkpoints == before - 1000


def test_a_plan_says_what_is_needed_and_free(command, tmp_path, monkeypatch):
    write_rows(tmp_path / "pairs.jsonl")
    recipe = data(tmp_path, pipelines={"full": ["unsupervised"]})
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    have(monkeypatch, 3 * 10**9)
    code, out, _ = command("run", tmp_path / "r.yaml", "--out", tmp_path / "out", "--dry-run")
    assert code == 0
    assert " kB for data to come; 3.0 GB free" in out
