"""Tokens a second of our preparation, from documents in memory to shards on disk, beside tiktoken's own.

    python benchmarks/tokenize_text.py
    python benchmarks/tokenize_text.py --megabytes 500 --processes 8

The text is the State of the Union addresses that ship, cut into documents as long as web pages (3,000
characters), as often as it takes; each begins with its number, so no two are alike. `tiktoken` is
`encode_ordinary_batch` with as many threads as we have processes, on batches of the size of ours, its
tokens thrown away. `ours` is `prepare.prepare`: processes started, documents sent to them, split, hashed,
written, synced. `ours, 1 process` and `tiktoken, 1 thread` show what is gained by several. CPU seconds are
those of all processes: on a machine that does other work as well, they say more than the wall clock.
"""

import lzma
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import tiktoken

from adamwprune.cores import usable_cores
from adamwprune.data import bpe
from adamwprune.data.files.assets import read_asset
from adamwprune.data.preparation.documents import BATCH_CHARACTERS, Documents
from adamwprune.data.preparation.prepare import Recipe, prepare
from adamwprune.data.preparation.shards import read_manifest

GOAL = 0.8
DOCUMENT_CHARACTERS = 3000


class Cost(NamedTuple):
    """What a turn of an arm took."""

    tokens: int
    wall: float  # seconds
    cpu: float  # seconds, of this process and those that it started


def cpu_seconds() -> float:
    """Of this process and of all that it has started and seen end."""
    own, ended = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + ended.ru_utime + ended.ru_stime


class Memory:
    """A file of documents that is in memory."""

    part = None

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts

    def documents(self, start: int) -> Iterator[str]:
        """From the `start`-th on."""
        return iter(self.texts[start:])


def make_texts(megabytes: float) -> list[str]:
    """English in documents, about so much of it."""
    text = lzma.decompress(read_asset("sotu_1900_2021.txt.xz")).decode()
    pieces = [text[at : at + DOCUMENT_CHARACTERS] for at in range(0, len(text), DOCUMENT_CHARACTERS)]
    count = int(megabytes * 1e6 / DOCUMENT_CHARACTERS)
    return [f"{number}\n{pieces[number % len(pieces)]}" for number in range(count)]


def ours(texts: list[str], processes: int) -> Cost:
    """Into a folder that is new and gone afterwards."""
    documents = Documents(lambda: {}, lambda: [Memory(texts)], tokens=sum(map(len, texts)) // 4)
    recipe = Recipe(max_tokens=None, val_fraction=0.005, shard_tokens=100_000_000)
    with tempfile.TemporaryDirectory() as folder:
        start, cpu = time.perf_counter(), cpu_seconds()
        prepare(documents, Path(folder) / "text", recipe, {}, processes)
        wall, cpu = time.perf_counter() - start, cpu_seconds() - cpu
        manifest = read_manifest(Path(folder) / "text" / "manifest.json")
    return Cost(sum(shard["tokens"] for part in ("train", "val") for shard in manifest[part]), wall, cpu)


def tiktokens(texts: list[str], threads: int, encoding: tiktoken.Encoding) -> Cost:
    """Tiktoken's own batches, which go nowhere; an end of text is counted for each document."""
    size = BATCH_CHARACTERS * threads // DOCUMENT_CHARACTERS
    start, cpu, tokens = time.perf_counter(), cpu_seconds(), 0
    for first in range(0, len(texts), size):
        batch = encoding.encode_ordinary_batch(texts[first : first + size], num_threads=threads)
        tokens += sum(map(len, batch)) + len(batch)
    return Cost(tokens, time.perf_counter() - start, cpu_seconds() - cpu)


def main() -> None:
    """Interleave the arms, print the table, write the JSON."""
    # Here, since it imports torch: the processes that encode import this file too.
    from measure import argument_parser, interleave, paired_ratio, print_table, report, spread

    parser = argument_parser(__doc__, rounds=5)
    parser.add_argument("--megabytes", type=float, default=100, help="of text a turn (%(default)s)")
    parser.add_argument("--processes", type=int, default=usable_cores(), help="and threads of tiktoken")
    arguments = parser.parse_args()
    texts, encoding = make_texts(arguments.megabytes), bpe.gpt2_encoding()
    count = arguments.processes
    runs: dict[str, Callable[[], Cost]] = {
        "ours": partial(ours, texts, count),
        "tiktoken": partial(tiktokens, texts, count, encoding),
        "ours, 1 process": partial(ours, texts, 1),
        "tiktoken, 1 thread": partial(tiktokens, texts, 1, encoding),
    }
    if count == 1:
        runs = dict(list(runs.items())[:2])
    tiktokens(texts[:100], count, encoding)  # code that is used for the first time is loaded
    costs = interleave(runs, arguments.rounds)
    speeds = {name: [cost.tokens / cost.wall for cost in turns] for name, turns in costs.items()}
    cpu_speeds = {name: [cost.tokens / cost.cpu for cost in turns] for name, turns in costs.items()}
    arms = {
        name: {
            "tokens_per_second": spread(speeds[name]),
            "of_tiktoken": paired_ratio(speeds[name], speeds["tiktoken"]),
            "tokens_per_cpu_second": spread(cpu_speeds[name]),
            "cpu_of_tiktoken": paired_ratio(cpu_speeds[name], cpu_speeds["tiktoken"]),
        }
        for name in runs
    }
    print(f"{arguments.megabytes:g} MB in {len(texts):,} documents, {count} processes or threads")
    print_table(
        ("arm", "tokens a second", "of tiktoken", "tokens a CPU second", "of tiktoken"),
        [(name, *arm.values()) for name, arm in arms.items()],
    )
    print(f"goal: ours / tiktoken >= {GOAL}, tokens a second")
    figures = {
        "megabytes": arguments.megabytes,
        "documents": len(texts),
        "processes": count,
        "tiktoken": tiktoken.__version__,
        "load_at_end": round(os.getloadavg()[0], 2),
        "arms": arms,
    }
    report(figures, model="text", subject="tokenize-text", file=arguments.json)


if __name__ == "__main__":
    main()
