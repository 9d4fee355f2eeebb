"""Show a shard folder as training will see it: `python jobs/inspect_data.py SHARDS [--out PAGE.html]`.

Writes one self-contained page: counts, sizes and classes of each split, and sample images with tags, masks,
both views and their valid boxes.
"""

from __future__ import annotations

import argparse
import sys

from cosa_dist.config.paths import lasting_place, place_or_url
from cosa_dist.data.errors import DataError


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shards", type=place_or_url, help="shard folder made by jobs/ingest.py")
    parser.add_argument("--splits", default="", help="splits, separated by commas (default: all)")
    parser.add_argument("--samples", type=int, default=12, help="samples per split")
    parser.add_argument("--crop-size", type=int, default=448, help="side of the views in pixels")
    parser.add_argument("--scale-range", type=float, nargs=2, default=(0.5, 2.0), metavar=("LOW", "HIGH"))
    parser.add_argument("--seed", type=int, default=0, help="seed of the run whose samples are shown")
    parser.add_argument("--out", type=lasting_place, default="outputs/data.html", help="page to write")
    return parser.parse_args(words)


def run(arguments: argparse.Namespace) -> None:
    """Summarise the splits and write the page."""
    from cosa_dist.atomic import atomic_write
    from cosa_dist.data.shards.split import open_split, read_description
    from cosa_dist.reports.data_page import ViewSettings, render, summarise

    low, high = arguments.scale_range
    if arguments.crop_size < 1 or not 0 < low <= high or arguments.seed < 0 or arguments.samples < 0:
        raise DataError(
            "need a crop of 1 or more, 0 < LOW <= HIGH, seed and samples of 0 or more; got "
            f"--crop-size {arguments.crop_size}, --scale-range {low} {high}, --seed {arguments.seed}, "
            f"--samples {arguments.samples}"
        )
    settings = ViewSettings(arguments.crop_size, (low, high), arguments.seed)
    description = read_description(arguments.shards)
    wanted = [name.strip() for name in arguments.splits.split(",") if name.strip()]
    names = wanted or list(description["splits"])
    splits = [summarise(open_split(arguments.shards, name), arguments.samples, settings) for name in names]
    atomic_write(arguments.out, render(f"Data set {description['name']}", splits, settings))
    for summary in splits:
        split = summary.split
        print(f"{split.name}: {split.size} images, {split.mask_count} with a mask; {summary.sizes}")
    print(f"written {arguments.out}")


def main(words: list[str] | None = None) -> int:
    """Return the exit code: 0 done, 2 bad input, 130 interrupted."""
    try:
        run(parse(words))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
