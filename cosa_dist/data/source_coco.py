"""COCO 2014: pictures in `train2014` and `val2014`, annotated by masks in folders or by the official JSON.

Class ids are 1..80 in the order of COCO's category ids (which run to 90, with gaps).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from cosa_dist.data.catalog import COCO, DatasetInfo
from cosa_dist.data.errors import DataError, nearest_name
from cosa_dist.data.source_coco_json import annotated_records
from cosa_dist.data.source_list import existing_folder, listed_data_set, listed_records, read_id_list
from cosa_dist.data.source_record import Entry, Tell, untold

_FOLDERS = {"train": "train2014", "val": "val2014"}
_IDS = re.compile(r"(COCO_(train|val)2014_)?\d{12}")


def coco_source(
    root: Path, splits: Sequence[str], classes: tuple[str, ...] | None = None, tell: Tell = untold
) -> tuple[DatasetInfo, dict[str, list[Entry]]]:
    """Open COCO, or own data in its layout with folders of masks; return the data set and entries by split.

    Args:
        root: see `coco_records`.
        splits: `train`, `val` or both.
        classes: class names in id order; None takes those of a list in `root`, else COCO's.
        tell: takes lines for the user on how it was read.

    Raises:
        DataError: a folder or list is not there, or the pictures are not COCO's and no classes are known.
    """
    entries = {split: list(coco_records(root, split)) for split in splits}
    return listed_data_set(COCO, _IDS, (root,), entries, classes, tell), entries


def coco_records(root: Path, split: str) -> Iterator[Entry]:
    """Open a split of COCO in the folder layout of WSSS repositories and return its records.

    `root` holds `train.txt`, `val.txt`, `train2014`, `val2014` and `SegmentationClass` with the
    masks in `train2014` and `val2014`.

    Raises:
        DataError: unknown split, or a folder or list is not there.
    """
    folder = _folder_of(split)
    images = existing_folder(root / folder, "images")
    masks = existing_folder(
        root / "SegmentationClass" / folder, "masks; or name COCO's JSON files with --annotations"
    )
    return listed_records(read_id_list(root / f"{split}.txt"), images, masks)


def coco_annotated(root: Path, split: str, annotations: Path) -> Iterator[Entry]:
    """Open a split of COCO by its official annotations and return its records.

    Args:
        root: the folder with `train2014` and `val2014`.
        split: `train` or `val`.
        annotations: the folder with `instances_train2014.json` and `instances_val2014.json`.

    Raises:
        DataError: unknown split, a folder or file is not there, or the JSON is not COCO's.
    """
    folder = _folder_of(split)
    images = existing_folder(root / folder, "images")
    return annotated_records(annotations / f"instances_{folder}.json", images)


def _folder_of(split: str) -> str:
    """Return the folder of a split's pictures; raises `DataError` for a split that COCO has not."""
    if split not in _FOLDERS:
        raise DataError(f"COCO has no split '{split}'{nearest_name(split, _FOLDERS)}; known: train, val")
    return _FOLDERS[split]
