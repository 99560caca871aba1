"""Sweeps: every mistake first, shared beginnings, nothing twice, failures as rows."""

import json

import pytest
import yaml

from colbert_zero.errors import ColbertZeroError
from colbert_zero.files import read_json
from colbert_zero.recipe.reading import check_recipe
from colbert_zero.report.sweep import draw
from colbert_zero.study import study as studies
from colbert_zero.study.sweep import plan_sweep, run_sweep
from colbert_zero.terminal import best_overrides, sweep_table
from example_bases import multi_vector, projection
from helpers import data, study, write_rows

RATE, BATCH = "phases.unsupervised.learning_rate", "phases.unsupervised.global_batch_size"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a recipe, mine.yaml, and its data."""
    folder = tmp_path_factory.mktemp("sweep")
    write_rows(folder / "pairs.jsonl")
    recipe = data(folder, validation={"nanobeir": False, "documents": 20, "queries": 10})
    recipe["phases"]["unsupervised"] |= {"epochs": 1, "steps": None, "warmup": 0.0, "max_gradient_norm": 1e30}
    (folder / "mine.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def plan(folder, *grids, phase=None, steps=2, overrides=()):
    return plan_sweep(str(folder / "mine.yaml"), grids, phase, steps, overrides)


def sweep(folder, out, *grids, **options):
    planned = plan(folder, *grids, **options)
    return run_sweep(planned, study(folder / out, planned.recipe.model_dump()), "test")


@pytest.fixture
def trained(monkeypatch):
    """Names and learning rates of the phases trained from now on."""
    found, real = [], studies.train_phase

    def train_phase(run, *arguments, **options):
        found.append((run.name, run.spec.learning_rate))
        return real(run, *arguments, **options)

    monkeypatch.setattr(studies, "train_phase", train_phase)
    return found


# ---- What is asked for


def test_a_grids_values_are_yaml_and_its_points_are_all_combinations(folder):
    planned = plan(folder, f"{RATE}=1e-4,3e-4", "phases.unsupervised.temperature={initial: 0.5},1", steps=None)
    assert planned.phase == "unsupervised"
    assert planned.grid == {RATE: [1e-4, 3e-4], "phases.unsupervised.temperature": [{"initial": 0.5}, 1]}
    assert [list(values.values()) for values, _ in planned.points] == [
        [1e-4, {"initial": 0.5}], [1e-4, 1], [3e-4, {"initial": 0.5}], [3e-4, 1],
    ]  # fmt: skip
    assert [recipe.phases["unsupervised"].learning_rate for _, recipe in planned.points] == [1e-4, 1e-4, 3e-4, 3e-4]
    assert planned.points[0][1].phases["unsupervised"].temperature.initial == 0.5
    lists = plan(folder, "phases.supervised.sources=[hard],[hard, pairs]", steps=None)
    assert [recipe.phases["supervised"].sources for _, recipe in lists.points] == [["hard"], ["hard", "pairs"]]


def test_steps_replace_a_phases_length_and_leave_the_others_alone(folder):
    planned = plan(folder, f"{RATE}=1e-4", steps=7)
    phases = planned.points[0][1].phases
    assert (phases["unsupervised"].steps, phases["unsupervised"].epochs) == (7, None)
    assert phases["supervised"].steps == 3


@pytest.mark.parametrize(
    ("grids", "options", "message"),
    [
        ([RATE], {}, "write KEY=V1,V2"),
        ([f"{RATE}="], {}, "nothing is no list of values"),
        ([f"{RATE}=1e-3,[2"], {}, "is no list of values"),
        ([f"{RATE}=1", f"{RATE}=2"], {}, f"--grid {RATE} stands twice"),
        (["model.dim=8,16"], {}, "no key of the grid names a phase; say which one to train: --phase NAME"),
        ([f"{RATE}=1", "phases.dense.steps=1,2"], {}, "name unsupervised and dense; say which one to train"),
        (["phases.unsupervisd.steps=1,2"], {}, "no phase 'unsupervisd', did you mean unsupervised?"),
        ([f"{RATE}=1"], {"phase": "full@suprvised"}, "no phase 'suprvised', did you mean supervised?"),
        (["phases.unsupervised.steps=1,2"], {}, "--steps 2 and --grid phases.unsupervised.steps both set the length"),
        (["name.x=1"], {"phase": "unsupervised"}, '--grid name.x=1: name is "tiny", without keys'),
    ],
)
def test_a_wrong_sweep_is_refused(folder, grids, options, message):
    with pytest.raises(ColbertZeroError) as caught:
        plan(folder, *grids, **options)
    assert message in str(caught.value)


def test_every_mistake_of_every_point_is_told_at_once(folder):
    with pytest.raises(ColbertZeroError) as caught:
        plan(folder, f"{RATE}=1e-3,-1,fast", f"{BATCH}=8,1")
    assert str(caught.value).splitlines() == [
        "the grid's points: 3 mistakes",
        f"  {BATCH}: should be at least 2, found 1",
        f"  {RATE}: should be at least 0, found -1",
        f'  {RATE}: should be a number, found "fast"',
    ]


@pytest.mark.parametrize(
    ("grids", "options", "message"),
    [
        ([f"{BATCH}=8,500"], {}, "the grid's points: one mistake.*global_batch_size: 500, but.*has 130 rows"),
        ([f"{RATE}=1e-3,0.001"], {}, "a value given twice changes nothing"),
        (
            ["phases.supervised.learning_rate=1,2"],
            {"phase": "unsupervised"},
            "supervised.learning_rate changes nothing",
        ),
        (["phases.unsupervised.negatives=0,2"], {}, "the grid's points: one mistake.*negatives: 2, but.*only 0"),
        (["seed=1,2"], {"phase": "unsupervised"}, "scored on different collections"),
        (["phases.distillation.learning_rate=1,2"], {}, "say which: full@distillation, kd-only@distillation"),
        (["model.architecture.hidden_sise=8"], {"phase": "unsupervised"}, "did you mean hidden_size"),
    ],
)
def test_points_that_cannot_be_trained_or_compared_are_refused_before_training(
    folder, grids, options, message, trained
):
    with pytest.raises(ColbertZeroError, match=f"(?s){message}"):
        sweep(folder, "refused", *grids, **options)
    assert trained == []


def test_points_whose_prompts_are_not_the_bases_are_refused_before_data_are_prepared(folder, backbone, tmp_path):
    prompts = {"query": "q: ", "document": "d: "}
    multi_vector(projection, prompts=prompts)(tmp_path / "base", backbone)
    base = ("model.architecture=null", f"model.base={tmp_path / 'base'}", "query_tokens=null", "document_tokens=null")
    later = tuple(f"phases.{phase}.allow_prompt_mismatch=true" for phase in ("supervised", "distillation"))
    others = [prompts, *(prompts | {"query": other} for other in ("x: ", "y: "))]
    with pytest.raises(ColbertZeroError, match=r"(?s)the grid's points: 2 mistakes.*'x: '.*'y: '"):
        sweep(
            folder,
            "prompts",
            f"phases.unsupervised.prompts={','.join(map(json.dumps, others))}",
            overrides=base + later,
        )
    assert not list((folder / "prompts" / "out" / "data").glob("pairs-*"))


# ---- Training


def test_a_sweep_keeps_what_is_finished_and_a_failure_is_a_row(folder, trained):
    first = sweep(folder, "kept", f"{RATE}=2e-3,1e18,1e-3", steps=3)
    assert trained == [("unsupervised", rate) for rate in (2e-3, 1e18, 1e-3)]
    assert [point["values"][RATE] for point in first["points"]] == [2e-3, 1e18, 1e-3]
    good, bad, other = first["points"]
    assert "the loss is" in bad["error"]
    assert (bad["score"], bad["scores"], bad["diverged"]) == (None, None, True)
    for point in (good, other):
        assert point["error"] is None
        assert point["score"] == point["scores"]["held-out"]
        assert point["steps"] == 3
    assert first["best"] == max((good, other), key=lambda point: point["score"])["id"]
    assert first["collections"] == {"held-out": {"documents": 20, "queries": 10}}
    out = folder / "kept" / "out"
    assert read_json(out / "sweep.json") == json.loads(json.dumps(first | {"earlier": []}))
    assert (out / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert check_recipe(first["recipe"]).phases["unsupervised"].steps == 3

    trained.clear()
    second = sweep(folder, "kept", f"{RATE}=1e-3,5e-4,1e18", steps=3)
    assert trained == [("unsupervised", 5e-4)]
    assert second["points"][0]["score"] == other["score"]
    assert [row["values"][RATE] for row in read_json(out / "sweep.json")["earlier"]] == [2e-3]
    assert "1e+18" in "".join(str(cell) for column in sweep_table(second).columns for cell in column.cells)
    trained.clear()
    third = sweep(folder, "kept", f"{RATE}=2e-3,1e18,1e-3", steps=3)
    assert (third["points"], third["best"]) == (first["points"], first["best"])
    assert trained == []


def test_a_sweep_that_is_stopped_loses_no_point(folder, monkeypatch, trained):
    sweep(folder, "stopped", f"{RATE}=1e-3,2e-3")
    one = studies.train_phase

    def stop(run, *arguments, **options):
        if run.spec.learning_rate == 3e-3:
            raise KeyboardInterrupt
        return one(run, *arguments, **options)

    monkeypatch.setattr(studies, "train_phase", stop)
    with pytest.raises(KeyboardInterrupt):
        sweep(folder, "stopped", f"{RATE}=4e-3,3e-3,2e-3,1e-3")
    monkeypatch.setattr(studies, "train_phase", one)
    trained.clear()
    sweep(folder, "stopped", f"{RATE}=4e-3,3e-3,2e-3,1e-3")
    assert trained == [("unsupervised", 3e-3)]


def test_points_share_the_phases_before_the_one_that_is_swept(folder, trained):
    record = sweep(folder, "shared", "phases.supervised.learning_rate=1e-3,1e-4", phase="full@supervised")
    assert [name for name, _ in trained] == ["unsupervised", "supervised", "supervised"]
    assert record["chain"] == ["unsupervised", "supervised"]


def test_the_command_prints_a_table_and_where_the_plot_is(folder, monkeypatch, command):
    monkeypatch.chdir(folder)
    words = ("sweep", "mine.yaml", "--grid", f"{RATE}=1e-3,2e-3", "--steps", 2, "--out", "printed")
    code, out, error = command(*words)
    assert code == 0, error
    assert "point 1 of 2: learning_rate=0.001" in out
    assert "validation: a sample of held-out (20 documents, 10 queries), because `validation.nanobeir` is false" in out
    rows = [line.split() for line in out.splitlines() if line.strip().endswith("best")]
    record = read_json(folder / "printed" / "sweep.json")
    assert len(rows) == 1
    best = next(point for point in record["points"] if point["id"] == record["best"])
    assert rows[0][0] == f"{best['values'][RATE]:g}"
    assert f"Best: --set {RATE}={best['values'][RATE]}" in out
    assert "Plot: printed/sweep.png" in out


# ---- The plot


def record_of(grid, collections=("a",)):
    points = []
    names, axes = list(grid), [[]]
    for values in grid.values():
        axes = [[*axis, value] for axis in axes for value in values]
    for number, values in enumerate(axes):
        score = 0.3 + 0.1 * (number % 4)
        row = {"id": str(number), "values": dict(zip(names, values, strict=True)), "score": score, "error": None}
        points.append(row | {"scores": dict.fromkeys(collections, score), "final_loss": 1.0, "device_seconds": 2.0})
    best = max(points, key=lambda point: point["score"])["id"]
    sizes = {name: {"documents": 3, "queries": 2} for name in collections}
    return {"name": "r", "phase": "p", "grid": grid, "collections": sizes, "points": points, "best": best}


def test_one_numeric_key_is_a_line_over_a_log_axis_when_it_spans_tenfold():
    wide, narrow = (draw(record_of({"phases.p.rate": values})).svg for values in ([1e-4, 3e-4, 1e-3], [1, 2, 3]))
    assert "rate (log scale)" in wide
    assert "log scale" not in narrow
    assert ">rate<" in narrow


def test_a_second_key_has_a_line_for_each_value_and_other_keys_are_bars():
    svg = draw(record_of({"phases.p.schedule": ["linear", "cosine"], "phases.p.rate": [1, 2, 3]}, ("a", "b"))).svg
    assert all(f">schedule {value}<" in svg for value in ("linear", "cosine"))
    assert "mean of 2" in svg
    bars = draw(record_of({"phases.p.schedule": ["linear", "cosine"], "model.dim": [8]})).svg
    assert ">schedule=linear<" in bars
    three = draw(record_of({"a": [1, 2], "b": [1, 2], "c": [1, 2]})).svg
    assert ">a=1, b=2, c=2<" in three


def test_points_without_a_score_are_told_and_nothing_is_drawn_of_failures_alone():
    record = record_of({"phases.p.rate": [1, 2, 3]})
    record["points"][2] |= {
        "score": None,
        "scores": None,
        "error": "phases.p: the loss is nan at step 2, in a batch. More",
    }
    record["best"] = "1"
    assert "1 of 3 points failed" in draw(record).svg
    columns = sweep_table(record).columns
    assert list(columns[0].cells) == ["2", "1", "3"]
    assert list(columns[-1].cells) == ["best", "", "the loss is nan at step 2"]
    for point in record["points"]:
        point["score"] = None
    assert draw(record) is None


def test_the_best_points_options_can_be_given_to_a_recipe():
    record = record_of({"phases.p.sources": [["a", "b"]], "phases.p.schedule": ["linear"]})
    assert best_overrides(record) == """--set 'phases.p.sources=["a", "b"]' --set 'phases.p.schedule="linear"'"""
