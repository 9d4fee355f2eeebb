"""The loss terms of the steps since the last line of log, kept on the device until then.

The means over the window and over all ranks make one point of each curve. The single steps are kept as
well: a term that is not finite is found at the step where it first appeared, with the samples it came from.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor, nn

from cosa_dist.collective import gather_objects, sum_over_ranks, world_size
from cosa_dist.data.reading.samples import Batch

SHARED = ("gradient_norm",)  # terms that are the same on every rank, whoever broke them
T = TypeVar("T")


def timed(items: Iterable[T]) -> Iterator[tuple[float, T]]:
    """Each item, and before it the seconds that it was waited for."""
    iterator = iter(items)
    while True:
        started = time.perf_counter()
        try:
            item = next(iterator)
        except StopIteration:
            return
        yield time.perf_counter() - started, item


class NonFiniteLossError(RuntimeError):
    """A loss term or a weight became infinite or not a number; training stops, the last checkpoint stays."""


@dataclass
class LossWindow:
    """Loss terms, samples and waits of some consecutive steps, and the time since the window was opened."""

    terms: list[dict[str, Tensor]] = field(default_factory=list)
    samples: list[list[str]] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)
    waited: float = 0.0  # seconds for the loader

    @property
    def steps(self) -> int:
        """Number of steps so far."""
        return len(self.terms)

    def add(self, terms: dict[str, Tensor], batches: Sequence[Batch], waited: float = 0.0) -> None:
        """Add one step, whose batches took `waited` seconds to come: its terms stay on the device."""
        self.terms.append(terms)
        self.waited += waited
        self.samples.append([sample for batch in batches for sample in batch.ids])

    def means(self, last_step: int) -> dict[str, float]:
        """Means over the window's steps, up to `last_step`, and over all ranks, which all must call it.

        Raises:
            NonFiniteLossError: naming the first such step, its terms and its samples, on every rank.
        """
        names = list(self.terms[0])
        own = torch.stack([torch.stack([row[name].float() for name in names]) for row in self.terms])
        values = sum_over_ranks(own) / world_size()
        finite = values.isfinite().tolist()
        for index, good in enumerate(finite):
            if not all(good):
                bad = ", ".join(name for name, is_finite in zip(names, good, strict=True) if not is_finite)
                of_this_rank = [name not in SHARED for name in names]
                broken = not bool(own[index, of_this_rank].isfinite().all())
                # Where no rank's own terms are broken, all of the samples made the gradients.
                samples = _samples_of_all_ranks(self.samples[index] if broken else [])
                samples = samples or _samples_of_all_ranks(self.samples[index])
                raise NonFiniteLossError(
                    f"step {last_step - self.steps + 1 + index}: {bad} not finite; "
                    f"{samples}; the last checkpoint is kept"
                )
        return dict(zip(names, values.mean(dim=0).tolist(), strict=True))


def check_weights(network: nn.Module, step: int) -> None:
    """Refuse weights that are not finite, before they become the newest checkpoint.

    Raises:
        NonFiniteLossError: naming the step and the first such parameter.
    """
    named = dict(network.named_parameters())
    # A norm reads each weight once; it also overflows for huge weights, which are then looked at one by one.
    norms = torch._foreach_norm([parameter.detach() for parameter in named.values()])
    if bool(torch.stack(norms).isfinite().all()):
        return
    for name, parameter in named.items():
        if bool(parameter.isfinite().all()):
            continue
        raise NonFiniteLossError(
            f"step {step}: weights of {name} not finite after this step; the last checkpoint is kept"
        )


def _samples_of_all_ranks(samples: list[str]) -> str:
    """`samples of rank R: ...` for every rank whose own terms are broken."""
    parts = enumerate(gather_objects(samples))
    return "; ".join(f"samples of rank {rank}: {', '.join(ids)}" for rank, ids in parts if ids)
