"""Batches of a run: records read, decoded and made into views, in worker processes or in this one.

`TrainingLoader` yields, step by step, the micro-batches of one rank; what a step holds depends only
on the seed, the step and the global batch (and, for a streaming split, on the number of readers), so a
run resumes by its step number alone. `EvaluationLoader` yields whole images, each exactly once over all
ranks. Both take a split of either reading mode. Batches leave the workers as cropped uint8; normalising
is left to the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from cosa_dist.data.errors import DataError
from cosa_dist.data.reading.feed import (
    Keyed,
    LoaderProcesses,
    Streamed,
    load,
    mapped_batch,
    mapped_sample,
    streamed_batches,
    streamed_samples,
)
from cosa_dist.data.reading.order import check_batch, step_positions
from cosa_dist.data.reading.samples import Batch, EvalSample, evaluation_sample, training_batch
from cosa_dist.data.reading.stream_order import StreamOrder
from cosa_dist.data.reading.streaming import StreamingSplit
from cosa_dist.data.shards.split import MappedSplit, Split

__all__ = ["Batch", "EvalSample", "EvaluationLoader", "TrainingLoader"]

SHUFFLE_WINDOW = 256
"""Rows that each reader of a streaming split shuffles at a time, unless told otherwise."""


class _Positions:
    """The positions of a rank's micro-batches from one step to another, one list at a time."""

    def __init__(self, steps: range, batch: tuple[int, int, int, int]) -> None:
        self.steps = steps
        self.batch = batch

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.steps:
            yield from step_positions(step, *self.batch)

    def __len__(self) -> int:
        total, _, world_size, micro = self.batch
        return len(self.steps) * (total // world_size // micro)


class TrainingLoader:
    """Iterable of steps; each is the list of this rank's micro-batches.

    Args:
        split: the training split, mapped or streaming.
        crop_size: side S of the square crops.
        scale_range: smallest and largest random scale.
        seed: the run's seed; order and views depend on it.
        global_batch_size: samples of a step over all ranks.
        rank: this rank.
        world_size: number of ranks.
        micro_batch_size: samples of one forward pass; None takes the rank's whole share.
        start_step: first step to yield; a resumed run passes the next one.
        stop_step: step before which to stop.
        num_workers: processes that decode; 0 decodes in this one.
        pin_memory: put batches in page-locked memory.
        multiprocessing_context: how workers start ("fork", "spawn", "forkserver"); None: torch's
            way.
        shuffle_window: rows that each reader of a streaming split shuffles at a time.
        masks: also read the masks; training on tags leaves them unread.

    Raises:
        DataError: a setting is out of range or the batch cannot be shared (see `check_batch`); while
            iterating, for a shard that cannot be read.
        RecordError: while iterating, for a record that cannot be decoded; it names the record.
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
        micro_batch_size: int | None = None,
        start_step: int = 0,
        num_workers: int = 0,
        pin_memory: bool = False,
        multiprocessing_context: str | None = None,
        shuffle_window: int = SHUFFLE_WINDOW,
        masks: bool = False,
    ) -> None:
        _check_settings(crop_size, scale_range, seed, num_workers, shuffle_window)
        if not 0 <= start_step <= stop_step:
            raise DataError(f"need 0 <= start step <= stop step; got {start_step} and {stop_step}")
        micro = check_batch(global_batch_size, rank, world_size, micro_batch_size)
        if shuffle_window < 1:
            raise DataError(f"a shuffle window needs 1 row or more; got {shuffle_window}")
        self._steps = range(start_step, stop_step)
        self._batches_per_step = global_batch_size // world_size // micro
        self._processes = LoaderProcesses(num_workers, pin_memory, multiprocessing_context)
        views: dict[str, Any] = {"crop_size": crop_size, "scale_range": scale_range, "masks": masks}
        make = partial(training_batch, source=_named(split), seed=seed, **views)
        self._source: Keyed | Streamed
        self._keys: _Positions | None = None
        if isinstance(split, StreamingSplit):
            sizes = (micro, self._batches_per_step, world_size, max(1, num_workers))
            order = StreamOrder(split.shard_counts, seed, shuffle_window, *sizes)
            rows = split.training_rows(order, rank, start_step, stop_step, masks=masks)
            classes = split.info.num_foreground
            self._source = Streamed(
                rows, partial(streamed_batches, size=micro, num_foreground=classes, make=make)
            )
        elif isinstance(split, MappedSplit):
            self._keys = _Positions(self._steps, (global_batch_size, rank, world_size, micro))
            self._source = Keyed(partial(mapped_batch, split=split, seed=seed, masks=masks, make=make))
        else:
            raise TypeError(f"a split is mapped or streaming; got {type(split).__name__}")

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[list[Batch]]:
        batches = load(self._source, self._keys, self._processes)
        for _ in self._steps:
            yield [next(batches) for _ in range(self._batches_per_step)]


class EvaluationLoader:
    """Iterable of one rank's samples of a split; over all ranks each comes exactly once.

    A mapped split is dealt out one by one (rank, rank + world_size, ...), a streaming one in contiguous
    parts, so that no rank reads what it does not need.

    Args:
        split: the split to evaluate, mapped or streaming.
        rank: this rank.
        world_size: number of ranks.
        limit: only the first `limit` records of the split; None takes all.
        start: without the first `start` records of these.
        num_workers: processes that decode; 0 decodes in this one.
        multiprocessing_context: how workers start; None: torch's way.

    Raises:
        DataError: a setting is out of range; while iterating, for a shard that cannot be read.
        RecordError: while iterating, for a record that cannot be decoded; it names the record.
    """

    def __init__(
        self,
        split: Split,
        rank: int = 0,
        world_size: int = 1,
        limit: int | None = None,
        num_workers: int = 0,
        multiprocessing_context: str | None = None,
        start: int = 0,
    ) -> None:
        check_batch(world_size, rank, world_size, None)
        if num_workers < 0 or (limit is not None and limit < 1):
            raise DataError(f"need workers >= 0 and limit >= 1; got {num_workers} and {limit}")
        total = split.size if limit is None else min(limit, split.size)
        start = min(start, total)
        self._processes = LoaderProcesses(num_workers, False, multiprocessing_context)
        make = partial(evaluation_sample, source=_named(split))
        self._source: Keyed | Streamed
        self._keys: range | None = None
        if isinstance(split, StreamingSplit):
            first, stop = (start + (total - start) * n // world_size for n in (rank, rank + 1))
            rows = split.evaluation_rows(first, stop, max(1, num_workers))
            classes = split.info.num_foreground
            self._source = Streamed(rows, partial(streamed_samples, num_foreground=classes, make=make))
            self._count = stop - first
        elif isinstance(split, MappedSplit):
            self._keys = range(start + rank, total, world_size)
            self._source = Keyed(partial(mapped_sample, split=split, make=make))
            self._count = len(self._keys)
        else:
            raise TypeError(f"a split is mapped or streaming; got {type(split).__name__}")

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[EvalSample]:
        return load(self._source, self._keys, self._processes)


def _named(split: Split) -> str:
    """Return how messages call a split."""
    return f"split '{split.name}' in {split.root}"


def _check_settings(
    crop_size: int, scale_range: tuple[float, float], seed: int, num_workers: int, shuffle_window: int
) -> None:
    """Raise `DataError` for a setting that makes no batch."""
    low, high = scale_range
    if crop_size < 1:
        raise DataError(f"crop size must be 1 or more; got {crop_size}")
    if not 0.0 < low <= high:
        raise DataError(f"scale range needs 0 < low <= high; got {low} and {high}")
    if seed < 0 or num_workers < 0:
        raise DataError(f"seed and workers must be 0 or more; got {seed} and {num_workers}")
    if shuffle_window < 1:
        raise DataError(f"a shuffle window needs 1 row or more; got {shuffle_window}")
