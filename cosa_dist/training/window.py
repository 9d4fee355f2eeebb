"""The loss terms of the steps since the last line of log, kept on the device until then.

The means over the window and over all ranks make one point of each curve. The single steps are kept as
well: a term that is not finite is found at the step where it first appeared, with the samples it came from.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from cosa_dist.collective import gather_objects, sum_over_ranks, world_size
from cosa_dist.data.reading.samples import Batch


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
                samples = [] if bool(own[index].isfinite().all()) else self.samples[index]
                raise NonFiniteLossError(
                    f"step {last_step - self.steps + 1 + index}: {bad} not finite; "
                    f"{_samples_of_all_ranks(samples)}; the last checkpoint is kept"
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
