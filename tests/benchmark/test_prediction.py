"""Predictions by hand, and the messages about machines that cannot be used."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cosa_dist.benchmark import plan as planning
from cosa_dist.benchmark.plan import (
    Machine,
    exchange_seconds,
    machine_of_device,
    memory_gb,
    plan,
    predict,
    read_machine,
    worker_counts,
)
from cosa_dist.config.errors import ConfigError
from cosa_dist.training.flops import Footprint
from tests.benchmark.tiny_run import tiny_config

IMAGE = Footprint(
    assignment_pass=6 * 10**9,
    training_pass=3 * 10**9,
    warmup=2 * 10**9,
    parameters=30 * 10**6,
    trained_parameters=25 * 10**6,
    activations=10**8,
    kept_once=0,
    classes=20,
)
MACHINE = Machine(
    fp32_tflops=0.1,
    mfu=0.5,
    warmup_mfu=0.25,
    nodes=2,
    gpus_per_node=2,
    bandwidth_gbs=10,
    node_bandwidth_gbs=1,
    latency_us=100,
    host_ms=0,
    warmup_host_ms=0,
)


def test_a_ring_by_hand():
    ring = Machine(gpus_per_node=4, bandwidth_gbs=0.04, latency_us=125000)
    assert exchange_seconds(ring, 1e9, 1) == 0
    # Two workers send half of the bytes twice; 40 MB are two buckets of two messages each.
    assert exchange_seconds(ring, 40e6, 2) == pytest.approx(1 + 4 * 0.125)
    fast = Machine(gpus_per_node=4, bandwidth_gbs=0.025, latency_us=0)
    assert exchange_seconds(fast, 25e6, 4) == pytest.approx(1.5)


def test_one_worker_by_hand():
    config = tiny_config(training={"steps": 3602, "global_batch_size": 4})
    found = predict(config, IMAGE, MACHINE, 1)
    # 9 GFLOP per image at half of 100 GFLOP/s; 2 GFLOP at a quarter of it.
    assert found["co-training step s"] == pytest.approx(4 * 9 / 50)
    assert found["warm-up step s"] == pytest.approx(4 * 2 / 25)
    assert found["images/s"] == pytest.approx(50 / 9)
    assert found["wall hours"] == pytest.approx((2 * 0.32 + 3600 * 0.72) / 3600)
    assert found["exchange s"] == 0
    maps = 6 * 4 * 21 * 32**2 * 4
    assert found["GB/worker"] == pytest.approx((4 * 30e6 * 4 + 4 * 1e8 + maps) / 1e9)


def test_memory_by_hand():
    copy, maps = 30e6 * 4, 6 * 21 * 32**2 * 4
    plain, sparing = tiny_config(), tiny_config(training={"activation_checkpointing": True})
    again = replace(IMAGE, activations=10**7, recomputed=2 * 10**7)

    def needed(config, cost, images, alone):
        return 1e9 * memory_gb(config, cost, images, alone)

    # Two images keep less than the gradients occupy, which come when they have gone; four keep more.
    few = replace(IMAGE, activations=10**7)
    assert needed(plain, few, 2, True) == pytest.approx(5 * copy)
    assert needed(plain, IMAGE, 4, True) == pytest.approx(4 * copy + 4 * (1e8 + maps))
    assert needed(plain, IMAGE, 4, False) == pytest.approx(5 * copy + 4 * (1e8 + maps))
    # A block of an image needs 20 MB, its maps 0.5.
    assert needed(sparing, again, 2, True) == pytest.approx(4 * copy + 2 * 3e7)
    assert needed(sparing, again, 2, False) == pytest.approx(5 * copy + 2 * 3e7)
    assert needed(sparing, replace(again, recomputed=0), 2, True) == pytest.approx(
        4 * copy + 2 * (1e7 + maps)
    )


def test_more_workers_share_the_batch_and_pay_for_the_slowest_link():
    config = tiny_config()
    two, four = (predict(config, IMAGE, MACHINE, workers) for workers in (2, 4))
    assert two["images/worker"] == 2
    assert two["exchange s"] == pytest.approx(1e8 / 10e9 + 2 * 4 * 1e-4)
    assert two["co-training step s"] == pytest.approx(2 * 9 / 50 + two["exchange s"])
    assert four["exchange s"] == pytest.approx(1.5 * 1e8 / 1e9 + 6 * 4 * 1e-4)
    assert four["GPU hours"] == pytest.approx(4 * four["wall hours"])
    hidden = predict(config, IMAGE, MACHINE.model_copy(update={"overlap": 1.0}), 4)
    assert hidden["co-training step s"] == pytest.approx(9 / 50)


def test_no_step_is_shorter_than_the_host_needs_for_its_launches():
    # A micro-batch of 2 computes for 0.36 s, that of the warm-up for 0.16 s.
    host = MACHINE.model_copy(update={"host_ms": 500, "warmup_host_ms": 10})
    one, four = (predict(tiny_config(training={"micro_batch_size": m}), IMAGE, host, 1) for m in (0, 1))
    assert one["co-training step s"] == pytest.approx(4 * 9 / 50)
    assert four["co-training step s"] == pytest.approx(4 * 0.5)
    assert four["warm-up step s"] == pytest.approx(4 * 2 / 25)
    assert (one["remark"], four["remark"]) == ("", "bound by the host")
    two = predict(tiny_config(), IMAGE, host, 2)
    assert two["co-training step s"] == pytest.approx(0.5 + two["exchange s"])
    assert two["images/s"] == pytest.approx(4 / two["co-training step s"])
    control = predict(tiny_config(kind="control"), IMAGE, host.model_copy(update={"warmup_host_ms": 900}), 1)
    assert (control["images/s"], control["remark"]) == (pytest.approx(4 / 0.9), "bound by the host")


def test_small_batches_on_a_fast_machine_are_bound_by_the_host():
    # One image on each of 8 GPUs: 1.8 TFLOP at 35 % of 989 TFLOP/s would take 5 ms.
    config = tiny_config(training={"precision": "bf16", "global_batch_size": 8})
    cost = replace(IMAGE, assignment_pass=1310 * 10**9, training_pass=480 * 10**9)
    found = predict(config, cost, read_machine("h200", {"gpus_per_node": 8}), 8)
    assert found["remark"] == "bound by the host"
    assert found["images/s"] < 8 / 0.045


def test_a_control_run_is_all_warm_up():
    found = predict(tiny_config(kind="control"), IMAGE, MACHINE, 1)
    assert found["wall hours"] == pytest.approx(10 * 0.32 / 3600)
    assert found["images/s"] == pytest.approx(4 / 0.32)


def test_precision_chooses_the_peak():
    fast = MACHINE.model_copy(update={"bf16_tflops": 1.0})
    automatic = tiny_config(training={"precision": "auto"})
    assert predict(automatic, IMAGE, fast, 1)["co-training step s"] == pytest.approx(0.072)
    assert predict(automatic, IMAGE, MACHINE, 1)["co-training step s"] == pytest.approx(0.72)
    with pytest.raises(ConfigError, match="has bf16_tflops 0"):
        predict(tiny_config(training={"precision": "bf16"}), IMAGE, MACHINE, 1)
    both = MACHINE.model_copy(update={"tf32_tflops": 0.2})
    for matmul, seconds in {"highest": 0.72, "high": 0.36}.items():
        config = tiny_config(training={"matmul_precision": matmul})
        assert predict(config, IMAGE, both, 1)["co-training step s"] == pytest.approx(seconds)


def test_numbers_of_workers():
    assert worker_counts(Machine(nodes=1, gpus_per_node=1)) == [1]
    assert worker_counts(Machine(nodes=3, gpus_per_node=6)) == [1, 2, 4, 6, 12, 18]


def test_a_plan_says_what_does_not_work_and_what_it_assumes():
    machine = MACHINE.model_copy(update={"nodes": 4, "memory_gb": 1e-6})
    report = plan(tiny_config(), machine)
    rows = {row["workers"]: row for row in report.tables[0].rows}
    assert "cannot be shared evenly by 8 workers" in rows[8]["remark"]
    assert rows[8]["images/s"] is None
    assert rows[4]["remark"] == "more than 1e-06 GB less 3 of contexts"
    compute = [rows[n]["co-training step s"] - rows[n]["exchange s"] for n in (1, 2, 4)]
    assert compute[1] == pytest.approx(compute[0] / 2)
    assert compute[2] == pytest.approx(compute[0] / 4)
    notes = "\n".join(report.notes)
    assert "launches a micro-batch in 0 ms (0 ms in the warm-up)" in notes
    assert "50.0 % in co-training and 25.0 % in the warm-up" in notes


def test_contexts_and_workspaces_take_their_part_of_the_memory():
    need = predict(tiny_config(), IMAGE, MACHINE, 1)["GB/worker"]
    for memory, fits in ((need + 2.9, False), (need + 3.1, True)):
        found = predict(tiny_config(), IMAGE, MACHINE.model_copy(update={"memory_gb": memory}), 1)
        assert (found["remark"] == "") is fits


def test_a_device_is_known_by_its_full_name():
    names = {"NVIDIA H200": 141, "NVIDIA H100 80GB HBM3": 80, "NVIDIA GeForce RTX 3090": 24}
    for name, memory in names.items():
        assert machine_of_device(name).memory_gb == memory
    assert machine_of_device("NVIDIA T4") is None


def test_machines_by_name_by_file_and_with_changes(tmp_path):
    assert read_machine("rtx3090", {}).fp32_tflops == 35.6
    assert read_machine("a100", {"nodes": 3, "mfu": 0.2}).mfu == 0.2
    (tmp_path / "ours.yaml").write_text("gpus_per_node: 4\nfp32_tflops: 1.5\n")
    machine = read_machine(str(tmp_path / "ours.yaml"), {"gpus_per_node": 2})
    assert (machine.name, machine.gpus_per_node, machine.fp32_tflops) == ("ours", 2, 1.5)


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("a10", {}, "did you mean a100"),
        ("nowhere.yaml", {}, "no configuration file"),
        ("a100", {"mfu": 2.0}, "machine a100: mfu = 2.0"),
        ("a100", {"bandwith_gbs": 2.0}, "did you mean bandwidth_gbs"),
    ],
)
def test_a_wrong_machine_is_named(name, changes, words):
    with pytest.raises(ConfigError, match=words):
        read_machine(name, changes)


@pytest.mark.parametrize(("shares", "rate", "mfu"), [((0.2, 0.5), 1.0, 0.5), ((0.5, 2.0), 2.0, 1.0)])
def test_this_machine_is_at_least_as_fast_as_its_networks(monkeypatch, shares, rate, mfu):
    found = dict(zip(("loss warm-up", "co-training"), shares, strict=True))
    monkeypatch.setattr(planning, "matrix_rate", lambda device, dtype: 1e12)
    monkeypatch.setattr(planning, "measured_phases", lambda *_: (found, {"co-training": 7.0}))
    machine = planning.this_machine(tiny_config(), torch.device("cpu"), 1, 1)
    assert (machine.fp32_tflops, machine.mfu) == (rate, mfu)
    assert (machine.host_ms, machine.warmup_host_ms) == (7.0, 0.0)
    assert machine.warmup_mfu * machine.fp32_tflops == pytest.approx(shares[0])
