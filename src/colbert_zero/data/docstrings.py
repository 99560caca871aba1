"""(query, document) pairs from the docstrings of installed Python packages, parsed and never imported.

The query is the docstring's first paragraph, the document the qualified name and the later paragraphs.
Nothing found on the disk is executed. Files that cannot be parsed are counted and passed over.
"""

import ast
import difflib
import gc
import io
import json
import os
import platform
import re
import signal
import stat
import subprocess
import sys
import sysconfig
import tokenize
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib.machinery import PathFinder
from importlib.metadata import distribution, packages_distributions
from itertools import dropwhile, islice
from pathlib import Path
from typing import Any

from colbert_zero.data.outlines import outline
from colbert_zero.errors import ColbertZeroError
from colbert_zero.files import Progress, atomic_file, fingerprint

PARSER_VERSION = 1  # to be raised whenever the pairs of an unchanged package change

STANDARD_LIBRARY = "python"

QUERY_WORDS = (4, 60)  # a longer first paragraph is cut after its last whole sentence that fits

REST_WORDS = 8  # of prose: doctests do not count

DOCUMENT_CHARACTERS = 4000

FILE_BYTES = 2_000_000  # larger files are generated tables

CHUNK_BYTES = 12_000_000  # source that one worker process parses: about a second

CHUNK_SECONDS = 120

CRASHES = frozenset({signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGKILL})  # but not the user's Ctrl-C

SKIPPED_FOLDERS = re.compile(r"_?tests?|_?testing|_?vendor(ed)?|_bundled|externals?|extern|idlelib|turtledemo")

SKIPPED_MODULE = re.compile(r"test_.*|.*_tests?|tests?|conftest")

DOCSTRING_ADDERS = frozenset({"add_docstr", "_add_docstr", "add_newdoc"})  # torch and numpy, for C functions

HEADINGS = (
    r"(args|arguments|keyword arguments|parameters?|params?|returns?|yields|raises|usage|examples?|notes?|"
    r"see also|attributes|references|warnings?|todo|fixme)\s*:"
)

PARAGRAPH_END = re.compile(rf"\n(\n+|(?={HEADINGS}|:\w+[^:\n]*:|\.\. |>>>))", re.IGNORECASE)

RULER = re.compile(r"([=~^*#+_\-])\1{3,}")

DOCTEST = re.compile(r"^>>>.*(\n.+)*", re.MULTILINE)  # the prompt and what follows up to a blank line

WORD = re.compile(r"[^\W\d_]{2,}")

SIGNATURE = re.compile(r"[\w.]+\(.*\)(\s*->.*)?:?")

SENTENCE_END = re.compile(r"(?<!\be\.g)(?<!\bi\.e)[.!?](?=\s+[A-Z])")

JUNK_QUERY = re.compile(
    rf"\W*(copyright|licensed under|{HEADINGS}|deprecated\b\s*:)|[`*\w.]+ \([^)]*\)\s*:|>>>|[:@]\w|\.\. |!!!",
    re.IGNORECASE,
)

Pair = tuple[str, str]


@dataclass
class Counts:
    """What became of the files and docstrings.

    files = parsed + sum(passed_over), and docstrings = pairs + sum(dropped). Modules and folders of tests and
    vendored copies are not looked at and so not counted.
    """

    files: int = 0
    passed_over: dict[str, int] = field(default_factory=dict)  # reason -> files (or folders)
    docstrings: int = 0
    dropped: dict[str, int] = field(default_factory=dict)  # reason -> docstrings
    pairs: int = 0

    def add(self, other: "Counts") -> None:
        """Add another package's counts to these."""
        self.files += other.files
        self.docstrings += other.docstrings
        self.pairs += other.pairs
        self.passed_over = dict(Counter(self.passed_over) + Counter(other.passed_over))
        self.dropped = dict(Counter(self.dropped) + Counter(other.dropped))


@dataclass(frozen=True)
class _Package:
    name: str
    roots: tuple[Path, ...]  # folders, or one module's file
    key: str  # of the cache


class _PassedOverError(Exception):
    """This file gives no docstrings; the message is the reason that is counted."""


def docstring_pairs(
    packages: list[str] | None, cache_folder: Path, progress: Progress | None = None
) -> tuple[dict[str, list[Pair]], Counts]:
    """Pairs of each package, no two of all packages with equal queries or equal documents.

    Args:
        packages: Import names such as "sklearn", or "python" for the standard library, in any order. None:
            the standard library and every installed distribution, except this program.
        cache_folder: Keeps one file per package and version; a damaged one is rebuilt.
        progress: Called with (files done, files in all) while packages outside the cache are parsed.

    Returns:
        Package -> (query, document) pairs by qualified name; "python" first, then by package name. Of
        duplicates (ignoring case and the qualified name) the first in this order is kept.

    Raises:
        ColbertZeroError: A named package is not installed, or has no usable docstring.
    """
    wanted = _find_packages(packages)
    files = {package.name: cache_folder / f"{package.name}-{package.key}.jsonl" for package in wanted}
    found = {name: _read_cache(file) for name, file in files.items()}
    for name, result in _parse_packages([p for p in wanted if found[p.name] is None], progress):
        _write_cache(files[name], *result)
        found[name] = result
    pairs, counts = _without_duplicates({name: result for name, result in found.items() if result})
    if packages is not None and (empty := [name for name, kept in pairs.items() if not kept]):
        raise ColbertZeroError(f"packages: no usable docstring in {', '.join(empty)}; remove it from the list")
    return {name: kept for name, kept in pairs.items() if kept}, counts


def packages_fingerprint(packages: list[str] | None) -> str:
    """Fingerprint of the versions of packages, Python and this parser; parses nothing.

    A package without a version, or installed as editable, counts by its files' sizes and times.

    Raises:
        ColbertZeroError: A named package is not installed.
    """
    return fingerprint([package.key for package in _find_packages(packages)])


def module_names(package: str) -> set[str]:
    """Names of the modules of a package that are looked at for docstrings."""
    return {module for module, _ in _list_files(package, _roots(package))[0]}


# ---- which packages, and their files


def _find_packages(names: list[str] | None) -> list[_Package]:
    installed = packages_distributions()
    if names is None:
        chosen = {STANDARD_LIBRARY, *installed} - {__name__.partition(".")[0]}
    else:
        chosen = set(names)
    packages = []
    for name in sorted(chosen, key=lambda name: (name != STANDARD_LIBRARY, name)):
        if roots := _roots(name):
            packages.append(_Package(name, roots, _cache_key(name, roots, installed.get(name, []))))
        elif names is not None:
            raise _not_installed(name, installed)
    if not packages:
        raise ColbertZeroError("packages: the list is empty; name at least one package")
    return packages


def _roots(name: str) -> tuple[Path, ...]:
    """Where a package's source lies; empty if it has none. Finding a top-level name imports nothing."""
    if name == STANDARD_LIBRARY:
        return (Path(sysconfig.get_path("stdlib")),)
    spec = PathFinder.find_spec(name) if name.isidentifier() else None
    if spec and spec.submodule_search_locations is not None:
        return tuple(Path(folder) for folder in spec.submodule_search_locations)
    return (Path(spec.origin),) if spec and spec.origin and spec.origin.endswith(".py") else ()


def _cache_key(name: str, roots: tuple[Path, ...], distributions: Iterable[str]) -> str:
    found = [distribution(each) for each in sorted(set(distributions))]
    versions = [(each.name, each.version) for each in found]
    editable = any('"editable": true' in (each.read_text("direct_url.json") or "") for each in found)
    files: list[Any] = []
    if name != STANDARD_LIBRARY and (editable or not found):
        for module, path in _list_files(name, roots)[0]:
            status = os.stat(path) if os.path.exists(path) else None
            files.append((module, status and (status.st_size, status.st_mtime_ns)))
    return fingerprint(PARSER_VERSION, platform.python_version(), name, versions, files)


def _not_installed(name: str, installed: Mapping[str, list[str]]) -> ColbertZeroError:
    by_distribution = {each: package for package, names in installed.items() for each in names}
    known = [STANDARD_LIBRARY, *sorted(package for package in installed if _roots(package))]
    near = difflib.get_close_matches(name, [*known, *by_distribution], n=1)
    meant = f", did you mean {by_distribution.get(near[0], near[0])}?" if near else ""
    return ColbertZeroError(
        f"packages: no installed package {name} with Python source{meant} Installed: {', '.join(known)}"
    )


def _list_files(name: str, roots: Iterable[Path]) -> tuple[list[tuple[str, str]], Counter[str]]:
    """(module, path) of each source file in a fixed order, and what is passed over unseen."""
    prefix = [] if name == STANDARD_LIBRARY else [name]
    passed_over: Counter[str] = Counter()
    files = []

    def count_unreadable(error: OSError) -> None:
        passed_over["unreadable"] += 1

    for root in roots:
        if root.is_file():
            files.append((name, str(root)))
            continue
        for folder, folders, names in os.walk(root, onerror=count_unreadable):
            kept = sorted(each for each in folders if each.isidentifier() and not SKIPPED_FOLDERS.fullmatch(each))
            folders[:] = [each for each in kept if not os.path.islink(os.path.join(folder, each))]
            passed_over["linked folder"] += len(kept) - len(folders)
            for stem in sorted(each[:-3] for each in names if each.endswith(".py")):
                if stem.isidentifier() and not SKIPPED_MODULE.fullmatch(stem):
                    parts = [*prefix, *Path(folder).relative_to(root).parts, stem]
                    module = ".".join(parts[:-1] if stem == "__init__" else parts)
                    files.append((module, os.path.join(folder, f"{stem}.py")))
    return files, +passed_over


# ---- one file


def _read(path: str) -> bytes:
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            raise _PassedOverError("not a regular file")
        if status.st_size > FILE_BYTES:
            raise _PassedOverError("too large")
        return Path(path).read_bytes()
    except OSError as error:
        raise _PassedOverError("unreadable") from error


def _docstrings_of(data: bytes, module: str) -> list[tuple[str, str]]:
    """(qualified name, docstring) of a source file's module, classes and functions, closures left out.

    Raises:
        _PassedOverError: The bytes are no Python source that this Python can parse, or hold no docstring.
    """
    if b"\0" in data:
        raise _PassedOverError("NUL bytes")
    if b'"""' not in data and b"'''" not in data:
        raise _PassedOverError("no triple quotes")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # bad escapes in other people's files
        try:
            encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
            source = data.decode(encoding)
        except (SyntaxError, UnicodeError, LookupError) as error:
            raise _PassedOverError("undecodable") from error
        try:
            return list(_walk(_tree(source), module))
        except (RecursionError, MemoryError) as error:
            raise _PassedOverError("nested too deeply") from error
        except (SyntaxError, ValueError) as error:
            raise _PassedOverError("syntax error") from error


def _tree(source: str) -> ast.Module:
    with suppress(SyntaxError, ValueError):
        return ast.parse(outline(source))
    return ast.parse(source)


def _walk(node: Any, name: str) -> Iterator[tuple[str, str]]:
    first = node.body[0] if node.body else None
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        yield name, first.value.value
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return
    statements = node.body[::-1]
    while statements:
        child = statements.pop()
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _walk(child, f"{name}.{child.name}" if name else child.name)
        elif isinstance(child, ast.If | ast.Try | ast.With):  # definitions that depend on the platform
            handlers = [each for handler in getattr(child, "handlers", []) for each in handler.body]
            statements += [*child.body, *handlers, *getattr(child, "orelse", [])][::-1]
        elif isinstance(child, ast.Expr | ast.Assign) and isinstance(child.value, ast.Call):
            yield from _added_docstring(child.value)


def _added_docstring(call: ast.Call) -> Iterator[tuple[str, str]]:
    """Such as add_docstr(torch.abs, "...") and add_newdoc("numpy", "ndarray", ("flat", "..."))."""
    function = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", None)
    if function in DOCSTRING_ADDERS and len(call.args) > 1:
        target, text = call.args[:-1], call.args[-1]
        if isinstance(text, ast.Tuple) and len(text.elts) > 1:
            target, text = [*target, *text.elts[:-1]], text.elts[-1]
        yield ".".join(_literal(part) or ast.unparse(part) for part in target), _literal(text)


def _literal(node: ast.expr) -> str:
    """Text of a string, of "..." + "..." and of "...".format(...) with the unknown parts left out."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.BinOp):
        return _literal(node.left) + _literal(node.right)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "format":
        return re.sub(r"\{\w+\}", "", _literal(node.func.value)).replace("{{", "{").replace("}}", "}")
    return ""


# ---- one docstring


def make_pair(name: str, docstring: str) -> Pair | str:
    """(query, document) of a docstring, or the reason why it is dropped.

    Leading signatures are left out. Blank space becomes single spaces and rulers go; other markup stays.
    Private names stay too: their docstrings read like any other.
    """
    text = docstring.encode("utf-8", "replace").decode()
    lines = dropwhile(lambda line: not line or SIGNATURE.fullmatch(line), map(str.strip, text.splitlines()))
    plain = RULER.sub(" ", "\n".join(lines).strip())
    end = PARAGRAPH_END.search(plain)
    query, remainder = _cut(" ".join(plain[: end.start() if end else None].split()))
    later = plain[end.end() :] if end else ""
    rest = " ".join(f"{remainder} {later}".split())
    if len(WORD.findall(query)) < QUERY_WORDS[0]:
        return "query too short"
    if len(query.split()) > QUERY_WORDS[1]:
        return "query too long"
    if JUNK_QUERY.match(query):
        return "query not a description"
    prose = DOCTEST.sub("", f"{remainder}\n{later}")
    if len(WORD.findall(prose[:DOCUMENT_CHARACTERS])) < REST_WORDS:
        return "rest too short"
    document = f"{name}: {rest}"[:DOCUMENT_CHARACTERS].rstrip()
    return "query in document" if query.casefold() in document.casefold() else (query, document)


def _cut(paragraph: str) -> tuple[str, str]:
    """The leading sentences that fit into a query, and the remainder of the paragraph."""
    words = paragraph.split(" ")
    ends = [match.end() for match in SENTENCE_END.finditer(" ".join(words[: QUERY_WORDS[1] + 1]))]
    if len(words) <= QUERY_WORDS[1] or not ends:
        return paragraph, ""
    return paragraph[: ends[-1]], paragraph[ends[-1] :].strip()


def parse_file(module: str, path: str) -> dict[str, Any]:
    """{"pairs": ..., "dropped": {reason: docstrings}} of a file, or {"passed_over": reason}. Never raises."""
    try:
        docstrings = _docstrings_of(_read(path), module)
    except _PassedOverError as reason:
        return {"passed_over": str(reason)}
    results = [make_pair(name, docstring) for name, docstring in docstrings]
    dropped = Counter(result for result in results if isinstance(result, str))
    return {"dropped": dropped, "pairs": [result for result in results if not isinstance(result, str)]}


# ---- many files, in worker processes


def _parse_packages(
    packages: list[_Package], progress: Progress | None
) -> Iterator[tuple[str, tuple[list[Pair], Counts]]]:
    """(name, (pairs by qualified name, counts)) of each package, in the given order."""
    listed = {package.name: _list_files(package.name, package.roots) for package in packages}
    results = iter(_parse_files([file for files, _ in listed.values() for file in files], progress))
    for name, (files, unseen) in listed.items():
        counts = Counts(files=len(files) + unseen.total(), passed_over=dict(unseen))
        pairs: list[Pair] = []
        for result in islice(results, len(files)):
            if "passed_over" in result:
                counts.add(Counts(passed_over={result["passed_over"]: 1}))
            else:
                pairs += [(query, document) for query, document in result["pairs"]]
                found = len(result["pairs"]) + sum(result["dropped"].values())
                counts.add(Counts(docstrings=found, dropped=result["dropped"], pairs=len(result["pairs"])))
        yield name, (sorted(pairs, key=lambda pair: pair[1].partition(": ")[0]), counts)


def _parse_files(files: list[tuple[str, str]], progress: Progress | None) -> list[dict[str, Any]]:
    chunks: list[list[tuple[str, str]]] = []
    room = 0
    for file in files:
        if room <= 0:
            chunks.append([])
            room = CHUNK_BYTES
        chunks[-1].append(file)
        room -= min(os.path.getsize(file[1]), FILE_BYTES) if os.path.exists(file[1]) else 0
    parsed: list[dict[str, Any]] = []
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for results in threads.map(_run_worker, chunks):
            parsed += results
            if progress:
                progress(len(parsed), len(files))
    return parsed


def _run_worker(chunk: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """Parse a chunk in a fresh interpreter: a parser crash costs one file only.

    multiprocessing would import the caller's main module again in each worker, and with it torch;
    a main module without a guard would even run again.
    """
    code = f"import sys; sys.path[:] = sys.argv[1:]; from {__name__} import _worker; _worker()"
    command = [sys.executable, "-I", "-c", code, *sys.path]
    try:
        run = subprocess.run(command, input=json.dumps(chunk).encode(), capture_output=True, timeout=CHUNK_SECONDS)
    except subprocess.TimeoutExpired:
        crashed = True
    else:
        crashed = -run.returncode in CRASHES
    if not crashed:
        if run.returncode:
            raise RuntimeError(
                f"the docstring parser ended with {run.returncode}: {run.stderr.decode(errors='replace')}"
            )
        results: list[dict[str, Any]] = json.loads(run.stdout)
        return results
    if len(chunk) == 1:
        return [{"passed_over": "crashed the parser"}]
    half = len(chunk) // 2
    return _run_worker(chunk[:half]) + _run_worker(chunk[half:])


def _worker() -> None:
    gc.disable()  # syntax trees hold no cycles, and collecting costs a fifth of the time
    json.dump([parse_file(module, path) for module, path in json.load(sys.stdin)], sys.stdout)


# ---- cache and duplicates


def _write_cache(file: Path, pairs: list[Pair], counts: Counts) -> None:
    body = "".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs)
    with atomic_file(file) as opened:
        opened.write(json.dumps({"counts": asdict(counts), "fingerprint": fingerprint(body)}) + "\n" + body)


def _read_cache(file: Path) -> tuple[list[Pair], Counts] | None:
    """What `_write_cache` wrote; None if the file is absent or not as written."""
    try:
        header, _, body = file.read_text("utf-8").partition("\n")
        written = json.loads(header)
        if written["fingerprint"] != fingerprint(body):
            return None
        pairs = [tuple(json.loads(line)) for line in body.split("\n")[:-1]]
        return pairs, Counts(**written["counts"])
    except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _without_duplicates(
    found: dict[str, tuple[list[Pair], Counts]],
) -> tuple[dict[str, list[Pair]], Counts]:
    queries: set[str] = set()
    rests: set[str] = set()
    total = Counts()
    kept: dict[str, list[Pair]] = {}
    for name, (pairs, counts) in found.items():
        total.add(counts)
        kept[name] = []
        for query, document in pairs:
            same_query, rest = query.casefold(), document.partition(": ")[2].casefold()
            if same_query in queries or rest in rests:
                reason = "duplicate query" if same_query in queries else "duplicate document"
                total.add(Counts(dropped={reason: 1}, pairs=-1))
            else:
                kept[name].append((query, document))
                queries.add(same_query)
                rests.add(rest)
    return kept, total
