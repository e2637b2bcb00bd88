"""Methods against forgetting, one per file; each cites its paper and gives its formula with shapes and units."""
