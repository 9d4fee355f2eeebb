"""Elastic workers: which numbers share a batch, and how large a micro-batch may be."""

from __future__ import annotations

import pytest

from cosa_dist.config.errors import ConfigError
from cosa_dist.config.loading import load_config, parse_overrides
from cosa_dist.distributed.plan import plan_workers, workers_that_fit
from cosa_dist.distributed.sharing import elastic_numbers, largest_micro_batch


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
    assert (plan.workers, plan.fewest, plan.numbers, plan.micro_batch_size) == (4, 2, (2, 4), 0)
    assert plan.cpus_per_worker == 2


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
