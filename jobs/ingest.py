"""Turn a source of images into shards.

    python jobs/ingest.py voc VOCdevkit/VOC2012 --out SHARDS [--splits train,val]
    python jobs/ingest.py coco COCO --out SHARDS
    python jobs/ingest.py synthetic --out SHARDS --train 400 --val 100 --image-size 128 --seed 0

Bad records are left out and listed in SHARDS/rejected.json; too many of them end the job.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console

from cosa_dist.data.catalog import COCO, VOC, DatasetInfo, renamed
from cosa_dist.data.errors import DataError
from cosa_dist.data.ingest import IngestOptions, ingest
from cosa_dist.data.ingest_sources import (
    Entry,
    coco_records,
    synthetic_info,
    synthetic_records,
    voc_records,
)


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--out", type=Path, required=True, help="shard folder to make")
    shared.add_argument("--name", help="name of the data set in the shards (default: the source's)")
    shared.add_argument("--shards", type=int, help="shards per split (default: 8 to 128)")
    shared.add_argument("--processes", type=int, default=1, help="processes that decode")
    shared.add_argument(
        "--max-bad-share", type=float, default=0.02, help="share of records that may be left out"
    )
    shared.add_argument("--overwrite", action="store_true", help="replace an existing shard folder")
    root = argparse.ArgumentParser(prog="ingest", description="Turn images into shards.")
    sources = root.add_subparsers(dest="source", required=True)
    for name, what in (("voc", "a VOC devkit"), ("coco", "COCO with a folder of masks")):
        source = sources.add_parser(name, parents=[shared], help=what)
        source.add_argument("root", type=Path, help="the data set's folder")
        source.add_argument("--splits", default="train,val", help="id lists, separated by commas")
    synthetic = sources.add_parser("synthetic", parents=[shared], help="generated pictures")
    synthetic.add_argument("--train", type=int, default=400, help="training pictures")
    synthetic.add_argument("--val", type=int, default=100, help="validation pictures")
    synthetic.add_argument("--image-size", type=int, default=128, help="side in pixels")
    synthetic.add_argument("--seed", type=int, default=0, help="seed of the generator")
    return root


def sources_of(arguments: argparse.Namespace) -> tuple[DatasetInfo, dict[str, Iterable[Entry]]]:
    """Return the data set and its entries by split, as the command line asks."""
    if arguments.source == "synthetic":
        counts = {"train": arguments.train, "val": arguments.val}
        return synthetic_info(), {
            split: synthetic_records(split, count, seed=arguments.seed, image_size=arguments.image_size)
            for split, count in counts.items()
        }
    info, records = (VOC, voc_records) if arguments.source == "voc" else (COCO, coco_records)
    splits = [split.strip() for split in arguments.splits.split(",") if split.strip()]
    if not splits:
        raise DataError("--splits names no split")
    return info, {split: records(arguments.root, split) for split in splits}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job; returns the exit status (2 for anything the user can mend)."""
    parsed = parser().parse_args(arguments)
    try:
        options = IngestOptions(
            shards=parsed.shards,
            max_bad_share=parsed.max_bad_share,
            overwrite=parsed.overwrite,
            processes=parsed.processes,
        )
        info, sources = sources_of(parsed)
        ingest(sources, renamed(info, parsed.name), parsed.out, options, Console())
    except (DataError, OSError) as error:
        print(f"ingest: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("ingest: interrupted; nothing was written", file=sys.stderr)
        return 130
    print(f"wrote {parsed.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
