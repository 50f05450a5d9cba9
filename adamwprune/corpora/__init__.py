"""Texts that are made on this machine, of packages that its distribution has."""
