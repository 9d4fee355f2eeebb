"""Memory: a step takes what is predicted, an evaluation little and always the same."""

from __future__ import annotations

import pytest
import torch

from cosa_dist.benchmark.gpu import MEMORY_APART, fresh
from cosa_dist.benchmark.loading import generated_samples
from cosa_dist.benchmark.measure import peak_memory
from cosa_dist.benchmark.plan import memory_gb
from cosa_dist.benchmark.workload import class_count
from cosa_dist.evaluation.evaluator import Evaluator
from cosa_dist.training.flops import footprint


@pytest.mark.parametrize(("label", "classes"), [("VOC", 20), ("COCO", 80)])
@pytest.mark.parametrize(
    ("precision", "images", "sparing"), [("fp32", 4, False), ("bf16", 8, False), ("bf16", 8, True)]
)
def test_a_co_training_step_takes_the_predicted_memory(
    device, full_config, label, classes, precision, images, sparing
):
    training = {
        "precision": precision,
        "global_batch_size": images,
        "activation_checkpointing": sparing,
    }
    config = full_config(data={"label": label, "shards": "nowhere"}, training=training)
    assert class_count(config) == classes
    predicted = memory_gb(config, footprint(config, classes, precision == "bf16"), images, alone=True)
    with fresh(config, device) as work:
        for _ in range(2):
            work.take(config.losses.warmup_steps, device)
        measured = peak_memory(device)
    if device.type == "cuda":
        assert measured == pytest.approx(predicted, rel=MEMORY_APART)


def test_an_evaluation_of_many_classes(device, full_config):
    config = full_config(data={"label": "COCO", "shards": "nowhere"}, evaluation={"batch_size": 4})
    size = (480, 640) if device.type == "cuda" else (24, 32)
    samples = generated_samples(8, 80, size)
    with fresh(config, device) as work:
        names = [f"class {index}" for index in range(80)]
        evaluator = Evaluator.of_run(config, names, device=device)
        peaks = []
        for _ in range(3):
            evaluator.evaluate({"online": work.state.online}, samples)
            peaks.append(peak_memory(device))
            held = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
            if len(peaks) == 1:
                before = held
        if device.type == "cuda":
            assert peaks[0] < 8
            assert peaks[2] == pytest.approx(peaks[0], rel=0.01)
            assert held <= before + 2**20
