"""Optimizers, each a function from parameter groups to a torch optimizer; none knows of pruning."""
