"""Disk space against what a study will need."""

import gzip
import json
import shutil
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
    phases["unsupervised"] |= {"checkpoint_every": 2, "keep_checkpoints": 3}
    # 6 steps have two, after 2 and 4; 60 steps have those that are kept, and the next one beside them.
    assert needed(tmp_path, phases=phases).checkpoints == pytest.approx(parameters * (2 * 4 + 2 * 12), rel=0.02)
    phases["unsupervised"] |= {"steps": 60}
    assert needed(tmp_path, phases=phases).checkpoints == pytest.approx(parameters * (2 * 4 + 4 * 12), rel=0.02)
    phases["unsupervised"] |= {"evaluate_every": 2}
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


def test_a_base_in_the_home_counts(tmp_path, parameters, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    found = needed(tmp_path, model={"base": "~/start", "dim": 16})
    assert found.checkpoints == pytest.approx(parameters * 4, rel=0.02)


def test_a_base_counts_as_the_commit_that_the_study_keeps(hub, tmp_path, parameters):
    larger = tmp_path / "larger"
    shutil.copytree(tmp_path / "start", larger)
    config = json.loads((larger / "config.json").read_text())
    (larger / "config.json").write_text(json.dumps(config | {"intermediate_size": 3200}))
    hub.repos["org/base"] = {"1" * 40: tmp_path / "start", "2" * 40: larger}
    recipe = study(tmp_path, data(tmp_path, model={"base": "org/base", "dim": 16})).recipe
    found = disk_for(recipe, tmp_path / "out", [("unsupervised",)], [], "1" * 40)
    assert found.checkpoints == pytest.approx(parameters * 4, rel=0.02)


@pytest.mark.parametrize(
    ("form", "times"),
    [("gz", 4), ("tsv", 1), ("tsv.gz", 4), ("parquet", 3), ("hub folder", 3)]
    + [(form, 0) for form in ("streamed", "parquet, limit", "tsv, limit", "hub folder, limit", "hub folder, configs")],
)
def test_data_count_as_what_they_become_where_all_of_them_are_read(form, times, tmp_path):
    folder = tmp_path / "rows"
    folder.mkdir()
    kind, _, part = form.partition(", ")
    file = folder / {"gz": "rows.jsonl.gz", "tsv": "rows.tsv", "tsv.gz": "rows.tsv.gz"}.get(kind, "rows.parquet")
    if file.suffix == ".parquet":
        Dataset.from_list(list(rows(99))).to_parquet(file)
    else:
        write = gzip.compress if file.suffix == ".gz" else bytes
        file.write_bytes(write("".join(json.dumps(row) + "\n" for row in rows(99)).encode()))
    (folder / ".git").mkdir()
    (folder / ".git" / "objects.parquet").write_bytes(bytes(10_000))
    spec = {
        "gz": {"kind": "jsonl", "path": str(file)},
        "tsv": {"kind": "tsv", "path": str(file)},
        "tsv.gz": {"kind": "tsv", "path": str(file)},
        "parquet": {"kind": "parquet", "path": str(file)},
        "hub folder": {"kind": "hub", "path": str(folder)},
        "streamed": {"kind": "parquet", "path": str(file), "streaming": True},
    }[kind] | {"": {}, "limit": {"limit": 9}, "configs": {"configs": ["default"]}}[part]
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
    monkeypatch.setattr("colbert_zero.study.disk._parameters", lambda *_: pytest.fail("asked"))
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
