"""Pairs from documents alone: what becomes of Markdown, HTML and text files in a folder."""

from collections import Counter
from pathlib import Path

import pytest

from colbert_zero.data.folders import folder_pairs, slug
from colbert_zero.errors import ColbertZeroError
from colbert_zero.recipe.data import Folder
from helpers import data, study

LONG = "The wing lifts because the air below it is slower. Its drag grows with the square of the speed, as Newton knew."
GUIDE = f"""# Flying a kite

{LONG}

## Wind and weather

Never fly in a storm. Lightning finds a wet line, and {LONG}

```
code = 1
```

See [how a wing works](wings.html#lift-and-drag) or [the whole page](wings.html), [elsewhere](https://example.org/x y)
and [this very page](guide.md), or [a short](wings.html).
"""
WINGS = f"""<html><head><title>Wings &amp; sails</title><style>p {{ color: red }}</style></head><body>
<nav><a href="guide.md">menu entry one</a></nav>
<h1>Wings</h1><p>{LONG}</p><script>alert("x")</script>
<h2 id="lift-and-drag">Lift and drag</h2><p>Both are forces. {LONG}</p>
<ul><li>one</li><li>two</li></ul></body></html>"""


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "wiki"
    root.mkdir()
    (root / "guide.md").write_text(GUIDE)
    (root / "wings.html").write_text(WINGS)
    return root


def pairs(folder, **more):
    dropped = Counter()
    return folder_pairs("wiki", Folder(kind="folder", path=str(folder), **more), dropped), dropped


def test_a_files_title_asks_for_its_text(folder):
    found = dict(pairs(folder)[0]["titles"])
    assert list(found) == ["Flying a kite", "Wings & sails"]
    assert found["Flying a kite"].startswith(LONG)
    assert "Wind and weather" in found["Flying a kite"]
    assert "alert" not in found["Wings & sails"]
    assert "color" not in found["Wings & sails"]
    assert "menu entry" not in found["Wings & sails"]


def test_a_heading_asks_for_what_stands_below_it(folder):
    found = dict(pairs(folder)[0]["headings"])
    assert set(found) == {"Flying a kite: Wind and weather", "Wings & sails: Wings", "Wings & sails: Lift and drag"}
    assert found["Wings & sails: Lift and drag"] == f"Both are forces. {LONG}\none\ntwo"


def test_a_sections_first_sentence_asks_for_its_rest(folder):
    found = dict(pairs(folder)[0]["sentences"])
    assert found["Never fly in a storm."].startswith("Lightning finds a wet line")
    assert found["The wing lifts because the air below it is slower."].startswith("Its drag grows")


def test_a_links_text_asks_for_the_section_or_file_it_leads_to(folder):
    found = dict(pairs(folder)[0]["links"])
    assert found["how a wing works"].startswith("Lift and drag\nBoth are forces.")
    assert found["the whole page"].startswith("Wings & sails\n")
    assert set(found) == {"how a wing works", "the whole page", "a short"}


def test_text_files_have_a_title_where_a_short_line_stands_alone(tmp_path):
    (tmp_path / "a.txt").write_text(f"Of kites\n\n{LONG}\n{LONG}\n")
    (tmp_path / "b.txt").write_text(LONG)
    found, _ = pairs(tmp_path)
    assert dict(found["titles"]) == {"Of kites": f"{LONG} {LONG}"}


def test_front_matter_gives_a_title_and_is_no_text(tmp_path):
    (tmp_path / "a.md").write_text(f'---\ntitle: "The kite"\ntags: [wind]\n---\n{LONG}\n')
    assert pairs(tmp_path)[0]["titles"] == [("The kite", LONG)]


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"\xff\xfe\x00", "file: not UTF-8"), (b"# Title\n\nshort text\n", "titles: fewer than 8 words"),
     (b"x" * 4_000_001, "file: larger than 4 MB")],
)  # fmt: skip
def test_what_is_passed_over_is_counted(folder, content, reason):
    (folder / "odd.md").write_bytes(content)
    found, dropped = pairs(folder)
    assert dropped[reason] == 1
    assert len(found["titles"]) == 2


def test_a_pair_that_stands_twice_is_one(folder):
    (folder / "copy.md").write_text(GUIDE)
    found, dropped = pairs(folder, pairs=["titles"])
    assert len(found["titles"]) == 2
    assert dropped["titles: stands twice"] == 1
    assert list(found) == ["titles"]


def test_links_and_hidden_folders_lead_nowhere_outside(folder, tmp_path):
    (tmp_path / "secret.md").write_text(f"# Secret\n\n{LONG}")
    (folder / "link.md").symlink_to(tmp_path / "secret.md")
    (folder / ".git").mkdir()
    (folder / ".git" / "x.md").write_text(f"# Hidden\n\n{LONG}")
    (folder / "up.md").write_text(f"# Upwards\n\n{LONG} [out of here](../secret.md)")
    found, _ = pairs(folder)
    assert not {"Secret", "Hidden"} & {query for query, _ in found["titles"]}
    assert "out of here" not in dict(found["links"])


@pytest.mark.parametrize(
    "html", ["<p>never closed <b>at all", "<h2>no end <p>x", "</div></p></h1>", "", "<a href='x'>"]
)
def test_broken_html_is_read_as_far_as_it_goes(tmp_path, html):
    (tmp_path / "a.html").write_text(f"<title>Kites</title>{html}")
    (tmp_path / "b.md").write_text(f"# Whole\n\n{LONG}")
    assert ("Whole", LONG) in pairs(tmp_path)[0]["titles"]


def test_anchors_are_githubs():
    assert slug("Lift & drag: an intro") == "lift--drag-an-intro"


def test_a_folder_is_a_source_of_a_study_and_shows_what_it_made(folder, tmp_path):
    for n in range(20):
        (folder / f"{n}.md").write_text(
            f"# Kite number{n}\n\nThe code{n} of it is new. {LONG}\n\n## Part{n}\n\n{LONG} x{n}"
        )
    recipe = data(tmp_path)
    recipe["sources"] = {"pairs": {"kind": "folder", "path": str(folder)}}
    recipe["collections"] = {"held-out": {"kind": "held-out", "source": "pairs", "documents": 10}}
    recipe["phases"] = {"unsupervised": {**recipe["phases"]["unsupervised"], "global_batch_size": 4, "steps": 2}}
    recipe["pipelines"] = {"full": ["unsupervised"]}
    del recipe["teachers"]
    one, said = study(tmp_path, recipe), []
    one.show.say = said.append
    one.prepare([("unsupervised",)])
    assert set(one.sources["pairs"].parts) == {f"pairs/{kind}" for kind in ("titles", "headings", "sentences", "links")}
    assert any("of titles, as '" in line and "→" in line for line in said)
    before = one.source_id("pairs")
    record = one.train(("unsupervised",))
    assert record["steps"] == 2
    (folder / "0.md").write_text("# Another\n\n" + LONG)
    assert study(tmp_path, recipe).source_id("pairs") != before


@pytest.mark.parametrize(
    ("spec", "told"),
    [({"path": "nowhere"}, "sources.wiki.path: nowhere: no such folder"),
     ({"path": ".", "files": ["*.rst"]}, "sources.wiki.files: no file of . is called *.rst")],
)  # fmt: skip
def test_mistakes_are_told(tmp_path, monkeypatch, spec, told):
    monkeypatch.chdir(tmp_path)
    (Path(tmp_path) / "a.md").write_text("# x")
    with pytest.raises(ColbertZeroError) as error:
        folder_pairs("wiki", Folder(kind="folder", **spec), Counter())
    assert told in str(error.value)
