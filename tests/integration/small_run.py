"""A tiny run on a tiny generated data set, for tests of the whole path."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from cosa_dist.config.loading import build_config, merge, read_recipe
from cosa_dist.config.schema import RunConfig
from cosa_dist.data.ingest.ingest import ingest
from cosa_dist.data.reading.loader import Batch
from cosa_dist.data.sources.synthetic import synthetic_info, synthetic_records
from cosa_dist.distributed.run_folder import WorkerTask
from cosa_dist.training.loop import OnStep
from cosa_dist.training.state import TrainState

SETTINGS: dict[str, Any] = read_recipe("tiny")
# Learned thresholds with a queue, reliability weights, separation; a checkpoint every third step, a line of
# log every second one, an evaluation in the middle: the three rhythms never fall together by chance.
ALL_PARTS: dict[str, Any] = {
    "data": {"crop_size": 64, "shuffle_window": 5},
    "assignment": {
        "momentum": 0.9,
        "reliability": True,
        "threshold": {"kind": "two_components", "queue": 4, "momentum": 0.5},
    },
    "losses": {"warmup_steps": 2, "separation": 0.1, "separation_contrast": {"max_perplexity": 2.0}},
    "training": {"steps": 11, "checkpoint_every": 3, "log_every": 2},
    "evaluation": {"every": 5, "pictures": 0, "limit": 4},
}


def make_shards(folder: Path) -> Path:
    """Write 24 training and 11 validation pictures as shards."""
    counts = {"train": 24, "val": 11}
    sources = {name: synthetic_records(name, n, seed=3, image_size=48) for name, n in counts.items()}
    ingest(sources, synthetic_info(), folder, console=Console(quiet=True))
    return folder


def small_config(shards: Path, output: Path, name: str, **sections: Any) -> RunConfig:
    """The tiny run's configuration with changes by section."""
    place = {"output": str(output), "name": name, "data": {"shards": str(shards)}}
    return build_config(merge(merge(SETTINGS, place), sections))


def task_of(config: RunConfig, folder: Path, micro: int) -> WorkerTask:
    """A worker's task without tracking server."""
    folder.mkdir(parents=True, exist_ok=True)
    return WorkerTask(config.model_dump(mode="json"), str(folder), "", "", False, micro, 1)


def curve(folder: Path, name: str) -> list[float]:
    """A metric's values in step order from the run's local mirror."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["metrics"][name] for line in lines if name in line["metrics"]]


class PulledPlugError(Exception):
    """Stands for a killed process: nothing after the step is done."""


def watch(samples: dict[int, list[str]], pull_after: int | None = None) -> OnStep:
    """Note the samples of each step; pull the plug after a step, before anything of it is written."""

    def on_step(state: TrainState, batches: Sequence[Batch]) -> None:
        samples[state.step - 1] = [name for batch in batches for name in batch.ids]
        if state.step == pull_after:
            raise PulledPlugError

    return on_step
