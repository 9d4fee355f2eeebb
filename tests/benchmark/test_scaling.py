"""Rows of the scaling by hand; the real thing with Ray Train."""

from __future__ import annotations

import pytest

from cosa_dist.benchmark.scaling import measure_scaling, scaling_rows, with_global_batch
from tests.benchmark.tiny_run import tiny_config


def test_rows_by_hand():
    found = {
        1: {"co-training/step": 2.0, "loss warm-up/step": 1.0},
        2: {
            "co-training/step": 2.5,
            "co-training/without exchange": 2.25,
            "co-training/alone": 2.125,
            "loss warm-up/step": 1.0,
        },
    }
    rows = {(row["phase"], row["workers"]): row for row in scaling_rows(tiny_config(), found)}
    assert rows["co-training", 1]["images/s"] == 2
    assert rows["co-training", 1]["exchange of gradients s"] is None
    assert rows["co-training", 2]["images/s"] == pytest.approx(3.2)
    assert rows["co-training", 2]["times the first row"] == pytest.approx(1.6)
    assert rows["co-training", 2]["exchange of gradients s"] == pytest.approx(0.25)
    assert rows["co-training", 1]["times one in turn"] is None
    assert rows["co-training", 2]["times one in turn"] == pytest.approx(1.7)
    assert rows["loss warm-up", 2]["times the first row"] == 2


def test_every_worker_keeps_its_images():
    assert with_global_batch(tiny_config(), 3).training.global_batch_size == 12


@pytest.mark.slow
@pytest.mark.integration
def test_two_real_workers_exchange_gradients(ray_nodes):
    with ray_nodes.joined():
        report = measure_scaling(tiny_config(losses={"warmup_steps": 0}), workers=2, threads=1, rounds=2)
    one, two = report.tables[0].rows
    assert (one["workers"], two["workers"]) == (1, 2)
    assert two["images/s"] == pytest.approx(8 / two["step s"])
    assert two["exchange of gradients s"] is not None
    assert two["times one in turn"] > 0
