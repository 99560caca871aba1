"""Sources that can only be streamed: blocks, saved positions, bad rows, and a phase trained on one."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets.packaged_modules.parquet.parquet import Parquet
from hypothesis import given, settings
from hypothesis import strategies as st

from colbert_zero.data import sources, streams
from colbert_zero.data.order import Order
from colbert_zero.data.prepared import Part, Source, open_source
from colbert_zero.data.sources import prepare_source, source_id
from colbert_zero.data.streams import READ_AGAIN
from colbert_zero.errors import ColbertZeroError
from colbert_zero.files import read_json
from colbert_zero.models.encoders import tokeniser
from colbert_zero.recipe.reading import check_recipe
from colbert_zero.recipe.schema import Negatives, Recipe
from colbert_zero.study.show import Quiet
from colbert_zero.study.steps import outline
from colbert_zero.study.study import Study
from colbert_zero.training.batches import Batches, Prefetched, check_columns
from colbert_zero.training.phase import order_of_parts

BAD = {"query": "q", "document": " "}


def pairs(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [{"query": f"question {n}", "document": f"answer {n}"} for n in range(start, start + count)]


def parquet(path: Path, rows: list[Any], row_group: int = 100) -> str:
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=row_group)
    return str(path)


def data(spec: dict[str, Any], **phase: Any) -> dict[str, Any]:
    plain = {"representation": "dense", "objective": "contrastive", "global_batch_size": 8, "learning_rate": 0.1}
    return {
        "name": "tiny",
        "model": {"base": "x"},
        "sources": {"s": {"kind": "parquet", "streaming": True, **spec}},
        "collections": {"c": {"kind": "beir", "path": "x"}},
        "phases": {"p": {**plain, "sources": ["s"], **phase}},
        "pipelines": {"full": ["p"]},
    }


def recipe(spec: dict[str, Any], **phase: Any) -> Recipe:
    return check_recipe(data(spec, **phase))


def prepare(tmp_path: Path, made: Recipe) -> Source:
    folder = prepare_source("s", made, tmp_path / "data", tmp_path / "cache", None)
    return open_source("s", folder, made.sources["s"])


def parts_of(tmp_path: Path, made: Recipe) -> dict[str, Part]:
    """As a phase has them: fresh at every call."""
    return {name: part.for_phase(made.phases["p"]) for name, part in prepare(tmp_path, made).parts.items()}


@pytest.mark.usefixtures("offline")
def test_splits_of_a_hub_data_set_are_streamed_as_parts_also_once_they_are_known(tmp_path: Path) -> None:
    (tmp_path / "hub" / "data").mkdir(parents=True)
    rows = [{"query": f"q{n}", "document": f"d{n}"} for n in range(9)]
    for split, of_split in {"paq": rows[:4], "gooaq": rows[4:], "squad": rows}.items():
        parquet(tmp_path / "hub" / "data" / f"{split}-00000-of-00001.parquet", of_split)
    made = recipe({"kind": "hub", "path": str(tmp_path / "hub"), "splits": ["paq", "gooaq"], "limit": 4})
    for _ in ("looked up", "known"):
        parts = prepare(tmp_path, made).parts
        assert {name: len(part) for name, part in parts.items()} == {"s/paq": 4, "s/gooaq": 4}
        assert next(parts["s/gooaq"].sample(4))["query"] == ["q4", "q5", "q6", "q7"]


def refusal(act: Callable[[], Any], tmp_path: Path) -> str:
    with pytest.raises(ColbertZeroError) as caught:
        act()
    message = str(caught.value).replace(f"{tmp_path}/", "")
    assert "\n" not in message
    return message


# ---- The order of what is streamed

MIXTURES = st.dictionaries(st.text(min_size=1, max_size=3), st.integers(0, 300), min_size=1, max_size=5)


@settings(deadline=None, max_examples=25)
@given(MIXTURES, st.integers(2, 20), st.integers(1, 6), st.integers(0, 3), st.integers(0, 2), st.data())
def test_a_batch_lies_in_one_block_and_an_epoch_reads_each_row_once(
    rows: dict[str, int], size: int, batches: int, seed: int, epoch: int, draw: st.DataObject
) -> None:
    streamed = draw.draw(st.sets(st.sampled_from(sorted(rows))))
    block = size * batches
    order, whole = Order(rows, size, seed, blocks=dict.fromkeys(streamed, block)), Order(rows, size, seed)
    assert order.dropped == whole.dropped
    seen: dict[str, list[np.ndarray]] = {name: [] for name in rows}
    for step in range(epoch * order.batches_per_epoch, (epoch + 1) * order.batches_per_epoch):
        waiting = {name: order.block(name, step) for name in order.names if name in streamed}
        name, numbers = order.batch(step)
        assert name == whole.source(step)[0]
        if name in streamed:
            assert set(numbers // block) == {waiting[name]}
        else:
            assert numbers.tolist() == whole.batch(step)[1].tolist()
        seen[name].append(numbers)
    for name, parts in seen.items():
        read = np.concatenate(parts).tolist() if parts else []
        assert len(set(read)) == len(read) == rows[name] - order.dropped[name]
        assert all(0 <= row < rows[name] for row in read)
        if name in streamed:
            assert [n[0] // block for n in parts] == sorted(n[0] // block for n in parts)


def test_a_step_of_a_streamed_source_is_computed_directly_with_whatever_alpha() -> None:
    rows, blocks = {"a": 1000, "b": 88, "c": 333}, {"a": 64, "b": 16}
    for alpha in (1.0, 0.5):
        walked = Order(rows, 8, 3, alpha, blocks)
        steps = [walked.batch(step) for step in range(3 * walked.batches_per_epoch)]
        for step in (len(steps) - 1, 0, len(steps) // 2, walked.batches_per_epoch, walked.batches_per_epoch - 1):
            name, numbers = Order(rows, 8, 3, alpha, blocks).batch(step)
            assert name == steps[step][0]
            assert numbers.tolist() == steps[step][1].tolist()
        # Also where a small source is read several times an epoch, each pass is whole before the next.
        seen = Counter(np.concatenate([numbers for name, numbers in steps if name == "b"]).tolist())
        assert max(seen.values()) - min(seen.values()) <= 1


def test_rows_are_shuffled_within_their_block_anew_in_every_epoch_block_and_seed() -> None:
    def first(seed: int, step: int) -> list[int]:
        return (Order({"a": 128}, 8, seed, blocks={"a": 64}).batch(step)[1] % 64).tolist()

    assert len({tuple(first(seed, step)) for seed, step in ((1, 0), (1, 16), (1, 8), (2, 0))}) == 4
    assert first(1, 0) != sorted(first(1, 0))


def test_blocks_hold_whole_batches() -> None:
    with pytest.raises(ValueError, match="whole batches of 8"):
        Order({"a": 128}, 8, 1, blocks={"a": 60})


# ---- What is read


@pytest.fixture(scope="module")
def two_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    parquet(folder / "a.parquet", pairs(2500), 400)
    parquet(folder / "b.parquet", pairs(700, 10_000), 5000)
    return folder


def texts(numbers: Any, start: int = 0) -> list[str]:
    return [f"question {start + n}" for n in numbers]


def test_batches_of_streamed_files_have_the_rows_that_the_order_names(two_files: Path, tmp_path: Path) -> None:
    made = recipe({"path": str(two_files / "*.parquet"), "shuffle_buffer": 60})
    source = prepare(tmp_path, made)
    assert source.record["parts"] == {"a": 2500, "b": 700}
    assert (source.record["rows"], source.record["dropped"], source.record["held_out"]) == (3200, {}, 0)
    assert not list(source.folder.glob("*.arrow"))
    parts = parts_of(tmp_path, made)
    order = order_of_parts(made.phases["p"], parts, 1, "p")
    assert order.blocks == {"s/a": 64, "s/b": 64}
    seen: dict[str, list[str]] = {"s/a": [], "s/b": []}
    for step in range(order.batches_per_epoch):
        name, numbers = order.batch(step)
        batch = parts[name].read(numbers)
        assert set(batch) == {"query", "document", "negatives"}
        assert batch["query"] == texts(numbers, 10_000 if name == "s/b" else 0)
        seen[name] += batch["query"]
    assert len(set(seen["s/a"])) == 2496
    assert len(set(seen["s/b"])) == 696
    assert not any(part.dropped for part in parts.values())


def test_a_slice_of_a_batch_is_read_alike_and_rows_of_two_blocks_are_not(two_files: Path, tmp_path: Path) -> None:
    made = recipe({"path": str(two_files / "a.parquet"), "shuffle_buffer": 64})
    (part,) = parts_of(tmp_path, made).values()
    numbers = np.array([70, 65, 127, 64])
    assert part.read(numbers)["query"][2:] == part.read(numbers[2:])["query"] == texts([127, 64])
    with pytest.raises(ValueError, match=r"not of the blocks \[0, 1\]"):
        part.read([63, 64])


def test_a_limit_caps_the_rows_of_each_part(two_files: Path, tmp_path: Path) -> None:
    made = recipe({"path": str(two_files / "*.parquet"), "limit": 1000})
    assert prepare(tmp_path, made).record["parts"] == {"a": 1000, "b": 700}
    part = parts_of(tmp_path, made)["s/a"]
    assert part.read(range(1000))["query"] == texts(range(1000))


def test_a_tokenizer_sees_the_first_rows_alone(two_files: Path, tmp_path: Path) -> None:
    part = prepare(tmp_path, recipe({"path": str(two_files / "a.parquet")})).parts["s/a"]
    assert [len(rows["query"]) for rows in part.sample(1500)] == [1000, 500]
    assert [text for rows in part.sample(9999) for text in rows["query"]] == texts(range(2500))


def test_a_file_name_may_have_the_characters_of_a_glob(tmp_path: Path) -> None:
    made = recipe({"path": parquet(tmp_path / "[x] {y}*.parquet", pairs(20))})
    assert parts_of(tmp_path, made)["s/[x] {y}*"].read([3, 0])["query"] == texts([3, 0])


def test_scored_candidates_are_streamed(tmp_path: Path) -> None:
    rows = [{"query": f"q {n}", "documents": [f"a {n}", f"b {n}"], "scores": [1.0, n / 2]} for n in range(20)]
    made = recipe({"path": parquet(tmp_path / "r.parquet", rows)}, objective="distillation")
    parts = parts_of(tmp_path, made)
    check_columns("p", made.phases["p"], parts)
    assert parts["s/r"].read([7]) == {"query": ["q 7"], "documents": [["a 7", "b 7"]], "scores": [[1.0, 3.5]]}
    with pytest.raises(ColbertZeroError, match="has scored candidates, contrastive needs pairs"):
        check_columns("p", recipe({"path": "x"}).phases["p"], parts)


# ---- The saved position


class Reader:
    """Counts the row groups that are read of Parquet files."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.groups: list[int] = []
        original = Parquet._generate_tables

        def counting(builder: Any, files: Any, row_groups_list: Any) -> Iterator[Any]:
            for file, groups in zip(files, row_groups_list, strict=True):
                self.groups += groups
                yield from original(builder, [file], [groups])

        monkeypatch.setattr(Parquet, "_generate_tables", counting)


@settings(deadline=None, max_examples=15)
@given(
    rows=st.integers(40, 3000),
    row_group=st.integers(7, 3000),
    bad_every=st.integers(2, 50),
    buffer=st.integers(8, 1500),
    places=st.lists(st.floats(0, 2), min_size=2, max_size=3),
)
def test_a_step_is_the_same_from_the_start_and_from_a_saved_position_also_twice_over(
    tmp_path_factory: pytest.TempPathFactory,
    rows: int,
    row_group: int,
    bad_every: int,
    buffer: int,
    places: list[float],
) -> None:
    folder = tmp_path_factory.mktemp("stream")
    usable = [row for n, row in enumerate(pairs(rows)) if n % bad_every]
    written = [row if n % bad_every else BAD for n, row in enumerate(pairs(rows))]
    path = parquet(folder / "r.parquet", written, row_group)
    made = recipe({"path": path, "shuffle_buffer": buffer, "on_bad_rows": "skip"})
    (part,) = parts_of(folder, made).values()
    order = order_of_parts(made.phases["p"], {part.name: part}, 1, "p")
    for place in sorted(places):
        step = int(place * order.batches_per_epoch)
        for ahead in range(step, step + 3):
            _, numbers = order.batch(ahead)
            assert part.read(numbers)["query"] == [usable[n % len(usable)]["query"] for n in numbers]
        state = json.loads(json.dumps(part.state(order.block(part.name, step))))
        dropped = part.dropped
        (part,) = parts_of(folder, made).values()
        part.restore(state)
        assert part.dropped == dropped


def test_going_on_from_a_saved_position_does_not_read_what_came_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recipe({"path": parquet(tmp_path / "r.parquet", pairs(40_000), 2000), "shuffle_buffer": 8000})
    (part,) = parts_of(tmp_path, made).values()
    part.read([0])
    part.read([24_000])
    state = part.state(3)
    assert state["block"] == 3
    reader = Reader(monkeypatch)
    (restored,) = parts_of(tmp_path, made).values()
    restored.restore(json.loads(json.dumps(state)))
    assert restored.read([24_567])["query"] == texts([24_567])
    assert restored.read([39_999])["query"] == texts([39_999])
    # The block begins with row group 12; the library's positions lie up to three thousand rows before.
    assert reader.groups == list(range(reader.groups[0], 20))
    assert 10 <= reader.groups[0] <= 12
    # Without a position the blocks before are passed over, once.
    reader.groups.clear()
    (fresh,) = parts_of(tmp_path, made).values()
    assert fresh.read([24_567])["query"] == texts([24_567])
    assert reader.groups == list(range(16))


def test_an_epoch_reads_the_stream_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = recipe({"path": parquet(tmp_path / "r.parquet", pairs(4000), 500), "shuffle_buffer": 800})
    parts = parts_of(tmp_path, made)
    order = order_of_parts(made.phases["p"], parts, 1, "p")
    reader = Reader(monkeypatch)
    for step in range(2 * order.batches_per_epoch):
        parts["s/r"].read(order.batch(step)[1])
    assert reader.groups == [*range(8), *range(8)]


def test_no_more_rows_are_held_than_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive, most = 0, 0

    class Row(dict[str, Any]):
        def __init__(self, row: dict[str, Any]):
            nonlocal alive, most
            super().__init__(row)
            alive += 1
            most = max(most, alive)

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    original = streams.check_row

    def counted(*args: Any) -> Any:
        schema, checked = original(*args)
        return schema, Row(checked)

    made = recipe({"path": parquet(tmp_path / "r.parquet", pairs(5000)), "shuffle_buffer": 200})
    parts = parts_of(tmp_path, made)
    order = order_of_parts(made.phases["p"], parts, 1, "p")
    monkeypatch.setattr(streams, "check_row", counted)
    for step in range(order.batches_per_epoch):
        parts["s/r"].read(order.batch(step)[1])
    assert 200 <= most <= 201


def test_a_checkpoint_serves_its_step_though_batches_were_read_ahead(
    two_files: Path, tmp_path: Path, tiny_multi_vector: Any
) -> None:
    made = recipe({"path": str(two_files / "*.parquet"), "shuffle_buffer": 8}, representation="multi-vector")

    def batches() -> Batches:
        parts = parts_of(tmp_path, made)
        return Batches(
            parts, order_of_parts(made.phases["p"], parts, 1, "p"), tokeniser(tiny_multi_vector), 40, Negatives(0, None)
        )

    first = batches()
    expected = [batch.queries.inputs["input_ids"].tolist() for batch in Prefetched(first, 0)]
    again = batches()
    for step, _ in enumerate(islice(Prefetched(again, 0), 20)):
        state = json.loads(json.dumps(again.stream_states(step + 1)))
        assert set(state) == {"s/a", "s/b"}
        if step % 6 == 0:
            resumed = batches()
            resumed.restore_streams(state)
            left = [batch.queries.inputs["input_ids"].tolist() for batch in Prefetched(resumed, step + 1)]
            assert left == expected[step + 1 :]
    assert again.dropped() == {}


# ---- Bad rows


def test_a_bad_row_is_found_while_training_and_named(tmp_path: Path) -> None:
    path = parquet(tmp_path / "r.parquet", [*pairs(100), BAD, *pairs(100)], 30)
    (part,) = parts_of(tmp_path, recipe({"path": path, "shuffle_buffer": 64})).values()
    assert part.read([0])["query"] == ["question 0"]
    told = refusal(lambda: part.read([64]), tmp_path)
    assert told == (
        "r.parquet, row 101: `document` is empty. Mend the row, or set `sources.s.on_bad_rows: skip` to pass over such "
        "rows and count them"
    )
    assert refusal(lambda: part.read([64]), tmp_path) == told


def test_bad_rows_may_be_passed_over_counted_once_and_replaced(tmp_path: Path) -> None:
    rows = [row for n, row in enumerate(pairs(90)) for row in ([BAD, row] if n % 9 == 4 else [row])]
    made = recipe({"path": parquet(tmp_path / "r.parquet", rows), "shuffle_buffer": 16, "on_bad_rows": "skip"})
    parts = parts_of(tmp_path, made)
    order = order_of_parts(made.phases["p"], parts, 1, "p")
    seen = Counter[str]()
    for step in range(3 * order.batches_per_epoch):
        seen.update(parts["s/r"].read(order.batch(step)[1])["query"])
    # Of 100 rows 90 can be used. An epoch has 96 in whole batches: the first 6 usable ones come twice.
    assert seen == Counter(texts(range(90)) * 3 + texts(range(6)) * 3)
    assert parts["s/r"].dropped == {"`document` is empty": 10, READ_AGAIN: 6}


def test_a_first_row_that_cannot_be_used_is_told_before_training(tmp_path: Path) -> None:
    rows = [{"query": "q", "documnet": "d"}] * 20
    made = recipe({"path": parquet(tmp_path / "r.parquet", rows)})
    told = refusal(lambda: prepare(tmp_path, made), tmp_path)
    assert told.startswith(
        "r.parquet, row 1: no `document`: the row has query, documnet; if documnet is meant, `columns: {document: docum"
    )
    made = recipe({"path": parquet(tmp_path / "r.parquet", [BAD] * 20), "on_bad_rows": "skip"})
    told = refusal(lambda: prepare(tmp_path, made), tmp_path)
    assert told == "r.parquet has no usable row; mend it, or take it out of sources.s"
    made = recipe({"path": parquet(tmp_path / "r.parquet", [BAD, *pairs(20)]), "on_bad_rows": "skip"})
    assert parts_of(tmp_path, made)["s/r"].read([0])["query"] == ["question 0"]


def test_pairs_and_candidates_do_not_mix(tmp_path: Path) -> None:
    scored = [{"query": "q", "documents": ["a", "b"], "scores": [1.0, 2.0]}]
    paths = [parquet(tmp_path / "a.parquet", pairs(9)), parquet(tmp_path / "b.parquet", scored)]
    told = refusal(lambda: prepare(tmp_path, recipe({"path": paths})), tmp_path)
    assert told.startswith("b.parquet: rows of one source must all be pairs or all be scored candidates")


def test_rows_that_a_phase_cannot_use_are_bad_rows(tmp_path: Path) -> None:
    rows = [row | {"negative": ["n", "m"][: 2 - (n == 5)]} for n, row in enumerate(pairs(30))]
    spec = {"path": parquet(tmp_path / "r.parquet", rows)}
    one, two, three = (recipe(spec, negatives=n) for n in (1, 2, 3))
    check_columns("p", two.phases["p"], parts_of(tmp_path, two))
    assert len(parts_of(tmp_path, one)["s/r"].read([5])["negatives"][0]) == 1
    part = parts_of(tmp_path, two)["s/r"]
    told = refusal(lambda: part.read([0]), tmp_path)
    assert told.startswith("r.parquet, row 6: `negative` are too few for the phase: 1, not 2. Mend")
    skipping = recipe(spec | {"on_bad_rows": "skip"}, negatives=2)
    part = parts_of(tmp_path, skipping)["s/r"]
    assert part.read([5])["query"] == ["question 6"]
    with pytest.raises(ColbertZeroError, match=r"negatives: 3, but s/r has rows with only 2"):
        check_columns("p", three.phases["p"], parts_of(tmp_path, three))
    scored = [{"query": "q", "documents": ["a", "b", "c"][:n], "scores": [1.0, 2.0, 3.0][:n]} for n in (3, 3, 2)]
    made = recipe({"path": parquet(tmp_path / "c.parquet", scored)}, objective="distillation")
    told = refusal(lambda: parts_of(tmp_path, made)["s/c"].read([0]), tmp_path)
    assert told.startswith("c.parquet, row 3: `documents` are not as many as in the first row: 2, not 3")


def test_a_stream_that_broke_off_can_be_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = recipe({"path": parquet(tmp_path / "r.parquet", pairs(3000), 500), "shuffle_buffer": 400})
    parts_of(tmp_path, made)
    original, broken = Parquet._generate_tables, [True]

    def breaking(builder: Any, files: Any, row_groups_list: Any) -> Iterator[Any]:
        if row_groups_list[0] == (4,) and broken:
            broken.pop()
            raise ConnectionError("the line is dead")
        yield from original(builder, files, row_groups_list)

    monkeypatch.setattr(Parquet, "_generate_tables", breaking)
    (part,) = parts_of(tmp_path, made).values()
    part.read([0])
    told = refusal(lambda: part.read([2100]), tmp_path)
    assert told.startswith("r.parquet: not a readable Parquet file (the line is dead)")
    for number in (2100, 2900, 10):
        assert part.read([number])["query"] == texts([number])


def test_damaged_and_empty_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 this is none PAR1")
    pq.write_table(pa.Table.from_pylist(pairs(1)).slice(1), tmp_path / "empty.parquet")
    for name, message in {
        "bad.parquet": "bad.parquet: not a readable Parquet file",
        "empty.parquet": "empty.parquet has no usable row",
        "none.parquet": "sources.s.path: none.parquet: no such file",
    }.items():
        made = recipe({"path": str(tmp_path / name)})
        assert refusal(lambda made=made: prepare(tmp_path, made), tmp_path).startswith(message)
    assert not list(tmp_path.glob("data/*/source.json"))


# ---- The Hub


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def hub_folder(folder: Path, tables: dict[str, list[list[Any]]], said: bool = True) -> str:
    """A local folder laid out as on the Hub: each configuration has files of rows, and may say how many."""
    folder.mkdir()
    lines, infos = ["---", "configs:"], ["dataset_info:"]
    for name, files in tables.items():
        lines += [f"- config_name: {name}", "  data_files:", "  - split: train", f"    path: {name}-*.parquet"]
        for number, rows in enumerate(files):
            parquet(folder / f"{name}-{number}.parquet", rows, 50)
        infos += [f"- config_name: {name}", "  features:", "  - name: query", "    dtype: string"]
        infos += ["  - name: document", "    dtype: string", "  splits:", "  - name: train", "    num_bytes: 1"]
        infos += [f"    num_examples: {sum(map(len, files))}"]
    (folder / "README.md").write_text("\n".join([*lines, *(infos if said else []), "---", "# Data"]))
    return str(folder)


@pytest.mark.usefixtures("offline")
def test_configurations_of_a_hub_data_set_are_parts_with_the_rows_they_say(tmp_path: Path) -> None:
    folder = hub_folder(tmp_path / "hub", {"one": [pairs(120), pairs(80, 120)], "two": [pairs(60, 1000)]})
    made = recipe({"kind": "hub", "path": folder, "shuffle_buffer": 64})
    assert prepare(tmp_path, made).record["parts"] == {"one": 200, "two": 60}
    parts = parts_of(tmp_path, made)
    assert parts["s/one"].read([199])["query"] == texts([199])
    assert parts["s/two"].read([5])["query"] == texts([1005])
    state = json.loads(json.dumps(parts["s/one"].state(2)))
    assert state["block"] == 2
    restored = parts_of(tmp_path, made)["s/one"]
    restored.restore(state)
    assert [restored.read([row])["query"] for row in (130, 193, 3)] == [texts([row]) for row in (130, 193, 3)]


@pytest.mark.usefixtures("offline")
def test_without_a_known_number_of_rows_a_limit_is_asked_for(tmp_path: Path) -> None:
    folder = hub_folder(tmp_path / "hub", {"one": [pairs(100)]}, said=False)
    told = refusal(lambda: prepare(tmp_path, recipe({"kind": "hub", "path": folder})), tmp_path)
    assert told.startswith("sources.s.limit: how many rows hub (one) has is not known")
    made = recipe({"kind": "hub", "path": folder, "limit": 110, "shuffle_buffer": 64})
    (part,) = parts_of(tmp_path, made).values()
    assert len(part) == 110
    assert part.read([99, 100, 109])["query"] == texts([99, 0, 9])
    assert part.dropped == {READ_AGAIN: 10}


@pytest.mark.usefixtures("offline")
def test_a_hub_data_set_that_cannot_be_streamed_is_refused(tmp_path: Path) -> None:
    folder = hub_folder(tmp_path / "hub", {"one": [pairs(100)]})
    for changes, message in (
        ({"configs": ["three"]}, "sources.s: cannot stream hub (three): BuilderConfig 'three' not found"),
        ({"split": "tran", "limit": 9}, "sources.s: cannot stream hub (one): Bad split: tran. Available splits: ['tr"),
    ):
        made = recipe({"kind": "hub", "path": folder, **changes})
        assert message in refusal(lambda made=made: prepare(tmp_path, made), tmp_path)


def test_a_branch_is_streamed_at_the_commit_it_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    class Api:
        def dataset_info(self, *_: Any, **__: Any) -> Any:
            return type("Info", (), {"sha": "c" * 40})

    def load(path: str, config: str, revision: str | None) -> Any:
        asked.append(revision)
        raise ConnectionError("no line")

    monkeypatch.setattr(sources, "HfApi", Api)
    monkeypatch.setattr(streams, "load_dataset_builder", load)
    made = recipe({"kind": "hub", "path": "some/body", "configs": ["one"], "revision": "main"})
    told = refusal(lambda: prepare(tmp_path, made), tmp_path)
    assert told.startswith("sources.s: cannot stream some/body (one): no line; once that is mended")
    assert asked == ["c" * 40]


# ---- What it is, and what cannot be


def test_the_id_follows_the_files_and_the_way_of_reading(tmp_path: Path) -> None:
    path = parquet(tmp_path / "r.parquet", pairs(30))

    def identity(**changes: Any) -> str:
        return source_id("s", recipe({"path": path, **changes}), tmp_path / "data")

    first = identity()
    assert len({first, identity(streaming=False), identity(shuffle_buffer=9), identity(limit=9)}) == 4
    assert identity(shuffle_buffer=None) == first
    parquet(tmp_path / "r.parquet", pairs(31))
    assert identity() != first


def test_a_streamed_source_is_looked_up_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = recipe({"path": parquet(tmp_path / "r.parquet", pairs(30))})
    first = prepare(tmp_path, made).record
    monkeypatch.setattr(sources, "look_up", lambda *_: pytest.fail("looked up again"))
    monkeypatch.setattr(streams, "load_dataset_builder", lambda *_, **__: pytest.fail("opened"))
    again = prepare(tmp_path, made)
    assert again.record == first
    assert [len(part) for part in again.parts.values()] == [30]


def changed(**changes: Any) -> dict[str, Any]:
    return data({"path": "r.parquet", **changes})


THREE = {"path": None, "train": "t", "queries": "q", "documents": "d"}
REFUSED = [
    (changed(**THREE), "sources.s.streaming: the three-table form looks texts up by their ids and cannot be streamed"),
    (changed(kind="hub", path="x", train="t", queries="q", documents="d"), "sources.s.streaming: the three-table form"),
    (changed(streaming=False, shuffle_buffer=100), "sources.s.shuffle_buffer: only for what is streamed"),
    (changed(shuffle_buffer=1), "sources.s.shuffle_buffer: should be at least 2, found 1"),
    (changed(kind="jsonl"), "sources.s.streaming: unknown key"),
    (
        changed() | {"collections": {"c": {"kind": "held-out", "source": "s"}}},
        "collections.c.source: 's' is only streamed, and pairs are held out before training; name another source, or",
    ),
]


@pytest.mark.parametrize(("entry", "message"), REFUSED, ids=range(len(REFUSED)))
def test_what_cannot_be_streamed_is_refused_with_the_recipe(entry: dict[str, Any], message: str) -> None:
    entry["phases"]["p"]["objective"] = "distillation" if "train" in entry["sources"]["s"] else "contrastive"
    with pytest.raises(ColbertZeroError) as caught:
        check_recipe(entry)
    first, told = str(caught.value).splitlines()
    assert first == "recipe: one mistake"
    assert told.strip().startswith(message)


def test_a_resolved_recipe_loads_again() -> None:
    for entry in (changed(), changed(streaming=False), changed(shuffle_buffer=70)):
        assert check_recipe(check_recipe(entry).model_dump()) == check_recipe(entry)


# ---- A phase on it


def study(folder: Path, out: str) -> Study:
    made = data(
        {"path": str(folder / "*.parquet"), "shuffle_buffer": 32, "on_bad_rows": "skip"},
        representation="multi-vector", learning_rate=2e-3, epochs=2, checkpoint_every=5,
    )  # fmt: skip
    architecture = {"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
                    "intermediate_size": 32}  # fmt: skip
    made |= {
        "model": {"architecture": architecture, "vocabulary": 400, "dim": 16},
        "query_tokens": 8,
        "document_tokens": 12,
        "collections": {"c": {"kind": "beir", "path": str(folder / "beir")}},
    }
    return Study(check_recipe(made), folder / out, Quiet(), folder / "cache")


class Crash(BaseException):
    pass


class CrashingAt(Quiet):
    def __init__(self, step: int):
        self.step = step

    @contextmanager
    def bar(self, name: str, total: int) -> Iterator[Callable[[int, dict[str, Any]], None]]:
        def advance(done: int, values: dict[str, Any]) -> None:
            if done == self.step:
                raise Crash

        yield advance


def test_a_phase_trains_on_a_streamed_source_and_repeats_also_after_crashes(tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", [*pairs(50), BAD, *pairs(49, 50)], 30)
    parquet(tmp_path / "b.parquet", pairs(40, 500), 30)
    (tmp_path / "beir" / "qrels").mkdir(parents=True)
    (tmp_path / "beir" / "corpus.jsonl").write_text('{"_id": "d", "text": "answer 1"}\n')
    (tmp_path / "beir" / "queries.jsonl").write_text('{"_id": "q", "text": "question 1"}\n')
    (tmp_path / "beir" / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\td\t1\n")
    weights = []
    for out in ("one", "two"):
        trained = study(tmp_path, out)
        trained.prepare([("p",)])
        (row,) = outline(trained, [("p",)])
        assert (row.spec.sources, row.steps, row.texts) == (["s"], 34, 544)
        for crash in (12, 23) if out == "two" else ():
            trained.show = CrashingAt(crash)
            with pytest.raises(Crash):
                trained.train(("p",))
        trained.show = Quiet()
        record = trained.train(("p",))
        assert [entry["step"] for entry in record["losses"]] == list(range(1, 35))
        assert record["sources"]["s/a"]["left_out"] == {"`document` is empty": 1}
        assert record["texts"] == 34 * 8 * 2
        assert {n: (s["rows"], s["batches"], s["dropped_rows"]) for n, s in record["sources"].items()} == {
            "s/a": (100, 24, 4), "s/b": (40, 10, 0),
        }  # fmt: skip
        weights.append((trained.phase_folder(("p",)) / "model" / "model.safetensors").read_bytes())
        assert not list((tmp_path / out / "data").rglob("*.arrow"))
    assert weights[0] == weights[1]
    assert read_json(trained.sources["s"].folder / "source.json")["rows"] == 140
