"""A streaming run over HTTP, two Ray Train workers: killed and resumed, it equals its undisturbed twin."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import SimpleHTTPRequestHandler
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from cosa_dist.config.loading import to_yaml
from cosa_dist.data.reading.order import StreamOrder
from cosa_dist.data.shards.description import describe_split
from tests.data.shard_server import ShardServer, served
from tests.integration.small_run import curve, make_shards, small_config

pytestmark = [pytest.mark.integration, pytest.mark.slow]

PROJECT = Path(__file__).resolve().parents[2]
STEPS = 14
PATIENCE = 600.0


def command(*arguments: str) -> list[str]:
    return [sys.executable, str(PROJECT / "jobs" / "train.py"), *arguments]


def configured(server: ShardServer, output: Path, name: str) -> Path:
    """Configuration file of a run of fourteen steps, two and a third epochs of 24 images."""
    config = small_config(
        Path("unused"),
        output,
        name,
        data={"shards": server.url, "reading": "streaming", "shuffle_window": 5},
        training={"steps": STEPS},
        tracking={"enabled": False},
        distributed={"workers": 2, "cpus_per_worker": 1},
    )
    path = output / f"{name}.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    return path


def shards_of_first_epoch(server: ShardServer) -> int:
    """How many shards the two readers open before the second epoch."""
    counts = tuple(shard.count for shard in describe_split(server.url, "train").shards)
    order = StreamOrder(counts, 0, 5, 2, 1, 2, 1)
    return sum(1 for reader in (0, 1) for share in order.parts(reader, 0, 6) for _ in share.pieces)


@contextmanager
def running(arguments: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A command in a session of its own; nothing of it remains after the block."""
    with log.open("wb") as output:
        process = subprocess.Popen(arguments, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            yield process
        finally:
            kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL a driver and then its Ray processes, as when a machine is lost."""
    with suppress(psutil.NoSuchProcess):
        family = psutil.Process(process.pid).children(recursive=True)
        os.kill(process.pid, signal.SIGKILL)
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.kill()
    process.wait()


def test_a_killed_streaming_run_equals_its_twin(tmp_path: Path) -> None:
    with served(make_shards(tmp_path / "shards")) as server:
        whole = subprocess.run(
            command("--config", str(configured(server, tmp_path, "whole"))),
            capture_output=True,
            timeout=PATIENCE,
        )
        assert whole.returncode == 0, whole.stdout.decode()[-2000:] + whole.stderr.decode()[-2000:]

        # The server holds back the second epoch but for the two shards that the readers fetch ahead: a
        # window takes more than one shard, so the run stands still after step 6.
        first_epoch, gate = shards_of_first_epoch(server), threading.Event()
        server.requests.clear()

        def hold(handler: SimpleHTTPRequestHandler) -> bool:
            if len(server.asked_for("/train/")) > first_epoch + 2:
                gate.wait(PATIENCE)
            return False

        server.fault = hold
        broken = tmp_path / "runs" / "broken"
        path = configured(server, tmp_path, "broken")
        with running(command("--config", str(path)), tmp_path / "broken.log") as driver:
            deadline = time.monotonic() + PATIENCE
            while not (broken / "checkpoints" / "step-00000005").is_dir():
                assert driver.poll() is None, (tmp_path / "broken.log").read_text()[-2000:]
                assert time.monotonic() < deadline
                time.sleep(0.2)
        gate.set()
        server.fault = None
        assert not (broken / "checkpoints" / "step-00000010").exists()
        again = subprocess.run(
            command("--resume", "broken", "--output", str(tmp_path)), capture_output=True, timeout=PATIENCE
        )
        assert again.returncode == 0, again.stdout.decode()[-2000:] + again.stderr.decode()[-2000:]

    undisturbed = tmp_path / "runs" / "whole"
    for name in ("total", "classification", "cam_to_seg", "seg_to_cam"):
        losses = curve(broken, f"train/{name}")
        assert len(losses) == STEPS
        assert losses == curve(undisturbed, f"train/{name}")
    for network in ("online", "assignment"):
        place = Path("checkpoints", f"step-{STEPS:08d}", f"{network}.safetensors")
        expected = load_file(undisturbed / place)
        for key, value in load_file(broken / place).items():
            assert torch.equal(value, expected[key]), key
