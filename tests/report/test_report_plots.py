"""The plots."""

from colbert_zero.files import write_json
from colbert_zero.report.plots import loss_plot
from colbert_zero.report.records import Records
from example_records import phase_record, result_record, write_records


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
