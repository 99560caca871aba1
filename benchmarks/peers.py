"""Python environments of the peers: their own, where they need other versions than ours."""

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

ENVIRONMENTS = Path(__file__).parent / ".envs"
PYLATE = ["pylate==1.6.0", "sentence-transformers==5.3.0", "transformers==5.3.0", "tokenizers==0.22.2"]
"""PyLate 1.6 and the versions it pins, without what those need; the rest comes from this environment."""
NEEDED = ["huggingface-hub<2", "ujson==5.12.0"]
"""Needed with all that they need in turn, which is light."""


def python_of(peer: str) -> tuple[str | None, str]:
    """The interpreter to run a peer with, and a line about it; None where the peer is not available.

    Args:
        peer: `ours` or `sentence-transformers`, both in this environment, or `pylate`, in its own.
    """
    if peer != "pylate":
        return sys.executable, "this environment"
    folder = ENVIRONMENTS / "pylate"
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        venv.create(folder, with_pip=True, clear=True)
        for packages in (["--no-deps", *PYLATE], NEEDED):
            pip = [python, "-m", "pip", "install", "--quiet", *packages]
            made = subprocess.run(pip, capture_output=True, text=True)
            if made.returncode:
                return None, f"pip could not install {packages}: {made.stderr.strip().splitlines()[-1]}"
        # Appended after the environment's own packages, so that only what it lacks comes from ours.
        own = subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            capture_output=True,
            text=True,
            check=True,
        )
        Path(own.stdout.strip(), "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
        (folder / "complete").touch()
    tried = subprocess.run([python, "-c", "import pylate.scores"], capture_output=True, text=True)
    if tried.returncode:
        return None, f"import pylate.scores fails: {tried.stderr.strip().splitlines()[-1]}"
    return str(python), "its own environment"
