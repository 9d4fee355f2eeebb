"""What a `DataLoader` draws from: items made of keys, for a mapped split, or of a stream of rows.

A mapped split is asked for the records of given positions or indices; a streaming split hands out its rows
in the order that it reads them. Either way the items are ready batches or evaluation samples, and an error
travels between processes as one line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from datasets import IterableDataset as RowStream
from torch.utils.data import DataLoader, Dataset, IterableDataset

from cosa_dist.data.errors import DataError
from cosa_dist.data.reading.order import sample_at
from cosa_dist.data.reading.samples import Batch, EvalSample, PlacedRecord
from cosa_dist.data.shards.split import MappedSplit, record_of

MakeBatch = Callable[[Iterable[PlacedRecord]], Batch]
MakeSample = Callable[..., EvalSample]


@dataclass(frozen=True)
class _Failure:
    """What a worker hands back instead of an item, so that the message arrives as one line."""

    kind: type[DataError]
    message: str


@dataclass(frozen=True)
class LoaderProcesses:
    """The processes that make items.

    Attributes:
        count: how many; 0 makes them in this one.
        pin_memory: put tensors in page-locked memory.
        context: how processes start ("fork", "spawn", "forkserver"); None: torch's way.
    """

    count: int = 0
    pin_memory: bool = False
    context: str | None = None


class Keyed(Dataset[Any]):
    """Makes the item of each key by a function that can be sent to another process."""

    def __init__(self, make: Callable[[Any], Any]) -> None:
        self.make = make

    def __getitem__(self, key: Any) -> Any:
        try:
            return self.make(key)
        except DataError as error:
            return _Failure(type(error), str(error))


class Streamed(IterableDataset[Any]):
    """Makes items of a stream of rows, of which each process takes its own part."""

    def __init__(self, rows: RowStream, make: Callable[[Iterator[Any]], Iterator[Any]]) -> None:
        self.rows = rows
        self.make = make

    def __iter__(self) -> Iterator[Any]:
        try:
            yield from self.make(iter(self.rows))
        except DataError as error:
            yield _Failure(type(error), str(error))


def load(source: Keyed | Streamed, keys: Any, processes: LoaderProcesses) -> Iterator[Any]:
    """Yield the items of a source in order.

    Args:
        source: what makes the items.
        keys: keys of a `Keyed` source; None for a `Streamed` one.
        processes: who makes them.

    Raises:
        DataError: the first error that a process met, of its own kind.
    """
    loader: DataLoader[Any] = DataLoader(
        source,
        batch_size=None,
        sampler=keys,
        num_workers=processes.count,
        collate_fn=_unchanged,
        worker_init_fn=_one_thread if processes.count else None,
        pin_memory=processes.pin_memory,
        multiprocessing_context=processes.context if processes.count else None,
        # A generator of its own: torch's loader would otherwise draw from the run's random numbers.
        generator=torch.Generator(),
    )
    for item in loader:
        if isinstance(item, _Failure):
            raise item.kind(item.message)
        yield item


def mapped_batch(
    positions: Sequence[int], *, split: MappedSplit, seed: int, masks: bool, make: MakeBatch
) -> Batch:
    """Return the batch of the given positions of a mapped split; without `masks`, they are not read."""
    placed = []
    for position in positions:
        epoch, index = sample_at(position, split.size, seed)
        placed.append(PlacedRecord(position, epoch, split.record(index, annotations=masks)))
    return make(placed)


def mapped_sample(index: int, *, split: MappedSplit, make: MakeSample) -> EvalSample:
    """Return record `index` of a mapped split as an evaluation sample."""
    return make(split.record(index))


def streamed_batches(
    rows: Iterator[Any], *, size: int, num_foreground: int, make: MakeBatch
) -> Iterator[Batch]:
    """Yield batches of `size` consecutive rows of a streaming split."""
    while held := list(islice(rows, size)):
        yield make([PlacedRecord(r["position"], r["epoch"], record_of(r, num_foreground)) for r in held])


def streamed_samples(rows: Iterator[Any], *, num_foreground: int, make: MakeSample) -> Iterator[EvalSample]:
    """Yield the rows of a streaming split as evaluation samples."""
    for row in rows:
        yield make(record_of(row, num_foreground))


def _unchanged(item: Any) -> Any:
    """Hand an item on as it is (the items above are whole batches already)."""
    return item


def _one_thread(worker: int) -> None:
    """Keep a loader's worker to one thread: the workers are what shares the cores."""
    torch.set_num_threads(1)
