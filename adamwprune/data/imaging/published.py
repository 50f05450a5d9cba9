"""Published data sets that lie in several places: the first place that has it is read."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from adamwprune.data.files.cache import NotThere
from adamwprune.data.imaging.images import LabelledImages
from adamwprune.errors import ConfigError, DataError

# What a place gives, as a rule: the training part, the test part, and what it is, for the run record.
Parts = tuple[LabelledImages, LabelledImages, str]
Content = TypeVar("Content")


def first_available(
    name: str,
    readers: Mapping[str, Callable[[Path | None, Path], Content]],
    *,
    source: str | list[str],
    path: str | None,
    data_dir: str,
    instead: str,
) -> Content:
    """What the first of the named sources gives that has the data; `path` belongs to the first.

    A source that is absent is passed over, one that is damaged ends the run. So several may be named
    only where all are held to the same content.

    A reader gets a path (None: where its source keeps the data itself) and the folder of all
    downloads, and raises NotThere where it has nothing. `instead` is which data set works then.

    Raises:
        DataError: no source has it: all that was tried, and `instead`.
        ConfigError: none was named.
    """
    sources = [source] if isinstance(source, str) else source
    if not sources:
        raise ConfigError(f"data.source=[]: name one of {', '.join(readers)}")
    place = None if path is None else Path(path).expanduser()
    problems = []
    for each in sources:
        try:
            return readers[each](place, Path(data_dir).expanduser())
        except NotThere as error:
            problems.append(f"{each}: {error}")
        place = None
    raise DataError(f"data={name}: {'; '.join(problems)}; {instead}")
