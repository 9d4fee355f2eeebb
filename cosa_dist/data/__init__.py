"""Images with tags: from source folders to shards, and from shards to the batches of a run."""
