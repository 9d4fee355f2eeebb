"""Confidence thresholds that turn CAMs into pseudo-labels, and where they come from.

A `ThresholdPair` says from which activation on a pixel is foreground and below which it is background; a
`SingleThreshold` leaves nothing between the two. The step asks a `ThresholdSource` for the current
thresholds of both CAMs and shows it the activations of every global batch if it wants to learn from them.
`FixedThresholds` never change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor


@dataclass(frozen=True)
class ThresholdPair:
    """Two heights of the background: foreground above `high`, background below `low`, else ignore.

    The values are floats, or 0-dimensional tensors where a search on the device found them, so
    that using them does not wait for the device.
    """

    low: float | Tensor
    high: float | Tensor

    def __post_init__(self) -> None:
        """Refuse an impossible pair of plain numbers.

        Raises:
            ValueError: If not `0 <= low <= high <= 1`. Tensors are not read.
        """
        if isinstance(self.low, Tensor) or isinstance(self.high, Tensor):
            return
        if not 0.0 <= self.low <= self.high <= 1.0:
            raise ValueError(
                f"thresholds must satisfy 0 <= low <= high <= 1, got low={self.low}, high={self.high}"
            )


@dataclass(frozen=True)
class SingleThreshold:
    """One border: foreground from it on, background below (paper)."""

    value: float | Tensor

    def __post_init__(self) -> None:
        """Refuse an impossible plain number.

        Raises:
            ValueError: If not `0 <= value <= 1`. A tensor is not read.
        """
        if not isinstance(self.value, Tensor) and not 0.0 <= self.value <= 1.0:
            raise ValueError(f"a threshold must lie in 0..1, got {self.value}")

    @property
    def low(self) -> float | Tensor:
        """The border, seen from the background."""
        return self.value

    @property
    def high(self) -> float | Tensor:
        """The border, seen from the foreground."""
        return self.value


Threshold = ThresholdPair | SingleThreshold


class Thresholds(NamedTuple):
    """The thresholds of the two CAMs."""

    main: Threshold
    aux: Threshold


class ThresholdSource(Protocol):
    """Where the thresholds of both CAMs come from; the same on every rank."""

    learns: bool
    """Whether `update` needs the activations; if not, the caller need not compute them."""

    def update(self, histograms: Tensor) -> None:
        """Take in the activations of one global batch.

        Args:
            histograms: `[2, N]` counts of the main and the auxiliary CAM's activations
                (`activation_histogram`), summed over all parts of the global batch and all ranks.
        """

    def current(self) -> Thresholds:
        """Return the thresholds to use in this step."""

    def notices(self) -> list[str]:
        """Say what has changed in the search since the last call, one line each; waits for the device."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return all that a resumed run needs, as tensors."""

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take up a state that `state_dict` returned.

        Raises:
            ValueError: If the state belongs to other threshold settings.
        """


class FixedThresholds:
    """Thresholds that stay as the configuration set them (released code's published runs)."""

    learns = False

    def __init__(self, main: Threshold, aux: Threshold) -> None:
        """Keep the thresholds of the main and the auxiliary CAM."""
        self._thresholds = Thresholds(main, aux)

    def update(self, histograms: Tensor) -> None:
        """Ignore the activations: the thresholds are fixed."""

    def current(self) -> Thresholds:
        """Return the fixed thresholds."""
        return self._thresholds

    def notices(self) -> list[str]:
        """Nothing ever changes."""
        return []

    def state_dict(self) -> dict[str, Tensor]:
        """Return an empty state: the configuration holds the thresholds."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Accept only the empty state.

        Raises:
            ValueError: If the state belongs to another kind of source.
        """
        if state:
            raise ValueError(
                f"fixed thresholds have no state, the checkpoint holds {sorted(state)}; "
                "resume with the threshold settings the run was started with"
            )


def threshold_values(thresholds: Thresholds) -> dict[str, float]:
    """Plain numbers by name, for the log; waits for the device where a search found them.

    Returns:
        `threshold` and `aux_threshold`, or for pairs `threshold_low`, `threshold_high`,
        `threshold_aux_low` and `threshold_aux_high`.
    """
    values: dict[str, float] = {}
    for prefix, threshold in (("", thresholds.main), ("aux_", thresholds.aux)):
        if isinstance(threshold, SingleThreshold):
            values[f"{prefix}threshold"] = float(threshold.value)
        else:
            values[f"threshold_{prefix}low"] = float(threshold.low)
            values[f"threshold_{prefix}high"] = float(threshold.high)
    return values
