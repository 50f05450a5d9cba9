"""Mutation runs: whether the tests of a package notice that its code was changed. See docs/quality.md."""
