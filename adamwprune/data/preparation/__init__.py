"""Text on its way from documents to files of tokens: encoded in parallel, resumable, verified."""
