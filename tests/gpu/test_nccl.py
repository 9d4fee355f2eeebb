"""The collectives of a run over NCCL (gloo on the CPU), with one rank that believes there are more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from timm.layers import convert_sync_batchnorm
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from cosa_dist import collective
from cosa_dist.benchmark.workload import generated_batch
from cosa_dist.distributed.cluster import free_port
from cosa_dist.training.state import build_state
from cosa_dist.training.step import training_step
from tests.benchmark.tiny_run import tiny_config

PROJECT = Path(__file__).resolve().parents[2]


class Plain:
    """What a step needs of an accelerator, around DistributedDataParallel."""

    def autocast(self):
        return torch.autocast("cpu", enabled=False)

    def no_sync(self, network):
        return network.no_sync()

    def backward(self, loss):
        loss.backward()


def collectives_in_this_process(name: str) -> None:
    """All that a run sends, in a process group of one; prints what came back."""
    device = torch.device(name)
    dist.init_process_group(
        "nccl" if name == "cuda" else "gloo",
        init_method=f"tcp://127.0.0.1:{free_port()}",
        rank=0,
        world_size=1,
        **({"device_id": torch.device("cuda:0")} if name == "cuda" else {}),
    )
    collective.is_distributed = lambda: True
    sums = {
        "int64": torch.tensor([2**40, 3], device=device),
        "float64": torch.tensor([1e-300, 0.1], dtype=torch.float64, device=device),
        "scalar": torch.tensor(7.0, device=device),
        "bool": torch.tensor(True, device=device).float(),
    }
    for kind, tensor in sums.items():
        assert torch.equal(collective.sum_over_ranks(tensor), tensor), kind
    assert collective.gather_objects({"a": [1, 2]}) == [{"a": [1, 2]}]
    assert torch.equal(
        collective.concatenate_over_ranks(torch.arange(3, device=device)).cpu(), torch.arange(3)
    )
    collective.barrier()
    config = tiny_config(losses={"warmup_steps": 1})
    state = build_state(config, 20, device)
    ids = [0] if name == "cuda" else None
    network = DistributedDataParallel(
        state.online, device_ids=ids, find_unused_parameters=True, gradient_as_bucket_view=True
    )
    for _ in range(3):
        terms = training_step(state, network, [generated_batch(2, 32, 20).to(device)] * 2, Plain())
    norm = convert_sync_batchnorm(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))).to(device)
    if name == "cuda":
        norm = DistributedDataParallel(norm, device_ids=ids)
        norm(torch.rand(2, 3, 8, 8, device=device)).sum().backward()
    dist.destroy_process_group()
    print(json.dumps({"step": state.step, "total": float(terms["total"])}))


def test_collectives_and_a_step(device):
    """In a process of its own, as a process group stays."""
    call = f"from tests.gpu.test_nccl import *; collectives_in_this_process({device.type!r})"
    done = subprocess.run(
        [sys.executable, "-c", call], cwd=PROJECT, env=dict(os.environ), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["step"] == 3
    assert 0 < found["total"] < 10
