"""Manuals as plain text: whole English sentences, a line for each paragraph.

HTML pages and the RFCs' typewriter pages become lines of text, and of these remain, after the rules
of C4 (Raffel et al., arXiv:1910.10683, section 2.2), the ones that read as prose:

    a line ends as a sentence does, and has at least `LEAST_WORDS` words
    a page is English: one word in `ENGLISH_EVERY` is one of the commonest of that language

Headings, menus, tables of contents, signatures and synopses, code and tables go by that.
"""

import gzip
import io
import re
from collections.abc import Iterable, Sequence
from html.parser import HTMLParser

# Elements without prose: code, tables, forms, and what surrounds a page.
SKIPPED = frozenset(
    ["script", "style", "nav", "header", "footer", "form", "button", "select", "pre", "table"]
)
# Elements within a line; any other tag begins a new one. `code` is within: a sentence names its function.
INLINE = frozenset(
    re.findall(
        r"\w+",
        "a abbr acronym b bdi bdo big cite code del dfn em font i img ins kbd label mark q s samp small span "
        "strike strong sub sup tt u var wbr",
    )
)
# Signs that link to the heading or paragraph they stand in.
LINK_SIGNS = str.maketrans("", "", "¶🔎︎")

LEAST_WORDS = 5
SENTENCE_END = re.compile(r"""[.!?:]["')\]\u201d\u2019]*$""")
# English text has about one in three of these; Italian or French next to none.
ENGLISH_WORDS = frozenset(
    re.findall(r"\w+", "the of and to in is that it for as with be are this on by not or which you can if an")
)
ENGLISH_EVERY = 10

# No page is longer; more than that out of a small archive is meant to fill the memory.
MOST_BYTES = 32 << 20

# The foot of an RFC's page, the form feed, and the head of the next.
PAGE_BREAK = re.compile(r"\n*[^\n]*\[Page [\dxvi]+\][^\n]*\n*\f?\n*(?:RFC \d+[^\n]*\n+)?")
# What typewriters draw with: columns, leaders, boxes.
DRAWN = re.compile(r"\S {3,}\S|\.{4,}|(?:\. ){4,}|[-+=_|*]{3,}|\|")


def html_prose(content: bytes) -> list[str]:
    """The sentences of a page, outside `SKIPPED` elements."""
    page = _Page()
    page.feed(_decoded(content))
    page.close()
    return english_sentences(page.lines())


def rfc_prose(content: bytes) -> list[str]:
    """The paragraphs of a gzipped RFC, each on one line, without page breaks and what is drawn."""
    with gzip.GzipFile(fileobj=io.BytesIO(content)) as stream:
        text = PAGE_BREAK.sub("\n", _decoded(stream.read(MOST_BYTES)))
    paragraphs = re.split(r"\n\s*\n", text.replace("\f", "\n\n"))
    return english_sentences(" ".join(part.split()) for part in paragraphs if not DRAWN.search(part.strip()))


def english_sentences(lines: Iterable[str]) -> list[str]:
    """The lines that are sentences; none, if together they are not English."""
    sentences = [line for line in lines if SENTENCE_END.search(line) and line.count(" ") >= LEAST_WORDS - 1]
    words = " ".join(sentences).lower().split()
    english = sum(word in ENGLISH_WORDS for word in words)
    return sentences if english * ENGLISH_EVERY >= len(words) else []


class _Page(HTMLParser):
    """Collects a page's lines. Tags need not be balanced: in old manuals they are not."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._pieces: list[str] = []
        self._skipped = ""  # the element that is being left out, and how many of its name are open
        self._depth = 0

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        if self._skipped:
            self._depth += tag == self._skipped
        elif tag in SKIPPED or ("role", "navigation") in attrs:
            self._skipped, self._depth = tag, 1
            self._pieces.append("\n")
        elif tag not in INLINE:
            self._pieces.append("\n")

    def handle_startendtag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        if not self._skipped and tag not in INLINE:
            self._pieces.append("\n")

    def handle_endtag(self, tag: str) -> None:
        if self._skipped:
            self._depth -= tag == self._skipped
            if not self._depth:
                self._skipped = ""
        elif tag not in INLINE:
            self._pieces.append("\n")

    def handle_data(self, data: str) -> None:
        if not self._skipped:
            # A line break in the source is a space; only tags part lines.
            self._pieces.append(data.replace("\n", " "))

    def lines(self) -> list[str]:
        text = "".join(self._pieces).translate(LINK_SIGNS)
        return [" ".join(line.split()) for line in text.split("\n")]


def _decoded(content: bytes) -> str:
    """UTF-8, or Latin-1, which old pages are in and which any bytes are."""
    try:
        return content.decode()
    except UnicodeDecodeError:
        return content.decode("latin-1")
