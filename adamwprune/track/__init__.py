"""Runs and their trackers from outside: `python -m adamwprune.track`."""
