"""Label a trained run's training images: `python jobs/pseudo_masks.py RUN [--pseudo_masks.a VALUE ...]`.

Makes Arrow shards with pseudo-masks in the training split (`outputs/runs/NAME-pseudo-masks/shards`), and says
how good the masks are where the true ones are known. Works through Ray on all CPUs or GPUs; the same command
continues an interrupted labelling.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from cosa_dist.config.command_line import run_job
from cosa_dist.config.errors import ConfigError
from cosa_dist.config.loading import load_config, parse_overrides
from cosa_dist.config.options import options
from cosa_dist.config.paths import place

SECTION = "pseudo_masks"


def run(arguments: argparse.Namespace, rest: list[str]) -> None:
    """Label, and print the quality."""
    overrides = parse_overrides(rest)
    for key in overrides:
        if not key.startswith(f"{SECTION}."):
            raise ConfigError(f"--{key}: a labelling takes options of {SECTION} only")
    if arguments.network:
        overrides[f"{SECTION}.network"] = arguments.network
    masks = load_config(overrides=overrides).pseudo_masks

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from cosa_dist.distributed.cluster import ray_cluster
    from cosa_dist.distributed.labelling.run import run_labelling
    from cosa_dist.distributed.prepare import trained_config

    trained = arguments.run.resolve()
    trained_config(trained)
    columns = (TextColumn("labelling"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with ray_cluster() as resources, Progress(*columns) as bar:
        task = bar.add_task("")
        outcome = run_labelling(
            trained,
            trained.with_name(arguments.name or f"{trained.name}-pseudo-masks"),
            masks,
            resources,
            checkpoint=arguments.checkpoint,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    print(quality_text(outcome.quality))
    print(f"shards  {outcome.shards}")
    if outcome.images_per_second:
        print(f"speed   {outcome.images_per_second:.2f} images/s")


def quality_text(quality: dict[str, Any]) -> str:
    """The masks' quality as a few lines for the terminal."""
    lines = [f"{quality['images']} images, {quality['ignored']:.2f} % of the pixels ignored"]
    if quality["miou"] is None:
        why = "; no mIoU: no class of the true masks lies on labelled pixels"
        return lines[0] + why * bool(quality["images_with_truth"])
    lines.append(f"{'class':<16} {'IoU':>6} {'ignored':>8} {'labelled':>9} {'truth':>6}  (per cent)")
    columns = (("iou", 6), ("ignored_of_class", 8), ("share", 9), ("true_share", 6))
    for name, iou in quality["iou"].items():
        if iou is not None:
            cells = [f"{_cell(quality[column][name]):>{width}}" for column, width in columns]
            lines.append(f"{name:<16} {' '.join(cells)}")
    lines += [
        f"mIoU {quality['miou']:.2f} over the pixels that are not ignored, tags used (true_labels), "
        f"{quality['images_with_truth']} images with true masks",
        f"mIoU {quality['miou_missed']:.2f} with ignored pixels counted as missed",
    ]
    return "\n".join(lines)


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def main() -> int:
    """Return the exit code: 0 done, 1 the labelling failed, 2 it could not start."""
    known = "\n".join(
        f"  --{option.key} ({option.kind} = {option.default})\n        {option.meaning}"
        for option in options()
        if option.key.startswith(f"{SECTION}.")
    )
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=f"options (YAML values):\n{known}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("run", type=place, help="folder of the trained run")
    parser.add_argument("--checkpoint", default="", help="best, newest or a step number (default: the best)")
    parser.add_argument("--network", default="", help="online or assignment: short for pseudo_masks.network")
    parser.add_argument("--name", default="", help="name of the labelling (default: the run's -pseudo-masks)")
    return run_job(parser, run, what="labelling", next_step="the same command continues")


if __name__ == "__main__":
    sys.exit(main())
