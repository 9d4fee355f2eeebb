"""How to ingest: the few choices that a caller has."""

from __future__ import annotations

from dataclasses import dataclass

from cosa_dist.data.errors import DataError, nearest_name
from cosa_dist.data.ingest.check import UNTAGGED


@dataclass(frozen=True)
class IngestOptions:
    """How to ingest.

    `shards` per split (None chooses 8 to 128), `max_bad_share` of a split's entries that may be
    left out, whether an existing shard folder is replaced, how many processes work, whether images
    without tags are kept (`keep`) or left out (`leave-out`), and whether the user gave the order of the
    classes: then masks that contradict the tags are only said.
    """

    shards: int | None = None
    max_bad_share: float = 0.02
    overwrite: bool = False
    processes: int = 1
    untagged: str = "keep"
    classes_given: bool = False

    def __post_init__(self) -> None:
        if self.shards is not None and self.shards < 1:
            raise DataError(f"shards must be 1 or more; got {self.shards}")
        if not 0.0 <= self.max_bad_share < 1.0:
            raise DataError(f"the share of bad records is in [0, 1); got {self.max_bad_share}")
        if self.processes < 1:
            raise DataError(f"processes must be 1 or more; got {self.processes}")
        if self.untagged not in UNTAGGED:
            near = nearest_name(self.untagged, UNTAGGED)
            raise DataError(f"untagged is '{self.untagged}'{near}; allowed: {', '.join(UNTAGGED)}")
