import ast
import importlib
import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colbert_zero.data import docstrings
from colbert_zero.data.docstrings import docstring_pairs, make_pair, packages_fingerprint, parse_file
from colbert_zero.errors import ColbertZeroError

REST = "The result holds every value that the caller asked for and nothing else at all."


def parse_package(root: Path, name: str):
    """Pairs of the package in folder `root` (or of the one module in file `root`), duplicates included."""
    [(_, result)] = docstrings._parse_packages([docstrings._Package(name, (root,), "")], None)
    return result


def source(*summaries: str) -> str:
    """A module with one function per summary; the later paragraphs differ and do not hold the summary."""
    return "\n".join(
        f'def f{n}(x):\n    """{summary}\n\n    {REST} See {"-".join(reversed(summary.split()))}\n    """\n'
        for n, summary in enumerate(summaries)
    )


def write_package(folder: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def install(site: Path, name: str, version: str, files: dict[str, str | bytes]) -> None:
    for old in site.glob(f"{name}-*.dist-info"):
        shutil.rmtree(old)
    write_package(site / name, files)
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    write_package(site / f"{name}-{version}.dist-info", {"METADATA": metadata, "top_level.txt": f"{name}\n"})


@pytest.fixture
def site(tmp_path, monkeypatch):
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    return folder


def test_query_is_the_first_paragraph_and_document_the_name_and_the_rest(tmp_path):
    text = 'class A:\n    def b(self):\n        """Sort the given   list\n        in place.\n\n'
    text += f'        {REST}\n\n        Args:\n            x: The list.\n        """\n'
    root = write_package(tmp_path / "pkg", {"__init__.py": "", "sub/mod.py": text})
    pairs, counts = parse_package(root, "pkg")
    assert pairs == [("Sort the given list in place.", f"pkg.sub.mod.A.b: {REST} Args: x: The list.")]
    assert (counts.files, counts.docstrings, counts.pairs) == (2, 1, 1)
    assert counts.passed_over == {"no triple quotes": 1}


def test_a_single_module_is_a_package_too(tmp_path):
    root = write_package(tmp_path, {"alone.py": source("Count the words of a text.")}) / "alone.py"
    pairs, counts = parse_package(root, "alone")
    assert [document.partition(": ")[0] for _, document in pairs] == ["alone.f0"]
    assert counts.passed_over == {}


@pytest.mark.parametrize("name", ["json.decoder", "textwrap", "difflib", "contextlib"])
def test_found_docstrings_are_those_python_itself_attaches(name):
    module = importlib.import_module(name)
    data = Path(inspect.getsourcefile(module)).read_bytes()
    found = docstrings._docstrings_of(data, name)
    for qualified, text in found:
        value = module
        for part in qualified.removeprefix(name).split(".")[1:]:
            value = inspect.getattr_static(value, part)
        assert inspect.cleandoc(getattr(value, "__func__", value).__doc__) == inspect.cleandoc(text), qualified
    tree = ast.parse(data)
    slow = [ast.get_docstring(tree)] + [
        ast.get_docstring(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef)
        for child in node.body
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert sorted(inspect.cleandoc(text) for _, text in found) == sorted(text for text in slow if text)


def test_definitions_inside_if_and_try_are_found_and_closures_are_not():
    def define(name, indent):
        return f'{indent}def {name}():\n{indent}    """Text."""\n'

    text = f"if a:\n{define('a', ' ')}elif b:\n{define('b', ' ')}else:\n{define('c', ' ')}"
    text += f"try:\n{define('d', ' ')}except E:\n{define('e', ' ')}def g():\n{define('closure', ' ')}"
    assert [name for name, _ in docstrings._docstrings_of(text.encode(), "m")] == [
        "m.a",
        "m.b",
        "m.c",
        "m.d",
        "m.e",
    ]


def test_docstrings_added_to_c_functions_by_a_call_are_found():
    text = 'add_docstr(torch.abs, r"""One {input}""".format(**args) + "two")\n'
    text += 'add_newdoc("numpy", "ndarray", ("flat", """Three"""))\n'
    text += 'x = m._add_docstr(t.y, """Four""")\nf(a, """No""")'
    found = docstrings._docstrings_of(text.encode(), "m")
    assert found == [("torch.abs", "One two"), ("numpy.ndarray.flat", "Three"), ("t.y", "Four")]


def test_hostile_files_are_never_executed(tmp_path):
    witness = tmp_path / "executed"
    effect = f"open({str(witness)!r}, 'w').close()\n"
    files = {"__init__.py": effect + source("Do something to the disk."), "__main__.py": effect + '"""x"""'}
    pairs, _ = parse_package(write_package(tmp_path / "pkg", files), "pkg")
    assert len(pairs) == 1
    assert not witness.exists()


def test_each_kind_of_broken_file_is_counted_and_the_others_are_read(tmp_path):
    files = {
        "good.py": source("Read the good file here."),
        "escape.py": '"""Bad \\d escape in this text.\n\n' + REST + ' Indeed."""\n',
        "syntax.py": '"""x"""\ndef (:\n',
        "undecodable.py": b'"""\xff\xfe\xfa"""\n',
        "codec.py": b'# coding: nonsense\n"""x"""\n',
        "nul.py": b'"""x\0"""\n',
        "deep.py": '"""x"""\nx = ' + "-" * 100_000 + "1\n",
        "deeper.py": '"""x"""\nx = a' + ".b" * 50_000 + "\n",
        "plain.py": "x = 1\n",
    }
    root = write_package(tmp_path / "pkg", files)
    with open(root / "huge.py", "wb") as file:
        file.truncate(50_000_000)
    (root / "loop.py").symlink_to(root / "loop.py")
    (root / "dangling.py").symlink_to(root / "absent.py")
    (root / "again").symlink_to(root)
    (root / "folder.py").mkdir()
    os.mkfifo(root / "pipe.py")
    pairs, counts = parse_package(root, "pkg")
    assert [document.partition(": ")[0] for _, document in pairs] == ["pkg.escape", "pkg.good.f0"]
    assert counts.passed_over == {
        "syntax error": 1,
        "undecodable": 2,
        "NUL bytes": 1,
        "nested too deeply": 2,
        "no triple quotes": 1,
        "too large": 1,
        "unreadable": 2,
        "linked folder": 1,
        "not a regular file": 1,
    }
    assert counts.files == 2 + sum(counts.passed_over.values())


def killed_by(number: int, folder: Path) -> str:
    """A Python that kills itself with a signal when it is given a file called killer.py."""
    fake = folder / "python"
    fake.write_text(
        f"#!{sys.executable}\nimport os, subprocess, sys\ndata = sys.stdin.buffer.read()\n"
        f"if b'killer' in data: os.kill(os.getpid(), {number})\n"
        f"sys.exit(subprocess.run([{sys.executable!r}, *sys.argv[1:]], input=data).returncode)\n"
    )
    fake.chmod(0o755)
    return str(fake)


def test_a_file_that_crashes_the_parser_costs_only_itself(tmp_path, monkeypatch):
    files = {f"m{n}.py": source(f"Summary of the module {'very ' * n}well.") for n in range(4)}
    root = write_package(tmp_path / "pkg", files | {"killer.py": '"""x"""'})
    monkeypatch.setattr(sys, "executable", killed_by(signal.SIGKILL, tmp_path))
    pairs, counts = parse_package(root, "pkg")
    assert len(pairs) == 4
    assert counts.passed_over == {"crashed the parser": 1}


def test_an_interrupted_worker_is_an_error_and_no_broken_file(tmp_path, monkeypatch):
    root = write_package(tmp_path / "pkg", {"killer.py": '"""x"""'})
    monkeypatch.setattr(sys, "executable", killed_by(signal.SIGTERM, tmp_path))
    with pytest.raises(RuntimeError, match="parser ended with -15"):
        parse_package(root, "pkg")


def test_tests_and_vendored_copies_are_not_looked_at(tmp_path):
    skipped = ["tests/a.py", "sub/test/a.py", "_vendor/a.py", "test_a.py", "conftest.py", "a-b.py"]
    files = {name: source("Read the file that is skipped.") for name in skipped}
    _, counts = parse_package(write_package(tmp_path / "pkg", files | {"latest.py": "x = 1"}), "pkg")
    assert counts.files == 1


def test_parsing_again_gives_the_same_pairs_in_the_same_order(tmp_path):
    files = {f"{name}.py": source("Zip the two lists up.", f"Add up all of {name}.") for name in "zcab"}
    root = write_package(tmp_path / "pkg", files)
    first, second = parse_package(root, "pkg"), parse_package(root, "pkg")
    assert first == second
    names = [document.partition(": ")[0] for _, document in first[0]]
    assert len(names) == 8
    assert names == sorted(names)


def test_chunks_do_not_change_the_pairs(tmp_path, monkeypatch):
    files = {f"m{n}.py": source(f"Summary of the module {'very ' * n}well.") for n in range(6)}
    root = write_package(tmp_path / "pkg", files)
    whole = parse_package(root, "pkg")
    monkeypatch.setattr(docstrings, "CHUNK_BYTES", 400)
    assert parse_package(root, "pkg") == whole
    assert len(whole[0]) == 6


@pytest.mark.parametrize(
    ("docstring", "reason"),
    [
        ("Return it.\n\n" + REST, "query too short"),
        ("many words " * 40 + "\n\n" + REST, "query too long"),
        ("Copyright 2020 by the authors of this.\n\n" + REST, "query not a description"),
        ("Returns: the number of all the words.\n\n" + REST, "query not a description"),
        ("size (`int`, *optional*): The size of the image.\n\n" + REST, "query not a description"),
        ("Count the words of a text.", "rest too short"),
        (
            "Count the words of a text.\n\n>>> count('one two three four five six seven eight nine')\n9",
            "rest too short",
        ),
        ("Count the words of a text.\n\nAs said: count the  words of a text. " + REST, "query in document"),
    ],
)
def test_a_docstring_that_gives_no_pair_says_why(docstring, reason):
    assert make_pair("m.f", docstring) == reason


def test_signatures_rulers_and_section_headers_leave_the_query():
    docstring = f"f(x, y=1) -> Tensor\n\nCount the words of a text.\nArgs:\n    x: Text.\n\nNotes\n-----\n{REST}"
    assert make_pair("m.f", docstring) == ("Count the words of a text.", f"m.f: Args: x: Text. Notes {REST}")


def test_a_long_first_paragraph_is_cut_after_a_sentence_and_its_end_goes_to_the_document():
    sentence = "The quick brown fox jumps over the lazy dogs, e.g. Rex, "
    query, document = make_pair("m.f", f"{sentence * 2}today. {sentence * 5}tomorrow.")
    assert query == f"{sentence * 2}today."
    assert document == f"m.f: {sentence * 5}tomorrow."


words = st.sampled_from(["word", "Other", "x.", "e.g.", "(a)", "f(x)", "Args:", ">>>", "----", "\ud800", ":param x:"])
texts = st.lists(
    words | st.sampled_from([" ", "\n", "\n\n", "\t", "\x0b", "\u2028"]) | st.text(max_size=8), max_size=90
)


@settings(deadline=None, max_examples=150)
@given(texts.map(" ".join) | st.text())
def test_every_pair_keeps_the_documented_form(text):
    result = make_pair("m.f", text)
    if isinstance(result, str):
        return
    query, document = result
    assert 4 <= len(query.split()) <= 60
    assert document.startswith("m.f: ")
    assert len(document) <= docstrings.DOCUMENT_CHARACTERS
    assert query.casefold() not in document.casefold()
    for part in result:
        assert part == " ".join(part.split())
        part.encode()


@settings(deadline=None, max_examples=300)
@given(
    st.sampled_from([b"", b"\xef\xbb\xbf", b"# coding: utf-7\n", b"# coding: unicode_escape\n", b"# coding: hex\n"]),
    st.binary(max_size=200) | texts.map("".join).map(lambda text: text.encode("utf-8", "surrogatepass")),
)
def test_arbitrary_bytes_in_a_file_never_raise(cookie, data):
    with tempfile.NamedTemporaryFile(suffix=".py") as file:
        for content in (data, cookie + data, cookie + b'"""' + data + b'"""'):
            Path(file.name).write_bytes(content)
            result = parse_file("m", file.name)
            assert set(result) in ({"passed_over"}, {"pairs", "dropped"})
            assert json.loads(json.dumps(result)).keys() == result.keys()


def test_duplicates_across_packages_are_dropped_and_the_first_is_kept(site, tmp_path):
    same_query = source("Count the words of a text.").replace(REST, f"Otherwise, {REST}")
    same_rest = source("Count the words of a text.").replace("Count the words of a text.", "Do it some other way!")
    install(site, "zz_first", "1", {"__init__.py": source("Count the words of a text.")})
    install(site, "zz_second", "1", {"a.py": same_query.replace("Count", "COUNT"), "__init__.py": same_rest})
    install(site, "zz_third", "1", {"__init__.py": source("Tell how many lines there are.")})
    pairs, counts = docstring_pairs(["zz_third", "zz_first"], tmp_path / "cache")
    assert [(name, len(kept)) for name, kept in pairs.items()] == [("zz_first", 1), ("zz_third", 1)]
    with pytest.raises(ColbertZeroError, match="no usable docstring in zz_second"):
        docstring_pairs(["zz_third", "zz_second", "zz_first"], tmp_path / "cache")
    install(site, "zz_second", "2", {"more.py": source("Turn the whole list around.")})
    pairs, counts = docstring_pairs(["zz_third", "zz_second", "zz_first"], tmp_path / "cache")
    assert {name: len(kept) for name, kept in pairs.items()} == {"zz_first": 1, "zz_second": 1, "zz_third": 1}
    assert counts.dropped == {"duplicate query": 1, "duplicate document": 1}
    assert counts.docstrings == counts.pairs + sum(counts.dropped.values()) == 5


def test_a_cached_package_is_not_parsed_again_until_its_version_changes(site, tmp_path, monkeypatch):
    install(site, "zz_pkg", "1", {"__init__.py": source("Count the words of a text.")})
    calls = []
    before = docstring_pairs(["zz_pkg"], tmp_path, lambda *done: calls.append(done))
    print_before = packages_fingerprint(["zz_pkg"])
    assert calls == [(1, 1)]
    (site / "zz_pkg/__init__.py").write_text(source("Count the lines of a text."))
    assert docstring_pairs(["zz_pkg"], tmp_path, lambda *done: calls.append(done)) == before
    assert calls == [(1, 1)]
    assert packages_fingerprint(["zz_pkg"]) == print_before
    install(site, "zz_pkg", "1.1", {})
    assert packages_fingerprint(["zz_pkg"]) != print_before
    after, _ = docstring_pairs(["zz_pkg"], tmp_path)
    assert after["zz_pkg"][0][0] == "Count the lines of a text."
    monkeypatch.setattr(docstrings, "PARSER_VERSION", docstrings.PARSER_VERSION + 1)
    changed = packages_fingerprint(["zz_pkg"])
    monkeypatch.setattr(docstrings.platform, "python_version", lambda: "3.99.0")
    assert len({print_before, changed, packages_fingerprint(["zz_pkg"])}) == 3


@pytest.mark.parametrize("damage", [b"", b"\xff", b"[" * 100_000, b"{}\n", b"half", b"other digest"])
def test_a_damaged_cache_file_is_rebuilt(site, tmp_path, damage):
    install(site, "zz_pkg", "1", {"__init__.py": source("Count the words of a text.")})
    expected = docstring_pairs(["zz_pkg"], tmp_path / "cache")
    [file] = (tmp_path / "cache").iterdir()
    whole = file.read_bytes()
    changed = {b"half": whole[: len(whole) // 2], b"other digest": whole.replace(b"words", b"wards")}
    file.write_bytes(changed.get(damage, damage))
    assert docstring_pairs(["zz_pkg"], tmp_path / "cache") == expected
    assert file.read_bytes() == whole


@pytest.mark.parametrize("editable", [True, False])
def test_an_editable_or_unversioned_package_is_parsed_again_when_a_file_changes(site, tmp_path, editable):
    if editable:
        install(site, "zz_pkg", "1", {"__init__.py": source("Count the words of a text.")})
        (site / "zz_pkg-1.dist-info/direct_url.json").write_text(
            json.dumps({"url": "file:///x", "dir_info": {"editable": True}})
        )
    else:
        write_package(site / "zz_pkg", {"__init__.py": source("Count the words of a text.")})
    before = packages_fingerprint(["zz_pkg"])
    docstring_pairs(["zz_pkg"], tmp_path / "cache")
    assert packages_fingerprint(["zz_pkg"]) == before
    (site / "zz_pkg/__init__.py").write_text(source("Count the lines and words of a text."))
    assert packages_fingerprint(["zz_pkg"]) != before
    pairs, _ = docstring_pairs(["zz_pkg"], tmp_path / "cache")
    assert pairs["zz_pkg"][0][0] == "Count the lines and words of a text."


def test_an_unknown_package_is_named_with_the_nearest_and_the_installed_ones(site):
    install(site, "zz_pkg", "1", {"__init__.py": ""})
    with pytest.raises(ColbertZeroError, match=r"no installed package zz_pkgs .*did you mean zz_pkg\?.*python, "):
        packages_fingerprint(["zz_pkgs"])
    with pytest.raises(ColbertZeroError, match=r"did you mean yaml\?"):
        packages_fingerprint(["PyYAML"])
    for wrong in (["../zz_pkg"], ["zz_pkg.sub"], [""]):
        with pytest.raises(ColbertZeroError, match="no installed package"):
            packages_fingerprint(wrong)
    with pytest.raises(ColbertZeroError, match="empty"):
        packages_fingerprint([])


def test_the_default_is_the_standard_library_and_every_installed_package(site):
    install(site, "zz_pkg", "1", {"__init__.py": ""})
    names = [package.name for package in docstrings._find_packages(None)]
    assert names[0] == "python"
    assert names[1:] == sorted(set(names[1:]))
    assert {"zz_pkg", "torch", "numpy", "yaml"} <= set(names)
    assert "colbert_zero" not in names
    assert packages_fingerprint(None) != packages_fingerprint(["zz_pkg"])


def test_the_order_of_the_names_does_not_matter():
    assert packages_fingerprint(["numpy", "python"]) == packages_fingerprint(["python", "numpy"])


def test_a_script_without_a_main_guard_runs_once_and_torch_stays_out(site, tmp_path):
    install(site, "zz_pkg", "1", {"__init__.py": source("Count the words of a text.")})
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys\nsys.path[1:1] = {[path for path in sys.path if path]!r}\nprint('started')\n"
        "from pathlib import Path\nfrom colbert_zero.data.docstrings import docstring_pairs\n"
        f"docstring_pairs(['zz_pkg'], Path({str(tmp_path / 'cache')!r}))\nprint('torch' in sys.modules)\n"
    )
    run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["started", "False"]
