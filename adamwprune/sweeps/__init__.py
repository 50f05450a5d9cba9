"""Parts of a sweep: which jobs it has, what its folder says of them, how each ended."""
