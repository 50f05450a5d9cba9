"""Modes: what masks do to weights, gradients and optimizer state, one a file; base.py is the interface."""
