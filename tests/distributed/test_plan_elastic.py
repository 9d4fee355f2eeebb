"""Elastic workers: which numbers share a batch, and how large a micro-batch may be."""

from __future__ import annotations

import pytest

from cosa_dist.config.errors import ConfigError
from cosa_dist.config.loading import load_config, parse_overrides
from cosa_dist.distributed.plan import (
    check_batch_early,
    elastic_numbers,
    largest_micro_batch,
    plan_workers,
    workers_that_fit,
)


def config(*words: str):
    return load_config("voc_mini", None, parse_overrides(words))


def test_bounds_are_read_from_the_command_line():
    found = config("--distributed.workers", "[1, 4]").distributed
    assert (found.fewest_workers, found.workers) == (1, 4)
    again = config("--distributed.workers", "4", "--distributed.fewest_workers", "1").distributed
    assert again == found


@pytest.mark.parametrize(
    ("value", "part"),
    [
        ("[3, 2]", "fewest_workers 3 is above workers 2"),
        ("[1, 2, 3]", "distributed.workers"),
        ("[0.5, 2]", "distributed.fewest_workers"),
        ("many", "distributed.workers"),
        ("-1", "distributed.workers"),
    ],
)
def test_wrong_bounds_are_named(value, part):
    with pytest.raises(ConfigError, match=part):
        config("--distributed.workers", value)


def test_only_numbers_that_divide_the_batch():
    assert config().training.global_batch_size == 8
    assert elastic_numbers(config("--distributed.workers", "[1, 6]")) == (1, 2, 4)
    assert elastic_numbers(config("--distributed.workers", "[3, 8]")) == (4, 8)
    assert elastic_numbers(config("--distributed.workers", "4")) == ()
    assert elastic_numbers(config("--distributed.workers", "[4, 4]")) == ()
    with pytest.raises(ConfigError, match=r"8 cannot be shared evenly .* \[5, 7\]"):
        elastic_numbers(config("--distributed.workers", "[5, 7]"))
    with pytest.raises(ConfigError, match="set data.reading to mapped"):
        elastic_numbers(config("--distributed.workers", "[1, 2]", "--data.reading", "streaming"))


def test_a_plan_of_an_elastic_run_starts_with_its_fewest():
    plan = plan_workers(config("--distributed.workers", "[2, 7]"), {"CPU": 8})
    assert (plan.workers, plan.fewest, plan.numbers, plan.micro_batch_size) == (4, 2, (2, 4), 2)
    assert plan.cpus_per_worker == 2


@pytest.mark.parametrize(
    ("batch", "asked", "bounds", "most", "micro"),
    [
        # 64 images on 8, 4 or 2 workers: 8 at a time in any case, where a worker's whole part would be 32.
        (64, 0, "[2, 8]", 8, (8, 8, 8)),
        (64, 4, "[2, 8]", 4, (4, 4, 4)),
        (64, 16, "[2, 8]", 16, (16, 16, 8)),
        (24, 0, "[2, 8]", 3, (3, 3, 3)),
    ],
)
def test_an_elastic_run_that_loses_gpus_needs_no_more_memory(batch, asked, bounds, most, micro):
    words = ("--training.global_batch_size", str(batch), "--training.micro_batch_size", str(asked))
    plan = plan_workers(config(*words, "--distributed.workers", bounds), {"CPU": 96, "GPU": 8})
    assert plan.micro_batch_size == most
    assert tuple(largest_micro_batch(batch, number, most) for number in (2, 4, 8)) == micro


def test_an_elastic_batch_norm_keeps_two_pictures_in_a_pass():
    plan = plan_workers(segmenter("batch", 2, 0, "[1, 2]", "gpu"), {"CPU": 8, "GPU": 2})
    assert plan.micro_batch_size == 2


def test_the_largest_micro_batch_that_cuts_the_part():
    assert largest_micro_batch(12, 1, 0) == 12
    assert largest_micro_batch(12, 1, 5) == 4
    assert largest_micro_batch(12, 4, 5) == 3
    assert largest_micro_batch(14, 2, 6) == 1
    with pytest.raises(ConfigError, match="12 cannot be shared evenly by 5"):
        largest_micro_batch(12, 5, 0)


def test_workers_are_counted_node_by_node():
    need = {"CPU": 4.0, "GPU": 1.0}
    assert workers_that_fit(need, [{"CPU": 3, "GPU": 2}, {"CPU": 3, "GPU": 2}]) == 0
    assert workers_that_fit(need, [{"CPU": 8, "GPU": 1}, {"CPU": 9, "GPU": 4}, {"CPU": 64}]) == 3


def segmenter(norm: str, batch: int, micro: int, workers: str, device: str):
    values = {
        "segmenter.decoder_norm": norm,
        "training.global_batch_size": batch,
        "training.micro_batch_size": micro,
        "distributed.workers": workers,
        "distributed.device": device,
    }
    words = [word for key, value in values.items() for word in (f"--{key}", str(value))]
    return load_config("tiny_ms", None, parse_overrides(words))


@pytest.mark.parametrize(
    ("norm", "batch", "micro", "workers", "device", "gpus", "early", "planned"),
    [
        # One picture in a pass: refused where batch norm has no other GPU to share with.
        ("batch", 4, 1, "1", "auto", 0, False, False),
        ("batch", 4, 1, "1", "gpu", 1, False, False),
        ("batch", 1, 0, "1", "cpu", 0, False, False),
        ("batch", 4, 0, "4", "cpu", 0, False, False),
        ("batch", 4, 0, "[2, 4]", "cpu", 0, False, False),
        ("batch", 4, 1, "0", "auto", 0, True, False),
        ("batch", 4, 1, "2", "auto", 0, True, False),
        ("batch", 4, 1, "[1, 2]", "gpu", 2, True, False),
        # GPUs share their statistics; two pictures or more are enough; a group norm needs one.
        ("batch", 4, 1, "2", "auto", 2, True, True),
        ("batch", 4, 1, "0", "auto", 2, True, True),
        ("batch", 4, 0, "4", "gpu", 4, True, True),
        ("batch", 4, 2, "1", "cpu", 0, True, True),
        ("batch", 4, 0, "2", "cpu", 0, True, True),
        ("group", 4, 1, "1", "cpu", 0, True, True),
        ("group", 1, 0, "1", "cpu", 0, True, True),
    ],
)
def test_a_batch_norm_must_see_two_pictures(norm, batch, micro, workers, device, gpus, early, planned):
    asked = segmenter(norm, batch, micro, workers, device)
    resources = {"CPU": 8.0} | ({"GPU": float(gpus)} if gpus else {})
    for passes, check in (
        (early, lambda: check_batch_early(asked)),
        (planned, lambda: plan_workers(asked, resources)),
    ):
        if passes:
            check()
        else:
            with pytest.raises(ConfigError, match=r"^segmenter.decoder_norm batch needs two .* to group, or"):
                check()


def test_a_cosa_run_may_see_one_picture_at_a_time():
    words = ("--training.micro_batch_size", "1", "--distributed.device", "cpu", "--distributed.workers", "1")
    check_batch_early(config(*words))
    assert plan_workers(config(*words), {"CPU": 2.0}).micro_batch_size == 1
