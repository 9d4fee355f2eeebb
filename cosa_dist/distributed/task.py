"""What a launcher tells the workers of a run, and what they leave for it in the run folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

FAILURE = "failure.txt"
"""note in the run folder of an error that would come again"""


@dataclass(frozen=True)
class WorkerTask:
    """Everything a worker needs, as plain values that travel to other nodes."""

    config: dict[str, Any]
    folder: str
    tracking_uri: str
    run_id: str
    use_gpu: bool
    micro_batch_size: int
    """0: the largest one that suits the number of workers"""
    cpus: int
