"""Sums and concatenations over the ranks of a run; without a process group each is the identity.

Everything that counts (pixels, confusion matrices, threshold histograms) is summed over all ranks, so
that results do not depend on how many workers share the work.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def is_distributed() -> bool:
    """Whether a process group of more than one rank is running."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """This process's rank, 0 without a process group."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """Number of ranks, 1 without a process group."""
    return dist.get_world_size() if is_distributed() else 1


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Return the elementwise sum of `tensor` over all ranks (any shape; the input is left as it is)."""
    if not is_distributed():
        return tensor
    total = tensor.clone()
    dist.all_reduce(total, op=dist.ReduceOp.SUM)
    return total


def from_first_rank(tensor: Tensor) -> Tensor:
    """Rank 0's `tensor` on every rank (any shape; the input may be written to)."""
    if is_distributed():
        dist.broadcast(tensor, src=0)
    return tensor


def gather_objects(value: T) -> list[T]:
    """The values of all ranks, in rank order."""
    values = [value] * world_size()
    if is_distributed():
        dist.all_gather_object(values, value)
    return values


def any_rank(answer: bool) -> bool:
    """Whether any rank answers yes, the same on every rank: no rank may decide alone to leave the others."""
    return any(gather_objects(answer))


def concatenate_over_ranks(tensor: Tensor) -> Tensor:
    """Concatenate `[N_r, ...]` tensors of all ranks along the first axis, in rank order; `N_r` may differ."""
    if not is_distributed():
        return tensor
    return torch.cat([part.to(tensor.device) for part in gather_objects(tensor.cpu())])


@contextmanager
def together() -> Iterator[None]:
    """A block of work without collectives: where it fails on one rank, all ranks raise, and none waits.

    The other ranks raise a RuntimeError that says which one failed and why.
    """
    failure: Exception | None = None
    reason = ""
    try:
        yield
    except Exception as error:
        failure = error
        reason = f"worker {rank()}: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
    reasons = gather_objects(reason)
    if failure is not None:
        raise failure
    if first := next(filter(None, reasons), ""):
        raise RuntimeError(first)


def barrier() -> None:
    """Wait until every rank has come here."""
    if is_distributed():
        dist.barrier()
