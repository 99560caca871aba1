"""Commands that make a checkpoint, killed by real signals at random moments."""

import json
import random
import shutil
import subprocess
import sys
import time

import pytest

from colbert_zero.data.layouts import write_beir
from colbert_zero.files import atomic_folder
from colbert_zero.models.checkpoints import load_model
from helpers import WINGS, environment, triples

COMMANDS = {
    "compress to a target": ("compress", "model", "--out", "made", "--target", "1.1x", "--corpus", "tiny"),
    "compress": ("compress", "model", "--out", "made", "--layers", "1", "--corpus", "tiny"),
    "adapt": ("adapt", "model", "--pairs", "pairs.jsonl", "--projection", "100", "--out", "made"),
    "export": ("export", "model", "--to", "pylate", "--out", "made"),
}


@pytest.mark.slow
@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_a_killed_command_leaves_nothing_half_and_the_next_one_clears_up(
    words, tiny_multi_vector, collection, tmp_path
):
    tiny_multi_vector.save_pretrained(str(tmp_path / "model"), create_model_card=False)
    write_beir(collection, tmp_path / "tiny")
    pairs = (json.dumps({"query": text, "document": text}) for text in triples(WINGS, 120))
    (tmp_path / "pairs.jsonl").write_text("\n".join(pairs) + "\n")
    given = {"model", "tiny", "pairs.jsonl"}

    def started():
        return subprocess.Popen([sys.executable, "-m", "colbert_zero", *words], cwd=tmp_path, env=environment(),
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)  # fmt: skip

    def names():
        return {path.name for path in tmp_path.iterdir()}

    moments, killed, began = random.Random(5), 0, time.monotonic()
    with started() as whole:
        said, _ = whole.communicate()
    assert whole.returncode == 0, said
    took = time.monotonic() - began
    assert names() == given | {"made"}
    files = {path.name for path in (tmp_path / "made").iterdir()}
    shutil.rmtree(tmp_path / "made")
    for _ in range(5):
        with started() as process:
            time.sleep(took * moments.uniform(0.5, 0.95))
            process.kill()
            killed += process.wait() < 0
        there = {name for name in names() - given if not name.endswith(".tmp")}
        if there:  # it was whole before the process was killed
            assert there == {"made"}
            assert {path.name for path in (tmp_path / "made").iterdir()} == files
            shutil.rmtree(tmp_path / "made")
    assert killed
    with started() as process:
        said, _ = process.communicate()
    assert process.returncode == 0, said
    assert names() == given | {"made"}
    assert load_model(tmp_path / "made").get_embedding_dimension() == 16


def test_what_a_killed_process_left_is_deleted_and_what_one_at_work_has_is_not(tmp_path):
    dying = "import os, sys; from colbert_zero.files import atomic_folder; from pathlib import Path\n"
    dying += "with atomic_folder(Path('made')) as folder:\n    (folder / 'half').write_text('x')\n    os._exit(9)"
    assert subprocess.run([sys.executable, "-c", dying], cwd=tmp_path, env=environment()).returncode == 9
    [left] = tmp_path.iterdir()
    with atomic_folder(tmp_path / "made") as own:
        assert not left.exists()
        (own / "a").write_text("own")
        with atomic_folder(tmp_path / "made") as other:
            assert own.exists()
            (other / "a").write_text("other")
    assert (tmp_path / "made" / "a").read_text() == "own"
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
