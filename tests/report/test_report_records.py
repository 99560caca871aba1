"""Reading a folder's records."""

import ast
import json
import re
import subprocess
import sys

import pytest

from colbert_zero.errors import ColbertZeroError
from colbert_zero.files import write_json
from colbert_zero.report import write_report
from colbert_zero.report.records import Records
from example_records import phase_record, records_of, result_record, write_records


def test_phases_of_an_earlier_recipe_in_the_folder_are_ignored(tmp_path):
    records = records_of(tmp_path, result_record(["kd-only"]))
    write_json(tmp_path / "phases" / "old-u3" / "phase.json", phase_record("u3"))
    assert list(records.phases) == list(Records(tmp_path).phases)
    assert "u3" not in Records(tmp_path).phases


def test_a_folder_without_results_says_what_to_run(tmp_path):
    with pytest.raises(ColbertZeroError, match=r"no results\.json.*colbert-zero run RECIPE --out"):
        write_report(tmp_path)


@pytest.mark.parametrize("name", ["results.json", "teachers.json", "data.json", "environment.json"])
@pytest.mark.parametrize("damage", [b'{"systems": ', b"\xff\xfe", b"[1]"])
def test_a_damaged_record_is_named(tmp_path, name, damage):
    write_records(tmp_path, result_record(["full"]))
    (tmp_path / name).write_bytes(damage)
    with pytest.raises(ColbertZeroError, match=re.escape(name)):
        write_report(tmp_path)


def test_a_damaged_system_is_named(tmp_path):
    results = result_record(["full"])
    write_records(tmp_path, results)
    del results["systems"]["full"]["phases"]
    write_json(tmp_path / "results.json", results)
    with pytest.raises(ColbertZeroError, match=r"results\.json: full lacks phases"):
        write_report(tmp_path)


def test_a_damaged_phase_is_named(tmp_path):
    write_records(tmp_path, result_record(["full"]))
    write_json(tmp_path / "phases" / "supervised-s3" / "phase.json", {"schema": 1})
    with pytest.raises(ColbertZeroError, match=r"supervised-s3/phase\.json lacks id, name"):
        write_report(tmp_path)


@pytest.mark.parametrize("name", ["results.json", "phases/supervised-s3/phase.json"])
def test_records_of_another_schema_are_refused(tmp_path, name):
    write_records(tmp_path, result_record(["full"]))
    write_json(tmp_path / name, json.loads((tmp_path / name).read_text()) | {"schema": 2})
    with pytest.raises(ColbertZeroError, match=rf"{name} has schema 2, and this version reads schema 1"):
        write_report(tmp_path)


def test_a_teacher_may_be_called_schema(tmp_path):
    write_records(tmp_path, result_record(["full"]))
    teachers = json.loads((tmp_path / "teachers.json").read_text())
    write_json(tmp_path / "teachers.json", {"schema": teachers["fused"]})
    assert list(Records(tmp_path).teachers) == ["schema"]


def test_the_report_is_written_without_torch_and_without_the_training_code():
    program = (
        "import sys, colbert_zero.report.sweep, colbert_zero.report\n"
        "print(sorted(name for name in sys.modules if name == 'torch' or name.startswith('colbert_zero.')))"
    )
    found = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    allowed = {"errors", "records", "lines", "files", "report"}
    assert {name.split(".")[1] for name in ast.literal_eval(found) if name != "torch"} <= allowed
    assert "'torch'" not in found
