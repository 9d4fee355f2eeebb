"""Shards to batches: order, decoding, views, loading."""
