"""`streaming` reading: the samples of a run as an HF `IterableDataset`, shard after shard, memory flat.

For data sets that are not on the node, or too large to map. Each rank has an `IterableDataset` of as many
parts as it has loader processes; inside a `DataLoader`, `datasets` gives each process its own part.
Which rows a part holds and in which order is arithmetic (`stream_order`), never the state of an iterator.
While a shard is read, the next one is fetched.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset
from datasets.iterable_dataset import ExamplesIterable

from cosa_dist.data.reading.stream_order import Piece, StreamOrder, contiguous_pieces
from cosa_dist.data.shards.description import describe_split
from cosa_dist.data.shards.files import ShardFiles
from cosa_dist.data.shards.split import MASK_COLUMNS, TRAINING_COLUMNS, Split

Row = dict[str, Any]


class StreamingSplit(Split):
    """A split that is read shard after shard; make it with `open_stream`."""

    def training_rows(
        self, order: StreamOrder, rank: int, start_step: int, stop_step: int, *, masks: bool = False
    ) -> IterableDataset:
        """Return a rank's rows from one step to another, one part for each loader process.

        A row has the columns of training and its `position` and `epoch`. Without `masks`, they are not read.
        """
        # A DataLoader asks its processes in turn, beginning with the first one: that is the owner of the
        # first micro-batch to come.
        first = start_step * order.batches_per_step
        readers = [order.reader(rank, (first + n) % order.loaders) for n in range(order.loaders)]
        columns = TRAINING_COLUMNS + (MASK_COLUMNS if masks else ())
        return _iterable(
            [_TrainingPart(self.files, order, r, start_step, stop_step, columns) for r in readers]
        )

    def evaluation_rows(self, first: int, stop: int, loaders: int) -> IterableDataset:
        """Return the records `first` .. `stop` - 1 with all columns, in `loaders` contiguous parts."""
        ends = [first + (stop - first) * number // loaders for number in range(loaders + 1)]
        return _iterable([_EvaluationPart(self.files, *ends[n : n + 2]) for n in range(loaders)])


def open_stream(root: Path | str, split: str, cache: str = "") -> StreamingSplit:
    """Open a split of the shard folder `root` (path or URL) for streaming; no shard is read yet.

    Args:
        root: path or URL of the shard folder.
        split: the split's name.
        cache: folder for copies of remote shards; empty: none are kept.

    Raises:
        DataError: `root` is no shard folder or of another format version, cannot be reached, or the
            split is not there.
    """
    return StreamingSplit(ShardFiles(describe_split(str(root), split), cache))


@dataclass(frozen=True)
class _TrainingPart:
    """The rows of one reader."""

    files: ShardFiles
    order: StreamOrder
    reader: int
    start_step: int
    stop_step: int
    columns: tuple[str, ...]

    def rows(self) -> Iterator[Row]:
        """Yield the rows in the order of their positions."""
        order, steps = self.order, (self.start_step, self.stop_step)
        pieces = chain.from_iterable(order.pieces(share) for share in order.shares(self.reader, *steps))
        stored = stored_rows(self.files, pieces, self.columns)
        for share in order.shares(self.reader, *steps):
            for window in share.windows:
                held = list(islice(stored, window.size))
                for pick, position in zip(window.picks.tolist(), window.positions.tolist(), strict=True):
                    yield {"position": position, "epoch": share.epoch, **held[pick]}


@dataclass(frozen=True)
class _EvaluationPart:
    """Records `first` .. `stop` - 1 of a split."""

    files: ShardFiles
    first: int
    stop: int

    def rows(self) -> Iterator[Row]:
        """Yield the rows in record order."""
        counts = tuple(shard.count for shard in self.files.description.shards)
        return stored_rows(self.files, contiguous_pieces(counts, self.first, self.stop), None)


def stored_rows(files: ShardFiles, pieces: Iterable[Piece], columns: tuple[str, ...] | None) -> Iterator[Row]:
    """Yield the rows of pieces of shards as they are stored; while one is read, the next is fetched.

    Args:
        files: the split's files.
        pieces: what to read, in order.
        columns: columns to read, as far as they are there; None reads all.

    Raises:
        DataError: a shard is missing, damaged or cannot be fetched.
    """
    for piece, shard in _opened_ahead(files, iter(pieces)):
        there = [name for name in columns or () if name in shard.column_names]
        chosen = shard.select_columns(there) if columns else shard
        yield from chosen.select(range(piece.first, piece.stop))


def _opened_ahead(files: ShardFiles, pieces: Iterator[Piece]) -> Iterator[tuple[Piece, Dataset]]:
    """Yield each piece with its open shard, one shard ahead."""
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="next-shard")
    try:
        coming = [(piece, pool.submit(files.open, piece.shard)) for piece in islice(pieces, 1)]
        while coming:
            piece, opening = coming.pop()
            shard = opening.result()
            coming = [(later, pool.submit(files.open, later.shard)) for later in islice(pieces, 1)]
            yield piece, shard
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _iterable(parts: list[Any]) -> IterableDataset:
    """Return the rows of all parts as an HF dataset whose parts its loader's processes share.

    `IterableDataset.from_generator` does the same, but leaves a lock file in the home folder's cache for
    each new set of arguments, that is for each resume of each rank.
    """
    return IterableDataset(ExamplesIterable(_examples, {"parts": parts}))


def _examples(parts: list[Any]) -> Iterator[tuple[Any, Row]]:
    """Yield (key, row) of all parts one after the other, as `datasets` wants it."""
    for number, part in enumerate(parts):
        for index, row in enumerate(part.rows()):
            yield (number, index), row
