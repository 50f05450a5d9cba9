"""Models: plain modules, inputs to logits, that know neither configuration nor pruning."""
