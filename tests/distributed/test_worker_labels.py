"""Pictures show what was trained on: the same pass over the image, whatever the evaluation's."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from cosa_dist.config.schema import RunConfig
from cosa_dist.data.reading.samples import Batch, EvalSample
from cosa_dist.distributed.worker import labeller, warn_on_failure
from cosa_dist.evaluation.pictures import ImageLabels, label_image
from cosa_dist.reports.run_analysis import heat_over, predict_per_checkpoint
from cosa_dist.training.checkpoint import save_checkpoint
from cosa_dist.training.state import TrainState, build_state, make_accelerator
from cosa_dist.training.step import assign
from tests.integration.small_run import small_config

CPU = torch.device("cpu")
SEEN = [
    {"flip": True, "scales": [1.0, 0.5]},
    {"flip": False, "scales": [1.0, 0.5]},
    {"flip": False, "scales": [1.0]},
    {"flip": False, "scales": [0.5, 1.0], "aux_cam_last_scale_only": True},
]


def config_of(tmp_path, **assignment) -> RunConfig:
    return small_config(tmp_path, tmp_path, "run", assignment=assignment)


def sample() -> EvalSample:
    """A picture of the size that training and evaluation see, so that nothing is resized."""
    image = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (3, 32, 32), dtype=np.uint8))
    return EvalSample("one", image, None, torch.tensor([1.0, 0.0, 1.0]), None)


def trained_on(state: TrainState):
    """The pseudo-labels that a training step would use of that picture."""
    one = sample()
    boxes = torch.tensor([[0, 32, 0, 32]])
    image = one.image[None]
    batch = Batch(["one"], torch.tensor([0]), image, image, one.labels[None], boxes)
    return assign(state, batch, make_accelerator("fp32", 1, True))


def shown(state: TrainState) -> ImageLabels:
    with torch.inference_mode():
        return label_image(labeller(state), sample(), 32, CPU)


@pytest.mark.parametrize("assignment", SEEN)
def test_the_panels_are_the_pseudo_labels_of_training(tmp_path, assignment):
    state = build_state(config_of(tmp_path, **assignment), 3, CPU)
    expected, found = trained_on(state), shown(state)
    assert torch.equal(found.cam_label, expected.cam_pseudo_label[0].long())
    assert len(found.cam_label.unique()) > 1


def test_another_pass_gives_other_panels(tmp_path):
    # The network is not symmetric: position embeddings tell left from right.
    panels = [shown(build_state(config_of(tmp_path, **one), 3, CPU)) for one in SEEN]
    for number, one in enumerate(panels):
        for other in panels[:number]:
            assert not (torch.equal(one.cam, other.cam) and torch.equal(one.aux_cam, other.aux_cam))
    assert not torch.equal(panels[0].cam_label, panels[1].cam_label)


@pytest.mark.parametrize("assignment", SEEN[:3])
def test_cams_over_the_steps_are_those_of_training_and_predictions_those_of_the_network(tmp_path, assignment):
    config = config_of(tmp_path, **assignment)
    state = build_state(config, 3, CPU)
    with torch.no_grad():
        for parameter in state.online.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    save_checkpoint(state, tmp_path / "checkpoints", keep=1)
    (followed,) = predict_per_checkpoint(tmp_path, [sample()], ["a", "b", "c"], CPU).images
    expected = heat_over(followed.image, shown(state).cam)
    difference = np.abs(np.asarray(followed.snapshots[0].cam, dtype=int) - np.asarray(expected, dtype=int))
    assert difference.max() <= 1
    (other,) = predict_per_checkpoint(tmp_path, [sample()], ["a", "b", "c"], CPU, "assignment").images
    assert not np.array_equal(other.snapshots[0].prediction, followed.snapshots[0].prediction)


def test_what_is_spared_is_one_line(caplog):
    with caplog.at_level(logging.WARNING), warn_on_failure("pictures"):
        raise ValueError("no palette\nof so many colours")
    assert [record.message for record in caplog.records] == ["no pictures: no palette of so many colours"]
    with pytest.raises(KeyboardInterrupt), warn_on_failure("pictures"):
        raise KeyboardInterrupt
