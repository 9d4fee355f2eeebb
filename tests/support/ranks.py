"""Work in several processes that are joined as Ray Train joins its workers."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable

import torch.distributed as dist
import torch.multiprocessing as mp

import cosa_dist.distributed.worker  # noqa: F401  # imported once, by the server that forks the processes
from cosa_dist.distributed.cluster import free_port


def run_ranks(work: Callable[..., None], ranks: int, *words: object) -> None:
    """Call `work(rank, *words)` in `ranks` processes of one Gloo group, and wait for their ends."""
    multiprocessing.set_forkserver_preload([__name__])
    mp.start_processes(_join, args=(ranks, free_port(), work, words), nprocs=ranks, start_method="forkserver")


def _join(index: int, ranks: int, port: int, work: Callable[..., None], words: tuple[object, ...]) -> None:
    os.environ |= {
        "RANK": str(index),
        "WORLD_SIZE": str(ranks),
        "LOCAL_RANK": str(index),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    dist.init_process_group("gloo", rank=index, world_size=ranks)
    work(index, *words)
    dist.destroy_process_group()
