"""Which network a run trains: CoSA's own, or the second stage's segmenter."""

from __future__ import annotations

from torch import Tensor

from cosa_dist.config.schema import RunConfig
from cosa_dist.model.network import CosaNetwork, build_network
from cosa_dist.segmenter.network import Segmenter, build_segmenter

TrainedNetwork = CosaNetwork | Segmenter


def build_trained_network(config: RunConfig, classes: int) -> TrainedNetwork:
    """Create the network that the run trains, for `classes` foreground classes.

    Raises:
        ValueError: an architecture or weights that do not fit.
        FileNotFoundError: a weight file that is not there.
    """
    if config.kind == "segmenter":
        return build_segmenter(config.model, config.segmenter, classes, config.seed)
    return build_network(config.model, classes, config.seed)


def classes_of(state: dict[str, Tensor]) -> int:
    """Number of foreground classes of a trained network's tensors."""
    if "head.weight" in state:
        return len(state["head.weight"]) - 1
    return len(state["classifier.weight"])


def network_names(config: RunConfig) -> tuple[str, str]:
    """What the trained network and its moving average are called in reports and metrics."""
    return ("online", "average") if config.kind == "segmenter" else ("online", "assignment")
