"""Runs of the loop's tests draw no picture: it takes longer than their training."""

import pytest

from adamwprune.callbacks import plot


@pytest.fixture(autouse=True)
def _no_pictures(request, monkeypatch):
    if "draws" not in request.keywords:
        monkeypatch.setattr(plot, "plot_run", lambda *_, **__: None)
