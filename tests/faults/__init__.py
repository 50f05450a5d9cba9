"""Faults done to real runs, counted: `python -m tests.faults --tier short|long`."""
