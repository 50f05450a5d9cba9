"""AdamWPrune: train and prune neural networks with the optimizer's own state.

Importing this package starts nothing and imports neither torch nor a tracker.
"""

__version__ = "0.1.0"
