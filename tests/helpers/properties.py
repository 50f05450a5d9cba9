"""How many examples a property is tried on: few, and ten times as many in conftest.py's profile `slow`."""

from hypothesis import settings

_USUAL = 100


def tried(examples: int) -> settings:
    """Settings of a property that takes so many examples, times what the profile in force asks for."""
    return settings(max_examples=max(1, examples * settings.default.max_examples // _USUAL), deadline=None)
