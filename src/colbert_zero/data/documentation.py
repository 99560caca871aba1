"""The documentation of installed packages as documents to search: one a docstring, as `data/docstrings` reads them."""

import json
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from colbert_zero.data.docstrings import docstring_pairs, module_names
from colbert_zero.files import Progress, atomic_file


class Documentation(NamedTuple):
    """What was written.

    Attributes:
        documents: How many.
        packages: That they are of.
        left_out: Docstrings that are not there, by reason.
    """

    documents: int
    packages: list[str]
    left_out: dict[str, int]


def write_documentation(
    packages: list[str] | None, file: Path, cache: Path, progress: Progress | None = None
) -> Documentation:
    """Write JSON lines, a docstring each: `_id` and `title` its qualified name, `text`, `package` and `module`.

    Args:
        packages: Import names, as for `docstring_pairs`.
        file: Appears whole.
        cache: As for `docstring_pairs`.
        progress: Likewise.

    Raises:
        ColbertZeroError: A package is not installed, or has no usable docstring.
    """
    pairs, counts = docstring_pairs(packages, cache, progress)
    seen: Counter[str] = Counter()
    with atomic_file(file) as opened:
        for package, found in pairs.items():
            modules = module_names(package)
            for first, rest in found:
                name, _, later = rest.partition(": ")
                seen[name] += 1  # a property and its setter have one name
                row = {
                    "_id": name if seen[name] == 1 else f"{name} ({seen[name]})",
                    "title": name,
                    "text": f"{first} {later}",
                    "package": package,
                    "module": _module_of(name, modules),
                }
                opened.write(json.dumps(row, ensure_ascii=False) + "\n")
    return Documentation(sum(map(len, pairs.values())), list(pairs), counts.dropped)


def _module_of(name: str, modules: set[str]) -> str:
    """The module that a qualified name is in: its longest beginning that is one; "" of none."""
    while name and name not in modules:
        name = name.rpartition(".")[0]
    return name
