"""The plots."""

from colbert_zero.files import write_json
from colbert_zero.report.cost import COMPUTE, TIME
from colbert_zero.report.plots import bytes_plot, cost_plot, loss_plot, quality_plot
from colbert_zero.report.records import Records
from example_records import ALL, made_older, phase_record, records_of, result_record, write_records


def test_quality_is_drawn_against_compute_and_against_time(tmp_path):
    results = result_record(ALL)
    for system in results["systems"].values():
        system["flops"] /= 1000
    records = records_of(tmp_path, results)
    compute, time = quality_plot(records, COMPUTE), quality_plot(records, TIME)
    assert (compute.name, compute.title) == ("quality", "Quality against compute")
    assert (time.name, time.title) == ("quality-time", "Quality against device time")
    assert ">compute from zero, TFLOP (log scale)<" in compute.svg
    assert ">device time from zero, min (log scale)<" in time.svg
    assert "kd-only 51.52 at 2.5 TFLOP" in compute.shows
    assert "kd-only 51.52 at 2.5 min" in time.shows
    assert "comparable" not in time.shows
    assert ">compute, TFLOP<" in cost_plot(records).svg


def test_older_records_are_drawn_against_time_alone(tmp_path):
    records = Records(made_older(write_records(tmp_path, result_record(ALL))))
    plot = quality_plot(records, records.currency)
    assert (plot.name, plot.title) == ("quality", "Quality against device time")
    assert plot.shows.endswith("The records do not say whether the machine had other work.")
    assert ">device time, min<" in cost_plot(records).svg


def test_scores_while_training_stand_beside_the_losses_of_the_phases_that_have_them(tmp_path):
    write_records(tmp_path, result_record(["full"]))
    plain = loss_plot(Records(tmp_path))
    record = phase_record("u3")
    means = [0.31, 0.52, 0.48]
    record["validation"] = [{"step": 100 * (i + 1), "scores": {"a": m}, "mean": m} for i, m in enumerate(means)]
    write_json(tmp_path / "phases" / "unsupervised-u3" / "phase.json", record)
    judged = loss_plot(Records(tmp_path))
    assert "nDCG@10" not in plain.shows
    assert "nDCG@10 × 100 on the validation collections: unsupervised: 31.00 to 48.00, at best 52.00." in judged.shows
    assert judged.svg.count("axes_") > plain.svg.count("axes_")


def test_bytes_are_drawn_where_some_systems_take_fewer(tmp_path):
    results = result_record(ALL)
    for system in results["systems"].values():
        system["model_bytes"] = 92_000_000 if system["phases"] else 0
    assert bytes_plot(records_of(tmp_path / "alike", results)) is None
    results["systems"]["kd-only"]["model_bytes"] = 46_000_000
    plot = bytes_plot(records_of(tmp_path / "cut", results))
    assert plot.title == "Quality against bytes"
    assert "kd-only 51.52 at 46.00 MB" in plot.shows
    assert "bm25" not in plot.shows
    assert ">MB of the models on the disk<" in plot.svg
    assert bytes_plot(records_of(tmp_path / "older", result_record(ALL))) is None
