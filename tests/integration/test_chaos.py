"""Random kills in one run, of workers, a node, the driver and the tracking server: nothing is lost."""

from __future__ import annotations

import random
import sys

import pytest

from cosa_dist.config.loading import build_config, merge
from tests.faults.chaos_run import differences, disturbed_run, draw_kills
from tests.faults.chaos_stage import Stage
from tests.integration.small_run import SETTINGS, make_shards
from tests.integration.test_streaming_run import PROJECT

STEPS = 150


def test_kills_are_drawn_at_different_steps_and_meet_every_victim():
    victims = {"worker": 4, "node": 2, "driver": 2, "tracker": 2}
    for seed in range(20):
        kills = draw_kills(random.Random(seed), 10, STEPS, victims)
        assert {kill.victim for kill in kills} == set(victims)
        steps = [kill.step for kill in kills]
        assert steps == sorted(set(steps))
        assert 2 <= steps[0] <= steps[-1] < 0.8 * STEPS
    assert [kill.victim for kill in draw_kills(random.Random(0), 3, STEPS, {"node": 1})] == ["node"] * 3


@pytest.mark.slow
@pytest.mark.integration
def test_random_kills_change_neither_weights_nor_history(tmp_path, capsys):
    make_shards(tmp_path / "shards")
    chance = random.Random(6)
    kills = draw_kills(chance, 4, STEPS, {"worker": 1, "node": 1, "driver": 1, "tracker": 1})
    with Stage(tmp_path / "stage", [sys.executable, str(PROJECT / "jobs" / "train.py")]) as stage:

        def config(name: str):
            changes = {
                "name": name,
                "output": str(tmp_path),
                "data": {"shards": str(tmp_path / "shards")},
                "training": {"steps": STEPS, "checkpoint_every": 15},
                "evaluation": {"every": 50},
                "tracking": {"uri": stage.tracking_uri},
                "distributed": {"workers": 2, "cpus_per_worker": 1, "max_failures": 100},
            }
            return build_config(merge(SETTINGS, changes))

        assert list(disturbed_run(stage, config("twin"), [], chance)) == []
        struck = list(disturbed_run(stage, config("disturbed"), kills, chance))
        with capsys.disabled():
            for kill in struck:
                print(f"\n{kill.victim} killed after step {kill.step}: {kill.recovery:.1f} s", end="")
        assert [kill.victim for kill in struck] == [kill.victim for kill in kills]
        assert differences(tmp_path / "runs" / "twin", tmp_path / "runs" / "disturbed") == []
