"""Scopes: which weights compete with each other, one a file; segments.py has what they are made of."""
