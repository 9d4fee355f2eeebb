"""Plain formulation of the threshold search: scikit-learn's mixture on the raw values (released code)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.mixture import GaussianMixture

from cosa_dist.assignment.mixture import FLOOR

Floats = NDArray[np.float64]


class PlainQueue:
    """The activations of the last batches, value by value."""

    def __init__(self, length: int) -> None:
        """Keep the values of `length` batches."""
        self.length = length
        self.batches: list[Floats] = []

    def add(self, values: Floats) -> None:
        """Take in the activations of one batch, any shape."""
        self.batches = [*self.batches, values.reshape(-1).astype(np.float64)][-self.length :]

    def values(self) -> Floats:
        """All activations above the floor, `[N]`."""
        together = np.concatenate(self.batches)
        return together[together > FLOOR]


def plain_border(values: Floats, tolerance: float = 1e-3, iterations: int = 100) -> float:
    """Largest value that the lower of two Gaussians owns; EM starts from the extremes (released code).

    Args:
        values: `[N]` activations.
        tolerance: EM stops when the mean log-likelihood changes by less; the released 1e-3 stops early.
        iterations: most iterations of EM.
    """
    mixture = GaussianMixture(
        2,
        tol=tolerance,
        max_iter=iterations,
        weights_init=[0.5, 0.5],
        means_init=[[values.min()], [values.max()]],
        precisions_init=[[[1.0]], [[1.0]]],
    )
    owner = mixture.fit(values[:, None]).predict(values[:, None])
    return float(values[owner == mixture.means_[:, 0].argmin()].max())
