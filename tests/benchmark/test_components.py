"""Each plain formulation agrees with ours on the inputs that the benchmark gives to both."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cosa_dist.benchmark.workload import prepare
from cosa_dist.config.errors import ConfigError
from cosa_dist.lattice.permutohedral import bilateral_filter
from tests.benchmark.tiny_run import tiny_config
from tests.oracles import components
from tests.oracles.comparison import NAMES, compare
from tests.oracles.components import COMPONENTS, make_inputs
from tests.oracles.plain_losses import plain_bilateral_filter
from tests.oracles.plain_network import explicit_attention
from tests.oracles.plain_thresholds import plain_border

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def given():
    return make_inputs(prepare(tiny_config(), CPU, loader=False), CPU)


def test_assignment_pass(given):
    pair = COMPONENTS["assignment_pass"](given)
    plain, ours = pair.plain(), pair.ours()
    absent = given.batch.labels == 0
    assert not ours.cam[absent].any()
    assert plain.cam[absent].any()
    kept = given.batch.labels[:, :, None, None]
    for name in ("cam", "aux_cam"):
        torch.testing.assert_close(getattr(plain, name) * kept, getattr(ours, name), rtol=1e-3, atol=1e-4)
    for name in ("segmentation", "logits", "aux_logits"):
        torch.testing.assert_close(getattr(plain, name), getattr(ours, name), rtol=1e-3, atol=1e-5)


def test_explicit_attention_is_another_computation_with_the_same_result(given):
    network = given.work.state.assignment
    blocks = network.backbone.model.blocks
    with explicit_attention(network) as switched:
        assert switched == len(blocks)
        assert not any(block.attn.fused_attn for block in blocks)
    assert all(block.attn.fused_attn for block in blocks)


def test_cam_labels_have_all_three_kinds_of_pixels(given):
    pair = COMPONENTS["cam_labels"](given)
    for plain, ours in zip(pair.plain(), pair.ours(), strict=True):
        assert {0, 255} < set(ours.unique().tolist())
        assert (plain != ours).float().mean() < 1e-3


@pytest.mark.parametrize("name", ["segmentation_to_cam", "cam_to_segmentation", "energy"])
def test_losses_and_their_gradients(given, name):
    pair = COMPONENTS[name](given)
    (plain, plain_gradient), (ours, gradient) = pair.plain(), pair.ours()
    assert ours != 0
    torch.testing.assert_close(plain, ours, rtol=1e-3, atol=0)
    largest = float(gradient.abs().max())
    assert largest > 0
    torch.testing.assert_close(plain_gradient, gradient, rtol=0, atol=2e-3 * largest)


def test_the_plain_lattice_equals_ours():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 9, 12, generator=generator) * 60
    values = torch.rand(2, 4, 9, 12, generator=generator)
    plain = plain_bilateral_filter(images, values, 15.0, 5.0)
    torch.testing.assert_close(plain, bilateral_filter(images, values, 15.0, 5.0), rtol=1e-3, atol=1e-4)
    assert (plain - values).abs().mean() > 0.1


def test_both_searches_find_the_border_between_the_hills(given):
    pair = components.threshold_search(given, queue=20)
    early = pair.plain()
    for _ in range(500):  # the moving average goes one part in a hundred a step
        ours = pair.ours()
    values = components.hill_values(20, 4)
    converged = plain_border(values[values > 0.05], tolerance=1e-8, iterations=1000)
    np.testing.assert_allclose(ours, converged, atol=0.006)
    np.testing.assert_allclose(early, converged, atol=0.15)
    assert 0.4 < converged < 0.5


def test_refinement(given):
    pair = components.refinement(given, side=32)
    plain, ours = pair.plain(), pair.ours()
    assert (plain - ours).abs().max() < 1e-3


def test_crf(given):
    pair = components.crf(given, (18, 24))
    plain, ours = pair.plain(), pair.ours()
    torch.testing.assert_close(plain, ours, rtol=1e-3, atol=1e-4)


def test_one_by_one_and_together_move_the_parameters_alike():
    works = [prepare(tiny_config(), CPU, loader=False) for _ in range(2)]
    pairs = [(COMPONENTS[n](make_inputs(w, CPU))) for w in works for n in ("optimiser", "moving_average")]
    pairs[0].plain()
    pairs[1].plain()
    pairs[2].ours()
    pairs[3].ours()
    start = prepare(tiny_config(), CPU, loader=False)
    for kind in ("online", "assignment"):
        plain, ours, before = (list(getattr(w.state, kind).parameters()) for w in (*works, start))
        for a, b, c in zip(plain, ours, before, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)
            assert not torch.equal(a, c)


def test_a_comparison_has_a_row_for_each_name_and_two_for_the_step():
    report = compare(tiny_config(), CPU, 1, ["segmentation_to_cam", "moving_average", "step"])
    rows = report.tables[0].rows
    assert [row["what"] for row in rows] == ["SPL + S2C", "EMA", "step, loss warm-up", "step, co-training"]
    for row in rows:
        assert row["times faster"] == pytest.approx(row["plain s"] / row["ours s"])
    assert NAMES[-1] == "step"


def test_what_cannot_be_compared_is_named():
    with pytest.raises(ConfigError, match=r"--only energi: .* did you mean energy"):
        compare(tiny_config(), CPU, 1, ["energi"])
    with pytest.raises(ConfigError, match=r"losses\.separation"):
        compare(tiny_config(losses={"separation": 0.1}), CPU, 1, ["step"])
