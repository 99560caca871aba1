"""Commands that make a checkpoint, killed by real signals at random moments."""

import json
import random
import shutil
import subprocess
import sys
import time

import pytest

from colbert_zero.data.layouts import write_beir
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

    def half():
        return {path.name for path in tmp_path.iterdir() if path.name.startswith(".made.")}

    caught, moments = 0, random.Random(5)
    for delay in (0, 0, *(moments.uniform(0, 0.2) for _ in range(3))):
        before = half()
        with started() as process:
            while process.poll() is None and half() <= before:
                time.sleep(0.001)
            time.sleep(delay)  # some while into writing
            process.kill()
        caught += not half() <= before
        if "made" in names():  # it was whole before the process was killed
            assert load_model(tmp_path / "made").get_embedding_dimension() == 16
            shutil.rmtree(tmp_path / "made")
        assert names() - half() == given
    assert caught
    with started() as process:
        said, _ = process.communicate()
    assert process.returncode == 0, said
    assert names() == given | {"made"}
    assert load_model(tmp_path / "made").get_embedding_dimension() == 16
