"""One page about a run: `python jobs/report.py outputs/runs/NAME [--out report.html] [--images 100]`.

Curves, thresholds, IoU per class, confusion, best and worst validation images, pictures, configuration and
provenance in a single HTML file that needs no network. `--images 0` does not run the network.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cosa_dist.config.command_line import run_job
from cosa_dist.config.errors import ConfigError

if TYPE_CHECKING:
    from cosa_dist.reports.run_examination import Examination


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    made.add_argument("run", type=Path, help="run folder")
    made.add_argument("--out", type=Path, help="page to write (default: report.html in the run folder)")
    made.add_argument("--images", type=int, default=100, help="validation images to look at (0: none)")
    made.add_argument("--shown", type=int, default=6, help="best and worst images on the page")
    made.add_argument("--pictures", type=int, default=6, help="pictures of the last evaluation on the page")
    made.add_argument("--checkpoint", default="", help="best, newest or a step number (default: the best)")
    made.add_argument("--shards", help="shards with the validation images (default: the run's)")
    made.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 (auto: a GPU if there is one)")
    return made


def run(asked: argparse.Namespace, rest: list[str]) -> None:
    """Read the run, look at the images, write the page."""
    if rest:
        raise ConfigError(f"unknown option {rest[0]}; see --help")
    for name in ("images", "shown", "pictures"):
        if getattr(asked, name) < 0:
            raise ConfigError(f"--{name} {getattr(asked, name)}: must be 0 or more")

    from cosa_dist.reports.run_page import read_run, run_page
    from cosa_dist.whole_file import write_whole

    found = read_run(asked.run, asked.pictures)
    examination, why_not = None, "not asked for (--images 0)"
    if asked.images:
        try:
            examination = look_at_images(asked)
        except (ValueError, OSError) as error:
            why_not = str(error)
            print(f"no confusion, best and worst images: {why_not}", file=sys.stderr)
    out = asked.out or asked.run / "report.html"
    write_whole(out, run_page(found, examination, why_not))
    print(f"written {out} ({out.stat().st_size / 2**20:.1f} MiB)")


def look_at_images(asked: argparse.Namespace) -> Examination:
    """Run the network over the first validation images.

    Raises:
        ValueError: no checkpoint, no shards, or no image with a mask.
    """
    from rich.console import Console
    from rich.progress import Progress

    from cosa_dist.data.loader import EvaluationLoader
    from cosa_dist.data.reading import open_reading
    from cosa_dist.evaluation.settings import evaluation_settings
    from cosa_dist.inference.device import device_named
    from cosa_dist.inference.segmentation import Segmenting
    from cosa_dist.inference.trained import load_trained
    from cosa_dist.reports.run_examination import examine

    device = device_named(asked.device)
    model = load_trained(asked.run, asked.checkpoint, "", device)
    config = model.config
    data = config.data.model_copy(update={"shards": asked.shards or config.data.shards})
    split = open_reading(data, data.val_split)
    if split.class_names != model.class_names:
        raise ValueError(f"{data.shards} has other classes than the run")
    samples = EvaluationLoader(split, 0, 1, asked.images, data.loader_workers)
    segmenting = Segmenting(model.network, evaluation_settings(config), device)
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("looking at images", total=min(asked.images, split.size))
        found = examine(
            segmenting,
            samples,
            len(model.class_names) + 1,
            asked.shown,
            lambda done: bar.update(task, completed=done),
        )
    if not found.images:
        raise ValueError(f"the first {asked.images} images of split '{split.name}' have no masks")
    return found


def main() -> int:
    """Return the exit code: 0 done, 1 it failed, 2 it could not start."""
    return run_job(parser(), run, what="report", next_step="the same command starts again")


if __name__ == "__main__":
    sys.exit(main())
