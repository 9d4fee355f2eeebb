"""Which record comes when: pure arithmetic, the same for any number of workers and after any resume.

A run reads one endless sequence of sample positions 0, 1, 2, ... Position p belongs to epoch
p // size, and each epoch's order is a permutation that depends only on (seed, epoch). Step n takes the
positions n*G .. n*G + G - 1 of the global batch G; rank r of W takes the r-th contiguous block of G / W
of them, cut into micro-batches. So the samples of step n are the same for every W.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from cosa_dist.data.errors import DataError

# Tells the order's random numbers from those of the views, which use the same seed.
_ORDER_STREAM = 1


@lru_cache(maxsize=4)
def epoch_order(size: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the epoch's permutation of `range(size)`, `[size]` int64, read-only (ours)."""
    if size < 1 or seed < 0 or epoch < 0:
        raise DataError(f"an order needs size >= 1, seed >= 0, epoch >= 0; got {size}, {seed}, {epoch}")
    key = np.random.SeedSequence([_ORDER_STREAM, seed, epoch])
    order = np.random.default_rng(key).permutation(size).astype(np.int64)
    order.flags.writeable = False
    return order


def sample_at(position: int, size: int, seed: int) -> tuple[int, int]:
    """Return (epoch, record index) of a position in the endless sequence of a split of `size`."""
    if position < 0:
        raise DataError(f"a sample position is 0 or more; got {position}")
    epoch, place = divmod(position, size)
    return epoch, int(epoch_order(size, seed, epoch)[place])


def check_batch(global_batch_size: int, rank: int, world_size: int, micro_batch_size: int | None) -> int:
    """Return the micro-batch size after checking that the sizes divide each other.

    Args:
        global_batch_size: samples of one step over all ranks.
        rank: this rank, 0 .. world_size - 1.
        world_size: number of ranks.
        micro_batch_size: samples of one forward pass; None takes the rank's whole share.

    Raises:
        DataError: the batch does not divide by the ranks, or a rank's share by the micro-batch.
    """
    if global_batch_size < 1 or world_size < 1 or not 0 <= rank < world_size:
        raise DataError(
            f"need a global batch >= 1 and 0 <= rank < world size; got batch {global_batch_size}, "
            f"rank {rank}, world size {world_size}"
        )
    share, rest = divmod(global_batch_size, world_size)
    if rest:
        raise DataError(
            f"a global batch of {global_batch_size} cannot be shared equally by {world_size} "
            "workers; choose a multiple"
        )
    micro = share if micro_batch_size is None else micro_batch_size
    if micro < 1 or share % micro:
        raise DataError(
            f"a worker's share of {share} samples cannot be cut into micro-batches of {micro}; "
            "choose a divisor"
        )
    return micro


def step_positions(
    step: int,
    global_batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    micro_batch_size: int | None = None,
) -> list[list[int]]:
    """Return the positions of one rank's micro-batches in step `step` (0-based).

    Raises:
        DataError: the sizes do not divide each other (see `check_batch`) or the step is negative.
    """
    if step < 0:
        raise DataError(f"a step is 0 or more; got {step}")
    micro = check_batch(global_batch_size, rank, world_size, micro_batch_size)
    share = global_batch_size // world_size
    first = step * global_batch_size + rank * share
    return [list(range(start, start + micro)) for start in range(first, first + share, micro)]
