"""Pages that a browser opens: self-contained HTML made of what shards and runs hold."""
