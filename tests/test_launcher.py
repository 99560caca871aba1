"""Environments as launchers and schedulers leave them."""

import os
import time

import pytest

from colbert_zero import launcher, watch
from colbert_zero.cli import options
from colbert_zero.errors import ColbertZeroError

WHOLE = {"WORLD_SIZE": "4", "RANK": "2", "LOCAL_RANK": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


@pytest.fixture
def variables(monkeypatch):
    for name in WHOLE:
        monkeypatch.delenv(name, raising=False)

    def give(values):
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return give


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({}, None),
        ({"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}, None),
        ({"WORLD_SIZE": "", "RANK": ""}, None),
        ({"WORLD_SIZE": "1", "LOCAL_RANK": "3"}, "LOCAL_RANK=3: not used, since WORLD_SIZE names no other processes"),
        ({"RANK": "3", "LOCAL_RANK": "1"}, "RANK=3, LOCAL_RANK=1: not used"),
        ({"WORLD_SIZE": "x"}, "WORLD_SIZE=x: not used"),
        ({"WORLD_SIZE": "-2", "RANK": "y"}, "WORLD_SIZE=-2, RANK=y: not used"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE=0: not used"),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "3", "SLURM_JOB_ID": "7"}, None),
    ],
)
def test_without_other_processes_what_numbers_this_one_is_told_and_forgotten(variables, values, told):
    variables(values)
    found = launcher.forget_left_overs()
    assert found == told or (told and found.startswith(told))
    assert not {"WORLD_SIZE", "RANK", "LOCAL_RANK"} & set(os.environ)
    launcher.check_launched()
    assert options.is_first()


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"RANK": ""}, "but not RANK"),
        ({"MASTER_ADDR": "", "MASTER_PORT": ""}, "but not MASTER_ADDR, MASTER_PORT"),
        ({"RANK": "4"}, "RANK=4 is none of them"),
        ({"RANK": "x"}, "RANK=x is none of them"),
    ],
)
def test_other_processes_without_the_way_to_them_are_refused_with_what_is_missing(variables, change, wrong):
    variables(WHOLE | change)
    assert launcher.forget_left_overs() is None
    with pytest.raises(ColbertZeroError, match=wrong + ".*unset WORLD_SIZE"):
        options.is_first()
    assert launcher.launched_rank() == "0"  # which tells it


def test_a_launched_process_has_its_number(variables):
    variables(WHOLE)
    assert launcher.forget_left_overs() is None
    assert (launcher.world(), launcher.launched_rank(), options.is_first()) == (4, "2", False)
    variables({"RANK": "0"})
    assert options.is_first()


@pytest.mark.parametrize("left", [{"RANK": "3"}, {"WORLD_SIZE": "4", "RANK": "2"}])
def test_a_left_over_number_silences_no_mistake(variables, command, left, tmp_path):
    variables(left)
    code, _, error = command("report", tmp_path)
    assert code == 2
    assert "colbert-zero: " in error.replace("colbert-zero: RANK=3: not used", "")


def test_a_process_whose_partners_nobody_started_says_whom_it_waits_for(variables, monkeypatch, capsys):
    def nobody_comes(*_, **__):
        time.sleep(0.5)
        raise RuntimeError("stopped waiting")

    variables(WHOLE)
    monkeypatch.setattr(watch, "PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr("torch.distributed.init_process_group", nobody_comes)
    with pytest.raises(ColbertZeroError, match="stopped waiting"):
        watch.start()
    assert "process 2 of WORLD_SIZE=4 waits for the others at localhost:29500" in capsys.readouterr().err


def test_more_processes_than_gpus_are_refused(variables, monkeypatch):
    variables(WHOLE)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(ColbertZeroError, match="LOCAL_RANK is 2, but this machine has 2 GPUs"):
        watch.start()
