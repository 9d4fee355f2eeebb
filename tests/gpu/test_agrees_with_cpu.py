"""A step on the device is the CPU's: same weights and batch, float32 without TF32."""

from __future__ import annotations

import pytest
import torch

from cosa_dist.assignment.mixture import count_activations
from cosa_dist.assignment.threshold import LearnedThresholds
from cosa_dist.benchmark.gpu import fresh
from cosa_dist.benchmark.workload import generated_batch
from cosa_dist.config.method import ThresholdConfig
from cosa_dist.training.step import assign, global_normalizers, training_step
from tests.benchmark.tiny_run import tiny_config
from tests.oracles.components import hill_values

CPU = torch.device("cpu")
PAPER = {
    "assignment": {"reliability": True, "threshold": {"kind": "two_components", "single": 0.45}},
    "losses": {"warmup_steps": 2, "separation": 0.1, "separation_contrast": {"max_perplexity": 2.0}},
}


@pytest.mark.parametrize("step", [0, 2], ids=["warm-up", "co-training"])
@pytest.mark.parametrize("changes", [{}, PAPER], ids=["released", "paper"])
def test_losses_and_gradients(device, changes, step):
    found = {}
    for name, place in (("cpu", CPU), ("device", device)):
        with fresh(tiny_config(**changes), place) as work:
            work.state.step = step
            batch = generated_batch(4, 32, 20).to(place)
            terms = training_step(work.state, work.network, [batch], work.accelerator)
            gradients = {
                n: p.grad.cpu() for n, p in work.state.online.named_parameters() if p.grad is not None
            }
            found[name] = {n: float(value) for n, value in terms.items()}, gradients
    for name, value in found["cpu"][0].items():
        assert found["device"][0][name] == pytest.approx(value, rel=1e-4, abs=1e-7), name
    assert found["cpu"][1].keys() == found["device"][1].keys()
    for name, value in found["cpu"][1].items():
        largest = float(value.abs().max())
        torch.testing.assert_close(
            found["device"][1][name], value, rtol=0, atol=1e-3 * largest + 1e-9, msg=name
        )


@pytest.mark.parametrize("changes", [{}, PAPER], ids=["released", "paper"])
def test_pseudo_labels_histograms_and_normalisers(device, changes):
    found = []
    for place in (CPU, device):
        with fresh(tiny_config(**changes), place) as work:
            assignment = assign(work.state, generated_batch(4, 32, 20).to(place), work.accelerator)
            found.append((assignment, global_normalizers([assignment])))
    (ours, counted), (theirs, also_counted) = found
    for name in ("cam_pseudo_label", "aux_cam_pseudo_label"):
        labels = getattr(ours, name)
        assert {0} < set(labels.unique().tolist())
        assert (labels == getattr(theirs, name).cpu()).float().mean() > 0.999
    torch.testing.assert_close(
        theirs.segmentation_pseudo_label.cpu(), ours.segmentation_pseudo_label, rtol=1e-3, atol=1e-3
    )
    for one, other in zip(counted, also_counted, strict=True):
        torch.testing.assert_close(other.cpu(), one, rtol=2e-3, atol=1)
    if changes:
        assert ours.histograms.sum() > 0
        moved = (theirs.histograms.cpu() - ours.histograms).abs().sum() / ours.histograms.sum()
        assert moved < 0.05
        assert torch.equal(theirs.histograms.sum(1).cpu(), ours.histograms.sum(1))


@pytest.mark.parametrize(
    "settings",
    [{"kind": "two_components"}, {"kind": "three_components"},
     {"kind": "two_components", "variant": "split_likelihood"}],
    ids=["two", "three", "split"],
)  # fmt: skip
def test_thresholds_after_120_updates(device, settings):
    values = torch.from_numpy(hill_values(120, 1))
    searches = [LearnedThresholds(ThresholdConfig(queue=20, **settings), place) for place in (CPU, device)]
    for row in values:
        histogram = count_activations(row, row < 1)
        for search, place in zip(searches, (CPU, device), strict=True):
            search.update(torch.stack([histogram, histogram]).to(place))
    ours, theirs = (search.current().values() for search in searches)
    assert theirs == pytest.approx(ours, abs=1e-6)
    assert ours != pytest.approx(
        LearnedThresholds(ThresholdConfig(**settings), CPU).current().values(), abs=1e-3
    )
