"""Reporters: that they are there before anything is computed, and where they write."""

import sys
from contextlib import suppress
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


class Wandb(SimpleNamespace):
    """Takes what wandb would."""

    def __init__(self):
        super().__init__(runs=[], figures=[], ends=[])

    def init(self, **settings):
        self.runs.append(settings)

    def log(self, figures):
        self.figures.append(figures)

    def finish(self, exit_code):
        self.ends.append(exit_code)


def test_wandb_gets_a_run_a_phase_whose_figures_end_with_it(tmp_path, monkeypatch):
    wandb = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    monkeypatch.delenv("WANDB_DIR", raising=False)
    with reporting(["wandb"], tmp_path, "dense-1", "recipe", {"steps": 2}) as report:
        report({"step": 1, "loss": 0.5, "source": "pairs/pairs"})
    assert wandb.runs == [{"project": "recipe", "name": "dense-1", "dir": str(tmp_path), "config": {"steps": 2}}]
    assert wandb.figures == [{"train/loss": 0.5, "train/global_step": 1}]
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    with suppress(KeyError), reporting(["wandb"], tmp_path, "dense-1", "recipe", {}):
        raise KeyError
    assert wandb.runs[1]["project"] == "mine"
    assert wandb.ends == [0, 1]


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
