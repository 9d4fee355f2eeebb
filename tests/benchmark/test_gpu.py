"""The measurement of a GPU, its body on the CPU: rows as they come, sanity by hand, no Ray, no MLflow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from cosa_dist.benchmark.gpu import busy_seconds, cases, failures, host_waits, measure_gpu, resumed_difference
from cosa_dist.benchmark.measure import Report, Table
from tests.benchmark.tiny_run import tiny_config

CPU = torch.device("cpu")
PROJECT = Path(__file__).resolve().parents[2]
NOT_NEEDED = ("ray", "mlflow", "datasets", "pandas", "segmentation_models_pytorch", "scipy",
              "pycocotools", "sklearn", "optuna", "plotly")  # fmt: skip


def test_every_batch_phase_and_format_is_told_as_soon_as_it_is_measured(monkeypatch):
    monkeypatch.setattr("cosa_dist.benchmark.loading.GENERATED_PICTURES", 8)
    monkeypatch.setattr("cosa_dist.benchmark.loading.GENERATED_SIDE", 48)
    monkeypatch.setattr("cosa_dist.benchmark.gpu.CRF_SIZE", (20, 30))
    monkeypatch.setattr("cosa_dist.benchmark.gpu.matrix_rate", lambda device, dtype: 1e12)
    told = []
    report = measure_gpu(tiny_config(), CPU, [2], 2, lambda *each: told.append(each))
    tables = {table.title: table.rows for table in report.tables}
    assert list(tables) == ["steps", "memory and waits", "losses", "parts", "checkpoint", "resume", "loader"]
    named = [(row["batch"], row["format"], row["phase"]) for row in tables["steps"]]
    formats, phases = ("fp32 ieee", "fp32 TF32", "bf16"), ("loss warm-up", "co-training")
    assert named == [(2, f, p) for f in formats for p in phases]
    assert [(title, row) for _, title, row in told] == list(_in_order(told, tables))
    assert all(one is report for one, _, _ in told)
    for row in tables["steps"]:
        assert row["images/s"] == pytest.approx(1000 * row["batch"] / row["ms"])
        assert row["TFLOP/s"] > 0
    for row in tables["losses"]:
        assert row["bf16 / fp32"] == pytest.approx(1, abs=0.1), row
    seen = {row["loss"] for row in tables["losses"]}
    assert seen >= {"classification", "cam_to_seg", "seg_to_cam", "energy"}
    equal = {"bits equal": "yes", "largest difference": 0.0}
    assert tables["resume"] == [{"deterministic": word, **equal} for word in ("no", "yes")]
    assert tables["checkpoint"][0]["GB"] > 0
    assert tables["loader"][0]["images/s per core"] > 0


def test_every_case_has_its_batch_and_its_format():
    config = tiny_config(training={"micro_batch_size": 1})
    found = [(c.config.training, c.phase, c.format) for c in cases(config, [1, 6])]
    assert len(found) == 2 * 2 * 3
    assert {t.global_batch_size for t, _, _ in found} == {1, 6}
    assert {t.micro_batch_size for t, _, _ in found} == {0}
    settings = {(name, t.precision, t.matmul_precision) for t, _, name in found}
    assert settings == {
        ("fp32 ieee", "fp32", "highest"),
        ("fp32 TF32", "fp32", "high"),
        ("bf16", "bf16", "highest"),
    }


def _in_order(told, tables):
    places = dict.fromkeys(tables, 0)
    for _, title, _ in told:
        yield title, tables[title][places[title]]
        places[title] += 1


def test_a_resume_that_loses_something_is_seen(monkeypatch):
    config = tiny_config(losses={"warmup_steps": 0})
    assert resumed_difference(config, CPU) == 0
    monkeypatch.setattr("cosa_dist.benchmark.gpu.restore_newest", lambda state, folder: None)
    assert resumed_difference(config, CPU) > 0


def test_overlapping_kernels_count_once():
    assert busy_seconds([]) == 0
    assert busy_seconds([(0, 10), (5, 7), (8, 20), (30, 40)]) == pytest.approx(30e-6)


def test_waits_are_counted_by_their_line_in_the_project(monkeypatch):
    from cosa_dist.stopwatch import part

    class Tensor:
        def __enter__(self):
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)

        def __exit__(self, *_):
            warnings.warn("something else", stacklevel=1)

    monkeypatch.setattr("cosa_dist.stopwatch.record_function", lambda name: Tensor())
    with host_waits() as found:
        for _ in range(3):
            with part("EMA"):
                pass
    ((place, count),) = found.items()
    assert place.startswith("stopwatch.py:")
    assert count == 3


def good_rows():
    named = {"phase": "co-training", "batch": 4, "format": "bf16"}
    return {
        "steps": [{**named, "MFU %": 40.0}],
        "memory and waits": [{**named, "host waits": 1, "where": "1 x a.py:3", "times predicted": 1.1}],
        "losses": [{"phase": "co-training", "batch": 4, "loss": "energy", "bf16 / fp32": 0.99}],
    }


@pytest.mark.parametrize(
    ("table", "change", "message"),
    [
        ("steps", {}, None),
        ("steps", {"MFU %": 101.0}, "co-training, 4, bf16: an MFU of 101 %"),
        ("memory and waits", {"host waits": 2}, "2 host waits (1 x a.py:3)"),
        ("memory and waits", {"phase": "loss warm-up"}, "1 host waits"),
        ("memory and waits", {"times predicted": 0.8}, "0.8 times the predicted memory"),
        ("losses", {"bf16 / fp32": 1.03}, "energy in bf16 is 1.03 times"),
    ],
)
def test_what_cannot_be_right_is_named(table, change, message):
    rows = good_rows()
    rows[table][0] |= change
    report = Report("gpu", {}, [Table(title, content) for title, content in rows.items()])
    found = failures(report, on_cpu=False)
    assert len(found) == (message is not None)
    assert all(message in line for line in found)


def test_a_figure_that_cannot_be_right_gives_the_exit_code_1(run_job, monkeypatch, tmp_path):
    def measured(config, device, batches, rounds, told):
        report = Report("gpu", {}, [Table("steps", [{"ms": 1.0}])])
        told(report, "steps", {"ms": 1.0})
        assert json.loads((tmp_path / "gpu.json").read_text())[0]["tables"][0]["rows"] == [{"ms": 1.0}]
        assert (batches, rounds) == ([2, 3], 20)
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        report.failures.append("an MFU of 101 %")
        return report

    monkeypatch.setattr("cosa_dist.benchmark.gpu.measure_gpu", measured)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    words = [
        "gpu",
        "--recipe",
        "tiny",
        "--device",
        "cuda",
        "--json",
        tmp_path / "gpu.json",
        "--batches",
        2,
        3,
    ]
    done = run_job("jobs/benchmark.py", *words)
    assert done.code == 1, done.err
    assert "steps: ms 1" in done.out
    assert "cannot be right: an MFU of 101 %" in done.out


def test_a_machine_without_cuda_is_refused_in_one_line(run_job):
    done = run_job("jobs/benchmark.py", "gpu", "--recipe", "voc_released", "--device", "cpu")
    assert (done.code, len(done.err.strip().splitlines())) == (2, 1)
    assert "no CUDA device" in done.err


def test_nothing_of_ray_or_mlflow_is_needed():
    program = f"""
import sys
for name in {NOT_NEEDED}: sys.modules[name] = None
sys.path.insert(0, "jobs")
import benchmark, cosa_dist.benchmark.gpu
from cosa_dist.evaluation import evaluator, pseudo_mask
for name in {NOT_NEEDED[2:-2]}: del sys.modules[name]
import tests.conftest, tests.support.ranks, tests.integration.small_run, cosa_dist.benchmark.loading
from cosa_dist.distributed.worker import run_worker
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
