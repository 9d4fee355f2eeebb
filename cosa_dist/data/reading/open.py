"""The two ways to read a split, chosen by configuration: `mapped` and `streaming`.

`mapped` reaches any record at once and gives the samples of a step for any number of workers; it needs
the shards on a file system of the node or in its cache. `streaming` reads shard after shard, from
anywhere, with flat memory.
"""

from __future__ import annotations

from cosa_dist.config.schema import DataConfig
from cosa_dist.data.reading.streaming import open_stream
from cosa_dist.data.shards.description import SplitDescription, describe_split
from cosa_dist.data.shards.remote import is_remote
from cosa_dist.data.shards.split import Split, open_split


def open_reading(data: DataConfig, split: str) -> Split:
    """Open a split in the configured way; a `mapped` one with a cache is fetched now.

    Raises:
        DataError: there is no such split, or it cannot be read this way.
    """
    opening = open_stream if data.reading == "streaming" else open_split
    return opening(data.shards, split, data.cache)


def check_reading(data: DataConfig, split: str) -> SplitDescription:
    """Return a split's description after checking as much as takes no long transfer.

    Local shards are all opened; of remote ones, only the description is read.

    Raises:
        DataError: there is no such split, or it cannot be read this way.
    """
    if is_remote(data.shards):
        return describe_split(data.shards, split)
    return open_split(data.shards, split).files.description
