"""A sweep's plan: written once, read back as it was, and refused where it cannot work."""

from __future__ import annotations

import json
from unittest.mock import MagicMock

import pytest

from cosa_dist.config.errors import ConfigError
from cosa_dist.distributed.sweep import run
from cosa_dist.distributed.sweep.plan import (
    SweepPlan,
    check_plan,
    different_settings,
    first_comparison,
    read_plan,
    write_plan,
)
from cosa_dist.distributed.sweep.trial import check_warm_start
from tests.integration.small_run import small_config


@pytest.fixture
def plan(tmp_path) -> SweepPlan:
    config = small_config(tmp_path, tmp_path, "sweep", losses={"warmup_steps": 3}, evaluation={"every": 2})
    space = {"losses.energy": ("uniform", [0.0, 1.0])}
    base, points = config.model_dump(mode="json"), [{"losses.energy": 0.1}]
    return SweepPlan(base=base, points=points, space=space, trials=4)


def replace(plan: SweepPlan, **changes) -> SweepPlan:
    return plan.model_copy(update=changes)


def test_it_comes_back_as_it_was_written_and_its_name_is_used_once(plan):
    write_plan(plan)
    assert read_plan(plan.folder) == plan
    for again in (write_plan, check_plan):
        with pytest.raises(ConfigError, match=r"a sweep named sweep is already in .*--resume sweep"):
            again(plan)


def test_a_missing_or_damaged_plan_is_named(plan, tmp_path):
    write_plan(plan)
    with pytest.raises(ConfigError, match=r"no sweep named 'sweeep'.*did you mean sweep"):
        read_plan(tmp_path / "sweeps" / "sweeep")
    (plan.folder / "sweep.json").write_text('{"base": 1}')
    with pytest.raises(ConfigError, match="is no plan of a sweep"):
        read_plan(plan.folder)


def test_trials_are_compared_after_the_loss_warm_up(plan):
    assert first_comparison(plan.config) == 4
    exact = plan.config.model_copy(
        update={"losses": plan.config.losses.model_copy(update={"warmup_steps": 4})}
    )
    assert first_comparison(exact) == 6


def test_asha_without_a_comparison_is_refused(plan):
    base = {**plan.base, "evaluation": {**plan.base["evaluation"], "every": 0}}
    with pytest.raises(ConfigError, match="--evaluation.every"):
        check_plan(replace(plan, base=base))
    check_plan(replace(plan, base=base, scheduler="none"))
    with pytest.raises(ConfigError, match="two objectives"):
        check_plan(replace(plan, objectives=("miou_unfiltered", "worker_seconds")))


def test_a_trial_that_contradicts_itself_is_refused_before_anything_starts(plan):
    with pytest.raises(ConfigError, match="losses.energy"):
        check_plan(replace(plan, points=[{"losses.energy": -1}]))


def test_what_is_the_sweeps_own_cannot_be_searched(plan):
    with pytest.raises(ConfigError, match="output is the same for all trials"):
        check_plan(replace(plan, space={}, points=[{"output": "a"}]))


@pytest.mark.parametrize(
    "key", ["losses.warmup_steps", "assignment.momentum", "optimizer.learning_rate", "data.crop_size", "seed"]
)
def test_a_shared_warm_up_refuses_what_acts_in_it(plan, key):
    check_warm_start(plan.config, ["losses.energy", "assignment.threshold.low", "evaluation.crf.enabled"])
    with pytest.raises(ConfigError, match=f"{key} is varied"):
        check_warm_start(plan.config, [key])


def test_a_sweep_of_an_earlier_version_keeps_imagenets_colours_and_may_be_started_again(plan):
    write_plan(plan)
    file = plan.folder / "sweep.json"
    stored = json.loads(file.read_text())
    del stored["base"]["model"]["normalisation"]
    file.write_text(json.dumps(stored))
    begun = read_plan(plan.folder)
    assert plan.config.model.normalisation == "encoder"
    assert [config.model.normalisation for config in (begun.config, *begun.configs)] == ["imagenet"] * 2
    assert different_settings(plan, begun) == []
    assert different_settings(replace(plan, base={**plan.base, "seed": 4}), begun) == ["seed"]


def test_another_start_of_the_same_command_is_known_from_any_other(plan):
    write_plan(plan)
    begun = read_plan(plan.folder)
    shared = {**begun.base, "distributed": {**begun.base["distributed"], "cpus_per_worker": 3}}
    begun = replace(begun, base=shared, parent_run_id="1", tracking_uri="sqlite:///x")
    assert different_settings(plan, begun) == []
    assert different_settings(replace(plan, trials=5, scheduler="none"), begun) == ["trials", "scheduler"]
    assert different_settings(replace(plan, base={**plan.base, "seed": 4}), begun) == ["seed"]
    other = {"losses.energy": ("uniform", [0.0, 2.0])}
    assert different_settings(replace(plan, space=other), begun) == ["space"]


def test_what_cannot_be_tidied_does_not_hide_why_a_sweep_ended(plan, monkeypatch, caplog):
    tune = MagicMock()
    tune.Tuner.return_value.fit.side_effect = RuntimeError("the first error")
    monkeypatch.setattr(run, "tune", tune)
    monkeypatch.setattr(run, "_tune_config", MagicMock())
    for name in ("plan_workers", "concurrent_trials", "node_resources"):
        monkeypatch.setattr(run, name, MagicMock())
    monkeypatch.setattr(run, "sweep_trials", MagicMock(side_effect=OSError("gone")))
    with pytest.raises(RuntimeError, match="the first error"):
        run._run_trials(plan, {}, "")
    assert "may remain: gone" in caplog.text
