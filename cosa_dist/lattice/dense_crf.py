"""Dense CRF: mean-field refinement of class probabilities by the image they belong to.

Every pixel is joined to every other by two Gaussian kernels, one of position and one of position and
colour, and pays for each neighbour of another class (Potts). Mean-field inference repeats
`Q = softmax(log p + sum_m w_m K_m Q)` with kernels normalised symmetrically, `K = D^-1/2 G D^-1/2`
where `D = G 1` (Krähenbühl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian
Edge Potentials", 2011); `G` is the permutohedral lattice's filter.

The lattice of positions is the same for all images of a size, that of positions and colours is built
once per image; both serve all classes, all iterations and any number of predictions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from cosa_dist.lattice.bilateral import bilateral_features, position_features
from cosa_dist.lattice.permutohedral import PermutohedralLattice

CrfName = Literal["released", "ten_iterations"]

_LEAST_PROBABILITY = 1e-5  # the common packages' floor: no class is ever quite impossible


@dataclass(frozen=True)
class CrfSettings:
    """Kernels and length of the inference; the defaults are those of the released evaluation.

    Attributes:
        iterations: mean-field iterations.
        position_sigma: standard deviation of the position kernel in pixels.
        position_weight: weight of the position kernel, in units of log probability.
        bilateral_sigma_xy: standard deviation in position of the position-and-colour kernel, in pixels.
        bilateral_sigma_rgb: its standard deviation in colour, in grey levels of 0..255.
        bilateral_weight: its weight.
    """

    iterations: int = 1
    position_sigma: float = 1.0
    position_weight: float = 1.0
    bilateral_sigma_xy: float = 121.0
    bilateral_sigma_rgb: float = 5.0
    bilateral_weight: float = 4.0

    def __post_init__(self) -> None:
        """Refuse settings that cannot be computed.

        Raises:
            ValueError: naming the setting, its value and what is allowed.
        """
        if self.iterations < 1:
            raise ValueError(f"iterations of the CRF must be at least 1, not {self.iterations}")
        for name in ("position_sigma", "bilateral_sigma_xy", "bilateral_sigma_rgb"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} of the CRF must be above 0, not {getattr(self, name)}")
        for name in ("position_weight", "bilateral_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} of the CRF must be at least 0, not {getattr(self, name)}")


CRF_SETTINGS: dict[CrfName, CrfSettings] = {
    "released": CrfSettings(),
    "ten_iterations": CrfSettings(10, 4.0, 3.0, 83.0, 5.0, 3.0),
}
"""The released evaluation's setting, and a stronger one, which no published result is of."""


@dataclass(frozen=True)
class _Kernel:
    """A weighted kernel: its lattice of B (or 1, shared) images, and `D^-1/2` as `[B or 1, N, 1]`."""

    lattice: PermutohedralLattice
    scale: Tensor
    weight: float

    @classmethod
    def build(cls, features: Tensor, weight: float) -> _Kernel:
        lattice = PermutohedralLattice.build(features)
        ones = torch.ones((*features.shape[:2], 1), device=features.device)
        return cls(lattice, lattice.filter(ones).rsqrt_(), weight)

    def message(self, beliefs: Tensor) -> Tensor:
        """`w K Q` of beliefs `[B, N, K]`."""
        batch, points, planes = beliefs.shape
        scaled = beliefs * self.scale
        if batch > 1 and self.lattice.shape[0] == 1:
            # One lattice for all images: their planes are filtered like further classes of one image.
            scaled = scaled.transpose(0, 1).reshape(1, points, batch * planes)
            filtered = self.lattice.filter(scaled).view(points, batch, planes).transpose(0, 1)
        else:
            filtered = self.lattice.filter(scaled)
        return filtered * (self.weight * self.scale)


@lru_cache(maxsize=4)
def _position_kernel(height: int, width: int, sigma: float, weight: float, device: torch.device) -> _Kernel:
    return _Kernel.build(position_features(height, width, sigma, device)[None], weight)


@dataclass(frozen=True)
class DenseCrf:
    """The CRF of B images of one size; make one with `build`, refine any number of predictions.

    Attributes:
        shape: (B, H, W).
        kernels: the kernels of positive weight.
        iterations: mean-field iterations.
    """

    shape: tuple[int, int, int]
    kernels: tuple[_Kernel, ...]
    iterations: int

    @classmethod
    @torch.no_grad()
    def build(cls, images: Tensor, settings: CrfSettings = CRF_SETTINGS["released"]) -> DenseCrf:
        """Build the kernels of some images, on the device where they are.

        Args:
            images: `[B, 3, H, W]` colours in 0..255, any dtype.
            settings: kernels and iterations.

        Raises:
            ValueError: Where the shape is wrong or empty, or colours are not finite.
        """
        features = bilateral_features(images, settings.bilateral_sigma_rgb, settings.bilateral_sigma_xy)
        batch, _, height, width = images.shape
        kernels = []
        if settings.position_weight:
            sigma, weight = settings.position_sigma, settings.position_weight
            kernels.append(_position_kernel(height, width, sigma, weight, images.device))
        if settings.bilateral_weight:
            kernels.append(_Kernel.build(features, settings.bilateral_weight))
        return cls((batch, height, width), tuple(kernels), settings.iterations)

    @torch.no_grad()
    def refine(self, probabilities: Tensor) -> Tensor:
        """Mean-field inference; no gradient flows through.

        Probabilities count as at least 1e-5 (as in the released code), so a class that is left out
        everywhere (0) stays far below the others, but is not 0.

        Args:
            probabilities: `[B, K, H, W]`, sums over K are 1; taken as float32.

        Returns:
            `[B, K, H, W]` float32 beliefs, which sum to 1 over K.

        Raises:
            ValueError: Where batch or size is not the images'.
        """
        batch, height, width = self.shape
        if probabilities.dim() != 4 or (len(probabilities), *probabilities.shape[2:]) != self.shape:
            raise ValueError(
                f"probabilities must be [{batch}, K, {height}, {width}] as the images are, "
                f"not {list(probabilities.shape)}"
            )
        planes = probabilities.detach().float().flatten(2)
        low = planes.amax((0, 2)) <= _LEAST_PROBABILITY
        chosen, alike = (~low).nonzero().flatten(), low.nonzero().flatten()
        # Planes below the floor everywhere are alike and stay alike, so one is computed for all of them.
        count = planes.new_ones(len(chosen) + bool(len(alike)))
        count[len(chosen) :] = len(alike)
        computed = planes[:, torch.cat((chosen, alike[:1]))].clamp_(min=_LEAST_PROBABILITY).log_()
        beliefs = self._mean_field(computed.transpose(1, 2).contiguous(), count)
        source = torch.full_like(low, len(chosen), dtype=torch.long)
        source[chosen] = torch.arange(len(chosen), device=low.device)
        return beliefs.transpose(1, 2)[:, source].reshape(probabilities.shape)

    def _mean_field(self, log_probabilities: Tensor, count: Tensor) -> Tensor:
        """Beliefs `[B, N, R]` of planes that stand for `count` `[R]` equal classes each."""
        beliefs = (log_probabilities + count.log()).softmax(-1).div_(count)
        for _ in range(self.iterations):
            energy = log_probabilities + count.log()
            for kernel in self.kernels:
                energy += kernel.message(beliefs)
            beliefs = energy.softmax(-1).div_(count)
        return beliefs


def dense_crf(
    images: Tensor, probabilities: Tensor, settings: CrfSettings = CRF_SETTINGS["released"]
) -> Tensor:
    """Refine the class probabilities of images once: `DenseCrf.build(...).refine(...)`.

    Args:
        images: `[B, 3, H, W]` colours in 0..255, any dtype.
        probabilities: `[B, K, H, W]`, sums over K are 1.
        settings: kernels and iterations; the released evaluation's if left out.

    Returns:
        `[B, K, H, W]` float32 beliefs, which sum to 1 over K.

    Raises:
        ValueError: Where shapes do not fit or are empty, or colours are not finite.
    """
    return DenseCrf.build(images, settings).refine(probabilities)
