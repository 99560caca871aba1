"""A checkpoint from elsewhere can neither run code nor read outside its folder."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from colbert_zero.errors import ColbertZeroError
from colbert_zero.models.alignment import Alignment
from colbert_zero.models.checkpoints import load_model
from colbert_zero.models.encoders import assemble, save_model
from colbert_zero.models.scratch import train_tokenizer, write_scratch
from colbert_zero.models.untrusted import check_checkpoint

ALIGNMENT = Alignment("search_query: ", "search_document: ", "[Q]", "[D]", 8, 12)
TINY = {
    "model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
}  # fmt: skip
EXAMPLES = int(os.environ.get("HOSTILE_EXAMPLES", "40"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformers folder, `start`, and a multi-vector checkpoint made of it, `model`."""
    folder = tmp_path_factory.mktemp("made")
    write_scratch(folder / "start", TINY, train_tokenizer(["the lift of a wing"] * 4, 300, ["[Q]", "[D]"], 64), seed=3)
    save_model(assemble(str(folder / "start"), "multi-vector", ALIGNMENT, 8, 1, "p"), folder / "model", ALIGNMENT)
    return folder


@pytest.fixture
def checkpoint(made: Path, tmp_path: Path) -> Path:
    """A copy to be spoilt, with code beside it that leaves a trace wherever it runs."""
    shutil.copytree(made / "model", tmp_path / "model")
    (tmp_path / "secret").mkdir()
    shutil.copy(tmp_path / "model" / "model.safetensors", tmp_path / "secret")
    (tmp_path / "secret" / "vocab.txt").write_text("secret\n")
    trace = f"import pathlib; pathlib.Path({str(tmp_path / 'trace')!r}).touch()"
    body = (
        f"{trace}\nimport torch\nclass Evil(torch.nn.Identity):\n    load = classmethod(lambda cls, *a, **k: cls())\n"
    )
    for name in ("evil.py", "modeling_evil.py", "configuration_evil.py"):
        (tmp_path / "model" / name).write_text(body)
    return tmp_path / "model"


class Trace:
    """Leaves a file when unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def refusal(load: Callable[[], Any]) -> str | None:
    """The message, if it is refused."""
    try:
        load()
    except ColbertZeroError as error:
        return str(error)
    return None


def edit(file: Path, change: Callable[[Any], Any]) -> None:
    """Change a JSON file; what the change returns, if anything, takes its place."""
    content = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(change(content) or content))


def modules(**entry: str) -> Callable[[Path], None]:
    """Change the last module's entry in modules.json."""
    return lambda folder: edit(folder / "modules.json", lambda m: m[-1].update(entry))


def settings_of(**entry: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "sentence_bert_config.json", lambda content: content.update(entry))


def config(**entry: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "config.json", lambda content: content.update(entry))


def activation(folder: Path) -> None:
    edit(folder / "1_Dense" / "config.json", lambda content: content.update(activation_function="evil.Evil"))


def shard(name: str) -> Callable[[Path], None]:
    """Sharded weights, one of which is this file."""

    def spoil(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        index = {"metadata": {"total_size": 1}, "weight_map": {"embeddings.word_embeddings.weight": name}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return spoil


def pickled_shard(folder: Path) -> None:
    """A shard of another name is read as a pickle; how carefully is one of the settings."""
    torch.save({"embeddings.word_embeddings.weight": Trace(folder.parent / "trace")}, folder / "weights.data")
    shard("weights.data")(folder)
    settings_of(model_kwargs={"weights_only": False})(folder)


def pickle_beside(folder: Path) -> None:
    (folder / "1_Dense" / "weights.pickle").write_bytes(pickle.dumps(Trace(folder.parent / "trace")))


def link(name: str, to: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(to)

    return spoil


def pipe(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")


def large_json(folder: Path) -> None:
    os.truncate(folder / "modules.json", 1 << 27)


def auto_map(folder: Path) -> None:
    names = {"AutoConfig": "configuration_evil.Evil", "AutoModel": "modeling_evil.Evil"}
    config(model_type="evil", auto_map=names)(folder)


def own_tokenizer(folder: Path) -> None:
    entry = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    edit(folder / "tokenizer_config.json", lambda content: content.update(entry))


ATTACKS: dict[str, tuple[Callable[[Path], None], str]] = {
    "a module of the folder": (modules(type="evil.Evil"), "'evil.Evil', which is not part of Sentence Transformers"),
    "a function of the library's imports": (modules(type="posixpath.join"), "'posixpath.join', which is not part"),
    "what the library itself imports": (modules(type="sentence_transformers.base.model.pickle"), "cannot be loaded"),
    "a path above the folder": (modules(path="../secret"), "Invalid model path '../secret'"),
    "an absolute path": (modules(path="/etc"), "Invalid model path '/etc'"),
    "code for the model": (auto_map, "custom code"),
    "code for the tokenizer": (own_tokenizer, ""),
    "code for an activation": (activation, "`activation_function` is 'evil.Evil', not one of torch"),
    "attention from a repository": (config(attn_implementation="some/kernel"), "would fetch and run 'some/kernel'"),
    "attention of a part": (config(text_config={"_attn_implementation": {"": "some/kernel"}}), "would fetch and run"),
    "weights above the folder": (shard("../secret/model.safetensors"), "weights in '../secret/model.safetensors'"),
    "weights with an absolute path": (shard("/secret/model.safetensors"), "weights in '/secret/model.safetensors'"),
    "weights in a pickle of another name": (pickled_shard, "weights in 'weights.data', which is no safetensors file"),
    "a pickle beside the weights": (pickle_beside, "weights.pickle: a pickle can run code when loaded"),
    "arguments for the tokenizer": (
        settings_of(processor_kwargs={"vocab_file": "../secret/vocab.txt"}),
        "`processor_kwargs` has vocab_file, which can reach outside",
    ),
    "old names of the same": (settings_of(tokenizer_args={"tokenizer_file": "/x"}), "`tokenizer_args` has tokenizer_f"),
    "arguments for the model": (settings_of(model_args={"weights_only": False}), "`model_args` has weights_only"),
    "arguments that are none": (settings_of(model_args=[1]), "`model_args` is no object"),
    "attention by arguments": (settings_of(model_args={"attn_implementation": "a/b"}), "would fetch and run 'a/b'"),
    "another tokenizer": (settings_of(tokenizer_name_or_path="../secret"), "a tokenizer outside the folder, '../secr"),
    "an adapter": (
        lambda folder: edit(folder / "adapter_config.json", lambda _: {"base_model_name_or_path": "../secret"}),
        "an adapter names a model outside the folder",
    ),
    "a linked file": (link("model.safetensors", "../secret/model.safetensors"), "model.safetensors: a link to "),
    "a linked folder": (link("2_More", "../secret"), "2_More: a link to "),
    "a link to itself": (link("x.json", "x.json"), ""),
    "a pipe": (pipe, "model.safetensors: no ordinary file"),
    "a large JSON": (large_json, "modules.json: larger than 64 MB"),
    "a deep JSON": (lambda f: (f / "config.json").write_text("[" * 100_000), "read as JSON: nested too deeply"),
    "a deep list of modules": (lambda f: (f / "modules.json").write_text("[" * 100_000), "nested too deeply"),
    "no object": (lambda f: (f / "config.json").write_text("[1]"), "config.json: not an object with keys"),
    "modules of another shape": (lambda f: (f / "modules.json").write_text('{"a": 1}'), "cannot be loaded"),
    "no modules": (lambda f: (f / "modules.json").write_text("[]"), "cannot be loaded"),
    "cut weights": (lambda f: os.truncate(f / "model.safetensors", 2000), "cannot be loaded"),
    "weights of another shape": (config(hidden_size=32), "cannot be loaded"),
    "a header of 2 ** 60 bytes": (
        lambda f: (f / "model.safetensors").write_bytes((1 << 60).to_bytes(8, "little") + b"{}"),
        "cannot be loaded",
    ),
}  # fmt: skip
# These are settled without a word: what is there is not used.
HARMLESS = {"code for the tokenizer", "a link to itself"}


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_is_refused_and_no_code_runs(checkpoint: Path, attack: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil, message = ATTACKS[attack]
    spoil(checkpoint)
    # Where code lies beside a program that happens to run there, an import would find it.
    monkeypatch.chdir(checkpoint)
    monkeypatch.syspath_prepend(str(checkpoint))
    for load in (
        lambda: load_model(checkpoint),
        lambda: assemble(str(checkpoint), "multi-vector", ALIGNMENT, 8, 1, "p"),
    ):
        told = refusal(load)
        assert (told is None) == (attack in HARMLESS)
        assert message in (told or "")
        assert "\n" not in (told or "")
        assert len(told or "") < 500 + 3 * len(str(checkpoint))
    assert not (checkpoint.parent / "trace").exists()


BASE_ATTACKS = [
    "code for the model", "code for the tokenizer", "attention from a repository", "weights above the folder",
    "weights in a pickle of another name", "a linked file", "a deep JSON", "no object", "cut weights", "an adapter",
]  # fmt: skip


@pytest.mark.parametrize("attack", BASE_ATTACKS)
def test_a_base_without_modules_is_refused_as_well(
    made: Path, checkpoint: Path, attack: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("modules.json", "config_sentence_transformers.json", "colbert_zero.json"):
        (checkpoint / name).unlink()
    ATTACKS[attack][0](checkpoint)
    monkeypatch.chdir(checkpoint)
    monkeypatch.syspath_prepend(str(checkpoint))
    # Nobody is asked at the terminal whether to run it.
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    if attack in HARMLESS:
        assemble(str(checkpoint), "multi-vector", ALIGNMENT, 8, 1, "p")
    else:
        with pytest.raises(ColbertZeroError):
            assemble(str(checkpoint), "multi-vector", ALIGNMENT, 8, 1, "p")
    assert not (checkpoint.parent / "trace").exists()


def test_a_vocabulary_outside_the_folder_is_not_read(checkpoint: Path) -> None:
    outside = {"vocab_file": str(checkpoint.parent / "secret/vocab.txt"), "tokenizer_file": "../secret/vocab.txt"}
    before = load_model(checkpoint).tokenizer.get_vocab()
    edit(checkpoint / "tokenizer_config.json", lambda content: content.update(outside))
    assert load_model(checkpoint).tokenizer.get_vocab() == before
    assert "secret" not in before


def test_an_untouched_checkpoint_passes(made: Path) -> None:
    check_checkpoint(str(made / "model"))
    check_checkpoint(str(made / "start"))


def test_links_of_a_hub_snapshot_into_its_own_store_are_followed(made: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    (tmp_path / "models--a--b" / "blobs").mkdir(parents=True)
    shutil.copytree(made / "model", snapshot)
    shutil.move(snapshot / "model.safetensors", tmp_path / "models--a--b" / "blobs" / "f00d")
    (snapshot / "model.safetensors").symlink_to("../../blobs/f00d")
    load_model(snapshot)
    (snapshot / "modules.json").unlink()
    (snapshot / "modules.json").symlink_to("../../../secret.json")
    (tmp_path / "secret.json").write_text("[]")
    with pytest.raises(ColbertZeroError, match=r"modules\.json: a link to .*secret\.json, outside the folder"):
        load_model(snapshot)


def test_code_that_is_trusted_is_not_looked_at_but_links_are(checkpoint: Path) -> None:
    settings_of(model_args={"weights_only": False})(checkpoint)
    check_checkpoint(str(checkpoint), trust_remote_code=True)
    link("x", "../secret/vocab.txt")(checkpoint)
    with pytest.raises(ColbertZeroError, match="outside the folder"):
        check_checkpoint(str(checkpoint), trust_remote_code=True)


@pytest.mark.parametrize("content", ["", "[1]", "{}", '{"query_prompt": 1, "document_prompt": ""}', "[" * 100_000])
def test_a_damaged_alignment_is_told(checkpoint: Path, content: str) -> None:
    (checkpoint / "colbert_zero.json").write_text(content)
    with pytest.raises(ColbertZeroError, match=r"colbert_zero\.json: not what this program writes; delete it"):
        assemble(str(checkpoint), "multi-vector", ALIGNMENT, 8, 1, "p")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 1 << 40) | st.floats() | st.sampled_from(["", "../x", "evil.Evil"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["type", "a"]), inner, max_size=2),
    max_leaves=4,
)  # fmt: skip


@settings(deadline=None, max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_checkpoint_with_any_json_loads_or_is_one_plain_message(
    made: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("any") / "model"
    shutil.copytree(made / "model", folder)
    file = data.draw(st.sampled_from(sorted(folder.rglob("*.json"))))
    content = json.loads(file.read_text())
    places: list[Any] = [content]
    for place in places:
        places += [v for v in (place.values() if isinstance(place, dict) else place) if isinstance(v, dict | list)][:20]
    place = data.draw(st.sampled_from(places))
    keys = list(place) if isinstance(place, dict) else list(range(len(place)))
    if keys:
        place[data.draw(st.sampled_from(keys))] = data.draw(VALUES)
    file.write_text(json.dumps(content))
    told = refusal(lambda: load_model(folder))
    assert told is None or (told.startswith(str(folder)) and "\n" not in told)
