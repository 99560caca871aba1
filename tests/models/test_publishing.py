"""Publishing a model: what is refused, what is written, and what reaches the Hub."""

import shutil

import pytest
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder, MultiVectorEncoder, SentenceTransformer

from colbert_zero.files import read_json, write_json
from colbert_zero.models.comparing import TOLERANCE
from colbert_zero.models.publishing import RECORD, publish
from colbert_zero.report.card import CARD, MARK
from colbert_zero.report.trained import Found, find_model
from helpers import data, study, write_rows

KINDS = {"multi-vector": MultiVectorEncoder, "dense": SentenceTransformer, "cross-encoder": CrossEncoder}


@pytest.fixture
def saved(request, tmp_path, monkeypatch, tiny_multi_vector, tiny_dense, tiny_cross_encoder):
    """A checkpoint of this kind, by default multi-vector, in an empty folder that is worked in."""
    kind = getattr(request, "param", "multi-vector")
    model = {"multi-vector": tiny_multi_vector, "dense": tiny_dense, "cross-encoder": tiny_cross_encoder}[kind]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    model.save_pretrained(str(tmp_path / "mine"), create_model_card=False)
    return tmp_path / "mine"


@pytest.mark.parametrize("saved", KINDS, indirect=True)
def test_a_model_of_any_kind_is_written_with_a_card_and_loads_from_there(saved, command, request):
    code, out, err = command("publish", saved, "--licence", "apache-2.0")
    assert code == 0, err
    published = saved.parent / "published" / "mine"
    assert "published/mine: the model and its card, licence apache-2.0" in out
    assert "no record of its training" in out
    kind = request.node.callspec.params["saved"]
    KINDS[kind](str(published), device="cpu")
    card = ModelCard.load(published / CARD)
    assert (card.data.license, card.data.tags[:2]) == ("apache-2.0", ["sentence-transformers", kind])
    ours = {f.relative_to(saved).as_posix(): f.read_bytes() for f in saved.rglob("*") if f.is_file()}
    theirs = {f.relative_to(published).as_posix(): f.read_bytes() for f in published.rglob("*") if f.is_file()}
    theirs.pop(CARD)
    theirs.pop(RECORD)
    assert ours == theirs, "an index made with the one is searched with the other"


def break_by(saved, way):
    if way == "half precision":
        weights = load_file(saved / "model.safetensors")
        save_file({k: v.half() for k, v in weights.items()}, saved / "model.safetensors", {"format": "pt"})
        write_json(saved / "config.json", read_json(saved / "config.json") | {"dtype": "float16"})
    elif way == "pickle":
        (saved / "pytorch_model.bin").write_bytes(b"x")
    elif way == "code":
        (saved / "modeling.py").write_text("")
    elif way == "place":
        write_json(saved / "config.json", read_json(saved / "config.json") | {"_name_or_path": "/home/me/secret/base"})
    elif way == "place in the card":
        (saved / CARD).write_text(f"# Mine\n\nTrained in {saved}.\n")
    elif way == "damaged":
        (saved / "model.safetensors").write_bytes(b"\0" * 100)
    elif way == "link":
        (saved / "more.json").symlink_to("/etc/hostname")
    elif way == "no JSON":
        (saved / "more.json").write_text("{")
    elif way == "a key twice":
        (saved / "more.json").write_text('{"a": 1, "a": 2}')
    elif way == "another encoding":
        (saved / "more.json").write_bytes(b'{"a": "\xe9"}')
    elif way == "a card in another encoding":
        (saved / CARD).write_bytes(b"# Caf\xe9\n")
    elif way == "card":
        (saved / CARD).write_text("---\ntags: [\n---\n# Mine\n")


@pytest.mark.parametrize(
    ("way", "message"),
    [
        ("half precision", "gives others another result than here (up to "),
        ("pickle", "pytorch_model.bin: a pickle can run code"),
        ("code", "modeling.py: a model is published as safetensors, JSON and text alone; take it out"),
        ("place", 'config.json: `_name_or_path` is \'/home/me/secret/base\', a place on a machine; take the key out'),
        ("place in the card", "a place on this machine; take it out"),
        ("damaged", "model.safetensors cannot be read"),
        ("link", "more.json: a link to /etc/hostname, outside the folder"),
        ("no JSON", "more.json: is no JSON that others can read"),
        ("a key twice", "more.json: is no JSON that others can read"),
        ("another encoding", "more.json: is no JSON that others can read"),
        ("a card in another encoding", "README.md: not UTF-8; save it so"),
        ("card", "README.md: the lines between --- and --- are no YAML"),
    ],
)  # fmt: skip
def test_what_others_could_not_use_as_it_is_or_should_not_see_is_refused_and_nothing_is_written(
    saved, command, way, message
):
    break_by(saved, way)
    code, _, err = command("publish", saved, "--licence", "mit")
    assert (code, message in err, "Traceback" in err) == (2, True, False), err
    assert not list(saved.parent.glob("published/*"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("mine", "--to", "mine/inside"), "--to mine/inside: the model itself lies there"),
        (("mine", "--to", "."), "the model itself lies there"),
        (("mine", "--to", "./other"), "--to other is there, and nothing that `publish` wrote"),
        (("mine", "--to", "a/b/c/d"), "--to a/b/c/d: name a folder (./NAME), or a repository of the Hub (USER/NAME)"),
        (("mine", "--licence", "Apache 2"), "--licence Apache 2: write the Hub's identifier"),
        (("nowhere",), "MODEL: no such folder 'nowhere'"),
        (("other",), "MODEL: 'other' has no config.json"),
    ],
)
def test_a_mistaken_place_or_licence_is_told_and_what_is_there_stays(saved, command, words, message):
    (saved.parent / "other").mkdir()
    (saved.parent / "other" / "thing.txt").write_text("kept")
    code, _, err = command("publish", *words)
    assert (code, message in err, "Traceback" in err) == (2, True, False), err
    assert (saved.parent / "other" / "thing.txt").read_text() == "kept"


def test_publishing_again_replaces_what_publish_wrote_and_a_card_of_ones_own_is_kept(saved, command):
    assert command("publish", saved, "--to", "./there")[0] == 0
    (saved / CARD).write_text("---\nlicense: mit\n---\n# Mine\n\nFrom path/to/this/folder.\n")
    assert command("publish", saved, "--to", "./there")[0] == 0
    assert command("publish", saved, "--to", "./there")[0] == 0, "the same command again"
    assert (saved.parent / "there" / CARD).read_text() == (saved / CARD).read_text()
    assert MARK not in (saved.parent / "there" / CARD).read_text()


@pytest.mark.parametrize("which", [".git/HEAD", "notes.txt", CARD, "config.json", "empty", "link", "deep/README.md"])
def test_what_is_not_as_publish_wrote_it_is_never_replaced(saved, command, which):
    assert command("publish", saved, "--to", "./there")[0] == 0
    file = saved.parent / "there" / which
    file.parent.mkdir(exist_ok=True)
    if which == "empty":
        file.mkdir()
    elif which == "link":
        file.symlink_to(saved)
    else:
        file.write_text("mine")
    code, _, err = command("publish", saved, "--to", "./there")
    assert (code, f"--to there has {which}, which `publish` did not write" in err) == (2, True), err
    assert file.exists()


def test_the_folder_that_one_works_in_is_not_replaced(saved, command, monkeypatch):
    (saved.parent / "empty").mkdir()
    monkeypatch.chdir(saved.parent / "empty")
    code, _, err = command("publish", saved, "--to", ".")
    assert (code, "--to .: you work in there" in err, "Traceback" in err) == (2, True, False), err


def test_through_a_link_the_folder_behind_it_is_written(saved, command):
    (saved.parent / "real").mkdir()
    (saved.parent / "linked").symlink_to("real")
    for _ in range(2):
        assert command("publish", saved, "--to", "./linked")[0] == 0
    assert (saved.parent / "real" / CARD).is_file()
    assert (saved.parent / "linked").is_symlink()


def test_hidden_files_are_left_out_and_told(saved, command):
    (saved / ".cache").mkdir()
    (saved / ".cache" / "token.json").write_text("{}")
    code, out, _ = command("publish", saved)
    assert (code, "left out, hidden: .cache/token.json" in out) == (0, True)
    assert not (saved.parent / "published" / "mine" / ".cache").exists()
    assert "no licence is named" in out


# ---- The Hub


def test_without_a_token_nothing_is_pushed_and_it_is_said_where_the_folder_lies(saved, hub, command):
    code, out, err = command("publish", saved, "--to", "me/mine")
    assert code == 0, err
    assert "me/mine: not pushed, no token is there; `hf auth login`" in out
    assert "published/mine: the model and its card" in out
    assert hub.asked == []


def test_with_a_token_the_folder_is_pushed_whole_and_its_card_names_the_repository(saved, hub, command, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    hub.taken = saved.parent / "taken"
    code, out, err = command("publish", saved, "--to", "me/mine", "--private", "--licence", "mit")
    assert code == 0, err
    [commit] = [commit for commit in hub.repos["me/mine"] if commit != "0" * 40]
    assert f"pushed: {hub.address}/me/mine/commit/{commit}" in out
    assert (hub.created[0]["organization"], hub.created[0]["name"]) == ("me", "mine")
    assert hub.created[0].get("visibility") == "private" or hub.created[0].get("private")
    published = saved.parent / "published" / "mine"
    assert not (hub.taken / commit / RECORD).exists()
    for file in (file for file in published.rglob("*") if file.is_file() and file.name != RECORD):
        assert (hub.taken / commit / file.relative_to(published)).read_bytes() == file.read_bytes()
    assert 'MultiVectorEncoder("me/mine")' in (published / CARD).read_text()

    hub.repos["me/mine"][commit].joinpath("old.bin").write_bytes(b"x")
    code, out, err = command("publish", saved, "--to", "me/mine")
    assert (code, "me/mine has files of before, which stay: old.bin" in out) == (0, True), err


@pytest.mark.parametrize(("status", "words"), [(403, "403"), (401, "401"), (500, "500")])
def test_a_hub_that_does_not_take_it_is_told_and_the_folder_kept(saved, hub, command, monkeypatch, status, words):
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    monkeypatch.setattr("time.sleep", lambda _: None)
    hub.answer = (status, "")
    code, _, err = command("publish", saved, "--to", "me/mine")
    assert (code, "does not take it" in err, "published/mine" in err, "Traceback" in err) == (2, True, True, False), err
    assert words in err
    assert (saved.parent / "published" / "mine" / CARD).is_file()


# ---- A study's


def test_a_card_changes_no_id_and_no_base_and_a_phase_has_one_as_soon_as_it_is_saved(tmp_path):
    write_rows(tmp_path / "pairs.jsonl")
    made = study(tmp_path, data(tmp_path))
    made.prepare([("unsupervised",)])
    made.train(("unsupervised",))
    model = made.phase_folder(("unsupervised",)) / "model"
    assert "Not evaluated" in (model / CARD).read_text()
    based = data(tmp_path, model={"base": str(model)})
    before = study(tmp_path / "a", based).start_id()
    (model / CARD).write_text(MARK + "another")
    assert study(tmp_path / "b", based).start_id() == before
    (model / CARD).unlink()
    assert study(tmp_path / "c", based).start_id() == before
    (model / CARD).write_text("somebody's own, which has always counted")
    assert study(tmp_path / "d", based).start_id() != before
    assert made.is_done(("unsupervised",))


def test_what_is_published_gives_what_was_scored(saved):
    done = publish(Found(saved, "mine"), "./there", None, False, lambda _: None)
    assert done.difference <= TOLERANCE
    assert (done.url, done.licence) == (None, None)
    shutil.rmtree(saved)
    assert find_model("there") == Found(done.folder, "there")
