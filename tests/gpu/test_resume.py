"""A resumed run on the device: the same bits where that is asked for, nearly the same otherwise."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cosa_dist.benchmark.gpu import fresh, resumed_difference
from cosa_dist.training.checkpoint import CheckpointWriter, restore_newest, save_checkpoint
from tests.benchmark.tiny_run import tiny_config

PROJECT = Path(__file__).resolve().parents[2]
LEARNED = {"assignment": {"threshold": {"kind": "two_components", "queue": 4}}, "losses": {"warmup_steps": 2}}


SPARING = pytest.mark.parametrize(
    "sparing", [False, True], ids=["activations kept", "activation checkpointing"]
)


@SPARING
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_resume_drifts_little(device, precision, sparing):
    config = tiny_config(**LEARNED, training={"precision": precision, "activation_checkpointing": sparing})
    assert resumed_difference(config, device) < 1e-3


def compare_in_this_process(device: str, precision: str, sparing: bool) -> None:
    """Print the differences of a deterministic run that is resumed, and of two that are not."""
    training = {"precision": precision, "deterministic": True, "activation_checkpointing": sparing}
    config = tiny_config(**LEARNED, training=training)
    print(json.dumps([resumed_difference(config, torch.device(device), 3, after) for after in (3, 0)]))


@SPARING
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_deterministic_resume_gives_the_same_bits(device, precision, sparing):
    """In a process of its own, as cuBLAS reads its setting before its first product."""
    call = f"from tests.gpu.test_resume import *; compare_in_this_process{(device.type, precision, sparing)}"
    done = subprocess.run(
        [sys.executable, "-c", call],
        cwd=PROJECT,
        env=os.environ | {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [0.0, 0.0]


def whole_state(work):
    """Every tensor of a state, on the CPU."""
    state = work.state
    tensors = {f"online {n}": t for n, t in state.online.state_dict().items()}
    tensors |= {f"assignment {n}": t for n, t in state.assignment.state_dict().items()}
    tensors |= {f"thresholds {n}": t for n, t in state.thresholds.state_dict().items()}
    for index, moments in state.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer {index} {n}": t for n, t in moments.items()}
    return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}


def test_a_checkpoint_goes_to_the_cpu_and_back(device, tmp_path):
    config = tiny_config(**LEARNED)
    with fresh(config, device) as work:
        for step in range(4):
            work.take(step, device)
        expected = whole_state(work)
        with CheckpointWriter(tmp_path / "first", keep=1) as writer:
            writer.save(work.state, required=False)
            work.take(4, device)  # while it is written
    places = (torch.device("cpu"), device)
    for place, source, target in zip(places, ("first", "second"), ("second", "third"), strict=True):
        with fresh(config, place) as work:
            assert restore_newest(work.state, tmp_path / source)
            found = whole_state(work)
            save_checkpoint(work.state, tmp_path / target, keep=1)
            assert work.state.step == 4
            work.take(4, place)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], value) for name, value in expected.items())
