"""The data sets: each a function that a configuration names and that returns a `Data`."""
