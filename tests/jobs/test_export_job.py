"""jobs/export.py as a user meets it, and an MLflow server that answers a real request."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.inference.conftest import photos, trained_run  # noqa: F401


@pytest.fixture
def call(run_job, trained_run):  # noqa: F811
    return partial(run_job, "jobs/export.py", trained_run)


def test_prediction_from_an_export_is_that_of_the_run(run_job, call, trained_run, photos, tmp_path):  # noqa: F811
    assert call("--out", tmp_path / "export")[0] == 0
    for name, model in (("run", trained_run), ("export", tmp_path / "export")):
        assert run_job("jobs/predict.py", model, photos, "--out", tmp_path / f"masks_{name}").code == 0
    for mask in (tmp_path / "masks_run/masks").rglob("*.png"):
        twin = tmp_path / "masks_export" / mask.relative_to(tmp_path / "masks_run")
        assert twin.read_bytes() == mask.read_bytes()


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--format", "wieghts"], "did you mean weights?"),
        (["--format", ","], "names nothing"),
        (["--checkpoint", "9"], "there are: step-00000003"),
        (["--fromat", "onnx"], "unknown option --fromat"),
    ],
)
def test_a_wrong_option_is_one_line_and_makes_nothing(call, tmp_path, words, part):
    code, _, errors = call("--out", tmp_path / "out", *words)
    assert code == 2
    assert part in errors
    assert list(tmp_path.iterdir()) == []


@pytest.mark.nightly
@pytest.mark.integration
def test_mlflow_serves_the_model_on_the_loopback_address(call, tmp_path):
    assert call("--out", tmp_path / "out", "--format", "mlflow")[0] == 0
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    programs = Path(sys.executable).parent
    command = [str(programs / "mlflow"), "models", "serve", "-m", str(tmp_path / "out" / "mlflow")]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_until_it_answers(server, f"http://127.0.0.1:{port}/ping", tmp_path / "log")
        picture = tmp_path / "picture.png"
        Image.fromarray(np.full((20, 30, 3), 99, np.uint8)).save(picture)
        data = [[base64.b64encode(picture.read_bytes()).decode()]]
        body = json.dumps({"dataframe_split": {"columns": ["image"], "data": data}}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            (row,) = json.load(answer)["predictions"]
        assert row["error"] == ""
        assert base64.b64decode(row["mask"]).startswith(b"\x89PNG")
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


def wait_until_it_answers(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Wait for a server; fail with its log if it ends or takes longer than three minutes."""
    end = time.monotonic() + 180
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    pytest.fail(log.read_text()[-2000:])
