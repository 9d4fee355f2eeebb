"""`streaming` reading: rows shard after shard, memory flat; while one is read, the next is fetched."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

from datasets import Dataset

from cosa_dist.data.reading.order import Piece, StreamOrder, pieces
from cosa_dist.data.shards.split import MASK_COLUMNS, TRAINING_COLUMNS, Split, describe_split

Row = dict[str, Any]
Part = Callable[[], Iterator[Row]]
"""yields the rows of one loader process; can be sent to it"""


class StreamingSplit(Split):
    """A split that is read shard after shard; make it with `open_stream`."""

    def training_parts(
        self, order: StreamOrder, rank: int, start_step: int, stop_step: int, *, masks: bool = False
    ) -> list[Part]:
        """Return a rank's rows from one step to another, one part for each loader process.

        A row has the columns of training and its `position` and `epoch`. Without `masks`, they are not read.
        """
        # A DataLoader asks its processes in turn, beginning with the first one: that is the owner of the
        # first micro-batch to come.
        first = start_step * order.batches_per_step
        readers = [rank * order.loaders + (first + n) % order.loaders for n in range(order.loaders)]
        columns = TRAINING_COLUMNS + (MASK_COLUMNS if masks else ())
        rows = partial(_training_rows, self, order, (start_step, stop_step), columns)
        return [partial(rows, reader) for reader in readers]

    def evaluation_parts(self, first: int, stop: int, loaders: int) -> list[Part]:
        """Return the records `first` .. `stop` - 1 with all columns, in `loaders` contiguous parts."""
        ends = [first + (stop - first) * number // loaders for number in range(loaders + 1)]
        wanted = [list(pieces(self.shard_counts, range(*ends[n : n + 2]))) for n in range(loaders)]
        return [partial(_stored_rows, self, each, None) for each in wanted]


def open_stream(root: Path | str, split: str, cache: str = "") -> StreamingSplit:
    """Open a split of the shard folder `root` (path or URL) for streaming; no shard is read yet.

    Copies of remote shards are kept in the folder `cache` (empty: none are). DataError: it is no shard
    folder, cannot be reached, or lacks the split.
    """
    return StreamingSplit(**vars(describe_split(root, split, cache)))


def _training_rows(
    split: Split, order: StreamOrder, steps: tuple[int, int], columns: tuple[str, ...], reader: int
) -> Iterator[Row]:
    """Yield the rows of one reader in the order of their positions."""
    wanted = chain.from_iterable(part.pieces for part in order.parts(reader, *steps))
    stored = _stored_rows(split, wanted, columns)
    for part in order.parts(reader, *steps):
        for window in part.windows:
            held = list(islice(stored, window.size))
            for pick, position in zip(window.picks.tolist(), window.positions.tolist(), strict=True):
                yield {"position": position, "epoch": part.epoch, **held[pick]}


def _stored_rows(split: Split, wanted: Iterable[Piece], columns: tuple[str, ...] | None) -> Iterator[Row]:
    """Yield the rows of pieces of shards as they are stored; while one is read, the next is fetched.

    Only the given columns are read, as far as they are there (None: all).
    """
    for piece, shard in _opened_ahead(split, iter(wanted)):
        there = [name for name in columns or () if name in shard.column_names]
        chosen = shard.select_columns(there) if columns else shard
        yield from chosen.select(range(piece.first, piece.stop))


def _opened_ahead(split: Split, wanted: Iterator[Piece]) -> Iterator[tuple[Piece, Dataset]]:
    """Yield each piece with its open shard, one shard ahead."""
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="next-shard")
    try:
        coming = [(piece, pool.submit(split.open_shard, piece.shard)) for piece in islice(wanted, 1)]
        while coming:
            piece, opening = coming.pop()
            shard = opening.result()
            coming = [(later, pool.submit(split.open_shard, later.shard)) for later in islice(wanted, 1)]
            yield piece, shard
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
