"""What watches a run: the hooks (base), the mirrors of metrics.jsonl (tracker) and one module per tracker."""
