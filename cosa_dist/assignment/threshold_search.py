"""Thresholds that follow the activations: a queue of histograms, a search, a moving average.

The histograms of the last global batches form a first-in-first-out queue; their sum shows hills of
background and of foreground activations, and the border between the hills, smoothed over the steps, is the
threshold (paper's dynamic threshold). Everything is a tensor on the device and nothing in `update` waits for
it; the histograms are sums over all ranks, so every rank finds the same threshold. Until the queue has seen
a tenth of its length, and whenever the activations show no two hills, the thresholds stay as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cosa_dist.assignment.activation_histogram import BINS, FLOOR, bin_centres
from cosa_dist.assignment.hard_split import best_split
from cosa_dist.assignment.mixture import (
    EmSettings,
    Mixture,
    component_borders,
    extreme_start,
    fit_mixture,
)
from cosa_dist.assignment.threshold import (
    FixedThresholds,
    SingleThreshold,
    Threshold,
    ThresholdPair,
    Thresholds,
    ThresholdSource,
)
from cosa_dist.config.method import ThresholdConfig

CAMS = ("main CAM", "auxiliary CAM")
FEWEST_VALUES = 100
"""A queue with fewer activations shows no hills."""
ITERATIONS = 20
"""EM goes on from the last step's components, so few iterations a step keep it converged."""
SPREAD = 1 / 36
"""Variance of the three components at a start: a sixth of the range of values, squared."""


class LearnedThresholds:
    """Thresholds of both CAMs from a search over the recent global batches."""

    learns = True

    def __init__(self, config: ThresholdConfig, device: torch.device) -> None:
        """Start from the configured thresholds with an empty queue.

        Raises:
            ValueError: If the configuration's kind is a fixed one.
        """
        if config.kind not in ("two_components", "three_components"):
            raise ValueError(f"assignment.threshold.kind {config.kind} has nothing to learn")
        single = config.kind == "two_components"
        start = [[config.single], [config.aux_single]]
        if not single:
            start = [[config.low, config.high], [config.aux_low, config.aux_high]]
        self._config = config
        self._components = 2 if single else 3
        self._em = EmSettings(max_iterations=ITERATIONS, regularisation=config.regularisation)
        self._centres = bin_centres(device)
        self._seen = 0
        self._values = torch.tensor(start, device=device)
        self._usable = torch.ones(2, dtype=torch.bool, device=device)
        self._queue = torch.zeros(config.queue, 2, BINS, dtype=torch.int64, device=device)
        ones = torch.ones(2, self._components, dtype=torch.float64, device=device)
        self._mixture = Mixture(ones / self._components, ones * FLOOR, ones)
        self._said = [True, True]

    @torch.no_grad()
    def update(self, histograms: Tensor) -> None:
        """Queue the histograms `[2, BINS]` of one global batch, search, and move the thresholds."""
        self._queue[self._seen % len(self._queue)] = histograms
        self._seen += 1
        first = -(-len(self._queue) // 10)
        if self._seen < first:
            return
        counts = self._queue.sum(dim=0)
        if self._config.variant == "split_likelihood":
            found, usable = self._split(counts)
        else:
            found, usable = self._fit(counts, anew=self._seen == first or self._seen % len(self._queue) == 0)
        self._usable = usable & (counts.sum(dim=-1) >= FEWEST_VALUES)
        moved = torch.lerp(found.to(self._values), self._values, self._config.momentum)
        self._values = torch.where(self._usable[:, None], moved, self._values)

    def _split(self, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Border `[2, 1]` of the most likely hard split, and whether there is one `[2]`."""
        cut, usable, _ = best_split(counts, self._centres)
        border = (self._centres[cut] + self._centres[cut + 1]) / 2
        return border[:, None], usable

    def _fit(self, counts: Tensor, anew: bool) -> tuple[Tensor, Tensor]:
        """Borders `[2, 1 or 2]` of the mixture's components, and whether they can be used `[2]`.

        EM continues from its last components; anew at the queue's first search, whenever the queue has been
        replaced as a whole, and where the last components were of no use.
        """
        if self._components == 2:
            fresh = best_split(counts, self._centres)[2]
        else:
            fresh = extreme_start(counts, self._centres, 3, SPREAD)
        start = fresh
        if not anew:
            kept = self._usable[:, None]
            start = Mixture(*(torch.where(kept, a, b) for a, b in zip(self._mixture, fresh, strict=True)))
        self._mixture = fit_mixture(counts, self._centres, start, self._em)
        end, begin, usable = component_borders(counts, self._centres, self._mixture)
        borders = [end] if self._components == 2 else [end, begin]
        return torch.stack(borders, dim=-1).nan_to_num(0.0, 0.0, 0.0), usable

    def current(self) -> Thresholds:
        """Return the thresholds as 0-dimensional tensors on the device."""
        return Thresholds(*(self._threshold(row) for row in self._values))

    @staticmethod
    def _threshold(row: Tensor) -> Threshold:
        return SingleThreshold(row[0]) if len(row) == 1 else ThresholdPair(row[0], row[1])

    def notices(self) -> list[str]:
        """Say for which CAM the search has stopped or goes on since the last call; waits for the device.

        A queue that is not full yet may hold too little to show groups; nothing is said of that.
        """
        full = self._seen >= len(self._queue)
        lines = []
        for place, (cam, now) in enumerate(zip(CAMS, self._usable.tolist(), strict=True)):
            before = self._said[place]
            if before and not now and full:
                lines.append(
                    f"threshold search, {cam}: the activations of the last {len(self._queue)} global batches "
                    "fall into no separate groups; the threshold stays as it is"
                )
            elif now and not before:
                lines.append(f"threshold search, {cam}: goes on")
            self._said[place] = now or (before and not full)
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
        """Take up a state that `state_dict` returned.

        Raises:
            ValueError: If the state belongs to another kind of threshold or another length of queue.
        """
        own = {name: value.shape for name, value in self.state_dict().items()}
        given = {name: value.shape for name, value in state.items()}
        if own != given:
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
    if config.kind == "fixed_pair":
        pairs = ThresholdPair(config.low, config.high), ThresholdPair(config.aux_low, config.aux_high)
        return FixedThresholds(*pairs)
    if config.kind == "fixed_single":
        return FixedThresholds(SingleThreshold(config.single), SingleThreshold(config.aux_single))
    return LearnedThresholds(config, device)
