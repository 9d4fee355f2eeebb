"""Batches of a run: records read, decoded and made into views, in worker processes or in this one.

What a training step holds depends only on the seed, the step and the global batch (and, for a streaming
split, on the number of readers), so a run resumes by its step number alone. Splits of either reading mode are
taken: `mapped` reaches any record at once and gives the samples of a step for any number of workers; it needs
the shards on a file system of the node or in its cache. `streaming` reads shard after shard, from anywhere,
with flat memory.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, islice
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from cosa_dist.config.schema import DataConfig
from cosa_dist.data.errors import DataError
from cosa_dist.data.reading.order import StreamOrder, micro_batch, sample_at, step_positions
from cosa_dist.data.reading.samples import (
    Batch,
    EvalSample,
    PlacedRecord,
    ViewSettings,
    evaluation_sample,
    training_batch,
)
from cosa_dist.data.reading.streaming import Part, StreamingSplit, open_stream
from cosa_dist.data.reading.views import compiled_views
from cosa_dist.data.shards.remote import is_remote
from cosa_dist.data.shards.split import MappedSplit, Split, describe_split, open_split, record_of

MakeBatch = Callable[[Iterable[PlacedRecord]], Batch]


def open_reading(data: DataConfig, split: str) -> Split:
    """Open a split in the configured way; a `mapped` one with a cache is fetched now."""
    opening = open_stream if data.reading == "streaming" else open_split
    return opening(data.shards, split, data.cache)


def check_reading(data: DataConfig, split: str) -> Split:
    """Return a split's description after checking as much as takes no long transfer.

    Local shards are all opened; of remote ones, only the description is read.
    """
    if is_remote(data.shards):
        return describe_split(data.shards, split)
    return open_split(data.shards, split)


class MapDataset(Dataset[Any]):
    """The item of each key; errors travel as items, as torch would wrap those of processes in tracebacks."""

    def __init__(self, make: Callable[[Any], Any]) -> None:
        self.make = make

    def __getitem__(self, key: Any) -> Any:
        try:
            return self.make(key)
        except DataError as error:
            return error


class StreamDataset(IterableDataset[Any]):
    """Items made of streamed rows, of which each process takes the part of its number; errors likewise."""

    def __init__(self, parts: Sequence[Part], make: Callable[[Iterator[Any]], Iterator[Any]]) -> None:
        self.parts = parts
        self.make = make

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        try:
            yield from self.make(self.parts[worker.id if worker else 0]())
        except DataError as error:
            yield error


def iterate(
    dataset: MapDataset | StreamDataset, keys: Iterable[Any], num_workers: int, pin_memory: bool = False
) -> Iterator[Any]:
    """Yield the items of a map's keys, or all of a stream; raise the first error that a process met."""
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_size=None,
        sampler=keys if isinstance(dataset, MapDataset) else None,
        num_workers=num_workers,
        pin_memory=pin_memory,
        # A generator of its own: torch's loader would otherwise draw from the run's random numbers.
        generator=torch.Generator(),
        multiprocessing_context=_start_method() if num_workers else None,
    )
    for item in loader:
        if isinstance(item, DataError):
            raise item
        yield item


def _start_method() -> Any:
    """How loader processes start: the platform's way, but beside a GPU from a server that never used it.

    A fork of a process that uses CUDA, and perhaps memory registered with a network card, may corrupt it.
    The server imports what its processes would each import anew: this module, and Ray for the main module of
    a Ray worker, which they read again.
    """
    if not torch.cuda.is_initialized():
        return None
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, *(["ray"] if "ray" in sys.modules else [])])
    return context


class TrainingLoader:
    """Iterable of steps; each is the list of this rank's micro-batches.

    Sizes and seed are those of the configuration; a micro-batch of 0 is the rank's whole part of the global
    batch. The steps run from `start_step`, the next one of a resumed run, to `stop_step` - 1. `num_workers`
    processes decode (0: this one). Each reader of a streaming split shuffles `shuffle_window` rows at a time.

    A batch that cannot be shared evenly is a ConfigError; while iterating, a shard that cannot be read is a
    DataError and a record that cannot be decoded a RecordError, which names it.
    """

    def __init__(
        self,
        split: Split,
        *,
        crop_size: int,
        seed: int,
        global_batch_size: int,
        stop_step: int,
        scale_range: tuple[float, float] = (0.5, 2.0),
        rank: int = 0,
        world_size: int = 1,
        micro_batch_size: int = 0,
        start_step: int = 0,
        num_workers: int = 0,
        pin_memory: bool = False,
        shuffle_window: int = 256,
        masks: bool = False,
    ) -> None:
        if not 0 <= start_step <= stop_step:
            raise DataError(f"need 0 <= start step <= stop step; got {start_step} and {stop_step}")
        self._processes = (num_workers, pin_memory)
        micro = micro_batch(global_batch_size, world_size, micro_batch_size)
        self._steps = range(start_step, stop_step)
        self._batch = (global_batch_size, rank, world_size, micro)
        self._batches_per_step = global_batch_size // world_size // micro
        compiled_views()
        settings = ViewSettings(seed, crop_size, scale_range, masks)
        make = partial(training_batch, settings=settings, source=_source_of(split))
        self._dataset: MapDataset | StreamDataset
        if isinstance(split, StreamingSplit):
            sizes = (micro, self._batches_per_step, world_size, max(1, num_workers))
            order = StreamOrder(split.shard_counts, seed, shuffle_window, *sizes)
            parts = split.training_parts(order, rank, start_step, stop_step, masks=masks)
            classes = split.info.num_foreground
            self._dataset = StreamDataset(parts, partial(_streamed_batches, micro, classes, make))
        else:
            assert isinstance(split, MappedSplit)
            self._dataset = MapDataset(partial(_mapped_batch, split, settings, make))

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[list[Batch]]:
        keys = chain.from_iterable(step_positions(step, *self._batch) for step in self._steps)
        batches = iterate(self._dataset, keys, *self._processes)
        for _ in self._steps:
            yield [next(batches) for _ in range(self._batches_per_step)]


class EvaluationLoader:
    """Iterable of one rank's samples of a split; over all ranks each comes exactly once.

    A mapped split is dealt out one by one (rank, rank + world_size, ...), a streaming one in contiguous
    parts, so that no rank reads what it does not need. Only the records `start` .. `limit` - 1 count. Errors
    are those of `TrainingLoader`.
    """

    def __init__(
        self,
        split: Split,
        rank: int = 0,
        world_size: int = 1,
        limit: int | None = None,
        num_workers: int = 0,
        start: int = 0,
    ) -> None:
        if num_workers < 0 or (limit is not None and limit < 1):
            raise DataError(f"need workers >= 0 and limit >= 1; got {num_workers} and {limit}")
        self._num_workers = num_workers
        total = split.size if limit is None else min(limit, split.size)
        start = min(start, total)
        make = partial(evaluation_sample, source=_source_of(split))
        self._dataset: MapDataset | StreamDataset
        if isinstance(split, StreamingSplit):
            first, stop = (start + (total - start) * n // world_size for n in (rank, rank + 1))
            parts = split.evaluation_parts(first, stop, max(1, num_workers))
            self._records = range(first, stop)
            self._dataset = StreamDataset(parts, partial(_streamed_samples, split.info.num_foreground, make))
        else:
            assert isinstance(split, MappedSplit)
            self._records = range(start + rank, total, world_size)
            self._dataset = MapDataset(partial(_mapped_sample, split, make))

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[EvalSample]:
        return iterate(self._dataset, self._records, self._num_workers)


def _source_of(split: Split) -> str:
    """How messages name a split."""
    return f"split '{split.name}' in {split.root}"


def _mapped_batch(
    split: MappedSplit, settings: ViewSettings, make: MakeBatch, positions: Sequence[int]
) -> Batch:
    placed = []
    for position in positions:
        epoch, index = sample_at(position, split.size, settings.seed)
        placed.append(PlacedRecord(position, epoch, split.record(index, annotations=settings.masks)))
    return make(placed)


def _mapped_sample(split: MappedSplit, make: Callable[..., EvalSample], index: int) -> EvalSample:
    return make(split.record(index))


def _streamed_batches(size: int, classes: int, make: MakeBatch, rows: Iterator[Any]) -> Iterator[Batch]:
    while held := list(islice(rows, size)):
        yield make([PlacedRecord(r["position"], r["epoch"], record_of(r, classes)) for r in held])


def _streamed_samples(
    classes: int, make: Callable[..., EvalSample], rows: Iterator[Any]
) -> Iterator[EvalSample]:
    return (make(record_of(row, classes)) for row in rows)
