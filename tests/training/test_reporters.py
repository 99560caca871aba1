"""Reporters: that they are there before anything is computed, and where they write."""

import os
import sys
from types import SimpleNamespace

import pytest

from colbert_zero.errors import ColbertZeroError
from colbert_zero.training import reporters as tracking
from colbert_zero.training.reporters import check_reporters, reporting
from helpers import data, study, write_rows


def test_a_reporter_that_is_not_installed_is_told_before_any_data_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    one = study(tmp_path, data(tmp_path, reporters=["wandb"]))  # pairs.jsonl is not there either
    with pytest.raises(ColbertZeroError, match=r"reporters: wandb is not installed; pip install colbert-zero\[wandb\]"):
        one.prepare([("unsupervised",)])
    with pytest.raises(ColbertZeroError, match=r"are not installed; pip install colbert-zero\[tensorboard,wandb\]"):
        check_reporters(["tensorboard", "wandb"])


def test_reporters_are_told_where_to_write_and_the_environment_is_put_back(tmp_path, monkeypatch):
    finished = []
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(finish=lambda exit_code: finished.append(exit_code)))
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    before = dict(os.environ)
    with reporting(["tensorboard", "wandb"], tmp_path, "dense-1", "recipe"):
        assert os.environ["TENSORBOARD_LOGGING_DIR"] == str(tmp_path / "tensorboard" / "dense-1")
        assert (os.environ["WANDB_PROJECT"], os.environ["WANDB_NAME"]) == ("mine", "dense-1")
    assert os.environ == before
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "/logs")
    seen = []

    def fail():
        with reporting(["tensorboard", "wandb"], tmp_path, "dense-1", "recipe"):
            seen.append(os.environ["TENSORBOARD_LOGGING_DIR"])
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert seen == ["/logs/dense-1"]
    assert os.environ["TENSORBOARD_LOGGING_DIR"] == "/logs"
    assert finished == [0, 1]
    with reporting([], tmp_path, "dense-1", "recipe"):
        assert "WANDB_NAME" not in os.environ


def test_tensorboard_has_a_phases_figures_under_its_name(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: pip install colbert-zero[tensorboard]")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write_rows(tmp_path / "pairs.jsonl")
    entry = data(tmp_path, reporters=["tensorboard"], validation={"nanobeir": False, "documents": 20, "queries": 10})
    entry["phases"]["unsupervised"] |= {"steps": 4, "evaluate_every": 2}
    one = study(tmp_path, entry)
    one.prepare([("unsupervised",)])
    record = one.train(("unsupervised",))
    events = EventAccumulator(str(one.folder / "tensorboard" / f"unsupervised-{record['id']}")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [
        (point["step"], pytest.approx(point["loss"])) for point in record["losses"]
    ]
    assert [e.step for e in events.Scalars("train/validation/held-out")] == [2, 4]
