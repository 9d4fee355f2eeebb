"""Turn a source of images into shards.

    python jobs/ingest.py voc VOC2012 --out SHARDS [--splits train_aug,val] [--sbd benchmark_RELEASE]
    python jobs/ingest.py voc OWN_DEVKIT --out SHARDS --classes NAMES.txt
    python jobs/ingest.py coco COCO --out SHARDS [--annotations COCO/annotations]
    python jobs/ingest.py folder PICTURES --out SHARDS [--masks MASKS] [--val-fraction 0.1]
    python jobs/ingest.py table PICTURES TAGS.csv --out SHARDS [--tags-column tags] [--classes NAMES.txt]
    python jobs/ingest.py hf DATASET --out SHARDS [--labels-column label] [--mask-column mask]
    python jobs/ingest.py synthetic --out SHARDS --train 400 --val 100 --image-size 128 --seed 0

Bad records are left out and listed in SHARDS/rejected.json; too many of them end the job. A job that
was interrupted continues where it stopped when the same command is given again.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from cosa_dist.config.paths import lasting_place, place
from cosa_dist.data.catalog import DatasetInfo, renamed
from cosa_dist.data.errors import DataError
from cosa_dist.data.ingest.ingest import IngestOptions, ingest, say
from cosa_dist.data.ingest.shard import UNTAGGED
from cosa_dist.data.sources.classes import read_class_names
from cosa_dist.data.sources.coco_json import annotated_source
from cosa_dist.data.sources.devkits import coco_source, voc_source
from cosa_dist.data.sources.folder import LAYOUTS, folder_source
from cosa_dist.data.sources.hf import HfColumns, hf_source
from cosa_dist.data.sources.record import Entry, Notify, SourceOptions, with_validation
from cosa_dist.data.sources.synthetic import synthetic_info, synthetic_records
from cosa_dist.data.sources.table import Columns, table_source

Source = tuple[DatasetInfo, Mapping[str, Iterable[Entry]]]


class _Renamed(argparse.Action):
    """Refuses an option's old name with the new one."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: object, values: object, option: str | None = None
    ) -> None:
        """End with the message of a wrong command line."""
        parser.error(f"{option} is now called {str(option).replace('share', 'fraction')}")


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    root = argparse.ArgumentParser(prog="ingest", description="Turn images into shards.")
    sources = root.add_subparsers(dest="source", required=True)
    shared, own = _shared_options(), _options_of_own_data()
    voc = sources.add_parser("voc", parents=[shared], help="a VOC devkit")
    voc.add_argument("root", type=place, help="the devkit's folder")
    voc.add_argument("--splits", default="train,val", help="id lists, separated by commas; train_aug, test")
    voc.add_argument("--sbd", type=place, help="SBD's release, of which train_aug is made")
    coco = sources.add_parser("coco", parents=[shared], help="COCO 2014, or 2017 with --annotations")
    coco.add_argument("root", type=place, help="folder with train2014 and val2014 (or 2017)")
    coco.add_argument("--splits", default="train,val", help="train, val or both, separated by commas")
    coco.add_argument(
        "--annotations", type=place, help="folder of instances_*.json, or one, instead of masks"
    )
    for source, name in ((voc, "VOC"), (coco, "COCO")):
        source.add_argument(
            "--classes", type=place, help=f"class names in id order, if they are not {name}'s"
        )
    folder = sources.add_parser("folder", parents=[shared, own], help="a folder of pictures per class")
    folder.add_argument("root", type=place, help="CLASS/PICTURE.jpg, or train/CLASS/PICTURE.jpg")
    folder.add_argument("--masks", type=place, help="folder of masks with the pictures' inner paths")
    folder.add_argument("--layout", choices=LAYOUTS, help="what the folders at ROOT are (default: found)")
    table = sources.add_parser("table", parents=[shared, own], help="pictures and a table of tags")
    table.add_argument("images", type=place, help="folder that the pictures' names lie in")
    table.add_argument("table", type=place, help=".csv, .tsv, .json, .jsonl or .parquet")
    table.add_argument("--masks", type=place, help="folder of masks")
    hf = sources.add_parser("hf", parents=[shared, own], help="a Hugging Face dataset on disk")
    hf.add_argument("path", type=place, help="folder of save_to_disk, or Parquet or Arrow files")
    hf.add_argument("--id-column", help="column of ids (default: id or image_id)")
    hf.add_argument(
        "--labels-column", help="columns of labels, separated by commas (default: label and the like)"
    )
    for source in (table, hf):
        source.add_argument("--image-column", help="column of pictures (default: image and the like)")
        source.add_argument("--mask-column", help="column of masks (default: mask)")
        what = "what is between two tags in a text (default: ; or | or else ,)"
        source.add_argument("--tags-separator", help=what)
    what = "column of tags, or several separated by commas (default: tags and the like, or those of 0 and 1)"
    table.add_argument("--tags-column", help=what)
    table.add_argument("--split-column", help="column of splits (default: split)")
    synthetic = sources.add_parser("synthetic", parents=[shared], help="generated pictures")
    synthetic.add_argument("--train", type=int, default=400, help="training pictures")
    synthetic.add_argument("--val", type=int, default=100, help="validation pictures")
    synthetic.add_argument("--image-size", type=int, default=128, help="side in pixels")
    synthetic.add_argument("--seed", type=int, default=0, help="seed of the generator")
    return root


def _shared_options() -> argparse.ArgumentParser:
    """Return the options of every source."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--out", type=lasting_place, required=True, help="shard folder to make")
    shared.add_argument("--name", help="name of the data set in the shards (default: the source's)")
    shared.add_argument("--shards", type=int, help="shards per split (default: 8 to 128)")
    shared.add_argument("--processes", type=int, default=1, help="processes that decode and write")
    what = "fraction of records that may be bad"
    shared.add_argument("--max-bad-fraction", type=float, default=0.02, help=what)
    shared.add_argument("--max-bad-share", action=_Renamed, help=argparse.SUPPRESS)
    what = "images without any tag (default: keep; leave-out with --annotations)"
    shared.add_argument("--untagged", choices=UNTAGGED, help=what)
    shared.add_argument("--overwrite", action="store_true", help="replace an existing shard folder")
    return shared


def _options_of_own_data() -> argparse.ArgumentParser:
    """Return the options of data that bring neither class names nor splits with them."""
    own = argparse.ArgumentParser(add_help=False)
    own.add_argument(
        "--classes",
        type=place,
        help="class names in id order, one a line, or as labelme, CVAT or YOLO write them",
    )
    own.add_argument(
        "--val-fraction", type=float, help="fraction for validation (default: 0.1 where no split is named)"
    )
    own.add_argument("--val-share", action=_Renamed, help=argparse.SUPPRESS)
    own.add_argument("--seed", type=int, default=0, help="seed of that choice")
    return own


def open_source(asked: argparse.Namespace, cache: Path, notify: Notify) -> Source:
    """Return the data set and its entries by split, as the command line asks; `notify` takes lines on it."""
    if asked.source == "synthetic":
        counts = {"train": asked.train, "val": asked.val}
        return synthetic_info(), {
            split: synthetic_records(split, count, seed=asked.seed, image_size=asked.image_size)
            for split, count in counts.items()
        }
    classes = None if asked.classes is None else read_class_names(asked.classes, notify)
    options = SourceOptions(classes, getattr(asked, "tags_separator", None), notify=notify)
    if asked.source not in ("voc", "coco"):
        return _own_data(asked, options, cache)
    splits = [split.strip() for split in asked.splits.split(",") if split.strip()]
    if not splits:
        raise DataError("--splits names no split")
    if asked.source == "voc":
        return voc_source(asked.root, splits, options, asked.sbd)
    if asked.annotations is None:
        return coco_source(asked.root, splits, options)
    return annotated_source(asked.root, splits, asked.annotations, options)


def _own_data(asked: argparse.Namespace, options: SourceOptions, cache: Path) -> Source:
    """Return data set and entries of a source that brings neither class names nor splits with it."""
    options = replace(options, seed=asked.seed)
    if asked.val_fraction is not None:
        options = replace(options, val_fraction=asked.val_fraction)
    if asked.source == "folder":
        info, entries = folder_source(asked.root, options, masks=asked.masks, layout=asked.layout)
    elif asked.source == "table":
        columns = Columns(asked.image_column, asked.tags_column, asked.split_column, asked.mask_column)
        info, entries = table_source(asked.images, asked.table, options, columns=columns, masks=asked.masks)
    else:
        labels = tuple(asked.labels_column.split(",")) if asked.labels_column else ()
        hf_columns = HfColumns(asked.image_column, labels, asked.mask_column, asked.id_column)
        info, entries = hf_source(asked.path, cache, options, hf_columns)
    return info, entries if asked.val_fraction is None else with_validation(entries, options)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job; returns the exit status (2 for anything the user can mend)."""
    asked = parser().parse_args(arguments)
    started = time.monotonic()
    annotated = getattr(asked, "annotations", None) is not None
    cache = asked.out.parent / f".{asked.out.name}.cache"
    try:
        options = IngestOptions(
            shards=asked.shards,
            max_bad_fraction=asked.max_bad_fraction,
            overwrite=asked.overwrite,
            processes=asked.processes,
            untagged=asked.untagged or ("leave-out" if annotated else "keep"),
            classes_given=getattr(asked, "classes", None) is not None,
        )
        console = Console()
        info, sources = open_source(asked, cache, lambda line: say(console, line))
        reports = ingest(sources, renamed(info, asked.name), asked.out, options, console)
    except (DataError, OSError) as error:
        print(f"ingest: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("ingest: interrupted; the same command continues after the finished shards", file=sys.stderr)
        return 130
    shutil.rmtree(cache, ignore_errors=True)
    seconds, count = time.monotonic() - started, sum(report.count for report in reports)
    speed = f"{count / seconds:.0f} images/s, {count / seconds / asked.processes:.0f} per process"
    print(f"wrote {asked.out}: {count} images in {seconds:.1f} s ({speed})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
