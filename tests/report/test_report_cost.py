"""What training cost, in operations and in time, and when times are compared."""

import pytest

from colbert_zero.files import read_json, write_json
from colbert_zero.report import write_report
from colbert_zero.report.answer import choice, findings, headline
from colbert_zero.report.cost import COMPUTE, TIME, busy_share, is_busy
from colbert_zero.report.records import Records
from colbert_zero.report.tables import Table, glance, phase_tables, scores_table, teachers_table
from example_records import ALL, cost_record, made_older, records_of, result_record, write_records


def cells(table: Table, row: str) -> dict[str, str]:
    """The cells of a table's row by their columns."""
    [found] = [r for _, rows in table.groups for r in rows if r[0] == row]
    return dict(zip(table.columns, found, strict=True))


def for_less(records: Records, pipeline: str) -> str:
    return next(text for about, text in findings(records) if about == "For less" and text.startswith(pipeline))


def cost_table(records):
    [found] = [table for table in phase_tables(records) if table.title == "Cost of each phase alone"]
    return found


@pytest.mark.parametrize(
    ("currency", "cost", "whole", "words"),
    [
        (COMPUTE, 3.1e15, 31e15, "a tenth of the compute (3.1 of 31 PFLOP)"),
        (COMPUTE, 2e12, 31e15, "0.0065 % of the compute (2.0 TFLOP of 31 PFLOP)"),
        (TIME, 186, 1860, "a tenth of the device time (3.1 of 31 min)"),
        (TIME, 720, 420, "1.71 times the device time (12 min against 7.0 min)"),
        (TIME, 420, 420, "the same device time (7.0 min against 7.0 min)"),
        (TIME, 0, 0, "the same device time (0 s against 0 s)"),
    ],
)
def test_a_cost_is_a_share_of_another_in_words(currency, cost, whole, words):
    assert currency.price(cost, whole) == words


def test_a_phase_is_busy_from_nine_tenths_of_what_its_threads_could_compute():
    assert busy_share(cost_record("du", 0.58)) == pytest.approx(0.58)
    assert is_busy({"cpu_seconds": 180.0, "wall_seconds": 100.0, "threads": 2})
    assert not is_busy({"cpu_seconds": 179.9, "wall_seconds": 100.0, "threads": 2})
    assert is_busy({"cpu_seconds": 0.0, "wall_seconds": 0.0, "threads": 2})
    assert busy_share({"device_seconds": 100.0}) is None
    assert not is_busy({"device_seconds": 100.0})


def test_times_of_busy_processors_are_compared_beside_the_compute(tmp_path):
    records = records_of(tmp_path, result_record(ALL, busy={"du": 0.9}))
    assert "a tenth of the compute (3.1 of 31 PFLOP) and a tenth of the device time" in for_less(records, "super")
    assert "Time" not in dict(findings(records))
    assert "not comparable" not in write_report(tmp_path).read_text()


@pytest.mark.parametrize(
    ("phase", "words"),
    [
        # Of the cheaper pipeline, and of the best, which every other one is compared with.
        ("k2", "in supervised-kd (distillation 89.9 %). Other work"),
        ("s3", "in full (supervised 89.9 %). Other work"),
    ],
)
def test_times_are_not_compared_where_a_phase_of_either_was_less_busy(tmp_path, phase, words):
    records = records_of(tmp_path, result_record(ALL, busy={phase: 0.8999}))
    assert for_less(records, "supervised-kd").startswith(
        "supervised-kd reaches 97.8 % of full for a tenth of the compute (3.1 of 31 PFLOP); full scores"
    )
    assert ("of the device time" in for_less(records, "kd-only")) == (phase == "k2")
    said = dict(findings(records))["Time"]
    assert said.startswith("Times not comparable: the processors were busy for less than 90 % of wall-clock time")
    assert words in said


def test_the_doubt_is_told_once_and_by_the_plot_against_time(tmp_path):
    html = write_report(write_records(tmp_path, result_record(ALL, busy={"du": 0.58}))).read_text()
    markdown = (tmp_path / "report.md").read_text()
    whole = "in kd-only (dense-unsupervised 58 %) and supervised-kd (dense-unsupervised 58 %)"
    assert (html.count(whole), markdown.count(whole)) == (1, 1)
    caption = (
        "The dashed line needs no training. Times not comparable: those of kd-only and supervised-kd; see the answer."
    )
    assert markdown.count(caption) == 1
    assert markdown.index("![Quality against device time]") < markdown.index(caption)
    assert markdown.count("Times not comparable") == 2


def test_an_idle_phase_of_no_pipeline_is_named_by_its_baseline(tmp_path):
    said = dict(findings(records_of(tmp_path, result_record(["full"], busy={"ds": 0.5}))))
    assert "in dense-unsupervised+dense-supervised (dense-supervised 50 %)." in said["Time"]


def test_the_tables_have_compute_and_both_times(tmp_path):
    records = records_of(tmp_path, result_record(ALL, busy={"du": 0.5}))
    row = cells(glance(records), "kd-only")
    assert (row["compute"], row["share of its compute"], row["device time"]) == ("2.5 PFLOP", "8.1 %", "2.5 min")
    assert row["CPU time"] == "3.3 min"
    assert cells(scores_table(records, "nDCG@10"), "after distillation = full")["compute"] == "31 PFLOP"
    phase = cells(cost_table(records), "dense-unsupervised")
    assert [phase[key] for key in ("compute", "of it padding", "of it second pass")] == ["1.6 PFLOP", "5 %", "20 %"]
    assert [phase[key] for key in ("wall-clock", "processes", "CPU time", "threads", "busy")] == [
        "1.6 min", "1", "1.6 min", "2", "50 %",
    ]  # fmt: skip


def test_the_choice_goes_by_the_compute_whatever_the_time(tmp_path):
    results = result_record(ALL, p_value=0.2)
    results["systems"]["full"]["device_seconds"] = 1.0
    records = records_of(tmp_path, results)
    assert choice(records, records.pipelines()) == "kd-only"
    assert "and 150 times the device time (2.5 min against 1.0 s)" in for_less(records, "kd-only")


def test_older_records_cost_what_their_time_was_and_say_so(tmp_path):
    records = Records(made_older(write_records(tmp_path, result_record(ALL))))
    assert records.currency is TIME
    assert headline(records) == "Not to pre-train: no pipeline is shown to be better; take the cheapest: kd-only."
    assert "for a tenth of the device time (3.1 of 31 min); full" in for_less(records, "supervised-kd")
    said = dict(findings(records))
    assert said["Time"].startswith("These records are older and count no floating-point operations: cost is device")
    assert "for 31 min of device time: " in said["Best score"]
    assert "With 2.5 min of device time take kd-only." in said["By budget"]
    assert "(1.6 min against 31 min of device time)" in said["Against dense"]
    assert cells(glance(records), "kd-only")["share of its time"] == "8.1 %"
    # Their `flops` was an estimate, and is not shown for a count.
    phase = cells(cost_table(records), "unsupervised")
    assert [phase[key] for key in ("compute", "wall-clock", "CPU time", "busy")] == ["–", "30 min", "–", "–"]
    assert "FLOP" not in write_report(tmp_path).read_text()


def test_one_older_system_makes_time_the_cost_of_all(tmp_path):
    write_records(tmp_path, result_record(ALL))
    results = read_json(tmp_path / "results.json")
    for phase in results["systems"]["kd-only"]["phases"]:
        phase["cpu_seconds"] = None
    write_json(tmp_path / "results.json", results)
    assert Records(tmp_path).currency is TIME
    results["systems"]["kd-only"] |= {"flops": None}
    write_json(tmp_path / "results.json", results)
    assert Records(tmp_path).currency is TIME
    assert "FLOP of" not in write_report(tmp_path).read_text()


def test_a_teachers_training_and_its_scoring_stand_apart(tmp_path):
    row = cells(teachers_table(records_of(tmp_path, result_record(ALL))), "fused")
    assert (row["training, from zero"], row["scoring"]) == ("300 TFLOP, 18 s", "12 s")
    old = cells(teachers_table(Records(made_older(tmp_path))), "fused")
    assert (old["training, from zero"], old["scoring"]) == ("18 s", "12 s")
    teacher = read_json(tmp_path / "teachers.json")["fused"] | {"device_seconds": 0, "flops": 0}
    del teacher["scoring_seconds"]
    write_json(tmp_path / "teachers.json", {"fused": teacher})
    untrained = cells(teachers_table(Records(tmp_path)), "fused")
    assert (untrained["training, from zero"], untrained["scoring"]) == ("none", "–")


def test_a_phase_says_what_computed_it_and_an_older_one_what_it_knows(tmp_path):
    records = records_of(tmp_path, result_record(ALL))
    phase = next(iter(records.phases.values()))
    phase["machine"] = {"device": "cpu", "host": "wing", "torch": "2.13.0", "attention": "eager", "maxsim": "torch",
                        "precision": "bfloat16"}  # fmt: skip
    phase["precision"] = "auto"
    [table] = [table for table in phase_tables(records) if table.title == "What computed each phase"]
    assert table.groups[0][1][0][1:] == ["cpu", "wing", "2.13.0", "bfloat16", "auto", "eager", "torch"]
    del phase["machine"]["precision"]
    [table] = [table for table in phase_tables(records) if table.title == "What computed each phase"]
    assert table.groups[0][1][0][4] == "–"
