"""One page about a run: `python jobs/report.py outputs/runs/NAME [--out report.html] [--images 100]`.

Curves, thresholds, IoU per class, confusion, best and worst validation images, CAMs over the steps,
pictures, configuration and provenance in a single HTML file that needs no network. `--images 0` does not run
the trained network.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from cosa_dist.config.command_line import run_job
from cosa_dist.config.errors import ConfigError
from cosa_dist.config.paths import lasting_place, place, place_or_url

if TYPE_CHECKING:
    from cosa_dist.config.schema import RunConfig
    from cosa_dist.data.shards.split import Split
    from cosa_dist.reports.run_analysis import ErrorAnalysis, Evolution

Part = TypeVar("Part")


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    made.add_argument("run", type=place, help="run folder")
    made.add_argument("--out", type=lasting_place, help="page to write (default: RUN/report.html)")
    made.add_argument("--images", type=int, default=100, help="validation images to look at (0: none)")
    made.add_argument("--shown", type=int, default=6, help="best and worst images on the page")
    made.add_argument("--followed", type=int, default=3, help="images seen by each kept checkpoint (0: none)")
    made.add_argument("--pictures", type=int, default=6, help="pictures of the last evaluation on the page")
    made.add_argument("--checkpoint", default="", help="best, newest or a step number (default: the best)")
    made.add_argument("--network", default="", help="online, assignment, average (default: the better one)")
    made.add_argument("--shards", type=place_or_url, help="shards to look at (default: the run's)")
    made.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 (auto: a GPU if there is one)")
    return made


def run(asked: argparse.Namespace, rest: list[str]) -> None:
    """Read the run, look at the images, write the page."""
    if rest:
        raise ConfigError(f"unknown option {rest[0]}; see --help")
    for name in ("images", "shown", "followed", "pictures"):
        if getattr(asked, name) < 0:
            raise ConfigError(f"--{name} {getattr(asked, name)}: must be 0 or more")

    from cosa_dist.atomic import atomic_write
    from cosa_dist.reports.run_page import read_run, run_page

    found = read_run(asked.run, asked.pictures)
    errors: ErrorAnalysis | str = "not asked for (--images 0)"
    evolution: Evolution | str = "not asked for (--images 0)"
    if asked.images:
        evolution = or_reason("CAMs over the steps", lambda: follow_images(asked))
        errors = or_reason("confusion, best and worst images", lambda: judge_images(asked))
    out = asked.out or asked.run / "report.html"
    atomic_write(out, run_page(found, errors, evolution))
    print(f"written {out} ({out.stat().st_size / 2**20:.1f} MiB)")


def or_reason(what: str, make: Callable[[], Part | None]) -> Part | str:
    """What `make` gives, or the reason why it could not, which is said too."""
    try:
        return make() or "not asked for"
    except (ValueError, OSError) as error:
        print(f"no {what}: {error}", file=sys.stderr)
        return str(error)


def validation(config: RunConfig, asked: argparse.Namespace, class_names: tuple[str, ...]) -> Split:
    """The run's validation split, or that of `--shards`.

    Raises:
        ValueError: no shards, or other classes.
    """
    from cosa_dist.data.reading.loader import open_reading

    data = config.data.model_copy(update={"shards": asked.shards or config.data.shards})
    split = open_reading(data, data.val_split)
    if split.class_names != class_names:
        raise ValueError(f"{data.shards} has other classes than the run")
    return split


def follow_images(asked: argparse.Namespace) -> Evolution | None:
    """See the first validation images with every kept checkpoint.

    Raises:
        ValueError: no checkpoint, no shards.
    """
    from cosa_dist.data.reading.loader import EvaluationLoader
    from cosa_dist.inference.trained import device_named, load_trained
    from cosa_dist.reports.run_analysis import predict_per_checkpoint

    if not asked.followed:
        return None
    device = device_named(asked.device)
    model = load_trained(asked.run, asked.checkpoint, asked.network, device)
    split = validation(model.config, asked, model.class_names)
    samples = list(EvaluationLoader(split, 0, 1, asked.followed, 0))
    return predict_per_checkpoint(asked.run, samples, model.class_names, device, model.which)


def judge_images(asked: argparse.Namespace) -> ErrorAnalysis:
    """Run the network over the first validation images.

    Raises:
        ValueError: no checkpoint, no shards, or no image with a mask.
    """
    from rich.console import Console
    from rich.progress import Progress

    from cosa_dist.data.reading.loader import EvaluationLoader
    from cosa_dist.distributed.plan import loader_processes
    from cosa_dist.inference.segmentation import Segmenting
    from cosa_dist.inference.trained import device_named, load_trained
    from cosa_dist.reports.run_analysis import analyse_errors
    from cosa_dist.tracking.provenance import usable_cpus

    device = device_named(asked.device)
    model = load_trained(asked.run, asked.checkpoint, asked.network, device)
    print(model.source)
    config = model.config
    split = validation(config, asked, model.class_names)
    loaders = loader_processes(config.data, usable_cpus(), device.type == "cuda")
    samples = EvaluationLoader(split, 0, 1, asked.images, loaders)
    precision = config.training.precision
    segmenting = Segmenting(model.network, config.evaluation, device, precision=precision)
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("looking at images", total=min(asked.images, split.size))
        found = analyse_errors(
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
