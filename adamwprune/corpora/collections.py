"""Which packages make up a corpus, and how their pages are read.

Names with a version in them are regular expressions: every release of Debian and Ubuntu has its own.
Sizes were measured on Debian 12.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from adamwprune.corpora.prose import html_prose, rfc_prose


@dataclass(frozen=True)
class Collection:
    """A corpus before it is made."""

    name: str
    packages: tuple[str, ...] = field(repr=False)  # regular expressions, of the whole name
    component: str  # of Debian's archive: main or non-free
    pages: str  # regular expression: members of a package that are read
    prose: Callable[[bytes], list[str]]
    least_bytes: int  # of text; with less it is not this corpus
    tokens: int  # of GPT-2, about
    rules: int = 1  # to be raised where the same packages give other text


DEBIAN_DOCS = Collection(
    name="debian_docs",
    packages=(
        "anarchism",
        "apache2-doc",
        r"clang-\d+-doc",
        "debian-policy",
        "debian-reference-en",
        "developers-reference",
        "erlang-doc",
        r"fp-docs-[\d.]+",
        "gap-doc",
        "gimp-help-en",
        "git-doc",
        r"libboost1\.\d+-doc",
        "libgtk-3-doc",
        "libreoffice-help-en-us",
        r"linux-doc-[\d.]+",
        r"llvm-\d+-doc",
        "neutron-doc",
        "nodejs-doc",
        "nova-doc",
        "octave-doc",
        r"openjdk-\d+-doc",
        r"postgresql-doc-\d+",
        "python-django-doc",
        "python-scipy-doc",
        "python-sqlalchemy-doc",
        r"python3\.\d+-doc",
        "qtbase5-doc-html",
        "qtdeclarative5-doc-html",
        "r-doc-html",
        "racket-doc",
        "slurm-wlm-doc",
        "sqlite3-doc",
    ),
    component="main",
    pages=r".*\.html",
    prose=html_prose,
    least_bytes=100_000_000,
    tokens=26_300_000,
)

RFC = Collection(
    name="rfc",
    packages=(
        "doc-rfc-std",
        "doc-rfc-informational",
        "doc-rfc-others",
        "doc-rfc-old-std",
        "doc-rfc-experimental",
        "doc-rfc-misc",
        "doc-rfc-fyi-bcp",
    ),
    # Their licence forbids to change them.
    component="non-free",
    pages=r".*/rfc\d+\.txt\.gz",
    prose=rfc_prose,
    least_bytes=100_000_000,
    tokens=30_900_000,
)

COLLECTIONS = {collection.name: collection for collection in (DEBIAN_DOCS, RFC)}
