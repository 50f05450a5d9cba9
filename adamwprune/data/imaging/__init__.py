"""Images on their way from files to batches: read, checked, split, augmented, decoded."""
