"""Choosing what to run, behind `make`: `python -m adamwprune.configure`."""
