"""A streaming run over HTTP, two Ray Train workers: killed and resumed, it equals its undisturbed twin."""

from __future__ import annotations

import threading
from http.server import SimpleHTTPRequestHandler
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cosa_dist.config.loading import to_yaml
from cosa_dist.data.reading.order import StreamOrder
from cosa_dist.data.shards.split import describe_split
from tests.data.shard_server import ShardServer, served
from tests.faults.cluster import FaultCluster
from tests.integration.small_run import curve, make_shards, small_config
from tests.support.programs import PATIENCE, command, running, wait_until

pytestmark = [pytest.mark.integration, pytest.mark.slow]

STEPS = 14


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


def test_a_killed_streaming_run_equals_its_twin(ray_nodes: FaultCluster, tmp_path: Path) -> None:
    """The killed run has a Ray of its own, which dies with it; its twin and its end are on the cluster."""
    with served(make_shards(tmp_path / "shards")) as server:
        assert ray_nodes.run_here("--config", str(configured(server, tmp_path, "whole"))) == 0

        # The server holds back the second epoch but for the two shards that the readers fetch ahead: a
        # window takes more than one shard, so the run stands still after step 6.
        first_epoch, gate = shards_of_first_epoch(server), threading.Event()
        server.requests.clear()

        def hold(handler: SimpleHTTPRequestHandler) -> bool:
            if len(server.asked_for("/train/")) > first_epoch + 2:
                gate.wait(PATIENCE)
            return False

        server.fault = hold
        broken, log = tmp_path / "runs" / "broken", tmp_path / "broken.log"
        start = command("jobs/train.py", "--config", str(configured(server, tmp_path, "broken")))
        with running(start, log) as driver:

            def saved() -> bool:
                assert driver.poll() is None, log.read_text()[-2000:]
                return (broken / "checkpoints" / "step-00000005").is_dir()

            wait_until(saved, "the first checkpoint")
        gate.set()
        server.fault = None
        assert not (broken / "checkpoints" / "step-00000010").exists()
        assert ray_nodes.run_here("--resume", "broken", "--output", str(tmp_path)) == 0

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
