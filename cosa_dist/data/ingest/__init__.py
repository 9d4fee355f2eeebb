"""Sources to shards: what is read, checked, split, written and reported."""
