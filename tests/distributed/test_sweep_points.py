"""The list of a sweep's trials: what is drawn, that it is steady, and names of trials."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cosa_dist.distributed.sweep.plan import trial_id, trial_points

SPACE = {
    "losses.cam_to_seg": ("loguniform", [0.03, 0.3]),
    "assignment.threshold.low": ("uniform", [0.1, 0.4]),
    "losses.energy": ("choice", [0.0, 0.05]),
}


def test_the_same_seed_draws_the_same_trials_and_more_of_them_begin_alike():
    eight = trial_points(SPACE, 8, seed=3)
    assert eight == trial_points(SPACE, 8, seed=3)
    assert trial_points(SPACE, 12, seed=3)[:8] == eight
    assert trial_points(SPACE, 8, seed=4) != eight


@given(seed=st.integers(0, 1000), trials=st.integers(1, 20))
def test_draws_stay_inside_their_bounds(seed, trials):
    for point in trial_points(SPACE, trials, seed):
        assert list(point) == list(SPACE)
        assert 0.0299 < point["losses.cam_to_seg"] < 0.3001
        assert 0.0999 < point["assignment.threshold.low"] < 0.4001
        assert point["losses.energy"] in (0.0, 0.05)


def test_loguniform_is_even_in_the_logarithm():
    drawn = sorted(p["x"] for p in trial_points({"x": ("loguniform", [0.01, 1.0])}, 400, seed=0))
    # Half of the draws lie below the geometric middle; evenly drawn numbers would put 9 % there.
    assert 0.4 < sum(value < 0.1 for value in drawn) / len(drawn) < 0.6


def test_a_grid_comes_in_full_under_equal_draws():
    space = {"a": ("grid", [1, 2]), "b": ("grid", ["x", "y"]), "c": ("uniform", [0.0, 1.0])}
    points = trial_points(space, 2, seed=0)
    assert len(points) == 8
    assert {(p["a"], p["b"]) for p in points} == {(1, "x"), (1, "y"), (2, "x"), (2, "y")}
    assert len({p["c"] for p in points[:4]}) == 1
    assert trial_points({"a": ("grid", [1, 1, 2])}, 5, seed=0) == [{"a": 1}, {"a": 2}]


def test_a_trial_is_named_by_its_options_alone():
    assert trial_id({"a": 1, "b": 0.1}) == trial_id({"b": 0.1, "a": 1})
    assert trial_id({"a": 1, "b": 0.1}) != trial_id({"a": 1, "b": 0.2})
