"""Worker arithmetic, absolute paths and search spaces."""

from __future__ import annotations

import pytest

from cosa_dist.config.errors import ConfigError
from cosa_dist.config.loading import load_config
from cosa_dist.config.paths import absolute
from cosa_dist.data.reading.order import micro_batch
from cosa_dist.distributed.plan import plan_workers, trials_that_fit, workers_that_fit
from cosa_dist.distributed.prepare import resolve
from cosa_dist.distributed.sweep.plan import SweepPlan, check_space, read_space
from cosa_dist.distributed.sweep.run import concurrent_trials, share_cpus


def config(**overrides):
    return load_config("voc_mini", None, {k.replace("__", "."): v for k, v in overrides.items()})


def test_the_global_batch_is_shared_or_refused_with_the_numbers():
    assert micro_batch(8, 2, 0) == 4
    assert micro_batch(8, 2, 2) == 2
    with pytest.raises(ConfigError, match="8 cannot be shared evenly by 3"):
        micro_batch(8, 3, 0)
    with pytest.raises(ConfigError, match="4 cannot be shared evenly by 8"):
        micro_batch(4, 8, 0)
    assert micro_batch(8, 2, 16) == 4
    with pytest.raises(ConfigError, match="3 does not divide a worker's part of 4"):
        micro_batch(8, 2, 3)


def test_workers_follow_from_the_cluster():
    cpu = plan_workers(config(), {"CPU": 4})
    assert (cpu.workers, cpu.use_gpu, cpu.cpus_per_worker) == (1, False, 4)
    two = plan_workers(config(distributed__workers=2), {"CPU": 4})
    assert (two.workers, two.cpus_per_worker, two.micro_batch_size) == (2, 2, 4)
    gpu = plan_workers(config(), {"CPU": 64, "GPU": 8})
    assert (gpu.workers, gpu.use_gpu, gpu.cpus_per_worker, gpu.micro_batch_size) == (8, True, 8, 1)
    assert not plan_workers(config(distributed__device="cpu"), {"CPU": 4, "GPU": 2}).use_gpu
    with pytest.raises(ConfigError, match="no GPU"):
        plan_workers(config(distributed__device="gpu"), {"CPU": 4})


def test_workers_with_gpus_share_the_cpus_of_nodes_with_gpus():
    nodes = [{"CPU": 16.0}, {"CPU": 64.0, "GPU": 8.0}, {"CPU": 32.0, "GPU": 8.0}]
    plan = plan_workers(config(training__global_batch_size=16), {"CPU": 112, "GPU": 16}, nodes)
    assert (plan.workers, plan.cpus_per_worker) == (16, 4)
    assert workers_that_fit(plan.resources_per_worker, nodes) == 24 - 8
    assert plan_workers(config(distributed__workers=4), {"CPU": 4, "GPU": 8}).cpus_per_worker == 1


def test_a_worker_gets_no_more_cpus_than_a_node_has():
    nodes = [{"CPU": 8.0}, {"CPU": 6.0}]
    assert plan_workers(config(), {"CPU": 14}, nodes).cpus_per_worker == 8
    assert plan_workers(config(distributed__workers=2), {"CPU": 14}, nodes).cpus_per_worker == 7


@pytest.mark.parametrize(
    ("changes", "nodes", "share", "trials"),
    [
        ({}, [{"CPU": 3.0}], 2, 1),
        ({"distributed__workers": 2}, [{"CPU": 5.0}], 2, 1),
        ({"distributed__workers": 1}, [{"CPU": 64.0, "GPU": 8.0}], 7, 8),
        ({}, [{"CPU": 64.0, "GPU": 8.0}], 7, 1),
        ({"distributed__workers": 1, "distributed__cpus_per_worker": 1}, [{"CPU": 4.0}], 1, 2),
    ],
)
def test_a_sweep_leaves_the_drivers_of_its_trials_a_cpu(changes, nodes, share, trials):
    chosen = config(**changes)
    total = {name: sum(node.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU")}
    plan = SweepPlan(base=chosen.model_dump(mode="json"), points=[{}])
    shared = share_cpus(plan, total, nodes).config
    assert shared.distributed.cpus_per_worker == share
    assert concurrent_trials(shared, nodes) == trials


ONE = {"CPU": 1.0}
BOTH = {"CPU": 2.0, "GPU": 1.0}


@pytest.mark.parametrize(
    ("need", "workers", "nodes", "trials"),
    [
        (ONE, 2, [], 0),
        (ONE, 2, [{"CPU": 2.0}], 0),
        (ONE, 2, [{"CPU": 3.0}], 1),
        (ONE, 2, [{"CPU": 6.0}], 2),
        # Eight CPUs in sum, and no node for a worker of five.
        ({"CPU": 5.0}, 1, [{"CPU": 4.0}, {"CPU": 4.0}], 0),
        # Three workers of two on three nodes of three: a driver takes the spare one.
        ({"CPU": 2.0}, 3, [{"CPU": 3.0}] * 3, 1),
        # Two drivers on the same node cost it one of its two workers.
        ({"CPU": 2.0}, 2, [{"CPU": 5.0}, {"CPU": 5.0}], 1),
        (BOTH, 1, [{"CPU": 24.0, "GPU": 8.0}], 8),
        (BOTH, 1, [{"CPU": 64.0}, {"CPU": 4.0, "GPU": 1.0}], 1),
        (BOTH, 2, [{"CPU": 8.0, "GPU": 1.0}] * 4, 2),
        # All 16 drivers on one node would take the CPUs of its workers.
        ({"CPU": 7.0, "GPU": 1.0}, 1, [{"CPU": 64.0, "GPU": 8.0}] * 2, 15),
        ({"CPU": 0.5}, 2, [{"CPU": 2.0}, {"CPU": 1.0}], 1),
    ],
)
def test_trials_are_counted_by_nodes_wherever_their_drivers_lie(need, workers, nodes, trials):
    assert trials_that_fit(need, workers, nodes) == trials


def test_what_fits_if_the_driver_lies_well_is_tried_and_nothing_more():
    chosen = config(distributed__workers=2, distributed__cpus_per_worker=3)
    nodes = [{"CPU": 3.0}, {"CPU": 5.0}]
    assert trials_that_fit({"CPU": 3.0}, 2, nodes) == 0
    assert concurrent_trials(chosen, nodes) == 1
    with pytest.raises(
        ConfigError, match=r"needs 7 CPUs .*8 CPUs and 0 GPUs on 3 node\(s\), which hold 1 such"
    ):
        concurrent_trials(chosen, [{"CPU": 2.0}, {"CPU": 5.0}, {"CPU": 1.0}])


def test_a_sweeps_share_leaves_room_for_a_driver_on_any_node():
    nodes = [{"CPU": 3.0}, {"CPU": 5.0}]
    plan = SweepPlan(base=config(distributed__workers=2).model_dump(mode="json"), points=[{}])
    shared = share_cpus(plan, {"CPU": 8.0}, nodes).config
    assert shared.distributed.cpus_per_worker == 2
    assert concurrent_trials(shared, nodes) == 1


def test_paths_become_absolute_from_the_folder_or_from_the_named_root(tmp_path, monkeypatch):
    monkeypatch.delenv("COSA_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)
    resolved = resolve(config())
    assert resolved.output == str(tmp_path / "outputs")
    assert resolved.model.weights == str(tmp_path / "weights/deit_tiny_patch16_224.pth")
    assert absolute("http://host/x", "tracking.uri") == "http://host/x"
    monkeypatch.setenv("COSA_ROOT", "/base")
    assert resolve(config()).data.shards == "/base/data/voc_mini"


def test_a_relative_path_in_a_jobs_temporary_copy_is_refused(tmp_path, monkeypatch):
    monkeypatch.delenv("COSA_ROOT", raising=False)
    copy = tmp_path / "_ray_pkg_0123"
    copy.mkdir()
    monkeypatch.chdir(copy)
    with pytest.raises(ConfigError, match="temporary copy"):
        absolute("outputs", "output", must_last=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("losses.enrgy: {uniform: [0, 1]}", "did you mean losses.energy"),
        ("losses.energy: {normal: [0, 1]}", "needs one of uniform"),
        ("losses.energy: {uniform: [1, 0]}", "low, high"),
        ("losses.energy: {loguniform: [0, 1]}", "positive low"),
        ("losses.energy: {choice: []}", "needs a list"),
        ("1: {uniform: [0, 1]}", "unknown option 1"),
        ("losses.energy: {uniform: [0, 1]}\nlosses.energy: {choice: [1]}", "losses.energy occurs twice"),
        ("losses.energy: {loguniform: [1e-3, 1e-5]}", "low, high"),
        ("", "names no option"),
    ],
)
def test_a_wrong_space_is_refused(tmp_path, text, message):
    path = tmp_path / "space.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_space(path)


@pytest.mark.parametrize("text", ["[1e-5, 1e-3]", "[1E-5, .1e-2]", "[0.00001, 1.e-3]"])
def test_numbers_with_an_exponent_are_numbers(tmp_path, text):
    path = tmp_path / "space.yaml"
    path.write_text(f"optimizer.learning_rate: {{loguniform: {text}}}")
    assert read_space(path) == {"optimizer.learning_rate": ("loguniform", [1e-5, 1e-3])}


def test_bounds_of_the_configuration_hold_for_a_space(tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text("assignment.threshold.low: {uniform: [0.1, 0.9]}")
    with pytest.raises(ConfigError, match=r"threshold\.low = 0\.9.*above high"):
        check_space(read_space(path), config(), str(path))
