"""One training run under random kills, and whether it ends as if nothing had happened.

The kills' steps and victims are drawn before the start. Each is killed as soon as the run's own record
shows its step; a killed driver is followed by `--resume`, a lost node by a new one, and the MLflow server
stays away for a while, in which others may be killed. What it has missed at the end is replayed. Recovery
is the time from the kill to the next step that was not there before.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from cosa_dist.config.loading import to_yaml
from cosa_dist.config.schema import RunConfig
from cosa_dist.distributed.run_folder import RunFolder
from cosa_dist.tracking.mirror import METRICS_FILE, read_metrics
from cosa_dist.tracking.mlflow_runs import connect
from cosa_dist.tracking.upload import replay
from cosa_dist.training.checkpoint_files import checkpoints
from tests.faults.cluster import FaultCluster
from tests.support.programs import PATIENCE, NotInTimeError

VICTIMS = ("worker", "node", "driver", "tracker")
LONGEST_ABSENCE = 6.0
"""Seconds that a killed node or tracker stays away at most."""
MEASURED = ("seconds", "images_per_second", "loader_wait_share", "model_tflops")
"""Ends of the names of metrics that measure time and differ from run to run."""


@dataclass(frozen=True)
class Kill:
    """One kill: who, and after which recorded step."""

    victim: str
    step: int


@dataclass(frozen=True)
class KillResult:
    """A kill that was survived: the last recorded step at that moment, and seconds to the next one."""

    victim: str
    step: int
    recovery: float


def draw_kills(rng: random.Random, number: int, steps: int, victims: Mapping[str, int]) -> list[Kill]:
    """Draw victims, by their weights but each at least once if there are enough, and different steps.

    The last fifth of the steps is left alone: small runs are quick, and a kill must not come too late.
    """
    names = [name for name, weight in victims.items() if weight > 0][:number]
    rest = [name for name, weight in victims.items() for _ in range(weight)]
    names += [rng.choice(rest) for _ in range(number - len(names))]
    rng.shuffle(names)
    places = sorted(rng.sample(range(2, steps - steps // 5), number))
    return [Kill(name, step) for name, step in zip(names, places, strict=True)]


def last_step(folder: Path) -> int:
    """The last training step in a run's record, 0 before the first one."""
    mirror = folder / METRICS_FILE
    if not mirror.is_file():
        return 0
    return max((line.step for line in read_metrics(mirror) if "train/total" in line.metrics), default=0)


def undisturbed_run(cluster: FaultCluster, config: RunConfig) -> Path:
    """Run a configuration to its end without kills, with this process as its driver; return its folder."""
    if cluster.run_here("--config", str(_written(cluster, config))) != 0:
        raise NotInTimeError(f"run {config.name} failed")
    return Path(config.output) / "runs" / config.name


def _written(cluster: FaultCluster, config: RunConfig) -> Path:
    path = cluster.folder / f"{config.name}.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    return path


def disturbed_run(
    cluster: FaultCluster, config: RunConfig, kills: list[Kill], rng: random.Random
) -> Iterator[KillResult]:
    """Run a configuration to its end through the kills; yield each one that was survived.

    Raises:
        NotInTimeError: the run ended by itself before its time, did not recover, or did not end well.
    """
    folder = Path(config.output) / "runs" / config.name
    cluster.start_driver("--config", str(_written(cluster, config)))
    for kill in kills:
        _wait_for_step(cluster, folder, kill.step)
        started = time.monotonic()
        _kill(cluster, kill.victim, rng)
        # What a dying process wrote meanwhile is no recovery.
        step = last_step(folder)
        _replace(cluster, config, kill.victim, rng)
        if step < config.training.steps:
            _wait_for_step(cluster, folder, step + 1)
        else:
            # The kill fell into the last evaluation.
            _wait_for_end(cluster, config.name)
        yield KillResult(kill.victim, step, time.monotonic() - started)
    _wait_for_end(cluster, config.name)
    cluster.await_tracker()
    replay(folder, cluster.tracking_uri, RunFolder(folder).read_note().run_id)


def _wait_for_end(cluster: FaultCluster, name: str) -> None:
    driver = cluster.driver
    if driver is None or driver.wait(PATIENCE) != 0:
        raise NotInTimeError(f"run {name} failed: {cluster.driver_output()}")


def _wait_for_step(cluster: FaultCluster, folder: Path, step: int) -> None:
    cluster.await_driver(lambda: last_step(folder) >= step, f"step {step} of {folder.name}")


def _kill(cluster: FaultCluster, victim: str, rng: random.Random) -> None:
    """Kill the victim and wait until what depends on it has noticed."""
    if victim == "worker":
        cluster.kill_worker(rng)
        time.sleep(1.0)
    elif victim == "node":
        cluster.kill_node(rng)
        time.sleep(1.0)
    elif victim == "driver":
        cluster.kill_driver()
    elif victim == "tracker":
        cluster.kill_tracker(away=rng.uniform(0.0, LONGEST_ABSENCE))
    else:
        raise ValueError(f"no victim {victim!r}; there are {', '.join(VICTIMS)}")


def _replace(cluster: FaultCluster, config: RunConfig, victim: str, rng: random.Random) -> None:
    """Put in the victim's place what a user or a cluster would; Ray replaces a worker by itself."""
    if victim == "driver":
        cluster.start_driver("--resume", config.name, "--output", config.output)
    elif victim == "node":
        time.sleep(rng.uniform(0.0, LONGEST_ABSENCE))
        cluster.add_node()


def tracked(uri: str, run_id: str) -> dict[str, list[tuple[int, float]]]:
    """Every metric of a run as the tracking store has it: (step, value), sorted."""
    client = connect(uri)
    names = client.get_run(run_id).data.metrics
    return {
        name: sorted((m.step, m.value) for m in client.get_metric_history(run_id, name)) for name in names
    }


def differences(expected: Path, found: Path) -> list[str]:
    """In what a finished run differs from its undisturbed twin, one line each; empty if in nothing.

    Compared are both networks, thresholds and optimiser of the last checkpoint, bit for bit, and the history
    of the tracking store, in which every step of every metric must be there exactly once.
    """
    lines = []
    ends = [checkpoints(folder / "checkpoints")[-1] for folder in (expected, found)]
    if ends[0].name != ends[1].name:
        lines.append(f"last checkpoint {ends[1].name} instead of {ends[0].name}")
    for file in sorted(path.name for path in ends[0].iterdir() if path.suffix in (".safetensors", ".pt")):
        read: Callable[[Path], object] = load_file if file.endswith(".safetensors") else _read_optimizer
        if not _equal(read(ends[0] / file), read(ends[1] / file)):
            lines.append(f"{file} of the last checkpoint differs")
    notes = [RunFolder(folder).read_note() for folder in (expected, found)]
    twin, own = (tracked(note.tracking_uri, note.run_id) for note in notes)
    for name in sorted(twin.keys() | own.keys()):
        series = own.get(name, [])
        doubled = [step for step, count in Counter(step for step, _ in series).items() if count > 1]
        if doubled:
            lines.append(f"{name} is recorded more than once at steps {doubled}")
        steps = [step for step, _ in series]
        if steps != [step for step, _ in twin.get(name, [])]:
            lines.append(f"{name} is recorded at other steps: {steps}")
        elif not name.endswith(MEASURED) and series != twin[name]:
            lines.append(f"{name} has other values")
    client = connect(notes[1].tracking_uri)
    status = client.get_run(notes[1].run_id).info.status
    return lines if status == "FINISHED" else [*lines, f"the tracking run is {status}"]


def _read_optimizer(path: Path) -> object:
    return torch.load(path, weights_only=True)


def _equal(one: object, other: object) -> bool:
    """Whether nested mappings and sequences of tensors and numbers are equal, bit for bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(_equal(a, b) for a, b in zip(one, other, strict=True))
    return one == other
