"""What a training step costs: seconds, images per second, parts, memory, operations and their rate.

The step is `training.step.training_step`, unchanged: first as it is, then under a stopwatch, which reads the
parts that the step marks. The backward pass is cut in two at the moment when the first gradient reaches an
output of the network.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from cosa_dist.benchmark.measure import (
    Report,
    Row,
    Table,
    build_of,
    machine_facts,
    matrix_rate,
    peak_memory,
    reset_peak_memory,
    result_of,
    run_facts,
)
from cosa_dist.benchmark.plan import machine_of_device
from cosa_dist.benchmark.workload import (
    CO_TRAINING,
    Workload,
    class_count,
    compute_format,
    phase_steps,
    timed_steps,
)
from cosa_dist.config.schema import RunConfig
from cosa_dist.stopwatch import Stopwatch, part, synchroniser
from cosa_dist.tracking.mlflow_runs import create_run
from cosa_dist.tracking.store import prepare_store
from cosa_dist.tracking.tracker import Tracker
from cosa_dist.training.flops import footprint
from cosa_dist.training.step import training_step

CHECKPOINT_PASS = """
import json, sys, time, torch
from pathlib import Path
from cosa_dist.config.loading import build_config
from cosa_dist.training.state import build_state
try:
    from cosa_dist.training.saving import CheckpointWriter  # where it was once
    how = {"must": False}
except ImportError:
    from cosa_dist.training.checkpoint import CheckpointWriter
    how = {"required": False}

model, side, folder, threads = json.loads(sys.argv[1])
torch.set_num_threads(threads)
config = build_config({"model": {**model, "weights": "none"}, "data": {"crop_size": side}})
state = build_state(config, 20, torch.device("cpu"))
writer = CheckpointWriter(Path(folder) / str(time.time_ns()), keep=1)

def step():
    state.online(torch.rand(1, 3, side, side)).segmentation.square().mean().backward()
    state.optimizer.step()
    state.optimizer.zero_grad()
    state.step += 1

step()
seconds = []
for _ in range(3):
    before, started = getattr(writer, "standstill", 0.0), time.perf_counter()
    writer.save(state, **how)
    seconds.append(time.perf_counter() - started)
    step()
    if hasattr(writer, "standstill"):  # the wait of the optimiser's step is in it
        writer.finish()
        seconds[-1] = writer.standstill - before
size = sum(file.stat().st_size for file in writer.folder.rglob("*") if file.is_file())
print(json.dumps({"seconds": seconds, "bytes": size}))
"""
LOSS_BACKWARD, NETWORK_BACKWARD = "backward", "backward: network"
NETWORK_PARTS = {"assignment pass", "online forward", NETWORK_BACKWARD}
"""the networks' own work; everything else should be small"""


def measure_step(work: Workload, device: torch.device, rounds: int) -> Report:
    """Medians over `rounds` of a whole step of each phase, then of the same with its parts."""
    config, dtype = work.config, compute_format(work.config, device)
    batch = config.training.global_batch_size
    cost, rate = footprint(config, class_count(config)), matrix_rate(device, dtype)
    known = machine_of_device(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    sheet = known.peak(config)[1] if known else None
    line = line_seconds(config.tracking.enabled) / config.training.log_every
    wholes: list[Row] = []
    parts: dict[str, dict[str, float]] = {}
    notes = ["parts exclude the parts inside them; 'beside the networks' is all but the networks' passes"]
    for phase, step in phase_steps(config).items():
        reset_peak_memory(device)
        times = timed_steps(work, device, step, rounds)
        operations = batch * (cost.co_training if phase == CO_TRAINING else cost.warmup)
        reached = operations / times.seconds
        wholes.append(
            {
                "phase": phase,
                "seconds": times.seconds,
                "host ms": times.host_ms or None,
                "images/s": batch / times.seconds,
                "model GFLOP": operations / 1e9,
                "GFLOP/s": reached / 1e9,
                "MFU %": 100 * reached / rate,
                "of the data sheet %": 100 * reached / sheet if sheet else None,
                "peak GB": peak_memory(device),
            }
        )
        parts[phase] = step_parts(work, device, rounds, step)
        share = 100 * line / times.seconds
        notes.append(f"{phase}: lines of log take {line:.2g} s per step, {share:.2g} % of it")
    facts = {
        **run_facts(config, device),
        "precision": str(dtype).removeprefix("torch."),
        "matrix_gflops": round(rate / 1e9, 1),
        "batches": work.source,
    }
    notes.append(plan_options(wholes, dtype, rate, work.parts))
    tables = [Table("whole step", wholes), Table("parts of the step", part_rows(parts))]
    return Report("step", facts, tables, notes)


def plan_options(wholes: Sequence[Row], dtype: torch.dtype, rate: float, parts: int) -> str:
    """What was measured, as options of `plan`: an MFU means nothing without the rate it is a part of."""
    tf32 = torch.get_float32_matmul_precision() != "highest"
    peak = "bf16" if dtype == torch.bfloat16 else "tf32" if tf32 else "fp32"
    words = [f"--{peak}-tflops {rate / 1e12:.4g}"]
    for row in wholes:
        prefix = "" if row["phase"] == CO_TRAINING else "warmup-"
        words.append(f"--{prefix}mfu {float(row['MFU %'] or 0) / 100:.3f}")
        words.append(f"--{prefix}host-ms {float(row['host ms'] or 0) / parts:.3g}")
    return f"for `plan`: {' '.join(words)}"


def step_parts(work: Workload, device: torch.device, rounds: int, step: int) -> dict[str, float]:
    """Median seconds by part of `rounds` steps of this number; the parts add up to a step."""
    found = []
    for _ in range(rounds):
        with Stopwatch(synchroniser(device)) as watch, part("rest of the step"):
            hook = work.network.register_forward_hook(lambda *given, watch=watch: _watch(given[2], watch))
            try:
                with part("loader wait"):
                    batches = next(work.steps)
                with part("to the device"):
                    batches = [batch.to(device) for batch in batches]
                work.state.step = step
                training_step(work.state, work.network, batches, work.accelerator)
            finally:
                hook.remove()
        found.append(watch.seconds)
    names = dict.fromkeys(name for seconds in found for name in seconds)
    return {name: statistics.median(seconds[name] for seconds in found) for name in names}


def _watch(output: Any, watch: Stopwatch) -> None:
    """Rename the backward pass when its first gradient reaches the output of the network."""
    arrived: list[bool] = []

    def first_gradient(_: torch.Tensor) -> None:
        if not arrived:
            watch.rename(NETWORK_BACKWARD)
        arrived.append(True)

    for tensor in output:
        if tensor.requires_grad:
            tensor.register_hook(first_gradient)


def part_rows(parts: dict[str, dict[str, float]]) -> list[Row]:
    """One row per part with seconds and per cent for each phase; the sum, and that beside the networks."""
    names = list(dict.fromkeys(name for found in sorted(parts.values(), key=len)[::-1] for name in found))
    groups = {name: {name} for name in names}
    groups |= {"sum": set(names), "beside the networks": set(names) - NETWORK_PARTS}
    rows: list[Row] = []
    for label, group in groups.items():
        row: Row = {"part": label}
        for phase, found in parts.items():
            seconds = sum(found.get(name, 0.0) for name in group)
            row |= {f"{phase} s": seconds, f"{phase} %": 100 * seconds / sum(found.values())}
        rows.append(row)
    return rows


def line_seconds(mlflow: bool = True, lines: int = 20) -> float:
    """Median seconds that the loop waits for one line of log, local and (`mlflow`) with a store on SQLite."""
    metrics = {f"train/term_{index}": 0.1 * index for index in range(14)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        uri = prepare_store(None, folder) if mlflow else ""
        run_id = create_run(uri, "benchmark", "lines of log", params={}, tags={}) if mlflow else ""
        tracker = Tracker(folder, uri, run_id)
        seconds = []
        try:
            for step in range(lines):
                started = time.perf_counter()
                tracker.log_metrics(metrics, step)
                seconds.append(time.perf_counter() - started)
        finally:
            tracker.close("FINISHED")
    return statistics.median(seconds)


def write_traces(work: Workload, device: torch.device, folder: Path) -> list[Path]:
    """Profile one step of each phase into `folder/<phase>.json`, for Perfetto; a first one does not count."""
    folder.mkdir(parents=True, exist_ok=True)
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    files = []
    for phase, step in phase_steps(work.config).items():
        work.take(step, device)
        with profile(activities=activities, record_shapes=True) as trace:
            work.take(step, device)
        files.append(folder / f"{phase.replace(' ', '_')}.json")
        trace.export_chrome_trace(str(files[-1]))
    return files


def measure_checkpoint(config: RunConfig, commit: str, rounds: int) -> Report:
    """How long training stands still for a checkpoint, here and (where it is given) with another commit.

    The builds take turns, each in a process of its own, which saves three times; medians over `rounds`. A
    forward and a backward pass of one picture lie between two optimiser steps, less than in any real one.
    """
    here = Path(__file__).resolve().parents[2]
    model = config.model.model_dump(mode="json", exclude_defaults=True)
    with tempfile.TemporaryDirectory() as folder, build_of(commit) if commit else nullcontext() as other:
        builds = {**({commit: other} if other else {}), "this code": here}
        found: dict[str, list[Any]] = {name: [] for name in builds}
        for _ in range(rounds):
            for name, build in builds.items():
                words = json.dumps([model, config.data.crop_size, folder, torch.get_num_threads()])
                found[name].append(result_of(build, CHECKPOINT_PASS, words))
    rows: list[Row] = []
    for name, passes in found.items():
        # The first one makes what the later ones use again.
        first, *rest = (statistics.median(each["seconds"][turn] for each in passes) for turn in range(3))
        size, later = passes[0]["bytes"] / 1e9, statistics.median(rest)
        share = later / float(rows[0]["later s"] or 1) if rows else None
        row: Row = {
            "build": name,
            "GB": size,
            "first s": first,
            "later s": later,
            "later, of the other's": share,
        }
        rows.append(row if other else {key: row[key] for key in ("GB", "first s", "later s")})
    facts = {**machine_facts(torch.device("cpu")), "backbone": config.model.backbone, "rounds": rounds}
    return Report("checkpoint", facts, [Table("training stands still for a checkpoint", rows)])
