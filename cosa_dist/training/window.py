"""The loss terms of the steps since the last line of log, kept on the device until then.

The means over the window and over all ranks make one point of each curve. The single steps are kept as
well: a term that is not finite is found at the step where it first appeared, with the samples it came from.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cosa_dist.collective import is_distributed, rank, sum_over_ranks, world_size
from cosa_dist.data.reading.loader import Batch


class NonFiniteLossError(RuntimeError):
    """A loss term or a weight became infinite or not a number; training stops, the last checkpoint stays."""


@dataclass
class LossWindow:
    """Loss terms and sample ids of some consecutive steps, and the time since the window was opened."""

    terms: list[dict[str, Tensor]] = field(default_factory=list)
    samples: list[list[str]] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)

    @property
    def steps(self) -> int:
        """Number of steps so far."""
        return len(self.terms)

    def add(self, terms: dict[str, Tensor], batches: Sequence[Batch]) -> None:
        """Add one step: its terms stay on the device."""
        self.terms.append(terms)
        self.samples.append([sample for batch in batches for sample in batch.ids])

    def means(self, last_step: int) -> dict[str, float]:
        """Means over the window's steps and over all ranks; every rank must call it.

        Args:
            last_step: number of the window's last step, for the message.

        Raises:
            NonFiniteLossError: naming the first such step, its terms and its samples, on every rank.
        """
        names = list(self.terms[0])
        own = torch.stack([torch.stack([row[name].float() for name in names]) for row in self.terms])
        values = sum_over_ranks(own) / world_size()
        broken = (~values.isfinite()).any(dim=1).tolist()
        if True in broken:
            index = broken.index(True)
            bad = [name for name, value in zip(names, values[index].tolist(), strict=True) if _broken(value)]
            samples = self.samples[index] if not bool(own[index].isfinite().all()) else []
            raise NonFiniteLossError(
                f"step {last_step - self.steps + 1 + index}: {', '.join(bad)} not finite; "
                f"{_samples_of_all_ranks(samples)}; the last checkpoint is kept"
            )
        return dict(zip(names, values.mean(dim=0).tolist(), strict=True))


def check_weights(network: nn.Module, step: int) -> None:
    """Refuse weights that are not finite, before they become the newest checkpoint.

    Raises:
        NonFiniteLossError: naming the step and the first such parameter.
    """
    finite = torch.stack([parameter.isfinite().all() for parameter in network.parameters()])
    if not bool(finite.all()):
        names = [name for name, _ in network.named_parameters()]
        name = names[finite.tolist().index(False)]
        raise NonFiniteLossError(
            f"step {step}: weights of {name} not finite after this step; the last checkpoint is kept"
        )


def _broken(value: float) -> bool:
    return not abs(value) < float("inf")


def _samples_of_all_ranks(samples: list[str]) -> str:
    """`samples of rank R: ...` for every rank whose own terms are broken."""
    gathered: list[list[str] | None] = [samples]
    if is_distributed():
        gathered = [None] * world_size()
        dist.all_gather_object(gathered, samples)
    first = 0 if is_distributed() else rank()
    return "; ".join(
        f"samples of rank {number}: {', '.join(ids)}" for number, ids in enumerate(gathered, first) if ids
    )
