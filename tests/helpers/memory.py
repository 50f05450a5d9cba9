"""How much memory a piece of code holds at most."""

import tracemalloc

import numpy as np
import torch


class Peak:
    """Most memory that NumPy and torch, each by itself, held at a time within the block, in MiB together."""

    def __enter__(self):
        self._profile = torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
        )
        self._profile.__enter__()
        tracemalloc.start()
        return self

    def __exit__(self, *_):
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        self._profile.__exit__(None, None, None)
        events = self._profile.profiler.kineto_results.events()
        held = np.cumsum([0, *(event.nbytes() for event in events if event.name() == "[memory]")])
        self.mebibytes = (highest + int(held.max())) / 2**20
