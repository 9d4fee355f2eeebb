"""One training step and its parts, by timing the functions that the real step calls.

The step itself is `training.step.training_step`, unchanged. Each part is a function that the step (or one of
its packages) calls by a name in its module; a `Stopwatch` wraps that name for the measured rounds. The
backward pass is cut in two at the moment when the first gradient reaches an output of the network.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from cosa_dist import collective
from cosa_dist.assignment import pseudo_labels
from cosa_dist.benchmark.stopwatch import Stopwatch, Target
from cosa_dist.benchmark.workload import Workload
from cosa_dist.losses import objective
from cosa_dist.training import step as training

LOSS_BACKWARD = "backward: losses"
NETWORK_BACKWARD = "backward: network"
NETWORK_PARTS = ("assignment pass", "online forward", NETWORK_BACKWARD)
"""Where the networks' own work is; everything else should be small."""
REST = "rest of the step"


def step_targets(work: Workload) -> list[Target]:
    """The functions of a step that are timed, each with its part."""
    return [
        Target("assignment pass", training, "multi_scale"),
        Target("pseudo-labels: both CPL", pseudo_labels, "_label"),
        Target("pseudo-labels: SPL", pseudo_labels, "segmentation_pseudo_label"),
        Target("pseudo-labels: rest", training, "make_assignment"),
        Target("normalisers", training, "global_normalisers"),
        Target("threshold search", training, "learn_thresholds"),
        Target("communication", training, "sum_over_ranks"),
        Target("online forward", training, "_terms"),
        Target("loss: classification", objective, "classification_loss"),
        Target("loss: C2S", objective, "_cam_to_seg_terms"),
        Target("loss: S2C", objective, "seg_to_cam_loss"),
        Target("loss: energy", objective, "_energy_term"),
        Target("loss: separation", objective, "_separation_term"),
        Target("loss: rest", training, "co_training_terms"),
        Target("loss: rest", training, "classification_terms"),
        Target("Accelerate", work.accelerator, "backward"),
        Target(LOSS_BACKWARD, Tensor, "backward"),
        Target("Accelerate", work.state.optimizer, "step"),
        Target("optimiser", getattr(work.state.optimizer, "optimizer", work.state.optimizer), "step"),
        Target("optimiser", work.state.optimizer, "zero_grad"),
        Target("optimiser", training, "set_learning_rate"),
        Target("optimiser", training, "fill_missing_gradients"),
        Target("EMA", training, "move_towards"),
        Target("communication", collective, "barrier"),
    ]


@contextmanager
def watching_gradients(watch: Stopwatch) -> Iterator[None]:
    """Open the network's part of the backward pass when the first gradient reaches its output."""
    names = ("co_training_terms", "classification_terms")
    originals = {name: getattr(training, name) for name in names}

    def watched(original: Any) -> Any:
        @wraps(original)
        def terms(output: Any, *arguments: Any, **named: Any) -> Any:
            arrived: list[bool] = []

            def first_gradient(_: Tensor) -> None:
                if not arrived:
                    watch.switch(NETWORK_BACKWARD)
                arrived.append(True)

            for part in output:
                if part.requires_grad:
                    part.register_hook(first_gradient)
            return original(output, *arguments, **named)

        return terms

    try:
        for name, original in originals.items():
            setattr(training, name, watched(original))
        yield
    finally:
        for name, original in originals.items():
            setattr(training, name, original)


def measured_step(work: Workload, device: torch.device, watch: Stopwatch) -> dict[str, float]:
    """Take one step under a stopwatch.

    Returns:
        Seconds by part, `loader wait` and `to the device` among them; they add up to the whole.
    """
    watch.seconds.clear()
    with watch.wrapping(step_targets(work)), watching_gradients(watch):
        with watch.part("loader wait"):
            batches = next(work.steps)
        with watch.part("to the device"):
            batches = [batch.to(device) for batch in batches]
        with watch.part(REST):
            training.training_step(work.state, work.network, batches, work.accelerator)
    return dict(watch.seconds)


def whole_step(work: Workload, device: torch.device) -> None:
    """Take one step as training does, with nothing wrapped."""
    batches = [batch.to(device) for batch in next(work.steps)]
    training.training_step(work.state, work.network, batches, work.accelerator)
