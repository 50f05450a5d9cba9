"""Criteria, one a file: an elementwise function whose parameter names say what it reads."""
