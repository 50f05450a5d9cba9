"""What watches a run: the hooks (base), the console and the picture; trackers are in adamwprune/trackers."""
