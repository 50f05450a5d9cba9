"""Selection: exactly which entries go, given their scores; equal results, different ways to find them."""
