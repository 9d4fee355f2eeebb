"""One real SQLite store for the whole session: creating one takes seconds."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

# What three training drivers do that start at the same moment on a machine without a store.
FIRST_START = """
import sys
from pathlib import Path
from cosa_dist.tracking.mlflow_runs import create_run
from cosa_dist.tracking.store import prepare_store
from cosa_dist.tracking.tracker import Tracker

uri = prepare_store(None, Path(sys.argv[1]))
run_id = create_run(uri, "first-start", "driver-" + sys.argv[2])
tracker = Tracker(Path(sys.argv[1]) / sys.argv[2], uri, run_id)
for step in range(40):
    tracker.log_metrics({"loss": step / 2}, step)
tracker.close()
print(uri, run_id)
"""


@dataclass(frozen=True)
class ColdStart:
    """A store that several processes met before it existed, and what each of them printed."""

    folder: Path
    uri: str
    runs: list[str]


@pytest.fixture(scope="session")
def cold_start(tmp_path_factory: pytest.TempPathFactory) -> ColdStart:
    base = tmp_path_factory.mktemp("tracking")
    elsewhere = base / "working folder"
    elsewhere.mkdir()
    command = [sys.executable, "-c", FIRST_START, str(base / "out put")]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    processes = [
        subprocess.Popen(
            [*command, str(number)],
            cwd=elsewhere,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(3)
    ]
    answers = []
    for process in processes:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        answers.append(out.splitlines()[-1].rsplit(" ", 1))
    assert list(elsewhere.iterdir()) == []
    uris = {answer[0] for answer in answers}
    assert len(uris) == 1
    return ColdStart(
        base / "out put",
        uris.pop(),
        [answer[1] for answer in answers],
    )


@pytest.fixture
def store(cold_start: ColdStart) -> str:
    """Absolute URI of a prepared SQLite store."""
    return cold_start.uri
