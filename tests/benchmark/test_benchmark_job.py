"""The command: what it prints and writes, and one line for what it cannot do."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from cosa_dist.config.loading import to_yaml
from tests.benchmark.tiny_run import tiny_config
from tests.integration.small_run import make_shards
from tests.oracles.__main__ import main as compare_with_oracles

JOB = Path(__file__).resolve().parents[2] / "jobs" / "benchmark.py"


@pytest.fixture
def benchmark(monkeypatch, tmp_path, capsys):
    """Runs the command; gives exit code, output and errors."""
    specification = importlib.util.spec_from_file_location("benchmark_job", JOB)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    (tmp_path / "tiny.yaml").write_text(to_yaml(tiny_config()))

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["benchmark.py", *words])
        code = module.main()
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    run.config = str(tmp_path / "tiny.yaml")
    return run


@pytest.mark.parametrize("words", [["plan"], ["--plan"]])
def test_a_plan_needs_no_shards_and_no_weights(benchmark, tmp_path, words):
    file = tmp_path / "plan.json"
    code, out, _ = benchmark(
        *words,
        "--config",
        benchmark.config,
        "--machine",
        "rtx3090",
        "--gpus-per-node",
        "2",
        "--json",
        str(file),
    )
    assert code == 0
    assert "GFLOP per image" in out
    (report,) = json.loads(file.read_text())
    assert [row["workers"] for row in report["tables"][0]["rows"]] == [1, 2]


def test_options_of_the_run_count(benchmark, tmp_path, monkeypatch, capsys):
    file = tmp_path / "plain.json"
    words = ["--config", benchmark.config, "--rounds", "1", "--json", str(file), "--only", "moving_average"]
    monkeypatch.setattr(sys, "argv", ["tests.oracles", *words, "--training.global_batch_size", "2"])
    assert compare_with_oracles() == 0
    assert "EMA" in capsys.readouterr().out
    assert json.loads(file.read_text())[0]["facts"]["batch"] == 2
    monkeypatch.setattr(sys, "argv", ["tests.oracles", "--recipe", "voc_released", "--only", "crv"])
    assert compare_with_oracles() == 2
    assert "--only crv" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["step"], "name a run"),
        (["step", "--recipe", "voc_relesed"], "did you mean voc_released"),
        (["plan", "--recipe", "voc_released", "--machine", "a1000"], "no such machine"),
        (["plan", "--recipe", "voc_released", "--rounds", "0"], "--rounds"),
        (["loader", "--recipe", "tiny", "--images", "3", "--data.shards", "S"], "--images 3: give 8 or more"),
        (["loader", "--recipe", "tiny", "--against", "no-such-commit"], "--against no-such-commit: "),
        (["step", "--recipe", "voc_released", "--losses.energi", "1"], "did you mean losses.energy"),
    ],
)
def test_bad_input_is_one_line(benchmark, words, message):
    code, _, err = benchmark(*words)
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.slow
def test_a_plan_for_this_machine_measures_it(benchmark, tmp_path):
    file = tmp_path / "plan.json"
    code, out, _ = benchmark(
        "plan", "--config", benchmark.config, "--machine", "this", "--threads", "1", "--rounds", "1",
        "--json", str(file),
    )  # fmt: skip
    assert code == 0
    assert "GB/s inside a node" in out
    rows = json.loads(file.read_text())[0]["tables"][0]["rows"]
    assert rows[1]["exchange s"] > 0


@pytest.mark.slow
def test_loaders_of_two_commits_in_turn(benchmark, tmp_path):
    file = tmp_path / "loader.json"
    shards = make_shards(tmp_path / "shards")
    words = ["--against", "HEAD", "--rounds", "1", "--images", "8", "--data.shards", str(shards)]
    code, out, err = benchmark("loader", "--config", benchmark.config, *words, "--json", str(file))
    assert code == 0, out + err
    (row,) = json.loads(file.read_text())[0]["tables"][0]["rows"]
    assert row["views"] == "the same, bit for bit"
    assert row["times"] == pytest.approx(row["images/CPU-s, this code"] / row["images/CPU-s, HEAD"])
