"""jobs/replay.py: what a store missed of a finished run is sent once; errors are one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from cosa_dist.tracking.local_tracker import LocalTracker
from cosa_dist.tracking.mlflow_client import connect
from cosa_dist.tracking.mlflow_runs import create_run

PROJECT = Path(__file__).resolve().parents[2]


def call(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROJECT / "jobs" / "replay.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_what_is_missing_is_sent_once(store, tmp_path):
    folder = tmp_path / "runs" / "lonely"
    run_id = create_run(store, "replay", "lonely")
    mirror = LocalTracker(folder)
    for step in range(4):
        mirror.log_metrics({"loss": float(step)}, step)
    mirror.close("FINISHED")
    (folder / "run.json").write_text(json.dumps({"tracking_uri": store, "run_id": run_id, "finished": True}))
    first = call("lonely", "--output", str(tmp_path))
    assert first.stdout == "4 points were missing and are there now\n", first.stderr
    assert connect(store).get_run(run_id).info.status == "FINISHED"
    wrong = call("lonly", "--output", str(tmp_path))
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: no run named 'lonly'")
    assert "did you mean lonely?" in wrong.stderr
