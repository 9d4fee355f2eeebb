"""A trace of one training step, operation by operation, for Perfetto or Chrome's `about:tracing`."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from cosa_dist.benchmark.step_parts import whole_step
from cosa_dist.benchmark.step_speed import phase_steps
from cosa_dist.benchmark.workload import Workload


def write_traces(work: Workload, device: torch.device, folder: Path) -> list[Path]:
    """Profile one step of each phase after one that does not count.

    Args:
        work: networks and batches.
        device: where they are.
        folder: gets `<phase>.json`.

    Returns:
        The files, in the order of the phases.
    """
    folder.mkdir(parents=True, exist_ok=True)
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    files = []
    for phase, step in phase_steps(work.config).items():
        work.state.step = step
        whole_step(work, device)
        work.state.step = step
        with profile(activities=activities, record_shapes=True) as trace:
            whole_step(work, device)
        files.append(folder / f"{phase.replace(' ', '_')}.json")
        trace.export_chrome_trace(str(files[-1]))
    return files
