"""What slurm/cosa.sh finds on its nodes, and what it refuses, with SLURM's commands made of bash."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.slurm.client import PROJECT

SMI = 'for number in $(seq "$CARDS"); do printf "GPU $number: NVIDIA H100 (UUID: GPU-1)\\n  MIG 1g\\n"; done'
NODE = 'echo "NodeName=n1 CPUAlloc=$SLURM_CPUS_ON_NODE CPUTot=64 CPULoad=0.1"'


def commands(folder: Path, **scripts: str) -> str:
    """A PATH on which these commands come first."""
    folder.mkdir()
    for name, lines in scripts.items():
        (folder / name.replace("_", "-")).write_text(f"#!/bin/bash\n{lines}\n")
        (folder / name.replace("_", "-")).chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def node_gpus(place: Path, cards: int = 8, **variables: str) -> tuple[int, str, str]:
    """Exit code, answer and complaint of a node with so many cards in it."""
    path = commands(place / "bin", nvidia_smi=SMI, scontrol=NODE)
    values = {"PATH": path, "CARDS": str(cards), "SLURM_CPUS_ON_NODE": "64", "SLURM_JOB_ID": "7", **variables}
    script = "source slurm/ray_cluster.sh; node_gpus"
    done = subprocess.run(
        ["bash", "-c", script], cwd=PROJECT, env=values, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout.strip(), done.stderr


@pytest.mark.parametrize(
    ("variables", "gpus"),
    [
        ({"CUDA_VISIBLE_DEVICES": "0,1,2", "SLURM_GPUS_ON_NODE": "3"}, "3"),
        ({"CUDA_VISIBLE_DEVICES": "MIG-a,MIG-b"}, "2"),
        ({"CUDA_VISIBLE_DEVICES": ""}, "0"),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, "0"),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles", "SLURM_GPUS_ON_NODE": "0"}, "0"),
        # SLURM counts them and leaves their names to the driver (no_gpu_env).
        ({"SLURM_GPUS_ON_NODE": "8", "SLURM_CPUS_ON_NODE": "16"}, "8"),
        ({"SLURM_GPUS_PER_NODE": "a100:8"}, "8"),
        # A whole node, of whose GPUs SLURM knows nothing.
        ({}, "8"),
    ],
)
def test_a_nodes_gpus_are_those_of_the_job(tmp_path, variables, gpus):
    assert node_gpus(tmp_path, **variables) == (0, gpus, "")


def test_a_node_without_a_card_has_none(tmp_path):
    assert node_gpus(tmp_path, 0) == (0, "0", "")


@pytest.mark.parametrize(
    ("variables", "asked"),
    [
        ({"SLURM_GPUS_ON_NODE": "8"}, "(8)"),
        ({"SLURM_GPUS": "16"}, "(16)"),
        ({"SLURM_JOB_GPUS": "0", "CUDA_VISIBLE_DEVICES": "NoDevFiles"}, "(number 0)"),
    ],
)
def test_gpus_that_were_asked_for_and_are_not_there_are_refused(tmp_path, variables, asked):
    code, found, said = node_gpus(tmp_path, 0, **variables)
    assert (code, found) == (2, "")
    assert f"SLURM gives this job GPUs {asked}, but there are none on this node" in said


def test_cards_that_may_be_another_jobs_are_not_taken(tmp_path):
    code, found, said = node_gpus(tmp_path, SLURM_CPUS_ON_NODE="63")
    assert (code, found) == (2, "")
    assert "8 GPU(s), and SLURM does not say which are this job's: ask for them" in said
    assert "set CUDA_VISIBLE_DEVICES in COSA_SETUP" in said


def cosa(place: Path, *words: str, **variables: str) -> tuple[int, str]:
    """Exit code and output of `slurm/cosa.sh` on four nodes of eight GPUs, whose srun starts nothing."""
    for name in ("slurm", "jobs", "cosa_dist"):
        (place / name).symlink_to(PROJECT / name)
    path = commands(place / "bin", srun="exit 1", scancel="exit 0", hostname="echo 127.0.0.1")
    values = {"PATH": path, "PYTHONPATH": str(PROJECT), "COSA_PYTHON": sys.executable, "COSA_TMP": "/tmp"}
    values |= {"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NUM_NODES": "4", "SLURM_CPUS_ON_NODE": "96"}
    values |= {"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7", "SLURM_CPUS_PER_TASK": "96", "HOME": str(place)}
    done = subprocess.run(
        ["bash", str(PROJECT / "slurm/cosa.sh"), *words],
        cwd=place,
        env=values | {"COSA_PROJECT": str(place), **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=300,
    )
    return done.returncode, done.stdout


def test_a_job_shows_how_its_nodes_share_the_run_before_they_start(tmp_path):
    code, said = cosa(tmp_path, "--recipe", "coco_gpu")
    assert code == 75, said
    plan = "32 GPU(s): 8 of 256 picture(s) a step each, 12 CPU(s) with 10 loader process(es) each\n"
    assert 0 <= said.find(plan) < said.index("starting Ray on 4 node(s)")


@pytest.mark.parametrize(
    ("words", "variables", "reason"),
    [
        # Workers that share the second stage's batch and not the first one's.
        (
            ["--recipe", "voc_ms", "--distributed.workers", "8"],
            {},
            "error: stage-one: training.global_batch_size 4 cannot be shared evenly by 8 workers",
        ),
        (["--recipe", "voc_gpu"], {"SLURM_CPUS_PER_TASK": "40"}, "40 CPU(s) for 8 GPU(s) on a node"),
        (
            ["--recipe", "voc_released"],
            {"CUDA_VISIBLE_DEVICES": "", "SLURM_JOB_NUM_NODES": "3"},
            "4 cannot be shared evenly by 3 workers",
        ),
        (["--recipe", "voc_gpu"], {"CUDA_VISIBLE_DEVICES": "", "SLURM_GPUS_ON_NODE": "8"}, "there are none"),
    ],
)
def test_what_the_nodes_cannot_share_is_refused_before_they_start(tmp_path, words, variables, reason):
    code, said = cosa(tmp_path, *words, **variables)
    assert code == 2, said
    assert reason in said
    assert "starting Ray" not in said
