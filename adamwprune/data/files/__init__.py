"""Where data come from and are kept: what ships, what is fetched, what is cached; nothing in them is run."""
