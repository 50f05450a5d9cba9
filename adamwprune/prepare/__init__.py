"""Data sets fetched and prepared before a run needs them: `python -m adamwprune.prepare --help`."""
