"""One run: its objects, its loop, its records and its checkpoints."""
