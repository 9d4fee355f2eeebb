"""Confidence thresholds that turn CAMs into pseudo-labels.

A `ThresholdPair` says from which activation on a pixel is foreground and below which it is
background. Where the pair comes from is the business of a `ThresholdSource`: the loop asks it
for the current pair, and shows it the activations of every step if it wants to learn from them.
`FixedPair` never changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

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


class ThresholdSource(Protocol):
    """Where the thresholds of one CAM come from."""

    learns: bool
    """Whether `update` needs the activations; if not, the caller need not compute them."""

    def update(self, max_cam: Tensor, boxes: Tensor) -> None:
        """Take in the activations of one step.

        Args:
            max_cam: `[B, H, W]` largest CAM value of the present classes (`maximum_activation`).
            boxes: `[B, 4]` valid boxes (top, bottom, left, right), half-open.
        """

    def current(self) -> ThresholdPair:
        """Return the pair to use in this step."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return all that a resumed run needs, as tensors."""

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take up a state that `state_dict` returned."""


class FixedPair:
    """A pair that stays as the configuration set it (released code's published runs)."""

    learns = False

    def __init__(self, low: float, high: float) -> None:
        """Keep the pair.

        Args:
            low: Background below this activation.
            high: Foreground above this activation.

        Raises:
            ValueError: If not `0 <= low <= high <= 1`.
        """
        self._pair = ThresholdPair(low=low, high=high)

    def update(self, max_cam: Tensor, boxes: Tensor) -> None:
        """Ignore the activations: the pair is fixed."""

    def current(self) -> ThresholdPair:
        """Return the fixed pair."""
        return self._pair

    def state_dict(self) -> dict[str, Tensor]:
        """Return an empty state: the configuration holds the pair."""
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
