"""Waits until a Ray cluster has all its nodes, then writes its number of GPUs to a file.

A batch script's part: `await_nodes.py NODES SECONDS FILE`, with RAY_ADDRESS naming the cluster. It ends
with 75 (try again later) if the nodes have not joined in time.
"""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path

TRY_AGAIN_LATER = 75


def nodes_alive() -> int:
    """Number of living nodes of the Ray cluster, 0 as long as its head cannot be joined."""
    import ray

    if not ray.is_initialized():
        try:
            ray.init(log_to_driver=False, logging_level=logging.WARNING)
        except ConnectionError:
            return 0
    return sum(node["Alive"] for node in ray.nodes())


def main(nodes: int, seconds: float, answer: Path) -> int:
    """Wait for the nodes; returns the exit code."""
    import ray

    deadline = time.monotonic() + seconds
    while (alive := nodes_alive()) < nodes:
        if time.monotonic() > deadline:
            print(f"only {alive} of {nodes} nodes joined in time", file=sys.stderr)
            return TRY_AGAIN_LATER
        time.sleep(0.5)
    temporary = answer.with_name(f"{answer.name}.tmp")
    temporary.write_text(f"{int(ray.cluster_resources().get('GPU', 0))}\n")
    temporary.replace(answer)
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[3])))
