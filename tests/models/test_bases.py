"""A base on the Hub: what it answers is told before data are prepared, and nothing is waited for long."""

import shutil
import socket
import time

import pytest

from colbert_zero.errors import ColbertZeroError
from colbert_zero.models.bases import TIMEOUT_SECONDS, cached_commit, check_base, find_commit, is_hub_id

COMMIT = "a" * 40


@pytest.mark.parametrize(
    ("base", "could_be"),
    [("org/name", True), ("bert-base-uncased", True), ("./x", False), ("/x", False), ("~/x", False), ("a/b/c", False)],
)
def test_a_folder_that_is_not_there_is_told_from_a_name_on_the_hub(base, could_be):
    assert is_hub_id(base) == could_be


def test_a_base_on_the_hub_is_checked_without_its_weights(hub, backbone):
    hub.repos["org/name"] = {COMMIT: backbone}
    assert find_commit("org/name", None) == (COMMIT, "")
    check_base("org/name", COMMIT)
    assert not any("resolve" in path and path.endswith(".safetensors") for path in hub.asked)


ANSWERS = {
    "no such model": ((401, "RepoNotFound"), "has no such model that this account may see; check the name, or log in"),
    "gated": ((403, "GatedRepo"), "'org/name' is gated; ask for access at http.*/org/name, and log in"),
    "no such branch": ((404, "RevisionNotFound"), "model.revision: 'org/name' has no branch, tag or commit 'v9'"),
    "an outage": ((503, ""), "not whole in the Hub's cache .* does not answer .*`hf download org/name`"),
}


@pytest.mark.parametrize(("answer", "message"), ANSWERS.values(), ids=ANSWERS)
def test_what_the_hub_answers_is_one_message_with_the_mend(hub, answer, message):
    hub.answer = answer
    with pytest.raises(ColbertZeroError, match=message):
        find_commit("org/name", "v9")
    assert len(hub.asked) == 1, "asked once"


def test_a_gated_models_commit_is_public_and_its_files_are_not(hub, backbone):
    hub.repos["org/name"] = {COMMIT: backbone}
    commit, _ = find_commit("org/name", None)
    hub.answer = (403, "GatedRepo")
    with pytest.raises(ColbertZeroError, match=r"'org/name' is gated; ask for access"):
        check_base("org/name", commit)


def test_a_name_that_the_hub_cannot_hold_is_told(hub):
    with pytest.raises(ColbertZeroError, match="no name that the Hub can hold"):
        find_commit("my--model..", None)


def test_a_hub_that_cannot_be_reached_is_told_at_once(hub):
    hub.close()
    begun = time.monotonic()
    with pytest.raises(
        ColbertZeroError, match=r"'org/name' is no folder here and not whole in the Hub's cache .* not answer"
    ):
        find_commit("org/name", None)
    assert time.monotonic() - begun < TIMEOUT_SECONDS


def test_a_hub_that_never_answers_is_waited_for_once(hub, monkeypatch):
    monkeypatch.setattr("colbert_zero.models.bases.TIMEOUT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        begun = time.monotonic()
        with pytest.raises(ColbertZeroError, match=r"does not answer .*timed out"):
            find_commit("org/name", None)
    assert time.monotonic() - begun < 2


def test_offline_and_not_in_the_cache_is_told(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        ColbertZeroError, match=r"not whole in the Hub's cache .*, and the Hub is not asked .*; fetch it"
    ):
        find_commit("org/name", None)


def snapshot(cache, name, commit, folder):
    """A model in the layout of the Hub's cache."""
    store = cache / f"models--{name.replace('/', '--')}"
    shutil.copytree(folder, store / "snapshots" / commit)
    (store / "refs").mkdir(exist_ok=True)
    (store / "refs" / "main").write_text(commit)
    return store / "snapshots" / commit


def test_offline_the_caches_commit_counts_and_it_must_be_there_whole(hub, monkeypatch, tmp_path, backbone):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    files = snapshot(tmp_path / "cache", "org/name", COMMIT, backbone)
    assert cached_commit("org/name", None) == COMMIT
    assert find_commit("org/name", None) == (
        COMMIT,
        "the Hub is not asked (HF_HUB_OFFLINE is set, or it did not answer before)",
    )
    check_base("org/name", COMMIT)
    (files / "model.safetensors").unlink()
    with pytest.raises(ColbertZeroError, match=r"not whole in the Hub's cache .*`hf download org/name`"):
        check_base("org/name", COMMIT)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "README.md"])
def test_a_base_on_the_hub_without_safetensors_is_told(hub, backbone, tmp_path, name):
    shutil.copytree(backbone, tmp_path / "served")
    (tmp_path / "served" / "model.safetensors").rename(tmp_path / "served" / name)
    hub.repos["org/name"] = {COMMIT: tmp_path / "served"}
    with pytest.raises(ColbertZeroError, match=r"'org/name' has no weights as safetensors; load it once and save it"):
        check_base("org/name", COMMIT)


def test_a_repository_without_a_model_is_told(hub, tmp_path):
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "README.md").touch()
    hub.repos["org/name"] = {COMMIT: tmp_path / "served"}
    with pytest.raises(ColbertZeroError, match=r"'org/name' has no config.json on the Hub"):
        check_base("org/name", COMMIT)


def test_evaluate_tells_of_a_model_that_is_not_there_before_it_reads_the_collection(hub, command):
    code, _, told = command("evaluate", "org/name", "--collection", "nowhere")
    assert code == 2
    assert "MODEL: 'org/name' is no folder here, and the Hub has no such model" in told
