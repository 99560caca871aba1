"""Pairs from a folder of Markdown, HTML and text files: documents alone become a source, without a query written.

| part | query | document |
|---|---|---|
| titles | a file's title | its text |
| headings | its title and a heading | what stands below the heading |
| sentences | a section's first sentence | the rest of the section |
| links | a link's text | title and text of what it leads to in the folder: a file, or the section of its anchor |

A title is HTML's or that of the front matter, else the first heading of the first level, else a first short line that
stands alone. A document of fewer than eight words makes no pair. Nothing is fetched or executed.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from markdown_it import MarkdownIt

from colbert_zero.errors import ColbertZeroError
from colbert_zero.files import Progress, is_inside
from colbert_zero.recipe.data import Folder

FOLDERS_VERSION = 1
"""To be raised whenever the pairs of an unchanged folder change."""

KINDS = ("titles", "headings", "sentences", "links")

DOCUMENT_CHARACTERS, FILE_BYTES, WORDS = 4000, 4_000_000, 8
"""A document is cut after so many characters; larger files are passed over; fewer words are no document."""

_SKIPPED = {"script", "style", "nav", "footer", "template", "noscript", "svg", "head"}
_BLOCKS = {"p", "li", "td", "th", "pre", "blockquote", "dd", "dt", "div", "section", "article", "main", "tr", "br"}
_HEADINGS = {f"h{level}" for level in range(1, 7)}
_VOID = {"br", "img", "hr", "input", "meta", "link", "wbr", "col", "source"}
_FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---\s*\n", re.DOTALL)
_TITLE = re.compile(r"^title:\s*[\"']?(.+?)[\"']?\s*$", re.MULTILINE)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[^\W_a-z])")
_WORD = re.compile(r"[^\W\d_]{2,}")


@dataclass
class _Section:
    heading: str = ""
    level: int = 0
    anchor: str = ""
    texts: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "\n".join(self.texts)


@dataclass
class _Page:
    title: str
    sections: list[_Section]
    links: list[tuple[str, str]]

    @property
    def text(self) -> str:
        """Headings with their sections, without the title."""
        parts = (part for s in self.sections for part in (s.heading if s.heading != self.title else "", s.text) if part)
        return "\n".join(parts)


def folder_files(name: str, spec: Folder) -> list[Path]:
    """The files of a folder that its entry names, sorted.

    Raises:
        ColbertZeroError: There is no such folder, or no such file in it.
    """
    folder = Path(os.path.expanduser(spec.path))
    if not folder.is_dir():
        raise ColbertZeroError(f"sources.{name}.path: {spec.path}: no such folder (looked in {Path.cwd()})")
    found = {file for pattern in spec.files for file in folder.rglob(pattern) if file.is_file()}
    shown = (file for file in found if not any(part.startswith(".") for part in file.relative_to(folder).parts))
    files = sorted(file for file in shown if is_inside(file, folder))
    if not files:
        raise ColbertZeroError(f"sources.{name}.files: no file of {spec.path} is called {', '.join(spec.files)}")
    return files


def folder_pairs(
    name: str, spec: Folder, dropped: Counter[str], progress: Progress | None = None
) -> dict[str, list[tuple[str, str]]]:
    """The pairs of a folder's files, by part.

    Args:
        name: The source, for messages.
        spec: Its entry.
        dropped: Counts files that are passed over, and pairs that are none, by reason.
        progress: Called with files done and all.
    """
    files, root = folder_files(name, spec), Path(os.path.expanduser(spec.path))
    pages: dict[str, _Page] = {}
    for number, file in enumerate(files, 1):
        page = _read(file, dropped)
        if page:
            pages[os.path.relpath(file, root)] = page
        if progress:
            progress(number, len(files))
    pairs: dict[str, dict[tuple[str, str], None]] = {kind: {} for kind in spec.pairs or KINDS}
    for place, page in pages.items():
        for kind, query, document in _pairs_of(place, page, pages):
            if kind not in pairs:
                continue
            document = _cut(document)
            if len(_WORD.findall(document)) < WORDS:
                dropped[f"{kind}: fewer than {WORDS} words"] += 1
            elif (query, document) in pairs[kind]:
                dropped[f"{kind}: stands twice"] += 1
            else:
                pairs[kind][query, document] = None
    return {kind: list(rows)[: spec.limit] for kind, rows in pairs.items() if rows}


def _pairs_of(place: str, page: _Page, pages: Mapping[str, _Page]) -> Iterator[tuple[str, str, str]]:
    """(part, query, document) of a page."""
    if page.title:
        yield "titles", page.title, page.text
    for section in page.sections:
        if section.heading and section.heading != page.title:
            yield "headings", f"{page.title}: {section.heading}" if page.title else section.heading, section.text
        first, *rest = _SENTENCE_END.split(section.text.replace("\n", " "), maxsplit=1)
        if rest and 4 <= len(first.split()) <= 60:
            yield "sentences", first, rest[0]
    for text, address in page.links:
        if len(text.split()) > 1 and (document := _led_to(place, address, pages)):
            yield "links", text, document


def _led_to(place: str, address: str, pages: Mapping[str, _Page]) -> str | None:
    """Title and text of what a link leads to in the folder; None where it leads elsewhere, or to its own file."""
    parts = urlsplit(address)
    if parts.scheme or parts.netloc or not parts.path:
        return None
    path = unquote(parts.path)
    base = path.lstrip("/") if path.startswith("/") else os.path.join(os.path.dirname(place), path)
    base = os.path.normpath(base)
    tried = (base, f"{base}.md", f"{base}.html", os.path.join(base, "README.md"), os.path.join(base, "index.html"))
    found = next((name for name in tried if name in pages), None)
    if found is None or found == place:
        return None
    page = pages[found]
    of_anchor = [s for s in page.sections if parts.fragment and s.anchor == unquote(parts.fragment).lower()]
    if of_anchor:
        return f"{of_anchor[0].heading}\n{of_anchor[0].text}"
    return f"{page.title}\n{page.text}" if page.title else page.text


def _cut(text: str) -> str:
    """The text, after at most so many characters cut at a blank."""
    text = text.strip()
    return text if len(text) <= DOCUMENT_CHARACTERS else text[:DOCUMENT_CHARACTERS].rsplit(None, 1)[0]


# ---- Reading


def _read(file: Path, dropped: Counter[str]) -> _Page | None:
    try:
        if file.stat().st_size > FILE_BYTES:
            dropped[f"file: larger than {FILE_BYTES // 1_000_000} MB"] += 1
            return None
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        dropped["file: not UTF-8"] += 1
        return None
    except OSError as error:
        dropped[f"file: cannot be read ({error.strerror})"] += 1
        return None
    text = text.replace("\0", " ").replace("\r\n", "\n")
    suffix = file.suffix.lower()
    if suffix in (".html", ".htm"):
        return _page(text, "")
    if suffix in (".md", ".markdown"):
        matter = _FRONT_MATTER.match(text)
        title = _TITLE.search(matter[1]) if matter else None
        markdown = MarkdownIt("commonmark").enable("table")
        return _page(markdown.render(text[matter.end() :] if matter else text), title[1] if title else "")
    blocks = [" ".join(block.split()) for block in re.split(r"\n\s*\n", text) if block.strip()]
    title_line = blocks[0] if blocks and len(blocks) > 1 and len(blocks[0].split()) <= 12 else ""
    return _Page(title_line, [_Section(texts=blocks[1:] if title_line else blocks)], [])


def _page(html: str, title: str) -> _Page:
    reader = _Reader()
    reader.feed(html)
    reader.close()
    reader.flush()
    first = next((s.heading for s in reader.sections if s.level == 1), "")
    return _Page(title or reader.title or first, [s for s in reader.sections if s.heading or s.texts], reader.links)


class _Reader(HTMLParser):
    """Headings, the text below each, links."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.title, self.sections = "", [_Section()]
        self.links: list[tuple[str, str]] = []
        self._words: list[str] = []
        self._skipped = 0
        self._in_title = False
        self._heading: _Section | None = None
        self._link: tuple[str, list[str]] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "title" and not self.sections[0].texts:
            self._in_title = True
        elif tag == "body":
            self._skipped = 0  # of a head that was never closed
        elif tag in _SKIPPED:
            self._skipped += 1
        elif tag in _HEADINGS:
            self.flush()
            self._heading = _Section(level=int(tag[1]), anchor=str(given.get("id") or "").lower())
        elif tag in _BLOCKS:
            self.flush()
        elif tag == "a" and given.get("href"):
            self._link = (str(given["href"]), [])

    def handle_endtag(self, tag: str) -> None:
        if tag == "title":
            self._in_title = False
        elif tag in _SKIPPED:
            self._skipped = max(0, self._skipped - 1)
        elif tag in _HEADINGS and self._heading:
            self._heading.heading = self._taken()
            self._heading.anchor = self._heading.anchor or slug(self._heading.heading)
            self.sections.append(self._heading)
            self._heading = None
        elif tag in _BLOCKS - _VOID:
            self.flush()
        elif tag == "a" and self._link:
            address, words = self._link
            self.links.append((" ".join("".join(words).split()), address))
            self._link = None

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self.title = " ".join(f"{self.title} {data}".split())
        elif not self._skipped:
            self._words.append(data)
            if self._link:
                self._link[1].append(data)

    def flush(self) -> None:
        """End a block of text."""
        if not self._heading and (text := self._taken()):
            self.sections[-1].texts.append(text)

    def _taken(self) -> str:
        text, self._words = " ".join("".join(self._words).split()), []
        return text


def slug(heading: str) -> str:
    """A heading's anchor, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
