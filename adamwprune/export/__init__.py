"""Trained weights in files that cost what their non-zeros cost: `python -m adamwprune.export RUN`."""
