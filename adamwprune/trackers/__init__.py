"""Trackers: copies of metrics.jsonl in Trackio, Weights & Biases and others, one module each."""
