"""Where a sweep's jobs run: one by one, side by side on this machine, or on a cluster."""
