"""Which record comes when: pure arithmetic, so that a run resumes by its step number alone.

A run reads one endless sequence of sample positions; position p belongs to epoch p // size. Step n takes the
G positions from n*G on of the global batch G; each rank takes a contiguous block of them, cut into
micro-batches.

*Mapped*: each epoch is a permutation of the records that depends only on (seed, epoch), so the samples of
step n are the same for any number of ranks. *Streaming* (ours): a reader is one loader process of one rank;
it owns the positions of every L-th micro-batch of its rank, L loader processes sharing them. An epoch puts
the shards in an order that depends only on (seed, epoch) and lays their rows end to end. Each reader reads
one contiguous part of these rows, as many as it owns positions of the epoch, takes `window` rows at a time
and hands them out in a random order of their own. So a sample is a function of (seed, position) and of the
number of readers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from cosa_dist.config.errors import ConfigError

# Tell the random numbers apart: all use the run's seed (the views use 2).
_ORDER_STREAM, _SHARD_STREAM, _WINDOW_STREAM = 1, 3, 4


@lru_cache(maxsize=4)
def epoch_order(size: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the epoch's permutation of `range(size)`, `[size]` int64, read-only (ours)."""
    key = np.random.SeedSequence([_ORDER_STREAM, seed, epoch])
    order = np.random.default_rng(key).permutation(size).astype(np.int64)
    order.flags.writeable = False
    return order


def sample_at(position: int, size: int, seed: int) -> tuple[int, int]:
    """Return (epoch, record index) of a position in the endless sequence of a split of `size`."""
    epoch, place = divmod(position, size)
    return epoch, int(epoch_order(size, seed, epoch)[place])


def micro_batch(global_batch: int, workers: int, wanted: int = 0) -> int:
    """Images that a worker computes at a time: `wanted`, or its whole part (0, or where that is smaller).

    An uneven cut is a ConfigError.
    """
    part, rest = divmod(global_batch, workers)
    if rest or part == 0:
        raise ConfigError(
            f"training.global_batch_size {global_batch} cannot be shared evenly by {workers} "
            f"workers; choose a multiple of {workers} or another distributed.workers"
        )
    micro = min(wanted or part, part)
    if micro < 1 or part % micro:
        raise ConfigError(
            f"training.micro_batch_size {micro} does not divide a worker's part of {part} "
            f"({global_batch} images / {workers} workers)"
        )
    return micro


def step_positions(
    step: int, global_batch_size: int, rank: int, world_size: int, micro_batch_size: int
) -> list[list[int]]:
    """Return the positions of one rank's micro-batches in step `step` (0-based)."""
    part = global_batch_size // world_size
    first = step * global_batch_size + rank * part
    return [
        list(range(start, start + micro_batch_size)) for start in range(first, first + part, micro_batch_size)
    ]


@dataclass(frozen=True)
class Piece:
    """Rows `first` .. `stop` - 1 of one shard."""

    shard: int
    first: int
    stop: int


def pieces(counts: Sequence[int], rows: range, order: Iterable[int] | None = None) -> Iterator[Piece]:
    """Yield the parts of shards that hold `rows` of all shards laid end to end (in `order`)."""
    begin = 0
    for shard in range(len(counts)) if order is None else order:
        first, stop = max(rows.start, begin), min(rows.stop, begin + counts[shard])
        if first < stop:
            yield Piece(shard, first - begin, stop - begin)
        begin += counts[shard]


@dataclass(frozen=True)
class Window:
    """Rows that are read together and handed out in random order."""

    size: int  # rows to read
    picks: NDArray[np.int64]
    """`[n]` which of them to hand out, in order; fewer than `size` where a run starts or ends"""
    positions: NDArray[np.int64]  # `[n]` the positions that they get


@dataclass(frozen=True)
class EpochPart:
    """What one reader reads in one epoch: pieces of shards one after the other, cut into windows."""

    epoch: int
    pieces: tuple[Piece, ...]
    windows: tuple[Window, ...]


@dataclass(frozen=True)
class StreamOrder:
    """The order of a streamed training."""

    counts: tuple[int, ...]  # records of each shard
    seed: int
    window: int  # rows that a reader shuffles at a time
    micro_batch_size: int
    batches_per_step: int  # micro-batches of a rank's step
    world_size: int
    loaders: int  # readers of each rank

    @property
    def size(self) -> int:
        """Records of the split, which are the positions of an epoch."""
        return sum(self.counts)

    def owners(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return each position's reader, rank * loaders + loader; micro-batches go round a rank's readers."""
        block = positions // self.micro_batch_size
        step, rest = np.divmod(block, self.batches_per_step * self.world_size)
        rank, number = np.divmod(rest, self.batches_per_step)
        return rank * self.loaders + (step * self.batches_per_step + number) % self.loaders

    def parts(self, reader: int, start_step: int, stop_step: int) -> Iterator[EpochPart]:
        """Yield what a reader reads from one step to another, epoch by epoch."""
        batch = self.micro_batch_size * self.batches_per_step * self.world_size
        first, stop = start_step * batch, stop_step * batch
        for epoch in range(first // self.size, -(-stop // self.size)):
            positions = np.arange(epoch * self.size, (epoch + 1) * self.size)
            owners = self.owners(positions)
            begin = int(np.count_nonzero(owners < reader))
            windows, starts = [], []
            owned = positions[owners == reader]
            for number, start in enumerate(range(0, len(owned), self.window)):
                held = owned[start : start + self.window]
                wanted = (held >= first) & (held < stop)
                if wanted.any():
                    key = np.random.SeedSequence([_WINDOW_STREAM, self.seed, epoch, reader, number])
                    picks = np.random.default_rng(key).permutation(len(held))
                    windows.append(Window(len(held), picks[wanted], held[wanted]))
                    starts.append(begin + start)
            if windows:
                key = np.random.SeedSequence([_SHARD_STREAM, self.seed, epoch])
                order = np.random.default_rng(key).permutation(len(self.counts)).tolist()
                rows = range(starts[0], starts[-1] + windows[-1].size)
                yield EpochPart(epoch, tuple(pieces(self.counts, rows, order)), tuple(windows))
