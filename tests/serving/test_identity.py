"""What an index knows its model by."""

import shutil

import pytest

from colbert_zero.errors import ColbertZeroError
from colbert_zero.files import read_json, write_json
from colbert_zero.models.contents import contents_of
from colbert_zero.serving.identity import load_identified, load_known


def quiet(_):
    pass


@pytest.mark.parametrize("name", ["head", "heads/first", "2_Dense"])
def test_a_head_that_changed_is_another_model_wherever_modules_json_puts_it(tiny_multi_vector, tmp_path, name):
    model = tmp_path / "m"
    tiny_multi_vector.save_pretrained(str(model), create_model_card=False)
    modules = read_json(model / "modules.json")
    [dense] = [entry for entry in modules if entry["type"].endswith("Dense")]
    if dense["path"] != name:
        (model / name).parent.mkdir(exist_ok=True)
        shutil.move(model / dense["path"], model / name)
    dense["path"] = name
    write_json(model / "modules.json", modules)
    _, known = load_identified(str(model), "MODEL", quiet)
    load_known(known, None, quiet)
    weights = model / name / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ColbertZeroError, match="its files have changed since"):
        load_known(known, None, quiet)


def test_what_no_model_reads_changes_nothing(tiny_multi_vector, tmp_path):
    tiny_multi_vector.save_pretrained(str(tmp_path / "m"), create_model_card=False)
    before = contents_of(str(tmp_path / "m"))
    (tmp_path / "m" / "onnx").mkdir()
    (tmp_path / "m" / "onnx" / "config.json").write_text("{}")
    (tmp_path / "m" / ".colbert-zero-published").write_text("{}")
    (tmp_path / "m" / "README.md").write_text("# A card")
    assert contents_of(str(tmp_path / "m")) == before
