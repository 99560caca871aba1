"""The demo: from a recipe's model to a page that answers, as its user has it."""

import json
import os
import re
import signal
import subprocess
import sys
from urllib.request import Request, urlopen

import pytest

from colbert_zero.data.documentation import write_documentation
from helpers import data, environment, study, wait_for, write_rows

REST = "With the angle of attack the lift grows, until the flow separates from the upper side."


def test_documentation_has_a_document_a_docstring_with_its_package_and_module(tmp_path, monkeypatch):
    (tmp_path / "wings" / "flow").mkdir(parents=True)
    (tmp_path / "wings" / "__init__.py").write_text("")
    (tmp_path / "wings" / "flow" / "__init__.py").write_text(
        f'''class Wing:
    """A wing in a stream of air.

    {REST}
    """

    @property
    def lift(self):
        """The lift of this wing in newtons.

        {REST.upper()} It is read.
        """

    @lift.setter
    def lift(self, value):
        """Set the lift of that wing.

        {REST} It is written.
        """

    def short(self):
        """Short."""
'''
    )
    monkeypatch.syspath_prepend(tmp_path)
    written = write_documentation(["wings"], tmp_path / "docs.jsonl", tmp_path / "cache")
    rows = [json.loads(line) for line in (tmp_path / "docs.jsonl").read_text().splitlines()]
    assert (written.documents, written.packages, written.left_out) == (3, ["wings"], {"query too short": 1})
    assert [row["_id"] for row in rows] == ["wings.flow.Wing", "wings.flow.Wing.lift", "wings.flow.Wing.lift (2)"]
    assert rows[0] == {
        "_id": "wings.flow.Wing", "title": "wings.flow.Wing", "text": f"A wing in a stream of air. {REST}",
        "package": "wings", "module": "wings.flow",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nowhere",), "MODEL: no such folder 'nowhere'"),
        (("mine", "--package", "nmpy"), "no installed package nmpy with Python source, did you mean numpy?"),
        (("mine", "--port", "1"), "--port 1: "),
    ],
)
def test_a_mistake_is_told_before_anything_is_made(command, tmp_path, monkeypatch, tiny_multi_vector, words, message):
    monkeypatch.chdir(tmp_path)
    tiny_multi_vector.save_pretrained(str(tmp_path / "mine"), create_model_card=False)
    if words[-1] == "1" and os.geteuid() == 0:
        pytest.skip("root may listen on any port")
    code, _, err = command("demo", *words, "--no-browser")
    assert (code, message in err, "Traceback" in err) == (2, True, False), err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_demo_answers_from_a_study_s_best_model_and_begins_at_once_the_second_time(tmp_path):
    write_rows(tmp_path / "pairs.jsonl")
    made = study(tmp_path, data(tmp_path))
    made.prepare([("unsupervised",)])
    made.train(("unsupervised",))
    phase = str(made.phase_folder(("unsupervised",)))
    words = ["demo", phase, "--package", "typer", "--package", "pydantic", "--port", "0", "--no-browser"]
    for first_time in (True, False):
        with open(tmp_path / "said", "w+") as said:
            server = subprocess.Popen(
                [sys.executable, "-m", "colbert_zero", *words],
                cwd=tmp_path,
                env=environment(),
                stdout=said,
                stderr=said,
            )
            try:
                wait_for(
                    lambda server=server: (
                        re.search(r"server: http\S+", (tmp_path / "said").read_text()) or server.poll() is not None
                    ),
                    400,
                )
                text = (tmp_path / "said").read_text()
                assert server.poll() is None, text
                assert ("documents: " in text) == first_time, text
                assert ("docstrings" in text) == first_time, text
                url = re.search(r"server: (http\S+/)", text)[1]
                asked = {"query": "dump a model as JSON", "k": 5, "where": {"package": "pydantic"}, "explain": True}
                request = Request(url + "search", json.dumps(asked).encode(), {"Content-Type": "application/json"})
                answer = json.load(urlopen(request, timeout=30))
                assert [hit["metadata"]["package"] for hit in answer["hits"]] == ["pydantic"] * 5
                assert answer["hits"][0]["explanation"]["parts"]
                assert b"<html" in urlopen(url, timeout=30).read()
            finally:
                server.send_signal(signal.SIGINT)
                assert server.wait(60) in (0, 130)
    assert len(list(tmp_path.glob("out/demo/*.index"))) == 1
