"""What one GPU gives: each phase of a step for some batches and number formats, with all that explains it.

Every row starts from a state of its own, built anew from the same seed, so that losses of two formats can be
compared, and is handed on as soon as it is measured. Ray and MLflow are not needed. At the end stand the
figures that cannot be right: a sanity check of the machine, of the predictions and of the code.
"""

from __future__ import annotations

import gc
import os
import statistics
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.autograd import DeviceType
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from cosa_dist.benchmark.measure import (
    Report,
    Row,
    Table,
    matrix_rate,
    median_seconds,
    peak_memory,
    reset_peak_memory,
    run_facts,
)
from cosa_dist.benchmark.plan import Machine, machine_of_device, memory_gb, predict
from cosa_dist.benchmark.step import step_parts
from cosa_dist.benchmark.workload import (
    CO_TRAINING,
    StepTimes,
    Workload,
    class_count,
    phase_steps,
    prepare,
    timed_steps,
)
from cosa_dist.config.schema import RunConfig
from cosa_dist.lattice.dense_crf import CRF_SETTINGS, DenseCrf
from cosa_dist.lattice.pixel_adaptive import pixel_adaptive
from cosa_dist.losses.objective import LossTerms
from cosa_dist.training.checkpoint import CheckpointWriter, restore_newest
from cosa_dist.training.flops import Footprint, footprint
from cosa_dist.training.state import set_arithmetic

FORMATS = {"fp32 ieee": ("fp32", "highest"), "fp32 TF32": ("fp32", "high"), "bf16": ("bf16", "highest")}
"""`training.precision` and `training.matmul_precision` of each number format"""
WAITS_ALLOWED = {"loss warm-up": 0, CO_TRAINING: 1}
"""how often the host may wait for the device in a micro-batch of each phase"""
WARM_UP_STEPS = 5
COMPARED_STEPS = slice(10, 20)
LOSSES_APART, MEMORY_APART = 0.02, 0.15
"""largest relative differences: of a loss in bf16 from fp32, of the memory from the prediction"""
CRF_SIZE = (375, 500)
PROJECT = Path(__file__).resolve().parents[1]
Told = Callable[[Report, str, Row], None]
"""called with the report so far, a table's title and its newest row"""


@dataclass(frozen=True)
class Case:
    """One row to measure."""

    config: RunConfig
    phase: str
    step: int
    format: str

    @property
    def row(self) -> Row:
        """The columns that name it."""
        batch = self.config.training.global_batch_size
        return {"phase": self.phase, "batch": batch, "format": self.format}


def with_training(config: RunConfig, **changes: object) -> RunConfig:
    """The run with other values in its section `training`."""
    return config.model_copy(update={"training": config.training.model_copy(update=changes)})


def cases(config: RunConfig, batches: Sequence[int]) -> Iterator[Case]:
    """Every batch in every format and phase; the whole batch is one micro-batch."""
    for batch in batches:
        for name, (precision, matmul) in FORMATS.items():
            changed = with_training(
                config,
                global_batch_size=batch,
                micro_batch_size=0,
                precision=precision,
                matmul_precision=matmul,
            )
            for phase, step in phase_steps(config).items():
                yield Case(changed, phase, step, name)


@contextmanager
def fresh(config: RunConfig, device: torch.device) -> Iterator[Workload]:
    """A workload of the run in its number format, with nothing of an earlier one in the device's memory."""
    gc.collect()
    set_arithmetic(config.training.matmul_precision, config.training.deterministic)
    reset_peak_memory(device)
    yield prepare(config, device, loader=False)
    gc.collect()


@contextmanager
def host_waits() -> Iterator[Counter[str]]:
    """Counts where the host waits for CUDA, by the line of this project, while the block runs."""
    found: Counter[str] = Counter()

    def note(message: Warning | str, *_: object, **__: object) -> None:
        if "called a synchronizing" in str(message):
            frames = [f for f in traceback.extract_stack() if PROJECT in Path(f.filename).parents]
            last = next((f for f in reversed(frames) if f.filename != __file__), None)
            place = Path(last.filename).relative_to(PROJECT) if last else "outside"
            found[f"{place}:{last.lineno if last else 0}"] += 1

    before = torch.cuda.get_sync_debug_mode() if torch.cuda.is_available() else 0
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            if torch.cuda.is_available():
                torch.cuda.set_sync_debug_mode(before)


def busy_seconds(intervals: Iterable[tuple[float, float]]) -> float:
    """Seconds that are covered by intervals (start, end) in microseconds, overlaps counted once."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total / 1e6


def profiled_step(work: Workload, device: torch.device, step: int) -> tuple[float, int]:
    """Seconds in which the device computes during one step, and how many kernels and copies it is given."""
    if device.type == "cpu":
        work.take(step, device)
        return 0.0, 0
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as trace:
        work.take(step, device)
        torch.cuda.synchronize(device)
    events = [e for e in trace.events() or [] if e.device_type == DeviceType.CUDA]
    return busy_seconds((e.time_range.start, e.time_range.end) for e in events), len(events)


def mean_losses(terms: Sequence[LossTerms]) -> dict[str, tuple[float, float]]:
    """Each term in the first step, and its mean over later ones."""
    later = terms[COMPARED_STEPS] or terms[1:]
    return {
        name: (float(terms[0][name]), statistics.mean(float(each[name]) for each in later))
        for name in terms[0]
    }


def memory_row(case: Case, cost: Footprint, device: torch.device, waits: Mapping[str, int]) -> Row:
    """What the steps since the last reset took of the memory, and where they waited."""
    predicted = memory_gb(case.config, cost, case.config.training.global_batch_size, alone=True)
    measured = peak_memory(device)
    reserved = torch.cuda.max_memory_reserved(device) / 1e9 if device.type == "cuda" else None
    return {
        **case.row,
        "peak GB": measured,
        "predicted GB": predicted,
        "times predicted": measured / predicted,
        "reserved GB": reserved,
        "host waits": sum(waits.values()),
        "where": ", ".join(f"{count} x {place}" for place, count in waits.items()),
    }


def step_row(
    case: Case, times: StepTimes, cost: Footprint, machine: Machine, rate: float, busy: float, launches: int
) -> Row:
    """The speed of a case."""
    batch, middle = case.config.training.global_batch_size, times.seconds
    operations = batch * (cost.co_training if case.phase == CO_TRAINING else cost.warmup)
    planned = predict(case.config, cost, machine, 1)
    column = "co-training step s" if case.phase == CO_TRAINING else "warm-up step s"
    return {
        **case.row,
        "ms": 1000 * middle,
        "spread %": 100 * (max(times.rounds) - min(times.rounds)) / middle,
        "host ms": times.host_ms or None,
        "planned ms": 1000 * float(planned[column] or 0),
        "busy %": 100 * min(1.0, busy / middle) if launches else None,
        "launches": launches or None,
        "images/s": batch / middle,
        "TFLOP/s": operations / middle / 1e12,
        "MFU %": 100 * operations / middle / rate,
        "of the data sheet %": 100 * operations / middle / machine.peak(case.config)[1],
    }


def loss_rows(case: Case, found: Mapping[str, Mapping[str, tuple[float, float]]]) -> Iterator[Row]:
    """The losses of a case's batch and phase in bf16 beside those in fp32."""
    exact, short = found["fp32 ieee"], found["bf16"]
    for name, (first, later) in exact.items():
        if first:
            yield {
                "phase": case.phase,
                "batch": case.config.training.global_batch_size,
                "loss": name,
                "fp32": first,
                "bf16 / fp32": short[name][0] / first,
                "later steps": short[name][1] / later if later else None,
            }


class Measurement:
    """A report that grows row by row."""

    def __init__(self, report: Report, told: Told) -> None:
        self.report = report
        self._told = told
        self._tables: dict[str, Table] = {}

    def add(self, title: str, row: Row) -> None:
        """Append a row to the table of that title, and tell of it."""
        if title not in self._tables:
            self._tables[title] = Table(title, [])
            self.report.tables.append(self._tables[title])
        self._tables[title].rows.append(row)
        self._told(self.report, title, row)


def measure_gpu(
    config: RunConfig,
    device: torch.device,
    batches: Sequence[int],
    rounds: int,
    told: Told = lambda report, title, row: None,
) -> Report:
    """Measure the run's steps on one device, then parts, resumes, checkpoints and the loader.

    On the CPU, which is for tests, what only CUDA tells is left out. What cannot be right is in the report's
    `failures`.
    """
    rates: dict[str, float] = {}
    costs: dict[str, Footprint] = {}
    for name, (precision, matmul) in FORMATS.items():
        set_arithmetic(matmul)
        rates[name] = matrix_rate(device, torch.bfloat16 if precision == "bf16" else torch.float32)
        costs[name] = costs["fp32 ieee"] if name == "fp32 TF32" else footprint(
            config, class_count(config), precision == "bf16"
        )  # fmt: skip
    known = machine_of_device(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    tera = {name: rate / 1e12 for name, rate in rates.items()}
    machine = known or Machine(
        fp32_tflops=tera["fp32 ieee"], tf32_tflops=tera["fp32 TF32"], bf16_tflops=tera["bf16"]
    )
    facts = {**run_facts(config, device), "batches": " ".join(map(str, batches))}
    facts |= {f"{name} TFLOP/s": round(rate, 1) for name, rate in tera.items()}
    measurement = Measurement(Report("gpu", facts), told)
    losses: dict[tuple[str, int], dict[str, dict[str, tuple[float, float]]]] = {}
    for case in cases(config, batches):
        with fresh(case.config, device) as work:
            times = timed_steps(work, device, case.step, rounds, WARM_UP_STEPS)
            memory = memory_row(case, costs[case.format], device, _waits(work, device, case.step))
            busy, launches = profiled_step(work, device, case.step)
        row = step_row(case, times, costs[case.format], machine, rates[case.format], busy, launches)
        measurement.add("steps", row)
        measurement.add("memory and waits", memory)
        same = losses.setdefault((case.phase, case.config.training.global_batch_size), {})
        same[case.format] = mean_losses(times.terms)
        if case.format == "bf16":
            for loss in loss_rows(case, same):
                measurement.add("losses", loss)
    _measure_the_rest(with_training(config, global_batch_size=max(batches)), device, measurement)
    measurement.report.failures.extend(failures(measurement.report, on_cpu=device.type == "cpu"))
    return measurement.report


def _waits(work: Workload, device: torch.device, step: int) -> Counter[str]:
    with host_waits() as found:
        work.take(step, device)
    return found


def _measure_the_rest(config: RunConfig, device: torch.device, measurement: Measurement) -> None:
    """Parts of the step, whole-image work, a resume, a checkpoint and the loader."""
    config = with_training(config, precision="bf16", micro_batch_size=0)
    with fresh(config, device) as work:
        for phase, step in phase_steps(config).items():
            for name, seconds in step_parts(work, device, 3, step).items():
                measurement.add("parts", {"phase": phase, "part": name, "ms": 1000 * seconds})
        for name, seconds in whole_image_seconds(device, class_count(config) + 1).items():
            measurement.add("parts", {"phase": "one image", "part": name, "ms": 1000 * seconds})
        measurement.add("checkpoint", checkpoint_row(work, device, step))
    small = with_training(config, global_batch_size=min(2, config.training.global_batch_size))
    for deterministic in (False, True):
        difference = resumed_difference(with_training(small, deterministic=deterministic), device)
        words = {"deterministic": deterministic, "bits equal": difference == 0}
        answers: Row = {name: "yes" if true else "no" for name, true in words.items()}
        measurement.add("resume", {**answers, "largest difference": difference})
    set_arithmetic("highest")
    try:
        from cosa_dist.benchmark.loading import images_per_second, readable_shards
    except ImportError as error:
        measurement.report.notes.append(f"the loader was not measured: {error}")
        return
    with readable_shards(config) as (data, source):
        per_core, _ = images_per_second(data, 64, config.data.crop_size)
    fastest = max(float(row["images/s"] or 0) for row in measurement.report.tables[0].rows)
    loader: Row = {
        "images/s per core": per_core,
        "cores for the fastest row": fastest / per_core,
        "cores": len(os.sched_getaffinity(0)),
        "pictures": source,
    }
    measurement.add("loader", loader)


def whole_image_seconds(device: torch.device, planes: int) -> dict[str, float]:
    """Seconds of the CRF and the refinement of one image of 500 x 375."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3 + planes, 12, 16, generator=generator)
    smooth = functional.interpolate(coarse, size=CRF_SIZE, mode="bilinear", align_corners=False).to(device)
    image, maps = 255 * smooth[:, :3], (8 * smooth[:, 3:]).softmax(1)
    ways: dict[str, Callable[[], object]] = {
        f"dense CRF, {planes} planes": lambda: DenseCrf.build(image, CRF_SETTINGS["released"]).refine(maps),
        "PAR, 5 planes": lambda: pixel_adaptive(image, maps[:, :5]),
    }
    return {name: median_seconds(work, 5, device) for name, work in ways.items()}


def checkpoint_row(work: Workload, device: torch.device, step: int) -> Row:
    """How long the loop stands still for a checkpoint that is written while it goes on, and its size."""
    with tempfile.TemporaryDirectory() as name:
        # The second one counts: the first makes the buffers in host memory.
        with CheckpointWriter(Path(name), keep=1) as writer:
            for _ in range(2):
                before = writer.standstill
                writer.save(work.state, required=False)
                work.take(step, device)
                writer.finish()
        still = writer.standstill - before
        size = sum(file.stat().st_size for file in Path(name).rglob("*") if file.is_file())
    return {"loop stands still s": still, "GB": size / 1e9}


def resumed_difference(config: RunConfig, device: torch.device, before: int = 3, after: int = 3) -> float:
    """Largest difference of a weight: so many steps at a stretch, and with a checkpoint of the background."""
    first = config.losses.warmup_steps
    steps = range(first, first + before + after)
    with tempfile.TemporaryDirectory() as folder:
        with fresh(config, device) as work:
            for step in steps[:before]:
                work.take(step, device)
            with CheckpointWriter(Path(folder), keep=1) as writer:
                writer.save(work.state, required=False)
                for step in steps[before:]:
                    work.take(step, device)
            straight = [p.detach().cpu() for p in work.state.online.parameters()]
        with fresh(config, device) as work:
            restore_newest(work.state, Path(folder))
            for _ in range(before):
                next(work.steps)
            for step in steps[before:]:
                work.take(step, device)
            resumed = [p.detach().cpu() for p in work.state.online.parameters()]
    return max(float((a - b).abs().max()) for a, b in zip(straight, resumed, strict=True))


def failures(report: Report, on_cpu: bool) -> list[str]:
    """What cannot be right in a report: rates above the machine's, waits, losses and memory off."""
    rows = {table.title: table.rows for table in report.tables}
    found = []
    for row in rows.get("steps", []):
        if float(row["MFU %"] or 0) > 100 and not on_cpu:
            found.append(f"{_name(row)}: an MFU of {row['MFU %']:.4g} %")
    for row in rows.get("memory and waits", []):
        if int(row["host waits"] or 0) > WAITS_ALLOWED[str(row["phase"])]:
            found.append(f"{_name(row)}: {row['host waits']} host waits ({row['where']})")
        if abs(float(row["times predicted"] or 0) - 1) > MEMORY_APART and not on_cpu:
            found.append(f"{_name(row)}: {row['times predicted']:.3g} times the predicted memory")
    for row in rows.get("losses", []):
        if abs(float(row["bf16 / fp32"] or 0) - 1) > LOSSES_APART:
            found.append(f"{_name(row)}: {row['loss']} in bf16 is {row['bf16 / fp32']:.4g} times fp32's")
    return found


def _name(row: Row) -> str:
    return ", ".join(str(row[key]) for key in ("phase", "batch", "format") if key in row)
