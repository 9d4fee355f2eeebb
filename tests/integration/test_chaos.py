"""Random kills in one run, of workers, a node, the driver and the tracking server: nothing is lost."""

from __future__ import annotations

import random

import pytest

from tests.faults.campaign import chaos_config
from tests.faults.chaos import differences, disturbed_run, draw_kills, undisturbed_run
from tests.integration.small_run import make_shards

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
def test_random_kills_change_neither_weights_nor_history(ray_nodes, tmp_path):
    make_shards(tmp_path / "shards")
    rng = random.Random(6)
    kills = draw_kills(rng, 4, STEPS, {"worker": 1, "node": 1, "driver": 1, "tracker": 1})

    def config(name: str):
        length = {"training": {"steps": STEPS, "checkpoint_every": 15}, "evaluation": {"every": 50}}
        return chaos_config(tmp_path, ray_nodes.tracking_uri, name, **length)

    twin = undisturbed_run(ray_nodes, config("twin"))
    survived = list(disturbed_run(ray_nodes, config("disturbed"), kills, rng))
    for kill in survived:
        print(f"{kill.victim} killed after step {kill.step}: {kill.recovery:.1f} s")
    assert [kill.victim for kill in survived] == [kill.victim for kill in kills]
    assert differences(twin, tmp_path / "runs" / "disturbed") == []
