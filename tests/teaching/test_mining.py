"""Mining with models, mixes and filters, in this process and in several."""

import json
import os
import random
import signal
import subprocess
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from sentence_transformers import MultiVectorEncoder, SentenceTransformer
from sentence_transformers.util import mine_hard_negatives

from colbert_zero.data.given import load_sources
from colbert_zero.data.prepared import Source
from colbert_zero.errors import ColbertZeroError
from colbert_zero.evaluation.ranking import embed
from colbert_zero.maxsim.scores import packed_scores
from colbert_zero.models.bm25 import Bm25
from colbert_zero.models.checkpoints import Encoder
from colbert_zero.recipe.data import Mined, Parquet
from colbert_zero.recipe.miners import shares_of
from colbert_zero.teaching import inputs, mining, passes
from colbert_zero.teaching.mined import mine_file
from colbert_zero.teaching.picking import is_below
from helpers import DOCUMENTS, QUERIES, data, environment, launch, succeed, wait_for, write_recipe, write_rows

ALL = {"negatives": 5, "depth": 20, "max_relative": 0}


def quiet(name: str, total: int) -> Any:
    return nullcontext(lambda done, values: None)


def read(file: Path) -> Source:
    """A file's rows, prepared beside it."""
    [source] = load_sources([str(file)], "--pairs", file.with_name("prepared"), print, lambda title: nullcontext())
    return source


def write_pairs(path: Path, pairs: list[tuple[str, str]]) -> Path:
    path.write_text("".join(json.dumps({"query": q, "document": d}) + "\n" for q, d in pairs))
    return path


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Each document asked for by its first words, and two documents for the first query."""
    found = [(" ".join(text.split()[:3]), text) for text in DOCUMENTS.values()]
    return write_pairs(tmp_path / "pairs.jsonl", [*found, (found[0][0], DOCUMENTS["drag"])])


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks of documents and groups of queries."""
    monkeypatch.setattr(inputs, "BLOCK_DOCUMENTS", 6)
    monkeypatch.setattr(inputs, "GROUP_QUERIES", 8)
    monkeypatch.setattr(passes, "BM25_QUERIES", 3)
    monkeypatch.setattr(passes, "QUERIES_SCORED_AT_ONCE", 3)


def mined(pairs: Path, miners: str, models: dict[str, Encoder] | None = None, **asked: Any) -> tuple[list[Any], Any]:
    """Rows of the file, and the record."""
    spec = Mined.model_validate({"kind": "mined", "of": "pairs", "miners": miners, **asked})
    out = pairs.with_name(f"{len(list(pairs.parent.iterdir()))}.parquet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("colbert_zero.teaching.mined._loader", lambda *_: (models or {}).__getitem__)
        record = mine_file(spec, read(pairs), out, {}, quiet)
    return pq.read_table(out).to_pylist(), record


@pytest.fixture
def models(tiny_multi_vector: MultiVectorEncoder, tiny_dense: SentenceTransformer) -> dict[str, Encoder]:
    return {"multi-vector": tiny_multi_vector, "dense": tiny_dense}


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("miner", ["bm25", "multi-vector", "dense"])
def test_negatives_are_what_the_miner_ranks_highest_and_is_no_answer(
    pairs: Path, models: dict[str, Encoder], miner: str
) -> None:
    found, record = mined(pairs, miner, models, **ALL)
    texts = list(DOCUMENTS.values())
    for row in found:
        if miner == "bm25":
            scores = Bm25(texts).score_pairs([row["query"]] * 20, [[n] for n in range(20)]).ravel()
        else:
            encoder = models[miner]
            scores = packed_scores(embed(encoder, [row["query"]], "query"), embed(encoder, texts, "document"))[0]
        own = [r["document"] for r in found if r["query"] == row["query"]]
        by_text = {text: float(score) for text, score in zip(texts, scores, strict=True)}
        ranked = sorted((t for t in texts if t not in own and (miner != "bm25" or by_text[t] > 0)),
                        key=lambda t: -by_text[t])  # fmt: skip
        assert row["negative"][: len(ranked)] == ranked[:5]
        assert row["pos_scores"] == pytest.approx([by_text[row["document"]]], abs=1e-5)
        assert row["neg_scores"] == pytest.approx([by_text[text] for text in row["negative"]], abs=1e-5)
    assert len(found) == 21 == record["rows"]
    assert record["judge"] == miner


def test_a_mix_gives_each_miner_its_share_in_turn(pairs: Path, models: dict[str, Encoder]) -> None:
    found, record = mined(pairs, "dense:50,multi-vector:30,random:20", models, **ALL | {"negatives": 10})
    assert record["judge"] == "dense"
    assert record["kept"] == {"dense": 105, "multi-vector": 63, "random": 42}
    dense, _ = mined(pairs, "dense", models, **ALL | {"negatives": 10})
    for row, of_dense in zip(found, dense, strict=True):
        assert len(set(row["negative"])) == 10
        assert row["negative"][0] == of_dense["negative"][0]
        assert set(of_dense["negative"][:5]) <= set(row["negative"])


def test_a_miner_that_finds_too_few_is_filled_up_by_the_others_and_that_is_counted(pairs: Path) -> None:
    found, record = mined(pairs, "bm25", **ALL)
    assert all(len(row["negative"]) == 5 for row in found)
    assert record["filled_up"] > 0
    assert record["filled"]["random"] == record["random"] > 0
    assert record["kept"]["bm25"] + record["random"] == 5 * 21


def test_what_scores_nearly_as_high_as_the_positive_is_left_out_told_and_shown(
    pairs: Path, models: dict[str, Encoder]
) -> None:
    found, record = mined(pairs, "dense", models, negatives=2, depth=20, max_relative=0.9)
    assert record["removed"]["dense"]["max_relative"] > 0
    for row in found:
        assert all(is_below(score, row["pos_scores"][0], 0.9) for score in row["neg_scores"])
    spec = Mined.model_validate({"kind": "mined", "of": "x", "miners": "dense", "max_relative": 0.9})
    told = "\n".join(mining.told_of(record, spec))
    assert "at or above 0.9 of the positive's score by dense" in told
    assert "max_relative: query '" in told
    assert record["left_out"] == 21 - len(found)
    assert ("rows are left out" in told) == bool(record["left_out"])


def test_a_dense_models_negatives_are_those_of_sentence_transformers(
    tmp_path: Path, models: dict[str, Encoder], tiny_dense: SentenceTransformer
) -> None:
    pairs = write_pairs(tmp_path / "p.jsonl", [(" ".join(text.split()[:3]), text) for text in DOCUMENTS.values()])
    table = datasets.Dataset.from_json(str(pairs), cache_dir=str(tmp_path / "cache"))
    theirs = mine_hard_negatives(
        table, tiny_dense, range_max=20, relative_margin=0.1, num_negatives=2, output_format="n-tuple", verbose=False
    )
    ours, _ = mined(pairs, "dense", models, negatives=2, depth=20, max_relative=0.9)
    assert [[r["query"], r["document"], *r["negative"]] for r in ours] == [list(row.values()) for row in theirs]
    assert len(ours) > 10


@pytest.mark.parametrize(("rejected", "warned"), [(50, False), (51, True), (84, True)])
def test_a_judge_that_rejects_most_is_warned_of(pairs: Path, rejected: int, warned: bool) -> None:
    record = mined(pairs, "bm25", **ALL)[1]
    record |= {"looked_at": {"bm25": 100}, "removed": {"bm25": {"max_relative": rejected}}}
    spec = Mined.model_validate({"kind": "mined", "of": "x", "miners": "bm25", "max_relative": 0.95})
    told = f"warning: {rejected}% of bm25's candidates rejected by max_relative: bm25 hardly tells"
    assert any(line.startswith(told) for line in mining.told_of(record, spec)) == warned


@pytest.mark.parametrize("judge", ["multi-vector", "bm25"])
def test_a_judge_scores_what_another_mined(pairs: Path, models: dict[str, Encoder], judge: str) -> None:
    found, _ = mined(pairs, "dense", models, **ALL)
    judged, record = mined(pairs, "dense", models, **ALL, judge=judge)
    assert [row["negative"] for row in judged] == [row["negative"] for row in found]
    assert [row["neg_scores"] for row in judged] != [row["neg_scores"] for row in found]
    assert record["judge"] == judge


def test_near_duplicates_of_a_positive_are_left_out_and_counted(tmp_path: Path) -> None:
    text = "the lift of a thin wing in a slipstream grows with the angle of attack"
    found = [
        ("lift of a thin wing", text),
        ("other", text.upper()),
        ("words", f"Abstract: {text}."),
        ("q", "a wing lifts"),
    ]
    found += [(f"q{n}", f"wing number {n} has a lift of {n}") for n in range(8)]
    rows, record = mined(write_pairs(tmp_path / "pairs.jsonl", found), "bm25", negatives=9, depth=12)
    assert rows[0]["query"] == "lift of a thin wing"
    assert not {text.upper(), f"Abstract: {text}."} & set(rows[0]["negative"])
    assert record["removed"]["bm25"]["near_duplicate"] >= 2


@pytest.mark.parametrize(
    ("asked", "threshold"),
    [
        ({}, None),
        ({"miners": "bm25:50,random:50"}, None),
        ({"miners": "my/model"}, 0.95),
        ({"judge": "my/model"}, 0.95),
        ({"miners": "my/model", "judge": "bm25"}, None),
        ({"miners": "my/model", "max_relative": 0}, None),
        ({"max_relative": 0.9}, 0.9),
    ],
)
def test_negatives_are_below_95_percent_of_the_answer_where_a_model_judges(
    asked: dict[str, Any], threshold: Any
) -> None:
    assert Mined.model_validate({"kind": "mined", "of": "pairs", **asked}).threshold == threshold


def test_skipping_leaves_out_a_miners_best(pairs: Path, models: dict[str, Encoder]) -> None:
    best, _ = mined(pairs, "dense", models, **ALL)
    later, record = mined(pairs, "dense", models, **ALL, skip=2)
    assert [row["negative"][:3] for row in later] == [row["negative"][2:] for row in best]
    assert record["removed"]["dense"]["skip"] == 2 * 21


@pytest.mark.parametrize("miners", ["bm25", "dense"])
def test_negatives_come_from_the_corpus_and_positives_need_not_be_in_it(
    tmp_path: Path, models: dict[str, Encoder], miners: str
) -> None:
    pairs = write_pairs(tmp_path / "pairs.jsonl", [(q, f"an answer to {q}") for q in QUERIES.values()])
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    documents = [*DOCUMENTS.values(), DOCUMENTS["lift"], ""]
    (corpus / "corpus.jsonl").write_text(
        "".join(
            json.dumps({"_id": n, "title": "T" if n == 1 else "", "text": t}) + "\n" for n, t in enumerate(documents)
        )
    )
    found, record = mined(pairs, miners, models, **ALL, corpus=[str(corpus)])
    titled = set(DOCUMENTS.values()) - {documents[1]} | {f"T {documents[1]}"}
    assert all(set(row["negative"]) <= titled for row in found)
    assert (record["corpus"], record["corpus_duplicates"], record["corpus_empty"]) == (20, 1, 1)
    assert len(found) == len(QUERIES)


def test_what_is_mined_is_read_as_pairs_as_candidates_and_by_datasets(tmp_path: Path, pairs: Path) -> None:
    from colbert_zero.data.prepared import open_source
    from colbert_zero.data.sources import prepare_source
    from colbert_zero.recipe.schema import Recipe

    found, _ = mined(pairs, "bm25", **ALL)
    [file] = tmp_path.glob("*.parquet")
    read = []
    for columns in ({}, {"scores": ["pos_scores", "neg_scores"]}):
        entry = Parquet.model_validate({"kind": "parquet", "path": str(file), "columns": columns})
        recipe = Recipe.model_construct(sources={"mined": entry}, collections={}, seed=1)
        source = open_source("mined", prepare_source("mined", recipe, tmp_path / "data", tmp_path, None))
        [part] = source.parts.values()
        read.append(part.read(range(len(part))))
    assert read[0]["negatives"] == [row["negative"] for row in found]
    assert read[1]["scores"] == [[*row["pos_scores"], *row["neg_scores"]] for row in found]
    table = datasets.Dataset.from_parquet(str(file), cache_dir=str(tmp_path / "cache"))
    assert list(table["query"]) == [row["query"] for row in found]


@pytest.mark.usefixtures("small_blocks")
def test_a_stopped_run_goes_on_where_it_was_and_ends_with_the_same_bytes(
    tmp_path: Path, pairs: Path, models: dict[str, Encoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = Mined.model_validate({"kind": "mined", "of": "pairs", "miners": "bm25:50,dense:50", **ALL})
    monkeypatch.setattr("colbert_zero.teaching.mined._loader", lambda *_: models.__getitem__)
    monkeypatch.setattr(passes, "SAVE_SECONDS", 0)
    entry, scored = read(pairs), list[int]()
    score_block = passes._score_block

    def counted(model: Any, of: Any, queries: Any, block: int, *rest: Any) -> None:
        if len(scored) in stops:
            stops.remove(len(scored))
            raise KeyboardInterrupt
        scored.append(block)
        score_block(model, of, queries, block, *rest)

    monkeypatch.setattr(passes, "_score_block", counted)
    stops: set[int] = set()
    mine_file(spec, entry, tmp_path / "whole.parquet", {}, quiet)
    whole = list(scored)
    scored.clear()
    stops |= {1, 6, 7}
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            mine_file(spec, entry, tmp_path / "out.parquet", {}, quiet)
    mine_file(spec, entry, tmp_path / "out.parquet", {}, quiet)
    assert sorted(scored) == sorted(whole)
    assert (tmp_path / "out.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert not (tmp_path / "out.parquet.unfinished").exists()


def test_mining_again_finds_the_file_and_other_settings_do_not_replace_it(tmp_path: Path, pairs: Path) -> None:
    entry, out = read(pairs), tmp_path / "out.parquet"
    spec = Mined.model_validate({"kind": "mined", "of": "pairs", "miners": "bm25", **ALL})
    record = mine_file(spec, entry, out, {}, quiet)
    assert mine_file(spec, entry, out, {}, quiet) == record
    with pytest.raises(ColbertZeroError, match="is there, and was made of other things"):
        mine_file(spec.model_copy(update={"skip": 1}), entry, out, {}, quiet)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"negatives": 20}, "20 a query, but there are 20 documents to mine in; lower it"),
        ({"negatives": 12, "max_relative": 0.01}, "no row is left"),
    ],
)
def test_what_leaves_nothing_is_told(pairs: Path, models: dict[str, Encoder], asked: Any, told: str) -> None:
    with pytest.raises(ColbertZeroError, match=told):
        mined(pairs, "dense", models, depth=20, **asked)


def test_random_documents_are_the_same_whenever_asked_and_all_different(pairs: Path) -> None:
    first, again = (mined(pairs, "random", **ALL | {"depth": depth})[0] for depth in (20, 19))
    assert [row["negative"] for row in first] == [row["negative"] for row in again]
    assert len({tuple(row["negative"]) for row in first}) > 15


@pytest.mark.parametrize(("mix", "shares"), [("bm25", {"bm25": 100}), ("a/b:60, random:40", {"a/b": 60, "random": 40})])
def test_a_mix_is_read(mix: str, shares: dict[str, int]) -> None:
    assert shares_of(mix) == shares


# ---- The command


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--with", "bm25:50,random:15"], "--with: should be miners with shares that sum to 100"),
        (["--with", "bm25:50,random"], "'random' is not a miner and its share"),
        (["--with", "bm25:50,bm25:50"], "'bm25' stands twice"),
        (["--with", "no/such/model"], "--with: no such folder 'no/such/model'"),
        (["--with", "bm25:50,@unsupervised:50"], "folder, OUT/phases/unsupervised-ID/model"),
        (["--judge", "full@unsupervised"], "--judge full@unsupervised: a phase is known to its recipe alone"),
        (["--judge", "random"], "--judge: random scores nothing"),
        (["--judge", "./nothing"], "--judge: no such folder './nothing'"),
        (["--max-relative", "1.5"], "--max-relative: should be at most 1, found 1.5"),
        (["--precision", "auto"], "--precision: no model mines or judges"),
        (["--negatives", "99", "--skip", "2"], "--depth: 100 documents hold no 99 negatives after 2 skipped"),
        (["--corpus", "nothing.jsonl"], "--corpus: nothing.jsonl: no such file"),
        (["--corpus", "."], "--corpus: . is a folder without corpus.jsonl"),
        (["--corpus", "pairs.tsv"], "not one of .jsonl, .jsonl.gz, .parquet"),
        (["--pairs", "nothing.jsonl"], "--pairs nothing.jsonl: no such file"),
        (["--pairs", "./nothing"], "--pairs ./nothing: a file or glob of .jsonl"),
        (["--pairs", "quickstart:nothing"], "--pairs quickstart:nothing: quickstart has no source 'nothing'"),
        (["--pairs", "quickstart:hard", "--on-bad-rows", "skip"], "is read as its recipe says; leave it out"),
        (["--out", "negatives.csv"], "--out negatives.csv: a Parquet file is written"),
    ],
)
def test_mistakes_are_told_before_anything_is_mined(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "pairs.jsonl", 30)
    (tmp_path / "pairs.tsv").write_text("a\tb\n")
    given = {"--pairs": "pairs.jsonl", "--out": "negatives.parquet", "--negatives": "5"}
    given |= dict(zip(options[::2], options[1::2], strict=True))
    code, _, err = command("mine", *(word for option in given.items() for word in option))
    assert (code, told in err) == (2, True), err
    assert not list(tmp_path.glob("negatives.*"))


def test_a_row_that_cannot_be_used_is_told_in_the_commands_words_or_passed_over(command: Any, tmp_path: Path) -> None:
    write_rows(tmp_path / "pairs.jsonl", 40)
    with open(tmp_path / "pairs.jsonl", "a") as file:
        file.write('{"query": "", "document": "x"}\n')
    words = ("mine", "--pairs", tmp_path / "pairs.jsonl", "--out", tmp_path / "n.parquet", "--negatives", 5)
    code, _, err = command(*words)
    assert code == 2
    assert "pairs.jsonl, line 41: `query` is empty" in err
    assert "`--on-bad-rows skip`" in err
    code, out, _ = command(*words, "--on-bad-rows", "skip", "--max-relative", 0)
    assert code == 0
    assert "--pairs: 1 row left out: `query` is empty" in out


def test_a_recipes_source_is_mined_without_its_held_out_pairs(command: Any, tmp_path: Path) -> None:
    write_recipe(tmp_path)
    out = tmp_path / "n.parquet"
    words = ("--negatives", 5, "--max-relative", 0, "--out", out)
    code, printed, err = command("mine", "--pairs", f"{tmp_path / 'recipe.yaml'}:hard", *words)
    assert code == 0, err
    assert "recipe.yaml:hard: its texts are those of pairs, of which it is made" in printed
    assert "--pairs: 30 held-out pairs are not mined" in printed
    assert json.loads(out.with_name("n.parquet.json").read_text())["held_out"] == 30
    assert len({row["document"] for row in pq.read_table(out).to_pylist()}) == 130


def test_a_streamed_source_is_mined_as_its_copy_is(command: Any, tmp_path: Path) -> None:
    """Longer than what is read at once, in two parts, with a row that is left out: its rows are the same."""
    table = [{"query": f"question {n}", "document": f"answer {n % 700} of {n}"} for n in range(1500)]
    (tmp_path / "rows").mkdir()
    pq.write_table(pa.Table.from_pylist(table[:1300]), tmp_path / "rows" / "a.parquet")
    pq.write_table(
        pa.Table.from_pylist([*table[1300:], {"query": "none", "document": ""}]), tmp_path / "rows" / "b.parquet"
    )
    recipe = data(tmp_path) | {"collections": {"c": {"kind": "named", "name": "beir/scifact"}}, "teachers": {}}
    recipe |= {"phases": {"dense": recipe["phases"]["dense"]}, "pipelines": {"dense": ["dense"]}}
    found: dict[bool, list[Any]] = {}
    for streaming in (True, False):
        rows_of = {"kind": "parquet", "path": str(tmp_path / "rows" / "*.parquet"), "on_bad_rows": "skip"}
        recipe["sources"] = {"pairs": rows_of | {"streaming": streaming}}
        (tmp_path / "my.yaml").write_text(yaml.safe_dump(recipe))
        out = tmp_path / f"{streaming}.parquet"
        code, printed, err = command("mine", "--pairs", f"{tmp_path / 'my.yaml'}:pairs", "--with", "bm25", "--out", out)
        assert code == 0, err
        assert "--pairs: 1 row left out: " in printed
        found[streaming] = pq.read_table(out).to_pylist()
    assert len(found[False]) == 1500
    # A stream has as many rows as its file: in place of one that is left out, one comes again.
    assert found[True][:1500] == found[False]
    assert len(found[True]) <= 1501


def test_the_command_writes_the_file_and_tells_what_it_left_out(command: Any, tmp_path: Path) -> None:
    write_rows(tmp_path / "pairs.jsonl", 40)
    out = tmp_path / "negatives.parquet"
    words = ("mine", "--pairs", tmp_path / "pairs.jsonl", "--out", out, "--negatives", 5, "--max-relative", 0.9)
    code, printed, err = command(*words)
    assert code == 0, err
    assert "bm25: " in printed
    assert "known positives" in printed
    assert f"{out}: 40 rows of 5 negatives" in printed
    assert json.loads(out.with_name("negatives.parquet.json").read_text())["rows"] == 40
    assert command(*words)[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "negatives.parquet", "negatives.parquet.json", "pairs.jsonl",
    ]  # fmt: skip


def test_a_model_mines_in_bfloat16_nearly_as_in_float32_and_the_record_says_so(
    command: Any, tmp_path: Path, tiny_multi_vector: MultiVectorEncoder
) -> None:
    tiny_multi_vector.save_pretrained(str(tmp_path / "model"), create_model_card=False)
    write_rows(tmp_path / "pairs.jsonl", 40)
    words = ("mine", "--pairs", tmp_path / "pairs.jsonl", "--with", tmp_path / "model", "--negatives", 5)
    scores = {}
    for precision in ("float32", "bfloat16"):
        out = tmp_path / f"{precision}.parquet"
        code, printed, err = command(*words, "--max-relative", 0, "--out", out, "--precision", precision)
        assert code == 0, err
        assert ("encoded in bfloat16" in printed) == (precision == "bfloat16")
        record = json.loads(out.with_name(f"{out.name}.json").read_text())
        assert (record["precision"], record["maxsim"]) == (precision, "torch")
        scores[precision] = [row["pos_scores"][0] for row in pq.read_table(out).to_pylist()]
    assert scores["bfloat16"] == pytest.approx(scores["float32"], rel=0.02)
    assert scores["bfloat16"] != scores["float32"]


def test_who_goes_on_mining_encodes_as_was_decided_when_it_began(
    tmp_path: Path, pairs: Path, models: dict[str, Encoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = Mined.model_validate({"kind": "mined", "of": "pairs", "miners": "dense", "precision": "auto", **ALL})
    entry, taken, found = read(pairs), list[str](), iter(("bfloat16", "float32"))
    monkeypatch.setattr("colbert_zero.teaching.mined.agreed_precision", lambda *_: next(found))

    def loader(commits: Any, phases: Any, arithmetic: str) -> Any:
        taken.append(arithmetic)
        if len(taken) == 1:
            raise KeyboardInterrupt
        return models.__getitem__

    monkeypatch.setattr("colbert_zero.teaching.mined._loader", loader)
    with pytest.raises(KeyboardInterrupt):
        mine_file(spec, entry, tmp_path / "out.parquet", {}, quiet)
    record = mine_file(spec, entry, tmp_path / "out.parquet", {}, quiet)
    assert (taken, record["precision"]) == (["bfloat16"] * 2, "bfloat16")


# ---- Several processes

SCRIPT = """
import sys, time
from colbert_zero.teaching import inputs, passes
from colbert_zero import cli
inputs.BLOCK_DOCUMENTS, inputs.GROUP_QUERIES, passes.BM25_QUERIES, passes.SAVE_SECONDS = 16, 60, 20, 0.1
score = passes._score_block
def slow(*arguments):
    time.sleep(0.25)
    score(*arguments)
passes._score_block = slow
cli.main()
"""


@pytest.fixture
def mine_command(tmp_path: Path, tiny_multi_vector: MultiVectorEncoder) -> list[str]:
    tiny_multi_vector.save_pretrained(str(tmp_path / "model"), create_model_card=False)
    write_rows(tmp_path / "pairs.jsonl", 160)
    (tmp_path / "mine.py").write_text(SCRIPT)
    return ["mine.py", "mine", "--pairs", "pairs.jsonl", "--with", "bm25:40,model:40,random:20", "--negatives", "10",
            "--max-relative", "0.99", "--depth", "30", "--out"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_any_number_of_processes_finds_the_same_and_so_does_a_run_that_was_killed(
    tmp_path: Path, mine_command: list[str]
) -> None:
    for world in (1, 2, 3):
        succeed(launch(world, *mine_command, f"{world}.parquet"), tmp_path)
    first = pq.read_table(tmp_path / "1.parquet").to_pylist()
    for world in (2, 3):
        found = pq.read_table(tmp_path / f"{world}.parquet").to_pylist()
        assert [row["negative"] for row in found] == [row["negative"] for row in first]
        for row, one in zip(found, first, strict=True):
            assert row["neg_scores"] == pytest.approx(one["neg_scores"], abs=1e-5)
            assert row["pos_scores"] == pytest.approx(one["pos_scores"], abs=1e-5)
    chance, work = random.Random(11), tmp_path / "killed.parquet.unfinished"
    for _ in range(3):
        process = subprocess.Popen(
            launch(2, *mine_command, "killed.parquet"), cwd=tmp_path, env=environment(), start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        before = {path: path.stat().st_mtime_ns for path in work.glob("*/*.npz")}
        wait_for(
            lambda before=before: any(
                path.stat().st_mtime_ns != before.get(path) for path in work.glob("*/*.process-*.npz")
            )
        )
        time.sleep(chance.random())
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "killed.parquet").exists()
    succeed(launch(2, *mine_command, "killed.parquet"), tmp_path)
    assert (tmp_path / "killed.parquet").read_bytes() == (tmp_path / "2.parquet").read_bytes()
