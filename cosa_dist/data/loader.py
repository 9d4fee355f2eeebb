"""Batches of a run: records read, decoded and made into views, in worker processes or in this one.

`TrainingLoader` yields, step by step, the micro-batches of one rank; what a step holds depends only
on the seed, the step and the global batch, so a run resumes by its step number alone.
`EvaluationLoader` yields whole images, each exactly once over all ranks. Batches leave the workers
as cropped uint8; normalising is left to the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from cosa_dist.data.errors import DataError, RecordError
from cosa_dist.data.order import check_batch, step_positions
from cosa_dist.data.samples import Batch, EvalSample, evaluation_sample, training_batch
from cosa_dist.data.shards import Split

__all__ = ["Batch", "EvalSample", "EvaluationLoader", "TrainingLoader"]

Item = TypeVar("Item")


@dataclass(frozen=True)
class _Failure:
    """What a worker hands back instead of an item, so that the message arrives as one line."""

    message: str


class _Items(Dataset[Any], Generic[Item]):
    """Makes the item of a key by a function that can be sent to another process."""

    def __init__(self, make: Callable[[Any], Item]) -> None:
        self.make = make

    def __getitem__(self, key: Any) -> Item | _Failure:
        try:
            return self.make(key)
        except RecordError as error:
            return _Failure(str(error))


def _unchanged(item: Any) -> Any:
    """Hand an item on as it is (the items above are whole batches already)."""
    return item


def _one_thread(worker: int) -> None:
    """Keep a loader's worker to one thread: the workers are what shares the cores."""
    torch.set_num_threads(1)


def _load(
    items: _Items[Item], keys: Any, num_workers: int, pin_memory: bool, context: str | None
) -> Iterator[Item]:
    """Yield the items of `keys` in order; raises `RecordError` for the first that cannot be read."""
    loader: DataLoader[Any] = DataLoader(
        items,
        batch_size=None,
        sampler=keys,
        num_workers=num_workers,
        collate_fn=_unchanged,
        worker_init_fn=_one_thread if num_workers else None,
        pin_memory=pin_memory,
        multiprocessing_context=context if num_workers else None,
        # A generator of its own: torch's loader would otherwise draw from the run's random numbers.
        generator=torch.Generator(),
    )
    for item in loader:
        if isinstance(item, _Failure):
            raise RecordError(item.message)
        yield item


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
        split: the training split.
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

    Raises:
        DataError: a setting is out of range or the batch cannot be shared (see `check_batch`).
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
    ) -> None:
        _check_settings(crop_size, scale_range, seed, num_workers)
        if not 0 <= start_step <= stop_step:
            raise DataError(f"need 0 <= start step <= stop step; got {start_step} and {stop_step}")
        micro = check_batch(global_batch_size, rank, world_size, micro_batch_size)
        self._batches_per_step = global_batch_size // world_size // micro
        self._steps = range(start_step, stop_step)
        self._positions = _Positions(self._steps, (global_batch_size, rank, world_size, micro))
        self._items = _Items(
            partial(
                training_batch,
                split=split,
                crop_size=crop_size,
                scale_range=scale_range,
                seed=seed,
            )
        )
        self._how = (num_workers, pin_memory, multiprocessing_context)

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[list[Batch]]:
        batches = _load(self._items, self._positions, *self._how)
        for _ in self._steps:
            yield [next(batches) for _ in range(self._batches_per_step)]


class EvaluationLoader:
    """Iterable of the samples rank, rank + world_size, ... of a split, each exactly once.

    Args:
        split: the split to evaluate.
        rank: this rank.
        world_size: number of ranks.
        limit: only the first `limit` records of the split; None takes all.
        num_workers: processes that decode; 0 decodes in this one.
        multiprocessing_context: how workers start; None: torch's way.

    Raises:
        DataError: a setting is out of range.
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
    ) -> None:
        check_batch(world_size, rank, world_size, None)
        if num_workers < 0 or (limit is not None and limit < 1):
            raise DataError(f"need workers >= 0 and limit >= 1; got {num_workers} and {limit}")
        total = split.size if limit is None else min(limit, split.size)
        self._indices = range(rank, total, world_size)
        self._items = _Items(partial(evaluation_sample, split=split))
        self._how = (num_workers, False, multiprocessing_context)

    def __len__(self) -> int:
        return len(self._indices)

    def __iter__(self) -> Iterator[EvalSample]:
        return _load(self._items, self._indices, *self._how)


def _check_settings(crop_size: int, scale_range: tuple[float, float], seed: int, num_workers: int) -> None:
    """Raise `DataError` for a setting that makes no batch."""
    low, high = scale_range
    if crop_size < 1:
        raise DataError(f"crop size must be 1 or more; got {crop_size}")
    if not 0.0 < low <= high:
        raise DataError(f"scale range needs 0 < low <= high; got {low} and {high}")
    if seed < 0 or num_workers < 0:
        raise DataError(f"seed and workers must be 0 or more; got {seed} and {num_workers}")
