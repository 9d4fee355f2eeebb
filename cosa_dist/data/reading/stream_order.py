"""Which reader of a streamed split reads which rows, and in which order it hands them out: pure arithmetic.

Positions and epochs are those of `order`: position p belongs to epoch p // size, and step n takes the
positions n*G .. n*G + G - 1 of the global batch G. A *reader* is one loader process of one rank; it owns
the positions of every L-th micro-batch of its rank, L loader processes sharing them. What is ours here:

- An epoch puts the shards in an order that depends only on (seed, epoch) and lays their rows end to end.
- Each reader reads one contiguous part of these rows, as many as it owns positions of the epoch; parts
  follow each other in the order of the readers, so each row is read once, and a part may begin or end
  within a shard.
- Within its part it takes `window` rows at a time and hands them out in a random order of their own.

So a sample is a function of (seed, position) and of the number of readers, and a run resumes by its step
number alone: what lies before is counted, not read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

# Tell these random numbers from those of `order` and of the views, which use the same seed.
_SHARD_STREAM = 3
_WINDOW_STREAM = 4


@dataclass(frozen=True)
class Piece:
    """Rows `first` .. `stop` - 1 of one shard."""

    shard: int
    first: int
    stop: int


@dataclass(frozen=True)
class Window:
    """Rows that are read together and handed out in random order.

    Attributes:
        size: rows to read.
        picks: `[n]` which of them to hand out, in order; fewer than `size` where a run starts or ends.
        positions: `[n]` the positions that they get.
    """

    size: int
    picks: NDArray[np.int64]
    positions: NDArray[np.int64]


@dataclass(frozen=True)
class EpochShare:
    """What one reader reads in one epoch: rows of the epoch's sequence, cut into windows."""

    epoch: int
    rows: range
    windows: tuple[Window, ...]


@dataclass(frozen=True)
class StreamOrder:
    """The order of a streamed training.

    Attributes:
        counts: records of each shard.
        seed: the run's seed.
        window: rows that a reader shuffles at a time.
        micro_batch_size: samples of one batch.
        batches_per_step: micro-batches of a rank's step.
        world_size: number of ranks.
        loaders: readers of each rank.
    """

    counts: tuple[int, ...]
    seed: int
    window: int
    micro_batch_size: int
    batches_per_step: int
    world_size: int
    loaders: int

    @property
    def size(self) -> int:
        """Records of the split, which are the positions of an epoch."""
        return sum(self.counts)

    def reader(self, rank: int, loader: int) -> int:
        """Return the number of a rank's reader, 0 .. world_size * loaders - 1."""
        return rank * self.loaders + loader

    def owners(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the reader of each position, `[n]` -> `[n]`.

        A rank's micro-batches, counted from step 0, go round its readers.
        """
        block = positions // self.micro_batch_size
        step, rest = np.divmod(block, self.batches_per_step * self.world_size)
        rank, number = np.divmod(rest, self.batches_per_step)
        loader = (step * self.batches_per_step + number) % self.loaders
        return rank * self.loaders + loader

    def shares(self, reader: int, start_step: int, stop_step: int) -> Iterator[EpochShare]:
        """Yield what a reader reads from one step to another, epoch by epoch."""
        batch = self.micro_batch_size * self.batches_per_step * self.world_size
        first, stop = start_step * batch, stop_step * batch
        for epoch in range(first // self.size, -(-stop // self.size)):
            positions = np.arange(epoch * self.size, (epoch + 1) * self.size)
            owners = self.owners(positions)
            begin = int(np.count_nonzero(owners < reader))
            owned = positions[owners == reader]
            share = self._share(epoch, reader, begin, owned, (first, stop))
            if share.windows:
                yield share

    def pieces(self, share: EpochShare) -> Iterator[Piece]:
        """Yield the parts of shards that make up a share's rows, in reading order."""
        order = _shard_order(len(self.counts), self.seed, share.epoch)
        begin = 0
        for shard in order:
            count = self.counts[shard]
            first, stop = max(share.rows.start, begin), min(share.rows.stop, begin + count)
            if first < stop:
                yield Piece(shard, first - begin, stop - begin)
            begin += count

    def _share(
        self, epoch: int, reader: int, begin: int, owned: NDArray[np.int64], wanted: tuple[int, int]
    ) -> EpochShare:
        """Cut a reader's part, rows from `begin` on, into windows; only those with wanted positions stay."""
        windows, starts = [], []
        for number, start in enumerate(range(0, len(owned), self.window)):
            positions = owned[start : start + self.window]
            kept = (positions >= wanted[0]) & (positions < wanted[1])
            if kept.any():
                key = np.random.SeedSequence([_WINDOW_STREAM, self.seed, epoch, reader, number])
                picks = np.random.default_rng(key).permutation(len(positions))
                windows.append(Window(len(positions), picks[kept], positions[kept]))
                starts.append(begin + start)
        rows = range(starts[0], starts[-1] + windows[-1].size) if windows else range(0)
        return EpochShare(epoch, rows, tuple(windows))


def contiguous_pieces(counts: tuple[int, ...], first: int, stop: int) -> Iterator[Piece]:
    """Yield the parts of shards that hold the records `first` .. `stop` - 1 of a split."""
    begin = 0
    for shard, count in enumerate(counts):
        low, high = max(first, begin), min(stop, begin + count)
        if low < high:
            yield Piece(shard, low - begin, high - begin)
        begin += count


@lru_cache(maxsize=4)
def _shard_order(shards: int, seed: int, epoch: int) -> tuple[int, ...]:
    """Return the epoch's order of the shards."""
    key = np.random.SeedSequence([_SHARD_STREAM, seed, epoch])
    return tuple(int(shard) for shard in np.random.default_rng(key).permutation(shards))
