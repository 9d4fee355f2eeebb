"""The format of a data set on disk: Arrow shards, their description, how they are opened and published."""
