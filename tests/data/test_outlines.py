"""Sources without their functions' bodies give the docstrings of the whole ones."""

import ast
import random
import sysconfig
import warnings
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colbert_zero.data.docstrings import _walk
from colbert_zero.data.outlines import outline

CASES = {
    'a docstring and code': (
        'def f(x):\n'
        '    """Doc."""\n'
        '    return "def"\n'
        '\n'
        'class A:\n'
        '    """A."""\n'
        '    x = 1\n'
    ),
    'no docstring': (
        'def f(x):\n'
        '    return 1\n'
        'def g():\n'
        "    '''G.'''\n"
    ),
    'one line': (
        'def f(): """Doc."""\n'
        'def g(): ...\n'
        'class B: """B."""\n'
    ),
    'code in a docstring': (
        'class A:\n'
        '    """Such as\n'
        '\n'
        '    def f():\n'
        '        pass\n'
        '    """\n'
        '    def g(self):\n'
        '        """G."""\n'
    ),
    'a def in a string': (
        'text = """\n'
        'def f():\n'
        "    '''no'''\n"
        '"""\n'
        'def g():\n'
        '    """G."""\n'
        '    x = """\n'
        'def h(): pass\n'
        '"""\n'
    ),
    'nested': (
        'def f():\n'
        '    """F."""\n'
        '    def g():\n'
        '        """G."""\n'
        '    class C:\n'
        '        """C."""\n'
        'class D:\n'
        '    """D."""\n'
    ),
    'async, decorated': (
        '@wraps(x)\n'
        'async def f(\n'
        '    a: dict[str, int] = {"a": 1},  # it: this\n'
        ') -> "x:y":\n'
        '    r"""\\d."""\n'
        '    await x\n'
    ),
    'comments first': (
        'def f():\n'
        '    # not yet\n'
        '\n'
        "    'Doc.'  # said\n"
        '    # more\n'
        '# out\n'
        '    x = 1\n'
    ),
    'more than a string': (
        'def f():\n'
        '    "a" "b"\n'
        'def g():\n'
        '    "a".x\n'
        'def h():\n'
        '    f"a"\n'
        'def i():\n'
        '    ("a")\n'
        'def j():\n'
        '    b"a"\n'
    ),
    'brackets that stand out': (
        'def f():\n'
        '    x = g(\n'
        '1, [\n'
        '2]\n'
        ')\n'
        '    return x\n'
        'def h():\n'
        '    """H."""\n'
    ),
    'joined lines': (
        'def f():\n'
        '    x = 1 + \\\n'
        '2\n'
        'def h():\n'
        '    """H."""\n'
    ),
    'conditions': (
        'if x:\n'
        '    def f():\n'
        '        """F."""\n'
        '        if y: pass\n'
        'else:\n'
        '    def f():\n'
        '        """G."""\n'
        'try:\n'
        '    pass\n'
        'except E:\n'
        '    def e():\n'
        '        """E."""\n'
    ),
    'Windows': (
        'def f():\r\n'
        '    """F.\r\n'
        '\r\n'
        '    More."""\r\n'
        '    x = 1\r\n'
        '\r\n'
        'class A:\r\n'
        '    """A."""\r\n'
    ),
    'tabs': (
        'class A:\n'
        '\tdef f(self):\n'
        '\t\t"""F."""\n'
        '\t\tif x:\n'
        '\t\t\treturn\n'
        '\tdef g(self):\n'
        '\t\t"""G."""\n'
    ),
    'no end': (
        'def f():\n'
        '    """F."""\n'
        '    x = 1'
    ),
    'a lambda, a slice': (
        'def f(a=lambda x: {1: 2}, b=c[1:2]):\n'
        '    """F."""\n'
        '    y: int = 3\n'
    ),
    'quotes in comments': (
        'def f():\n'
        "    x = 1  # it's\n"
        '    y = \'a\\\'b\'  # """\n'
        'def g():\n'
        '    """G."""\n'
    ),
    'empty': '',
}  # fmt: skip


def docstrings(source):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return list(_walk(ast.parse(source), "m"))


@pytest.mark.parametrize("source", CASES.values(), ids=CASES)
def test_an_outline_has_the_docstrings_of_its_source(source):
    wanted, short = docstrings(source), outline(source)
    try:
        found = docstrings(short)
    except SyntaxError:
        assert "stand" in next(name for name, text in CASES.items() if text == source)
        return
    assert found == wanted


def test_of_the_standard_library_all_docstrings_are_kept_and_most_text_is_not():
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    before = after = 0
    for file in random.Random(0).sample(files, 60):
        source = file.read_text(encoding="utf-8")
        short = outline(source)
        assert docstrings(short) == docstrings(source), file.name
        before, after = before + len(source), after + len(short)
    assert after < 0.6 * before


PARTS = st.sampled_from([
    "def f():", "class A:", "    ", "\n", '"""', "\'\'\'", '"', "\'", "#", "(", ")", ":", "\\", "pass", "x = 1",
    "async ", "@d",
])  # fmt: skip


@given(st.lists(PARTS, max_size=40))
def test_whatever_is_no_python_raises_nothing_but_that_and_python_keeps_its_docstrings(parts):
    source = "".join(parts)
    short = outline(source)
    try:
        wanted = docstrings(source)
    except (SyntaxError, ValueError):
        return
    try:
        assert docstrings(short) == wanted
    except (SyntaxError, ValueError):
        return


def test_time_is_linear_in_text_that_never_ends():
    heads = ("def f(" * 100_000, "def f(\n" * 100_000, "def f\n" * 100_000)
    for text in (*heads, '""" \\""" ' * 100_000, "def f():\n    x = (" * 100_000, "'" * 300_000):
        assert len(outline(text)) <= len(text)
