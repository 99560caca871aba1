"""The public names, and that their examples run."""

import doctest
import os
import subprocess
import sys

import pytest
import torch
import yaml
from datasets import Dataset

import colbert_zero
from helpers import ROOT, data, write_rows


@pytest.mark.parametrize("name", sorted(set(colbert_zero.__all__) - {"__version__"}))
def test_the_example_of_a_public_name_runs(name, tmp_path, monkeypatch, backbone, tiny_multi_vector):
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "pairs.jsonl")
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(data(tmp_path)))
    known = {"torch": torch, "Dataset": Dataset, "encoder": str(backbone), "model": tiny_multi_vector}
    public = getattr(colbert_zero, name)
    module = sys.modules[public.__module__]
    [test] = [t for t in doctest.DocTestFinder().find(public, name, module, {**vars(module), **known}) if t.examples]
    said = []
    doctest.DocTestRunner().run(test, out=said.append)
    assert not said, "".join(said)


def test_importing_the_package_loads_no_torch_and_an_unknown_name_is_told():
    code = (
        "import sys, colbert_zero; assert 'torch' not in sys.modules; print(colbert_zero.__version__);"
        "colbert_zero.load_recipe; assert 'torch' not in sys.modules; colbert_zero.nothing"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.strip()[0].isdigit()
    assert "AttributeError: module 'colbert_zero' has no attribute 'nothing'" in done.stderr
