"""A Hub base is one commit in the life of a study, also offline and after its branch has moved."""

import shutil

import pytest
import yaml
from safetensors.torch import load_file, save_file

from colbert_zero.errors import ColbertZeroError
from colbert_zero.files import read_json, write_json
from colbert_zero.recipe.reading import check_recipe
from colbert_zero.study.show import Quiet
from colbert_zero.study.study import Study
from helpers import data, write_rows

FIRST, SECOND = "a" * 40, "b" * 40
CHAIN = ("unsupervised",)


class Told(Quiet):
    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)

    def about(self, word):
        return [line for line in self.lines if word in line]


@pytest.fixture
def served(hub, backbone, tmp_path):
    """A model with two commits, of which the Hub has the first."""
    shutil.copytree(backbone, tmp_path / "moved")
    weights = load_file(backbone / "model.safetensors")
    save_file({k: v + 1 for k, v in weights.items()}, tmp_path / "moved" / "model.safetensors", {"format": "pt"})
    hub.repos["org/name"] = {FIRST: backbone}
    write_rows(tmp_path / "pairs.jsonl")
    return hub


def open_study(folder, out="out", refresh_base=False, **model):
    recipe = data(folder, model={"base": "org/name", "dim": 16, **model})
    recipe["phases"] = {"unsupervised": recipe["phases"]["unsupervised"] | {"steps": 1}}
    recipe["teachers"], recipe["pipelines"] = {}, {"full": ["unsupervised"]}
    recipe["sources"] = {"pairs": recipe["sources"]["pairs"]}
    show = Told()
    made = Study(check_recipe(recipe), folder / out, show, folder / "docstrings", refresh_base)
    made.prepare([CHAIN])
    return made, show


def test_a_branch_that_moves_changes_no_study_until_its_new_commit_is_asked_for(served, tmp_path):
    first, show = open_study(tmp_path)
    assert show.about("model.base: org/name") == [f"model.base: org/name is commit {FIRST}"]
    record = first.train(CHAIN)
    assert record["base_commit"] == FIRST
    assert read_json(tmp_path / "out" / "commits.json") == {"org/name": FIRST}

    served.repos["org/name"][SECOND] = tmp_path / "moved"
    again, show = open_study(tmp_path)
    assert again.is_done(CHAIN)
    assert show.about("model.base: org/name") == [
        f"model.base: org/name has moved to {SECOND}; this study stays at {FIRST}, --refresh-base takes the new one"
    ]
    assert open_study(tmp_path, "other")[0].commit() == SECOND, "another study begins with what there is"

    refreshed, show = open_study(tmp_path, refresh_base=True)
    assert not refreshed.is_done(CHAIN)
    assert show.about("model.base: org/name") == [
        f"model.base: org/name is commit {SECOND}, no longer {FIRST}: what starts from it is trained anew"
    ]
    assert open_study(tmp_path)[0].commit() == FIRST, "nothing was trained yet: a dry run keeps nothing"
    assert refreshed.train(CHAIN)["base_commit"] == SECOND
    later, _ = open_study(tmp_path)
    assert later.commit() == SECOND
    assert later.is_done(CHAIN)


def test_a_study_goes_on_without_the_hub(served, tmp_path):
    first, _ = open_study(tmp_path)
    first.train(CHAIN)
    served.close()
    again, show = open_study(tmp_path)
    assert again.is_done(CHAIN)
    (told,) = show.about("model.base: org/name")
    assert f"is commit {FIRST}, as before; whether it has moved is not known" in told
    another, _ = open_study(tmp_path, dim=8)
    assert another.train(CHAIN)["base_commit"] == FIRST, "from the cache, at the commit that was kept"
    with pytest.raises(
        ColbertZeroError, match=r"--refresh-base: org/name cannot be asked for, since the Hub is not asked"
    ):
        open_study(tmp_path, refresh_base=True)
    shutil.rmtree(tmp_path / "cache")
    assert open_study(tmp_path)[0].is_done(CHAIN), "a finished study needs neither"
    with pytest.raises(ColbertZeroError, match=r"model.base: 'org/name' .*not whole in the Hub's cache"):
        open_study(tmp_path, dim=4)


def test_a_commit_that_the_recipe_names_is_used_as_it_is(served, tmp_path):
    served.repos["org/name"][SECOND] = tmp_path / "moved"
    named, _ = open_study(tmp_path, revision=FIRST)
    branch, _ = open_study(tmp_path, "other", revision="main")
    served.repos["org/name"].pop(SECOND)
    found, _ = open_study(tmp_path, "third")
    assert [made.commit() for made in (named, branch, found)] == [FIRST, SECOND, FIRST]
    assert named.start_id() == found.start_id() != branch.start_id(), (
        "a commit is known by itself, however it was found"
    )
    with pytest.raises(ColbertZeroError, match="--refresh-base: the recipe's base is no branch"):
        open_study(tmp_path, revision=FIRST, refresh_base=True)


def test_a_model_taken_from_the_hub_does_not_end_a_study(served, tmp_path):
    open_study(tmp_path)[0].train(CHAIN)
    served.repos.clear()
    another, show = open_study(tmp_path, dim=8)
    assert show.about(f"has no such model that this account may see; check the name, or log in (`hf auth login`, or "
                      f"HF_TOKEN). Going on with commit {FIRST}, from the cache")  # fmt: skip
    another.train(CHAIN)


def test_phases_trained_before_commits_were_kept_keep_their_ids(served, tmp_path):
    first, _ = open_study(tmp_path)
    first.commits["org/name"] = None
    old = first.phase_id(CHAIN)
    first.train(CHAIN)
    assert not (tmp_path / "out" / "commits.json").exists()
    again, show = open_study(tmp_path)
    assert again.phase_id(CHAIN) == old
    assert len(show.about("which commit of org/name this study was trained from was not kept at the time")) == 1
    write_json(tmp_path / "out" / "recipe.json", {"model": {"base": None}})
    assert open_study(tmp_path)[0].commit() == FIRST, "those phases had another base"


@pytest.mark.parametrize("content", ["[1]", "{", '{"org/name": "main"}', '{"org/name": 1}'])
def test_a_damaged_record_of_commits_is_told(served, tmp_path, content):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "commits.json").write_text(content)
    with pytest.raises(ColbertZeroError, match=r"commits.json: not what this program writes; delete it"):
        open_study(tmp_path)


def test_a_folder_has_nothing_to_refresh(served, backbone, tmp_path):
    with pytest.raises(ColbertZeroError, match="--refresh-base: the recipe's base is no branch of the Hub's"):
        open_study(tmp_path, base=str(backbone), refresh_base=True)


@pytest.mark.parametrize(
    "words", [("run", "--dry-run"), ("train", "--phase", "unsupervised"), ("sweep", "--grid", "model.dim=8,16")]
)
def test_every_command_that_trains_takes_the_option(served, backbone, tmp_path, monkeypatch, command, words):
    monkeypatch.chdir(tmp_path)
    recipe = data(tmp_path, model={"base": str(backbone), "dim": 16})
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    name, *options = words
    more = ["--phase", "unsupervised"] if name == "sweep" else []
    code, _, told = command(name, "r.yaml", *options, *more, "--refresh-base")
    assert (code, "--refresh-base: the recipe's base is no branch of the Hub's" in told) == (2, True), told


def test_a_base_that_cannot_be_had_is_told_before_data_are_prepared(served, tmp_path):
    served.repos.clear()
    with pytest.raises(ColbertZeroError, match=r"model.base: 'org/name' is no folder here"):
        open_study(tmp_path)
    assert not (tmp_path / "out" / "data").exists()
