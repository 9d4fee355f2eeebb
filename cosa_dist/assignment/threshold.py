"""Confidence thresholds that turn CAMs into pseudo-labels, fixed or learned from the activations.

Learned ones (paper's dynamic threshold) come from a first-in-first-out queue of the last global batches'
histograms: their sum shows modes of background and of foreground activations, and the border between the
modes, smoothed over the steps, is the threshold. Everything is a tensor on the device and `update` never
waits for it; histograms are sums over all ranks, so every rank has the same threshold.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cosa_dist.assignment.activation import StrongestClass
from cosa_dist.assignment.mixture import (
    BINS,
    FLOOR,
    Mixture,
    best_split,
    bin_centres,
    component_borders,
    extreme_start,
    fit_mixture,
    two_means_start,
)
from cosa_dist.collective import from_first_rank
from cosa_dist.config.method import ThresholdConfig
from cosa_dist.data.catalog import IGNORE
from cosa_dist.stopwatch import one_thread

FEWEST_VALUES = 100
"""A queue with fewer activations shows no modes."""
ITERATIONS = 20
"""EM continues from the last step's components, so few iterations a step keep it converged."""
EARLY, TOLERANCE = 1e-3, 1e-8
"""Change of the mean log-likelihood below which EM stops: scikit-learn's default, and ours."""
START_VARIANCE = 1 / 36
"""of the three components at a start: a sixth of the range of values, squared"""


class Threshold(NamedTuple):
    """Foreground from `high` on, background below `low`, ignored between; 0-dimensional tensors if learned.

    A `single` one (paper) has both alike, but for a margin, and is compared at every pixel; a pair (released
    code) is two heights of the background that compete with the CAMs.
    """

    low: float | Tensor
    high: float | Tensor
    single: bool = False

    def label(self, strongest: StrongestClass, valid: Tensor) -> Tensor:
        """Class where the activation reaches `high`, background below `low`, 255 between (paper).

        `[B, H, W]` int64; also 255 where `valid` (bool) is not set.
        """
        value, name = strongest
        foreground = (value >= self.high) & (name > 0)
        background = (value < self.low) | (name == 0)
        label = torch.where(foreground, name, torch.zeros_like(name))
        return label.masked_fill(~((foreground | background) & valid), IGNORE)


class Thresholds(NamedTuple):
    """The thresholds of the two CAMs."""

    main: Threshold
    aux: Threshold

    def values(self) -> dict[str, float]:
        """Plain numbers by name, for the log: `threshold`, `threshold_aux_low`, ...; waits for the device."""
        named: dict[str, float | Tensor] = {}
        for prefix, threshold in (("", self.main), ("aux_", self.aux)):
            if threshold.single:
                named[f"{prefix}threshold"] = (threshold.low + threshold.high) / 2
            else:
                named |= {f"threshold_{prefix}low": threshold.low, f"threshold_{prefix}high": threshold.high}
        return {name: float(value) for name, value in named.items()}


class ThresholdSource:
    """The thresholds of both CAMs as configured; they never change (released code's published runs)."""

    learns = False
    """whether `update` needs the activations; if not, the caller need not compute them"""

    def __init__(self, config: ThresholdConfig) -> None:
        """Take the thresholds of the configured kind; a search starts from them."""
        self._config = config
        self._single = config.kind in ("fixed_single", "two_components")
        self._start = [[config.low, config.high], [config.aux_low, config.aux_high]]
        if self._single:
            self._start = [[config.single], [config.aux_single]]

    def current(self) -> Thresholds:
        """Return the thresholds to use in this step."""
        return Thresholds(*(self._threshold(row) for row in self._start))

    def _threshold(self, row: Sequence[float] | Tensor) -> Threshold:
        margin = self._config.margin if self._single else 0.0
        return Threshold(row[0] - margin, row[-1] + margin, self._single)

    def update(self, histograms: Tensor) -> None:
        """Take in `[2, BINS]` activations of both CAMs, summed over the global batch and all ranks."""

    def align(self) -> None:
        """Give every rank the search of rank 0, should their processors round it differently."""

    def notices(self) -> list[str]:
        """Say what has changed in the search since the last call, one line each; waits for the device."""
        return []

    def state_dict(self) -> dict[str, Tensor]:
        """Return all that a resumed run needs, as tensors; nothing where the configuration says it all."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take up a state that `state_dict` returned; ValueError if it belongs to other settings."""
        if state:
            raise ValueError(
                f"fixed thresholds have no state, the checkpoint holds {sorted(state)}; "
                "resume with the threshold settings the run was started with"
            )


class LearnedThresholds(ThresholdSource):
    """Thresholds of both CAMs from a search over the recent global batches.

    They stay as configured until the queue is filled to a tenth, and as they are whenever the activations
    show no two modes.
    """

    learns = True

    def __init__(self, config: ThresholdConfig, device: torch.device) -> None:
        """Start from the configured thresholds with an empty queue."""
        super().__init__(config)
        components = 2 if self._single else 3
        ones = torch.ones(2, components, dtype=torch.float64, device=device)
        self._mixture = Mixture(ones / components, ones * FLOOR, ones)
        self._centres = bin_centres(device)
        self._seen = 0
        self._values = torch.tensor(self._start, device=device)
        self._usable = torch.ones(2, dtype=torch.bool, device=device)
        self._queue = torch.zeros(config.queue, 2, BINS, dtype=torch.int64, device=device)
        self._reported = [True, True]

    def current(self) -> Thresholds:
        """Return the thresholds as 0-dimensional tensors on the device."""
        return Thresholds(*(self._threshold(row) for row in self._values))

    @torch.no_grad()
    @one_thread()
    def update(self, histograms: Tensor) -> None:
        """Queue the histograms `[2, BINS]` of one global batch, search, and move the thresholds."""
        self._queue[self._seen % len(self._queue)] = histograms
        self._seen += 1
        first = -(-len(self._queue) // 10)
        if self._seen < first:
            return
        counts = self._queue.sum(dim=0)
        if self._config.variant == "split_likelihood":
            cut, usable, _ = best_split(counts, self._centres)
            found = (self._centres[cut] + self._centres[cut + 1])[:, None] / 2
        else:
            restart = self._seen == first or self._seen % len(self._queue) == 0
            found, usable = self._fit(counts, restart)
        self._usable = usable & (counts.sum(dim=-1) >= FEWEST_VALUES)
        moved = torch.lerp(found.to(self._values), self._values, self._config.momentum)
        self._values = torch.where(self._usable[:, None], moved, self._values)

    def _fit(self, counts: Tensor, restart: bool) -> tuple[Tensor, Tensor]:
        """Borders `[2, 1 or 2]` of the mixture's components, and whether they can be used `[2]`.

        EM continues from its last components; it restarts at the first search, whenever the queue has been
        replaced as a whole, and where the last components were of no use. The variants `released` and `early`
        restart at each search, and stop as early as scikit-learn does.
        """
        variant = self._config.variant
        anew = variant in ("released", "early")
        if variant == "released":
            start = extreme_start(counts, self._centres, 2)
        elif variant == "early":
            start = two_means_start(counts, self._centres)
        elif self._single:
            start = best_split(counts, self._centres)[2]
        else:
            start = extreme_start(counts, self._centres, 3, START_VARIANCE)
        if not (restart or anew):
            kept = self._usable[:, None]
            start = Mixture(*(torch.where(kept, a, b) for a, b in zip(self._mixture, start, strict=True)))
        self._mixture = fit_mixture(
            counts,
            self._centres,
            start,
            max_iterations=ITERATIONS,
            tolerance=EARLY if anew else TOLERANCE,
            regularisation=self._config.regularisation,
        )
        end, begin, usable = component_borders(counts, self._centres, self._mixture)
        borders = torch.stack([end] if self._single else [end, begin], dim=-1)
        return borders.nan_to_num(0.0, 0.0, 0.0), usable

    def align(self) -> None:
        """Give every rank the thresholds and components of rank 0; the queue's counts are equal anyway."""
        kept = [self._values, self._usable, *self._mixture]
        packed = torch.cat([tensor.double().flatten() for tensor in kept])
        parts = from_first_rank(packed).split([tensor.numel() for tensor in kept])
        values, usable, *mixture = (
            part.view_as(tensor).to(tensor.dtype) for part, tensor in zip(parts, kept, strict=True)
        )
        self._values, self._usable, self._mixture = values, usable, Mixture(*mixture)

    def notices(self) -> list[str]:
        """Say for which CAM the search has stopped or continues since the last call; waits for the device.

        A queue that is not full yet may hold too little to show modes; nothing is said of that.
        """
        full = self._seen >= len(self._queue)
        lines = []
        for index, (cam, usable) in enumerate(zip(("main", "auxiliary"), self._usable.tolist(), strict=True)):
            if self._reported[index] and not usable and full:
                lines.append(
                    f"threshold search, {cam} CAM: the activations of the last {len(self._queue)} global "
                    "batches form no separate modes; the threshold stays as it is"
                )
            elif usable and not self._reported[index]:
                lines.append(f"threshold search, {cam} CAM: continues")
            self._reported[index] = usable or (self._reported[index] and not full)
        return lines

    def state_dict(self) -> dict[str, Tensor]:
        """Return queue, components, thresholds and counters as tensors."""
        return {
            "queue": self._queue,
            "seen": torch.tensor(self._seen),
            "thresholds": self._values,
            "usable": self._usable,
            **{f"mixture_{name}": part for name, part in self._mixture._asdict().items()},
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take up a state; ValueError if it is of another kind of threshold or another length of queue."""
        shapes = {name: value.shape for name, value in state.items()}
        if shapes != {name: value.shape for name, value in self.state_dict().items()}:
            raise ValueError(
                "the checkpoint's threshold search is missing, of another kind or of another length; "
                "resume with the threshold settings the run was started with"
            )
        device = self._queue.device
        self._seen = int(state["seen"])
        self._queue = state["queue"].to(device, copy=True)
        self._values = state["thresholds"].to(device)
        self._usable = state["usable"].to(device)
        self._mixture = Mixture(*(state[f"mixture_{name}"].to(device) for name in Mixture._fields))


def threshold_source(config: ThresholdConfig, device: torch.device) -> ThresholdSource:
    """The source of thresholds that the configuration asks for."""
    if config.kind in ("fixed_pair", "fixed_single"):
        return ThresholdSource(config)
    return LearnedThresholds(config, device)
