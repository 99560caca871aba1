"""What the package says of itself."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions

from helpers import ROOT

ROOT = ROOT


def test_every_package_that_is_imported_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(w for extra in project["optional-dependencies"].values() for w in extra)]
    declared = {re.split(r"[<>=\[ ;]", name)[0].lower().replace("_", "-") for name in wanted}
    imported = set()
    for file in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.split(".")[0])
    others = imported - set(sys.stdlib_module_names) - {"colbert_zero"}
    # Triton comes with torch's CUDA builds; the others are extras that need not be installed.
    known = packages_distributions() | {"triton": ["torch"], "late_interaction_kernels": ["late-interaction-kernels"]}
    known |= {
        name: [name]
        for name in ("wandb", "tensorboard", "mteb", "peft", "onnx", "onnxruntime", "onnxscript", "openvino")
    }
    assert "torch" in others
    missing = {name for name in others if not {d.lower().replace("_", "-") for d in known.get(name, [])} & declared}
    assert not missing
