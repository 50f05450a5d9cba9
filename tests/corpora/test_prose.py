"""Manuals as text: what is prose stays, whole and in order; code, tables, menus and other languages go."""

import gzip

import pytest

from adamwprune.corpora.prose import english_sentences, html_prose, rfc_prose

PROSE = "The lock is taken before the list is read."
SECOND = "It is given back when the last reader has left."


def page(body: str) -> bytes:
    return f"<html><head><title>T</title></head><body>{body}</body></html>".encode()


@pytest.mark.parametrize(
    "element", ["script", "style", "nav", "header", "footer", "form", "button", "select", "pre", "table"]
)
def test_what_is_no_prose_is_left_out(element):
    """Also one within another of its kind, and whatever lies in between; the text after it is kept."""
    inner = f"<{element}><b>This is not what a reader of the page reads.</b></{element}>"
    if element in ("script", "style"):  # these hold no elements
        inner = "this is not what a reader of the page reads."
    content = page(
        f"<p>{PROSE}</p><{element}><p>{inner} Nor is this one, as it ends.</p></{element}><p>{SECOND}"
    )
    assert html_prose(content) == [PROSE, SECOND]


def test_navigation_is_known_by_its_role():
    """As Sphinx marks it; a div without the role is the control."""
    menu = "<div{}><div>You are on the first page of it.</div></div>"
    assert html_prose(page(menu.format(' role="navigation"') + f"<p>{PROSE}")) == [PROSE]
    assert len(html_prose(page(menu.format("") + f"<p>{PROSE}"))) == 2


def test_a_paragraph_is_a_line():
    """Inline elements do not part it, line breaks of the source are spaces, references are characters."""
    content = page(
        "<p>The <code>read()</code>\n  of the <a href=x>first\tlist</a> is &lt; that of\nthe other.<br>"
        + PROSE
    )
    assert html_prose(content) == ["The read() of the first list is < that of the other.", PROSE]


@pytest.mark.parametrize("broken", ["<p>{}<table>", "<td>{}</table></div>", "<body><li>{}<li>", "<?x><p>{}"])
def test_unbalanced_pages_are_read(broken):
    """Old manuals are: what was said before the fault stays."""
    assert html_prose(broken.format(PROSE).encode()) == [PROSE]


def test_pages_in_latin_1_are_read():
    """Bytes that are no UTF-8; the same in UTF-8 is the same text."""
    text = f"<p>It is the café of the man, and it is on the left.<p>{PROSE}"
    assert html_prose(text.encode("latin-1")) == html_prose(text.encode()) != []


def test_only_sentences_stay():
    """Headings, entries of a menu, signatures and short exclamations do not; quotes may follow the stop."""
    sentences = [PROSE, 'He said that this is "the end of it."', "Is this (as it was) in the list?)"]
    others = ["The first chapter of the book", "Read me.", "int read(struct list *list, int count);", ""]
    assert english_sentences([*others, *sentences, *others]) == sentences


def test_other_languages_are_left_out():
    """Whole pages, by their commonest words; the English one is the control."""
    others = (
        ["Il blocco viene preso prima di leggere la lista.", "In questo caso la lista non cambia mai."],
        ["Die Liste wird erst gelesen, wenn niemand mehr schreibt.", "In der Regel geht das schnell."],
        ["Le verrou est pris avant la lecture de la liste.", "Il est rendu quand le dernier lecteur part."],
    )
    assert [english_sentences(lines) for lines in others] == [[], [], []]
    assert english_sentences([PROSE, SECOND]) == [PROSE, SECOND]


RFC = """

                         The Title

Status

   This memo is for the whole community, and it does not specify a standard that
   is of any

Author                   Informational                   [Page 1]
\f
RFC 9999                    Title                     April 2001


   kind, as all of them know.

      +-------+------+
      | a is  | to b |  that is the end of the table.
      +-------+------+

   1. Introduction .................................. 1.

   The list is read by the first of the two.
"""


def test_rfc_paragraphs_are_lines_across_pages():
    """The page break within a paragraph is gone, and so are tables and contents."""
    assert rfc_prose(gzip.compress(RFC.encode())) == [
        "This memo is for the whole community, and it does not specify a standard that is of any kind, "
        "as all of them know.",
        "The list is read by the first of the two.",
    ]
