"""Dense CRF: mean-field refinement of class probabilities by the image they belong to.

Every pixel is joined to every other by a Gaussian kernel of position and one of position and colour, and pays
for each neighbour of another class (Potts). Mean-field inference repeats `Q = softmax(log p + sum_m w_m K_m
Q)` with kernels normalised symmetrically, `K = D^-1/2 G D^-1/2` where `D = G 1` (Krähenbühl and Koltun,
"Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials", 2011); `G` is the permutohedral
lattice's filter.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from cosa_dist.config.schema import CrfConfig, EvaluationConfig, ProtocolName
from cosa_dist.lattice.permutohedral import (
    PermutohedralLattice,
    Spans,
    bilateral_features,
    bilateral_spans,
    position_features,
    position_spans,
)

CrfName = Literal["released", "toco", "more", "weclip", "ten_iterations"]


def _crf_of(protocol: ProtocolName) -> CrfConfig:
    return EvaluationConfig(protocol=protocol).crf.model_copy(update={"enabled": True})


CRF_SETTINGS: dict[CrfName, CrfConfig] = {
    "released": _crf_of("cosa"),
    "toco": _crf_of("toco"),
    "more": _crf_of("more"),
    "weclip": _crf_of("weclip"),
    "ten_iterations": CrfConfig(
        enabled=True,
        iterations=10,
        position_sigma=4.0,
        position_weight=3.0,
        bilateral_sigma_xy=83.0,
        bilateral_sigma_rgb=5.0,
        bilateral_weight=3.0,
    ),
}
"""Of the released evaluation, of three others (SeCo and DuPL have ToCo's, ExCEL has MoRe's), and a stronger
one, which no published result is of."""

_LEAST_PROBABILITY = 1e-5  # the common packages' floor: no class is ever quite impossible


@dataclass(frozen=True)
class _Kernel:
    """A weighted kernel: its lattice of B (or 1, shared) images, and `D^-1/2` as `[B or 1, N, 1]`."""

    lattice: PermutohedralLattice
    scale: Tensor
    weight: float

    @classmethod
    def build(cls, features: Tensor, weight: float, spans: Spans | None) -> _Kernel:
        lattice = PermutohedralLattice.build(features, spans)
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
    spans = position_spans(height, width, sigma)
    return _Kernel.build(position_features(height, width, sigma, device)[None], weight, spans)


@dataclass(frozen=True)
class DenseCrf:
    """The CRF of B images of one size, `shape` (B, H, W); `build` one, `refine` any number of predictions."""

    shape: tuple[int, int, int]
    kernels: tuple[_Kernel, ...]
    iterations: int

    @classmethod
    @torch.no_grad()
    def build(cls, images: Tensor, config: CrfConfig = CRF_SETTINGS["released"]) -> DenseCrf:
        """Build the kernels of images `[B, 3, H, W]` with colours in 0..255, on their device."""
        features = bilateral_features(images, config.bilateral_sigma_rgb, config.bilateral_sigma_xy)
        batch, _, height, width = images.shape
        kernels = []
        if config.position_weight:
            sigma, weight = config.position_sigma, config.position_weight
            kernels.append(_position_kernel(height, width, sigma, weight, images.device))
        if config.bilateral_weight:
            spans = bilateral_spans(images, config.bilateral_sigma_rgb, config.bilateral_sigma_xy)
            kernels.append(_Kernel.build(features, config.bilateral_weight, spans))
        return cls((batch, height, width), tuple(kernels), config.iterations)

    @torch.no_grad()
    def refine(self, probabilities: Tensor) -> Tensor:
        """Mean-field beliefs `[B, K, H, W]` float32 of such probabilities; both sum to 1 over K, no gradient.

        Probabilities count as at least 1e-5 (as in the released code), so a class that is left out everywhere
        (0) stays far below the others, but is not 0.
        """
        batch, height, width = self.shape
        if probabilities.dim() != 4 or (len(probabilities), *probabilities.shape[2:]) != self.shape:
            raise ValueError(
                f"probabilities must be [{batch}, K, {height}, {width}] as the images are, "
                f"not {list(probabilities.shape)}"
            )
        planes = probabilities.detach().float().flatten(2)
        low = planes.amax((0, 2)) <= _LEAST_PROBABILITY
        first, kept = low.to(torch.uint8).argsort(stable=True), len(low) - int(low.sum())
        chosen, alike = first[:kept], first[kept:]
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
