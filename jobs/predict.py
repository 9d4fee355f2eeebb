"""Predict masks of pictures: `python jobs/predict.py RUN PICTURES... --out FOLDER`.

RUN is a run folder (outputs/runs/NAME) or what jobs/export.py wrote; PICTURES are files, folders, patterns
('photos/**/*.jpg') or shard folders (with --split). Writes OUT/masks, and as chosen with --outputs overlays,
probabilities (npz) and COCO's run lengths (segmentations.json), with the tree of the input folders, and
predictions.json. Pictures that cannot be read are skipped and listed. `--workers N` works over Ray.

Exit code: 0 all done, 3 done but some pictures were skipped, 1 it failed, 2 it could not start.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from cosa_dist.config.command_line import run_job
from cosa_dist.config.errors import ConfigError
from cosa_dist.config.paths import lasting_place, place, place_or_url

if TYPE_CHECKING:
    from cosa_dist.inference.pictures import Listing
    from cosa_dist.inference.predict import PredictionTask, PredictionWorker, Summary

SKIPPED = 3
LINES = 20
"""skipped pictures that are printed; predictions.json has all"""


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    made.add_argument("run", type=place, help="run folder or exported folder")
    made.add_argument("pictures", nargs="+", type=place_or_url, help="files, folders, patterns, shards")
    made.add_argument("--out", type=lasting_place, required=True, help="folder of all that is written")
    made.add_argument("--outputs", default="masks", help="masks,overlays,probabilities,rle (or all)")
    made.add_argument("--split", default="val", help="split of shard folders")
    made.add_argument("--checkpoint", default="", help="best, newest or a step number (default: the best)")
    made.add_argument("--network", default="", help="online, assignment, average (default: the better one)")
    made.add_argument(
        "--scales", default="", help="multi-scale factors such as 1,0.5,1.5 (default: the run's)"
    )
    made.add_argument("--flip", action=argparse.BooleanOptionalAction, help="also see each scale mirrored")
    made.add_argument(
        "--size", type=int, default=0, help="side of the square seen, or longer side (the run's)"
    )
    made.add_argument("--batch-size", type=int, default=0, help="pictures of one pass (default: the run's)")
    made.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 (auto: a GPU if there is one)")
    made.add_argument("--workers", type=int, default=0, help="workers over Ray (0: in this process)")
    made.add_argument(
        "--labels-from-classifier",
        action="store_true",
        help="only classes that the network's own classifier finds (predicted_labels)",
    )
    made.add_argument(
        "--voc-server",
        nargs="?",
        const="comp5",
        choices=["comp5", "comp6"],
        help="also pack the masks for the VOC evaluation server",
    )
    return made


def task_of(asked: argparse.Namespace) -> PredictionTask:
    """Check the command line and turn it into a task.

    Raises:
        ConfigError: naming the option, its value and what is allowed.
    """
    from cosa_dist.inference.predict import PredictionTask
    from cosa_dist.inference.trained import device_named
    from cosa_dist.inference.writing import MASKS, OUTPUTS

    words = [word.strip() for word in asked.outputs.split(",") if word.strip()]
    outputs = OUTPUTS if words == ["all"] else tuple(word for word in OUTPUTS if word in words)
    wrong = [word for word in words if word not in (*OUTPUTS, "all")]
    if wrong or not outputs:
        raise ConfigError(f"--outputs {asked.outputs}: choose some of {', '.join(OUTPUTS)}, or all")
    if asked.voc_server and MASKS not in outputs:
        outputs = (MASKS, *outputs)
    try:
        scales = tuple(float(word) for word in asked.scales.split(",") if word.strip())
    except ValueError:
        raise ConfigError(f"--scales {asked.scales}: give numbers above 0 such as 1,0.5,1.5") from None
    if any(not 0 < scale <= 4 for scale in scales):
        raise ConfigError(f"--scales {asked.scales}: each scale must be above 0 and at most 4")
    if asked.workers and asked.device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"--device {asked.device}: workers over Ray take auto, cpu or cuda")
    for name in ("size", "batch_size", "workers"):
        if getattr(asked, name) < 0:
            option = name.replace("_", "-")
            raise ConfigError(f"--{option} {getattr(asked, name)}: must be 0 (the default) or more")
    given = {"scales": scales, "flip": asked.flip, "size": asked.size, "batch_size": asked.batch_size}
    settings = {name: value for name, value in given.items() if value or value is False}
    return PredictionTask(
        model=str(asked.run.resolve()),
        out=str(asked.out),
        checkpoint=asked.checkpoint,
        network=asked.network,
        outputs=outputs,
        settings=settings,
        labels_from_classifier=asked.labels_from_classifier,
        device=asked.device if asked.workers else str(device_named(asked.device)),
    )


def run(asked: argparse.Namespace) -> Summary:
    """Predict, print and return what came of it."""
    from dataclasses import replace

    from cosa_dist.distributed.cluster import check_start
    from cosa_dist.inference.pictures import list_pictures
    from cosa_dist.inference.predict import PredictionWorker, write_summary
    from cosa_dist.inference.writing import check_voc, out_folder, write_archive

    task = task_of(asked)
    if asked.workers:
        check_start()
    # With Ray, this process reads no picture: it needs the network for its classes and settings only.
    here = replace(task, device="cpu") if asked.workers else task
    listing = list_pictures(asked.pictures, asked.out, asked.split)
    worker = PredictionWorker(here)
    if asked.size and worker.settings.geometry == "own":
        raise ConfigError(
            f"--size {asked.size}: this run sees pictures at their own size (evaluation.geometry own), so it "
            "has no effect; leave it out"
        )
    print(worker.model.source)
    if asked.voc_server:
        check_voc(worker.model.class_names, [picture.name for picture in listing.pictures])
    task = replace(task, out=str(out_folder(asked.out)))
    worker.task = replace(here, out=task.out)
    started = time.perf_counter()
    summary = predicted(task, worker, listing, asked.workers)
    seconds = time.perf_counter() - started
    files = write_summary(task, worker.model, summary)
    show(summary, listing.others, seconds, asked.workers)
    if asked.voc_server and not summary.skipped:
        names = [picture.name for picture in summary.predicted]
        files.append(write_archive(Path(task.out), names, asked.voc_server))
    elif asked.voc_server:
        print(
            "no archive for the VOC server: it takes whole test sets, and pictures were skipped",
            file=sys.stderr,
        )
    for path in files:
        print(f"written {path}")
    return summary


def predicted(task: PredictionTask, worker: PredictionWorker, listing: Listing, workers: int) -> Summary:
    """Predict here or over Ray, with a progress bar."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from cosa_dist.distributed.cluster import ray_cluster
    from cosa_dist.inference.predict import predict_here, predict_over_ray, summarise

    columns = (TextColumn("predicting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        shown = bar.add_task("", total=len(listing.pictures) + len(listing.skipped))

        def progress(so_far: Summary) -> None:
            bar.update(shown, completed=len(so_far.predicted) + len(so_far.skipped))

        if not workers:
            return summarise(predict_here(worker, listing.pictures), listing.skipped, progress)
        with ray_cluster() as total:
            size = worker.settings.batch_size
            outcomes = predict_over_ray(task, listing.pictures, size, workers, total)
            return summarise(outcomes, listing.skipped, progress)


def show(summary: Summary, others: int, seconds: float, workers: int) -> None:
    """Print what was skipped and a summary."""
    for skipped in summary.skipped[:LINES]:
        print(f"skipped {skipped}", file=sys.stderr)
    if len(summary.skipped) > LINES:
        print(f"skipped {len(summary.skipped) - LINES} more: see predictions.json", file=sys.stderr)
    done = len(summary.predicted)
    where = f"over {workers} workers of Ray" if workers else "in this process"
    print(f"{done} pictures predicted, {len(summary.skipped)} skipped, {others} other files passed by")
    print(f"{seconds:.1f} s {where}, {done / seconds:.2f} pictures/s")
    found = summary.pictures_with()
    print("found " + (", ".join(f"{name} in {count}" for name, count in found[:LINES]) or "background only"))


def main() -> int:
    """Return the exit code: 0 all done, 1 it failed, 2 it could not start, 3 some pictures were skipped."""
    outcomes: list[Summary] = []

    def work(asked: argparse.Namespace, rest: list[str]) -> None:
        if rest:
            raise ConfigError(f"unknown option {rest[0]}; see --help")
        outcomes.append(run(asked))

    code = run_job(parser(), work, what="prediction", next_step="the same command starts again")
    return SKIPPED if code == 0 and outcomes[0].skipped else code


if __name__ == "__main__":
    sys.exit(main())
