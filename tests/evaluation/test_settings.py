"""The evaluator's settings as the configuration gives them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from cosa_dist.config.schema import CrfConfig, EvaluationConfig, RunConfig
from cosa_dist.evaluation.settings import evaluation_settings
from cosa_dist.lattice.dense_crf import CRF_SETTINGS, CrfSettings

PROJECT = Path(__file__).resolve().parents[2]


def test_no_crf_unless_asked_for():
    assert evaluation_settings(RunConfig()).crf is None


def test_the_configured_numbers_are_the_released_ones_unless_changed():
    assert evaluation_settings(RunConfig(), "configured").crf == CRF_SETTINGS["released"]
    chosen = CrfConfig(enabled=True, iterations=2, position_sigma=3, bilateral_weight=5)
    config = RunConfig(evaluation=EvaluationConfig(crf=chosen))
    expected = CrfSettings(iterations=2, position_sigma=3.0, bilateral_weight=5.0)
    assert evaluation_settings(config).crf == expected
    assert evaluation_settings(config, "configured").crf == expected


def test_a_name_comes_before_the_configured_numbers():
    config = RunConfig(evaluation=EvaluationConfig(crf=CrfConfig(enabled=True, iterations=2)))
    crf = evaluation_settings(config, "ten_iterations").crf
    assert crf == CrfSettings(10, 4.0, 3.0, 83.0, 5.0, 3.0)


def test_the_job_knows_the_crfs_by_name():
    script = str(PROJECT / "jobs/evaluate.py")
    wrong = [sys.executable, script, "nowhere", "--crf", "twenty"]
    done = subprocess.run(wrong, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert all(name in done.stderr for name in ("configured", *CRF_SETTINGS))
