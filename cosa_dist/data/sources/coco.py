"""COCO 2014: pictures in `train2014` and `val2014`, annotated by masks in folders or by the official JSON.

The JSON may also be that of the 2017 release, with `train2017` and `val2017`: another data set, whose
splits are others. Class ids are 1..80 in the order of COCO's category ids (which run to 90, with gaps).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from cosa_dist.data.catalog import COCO, DatasetInfo, renamed
from cosa_dist.data.errors import DataError, nearest_name
from cosa_dist.data.sources.coco_json import annotated_records
from cosa_dist.data.sources.id_list import existing_folder, listed_data_set, listed_records, read_id_list
from cosa_dist.data.sources.record import Entry, Tell, untold

_FOLDERS = {"train": "train2014", "val": "val2014"}
_YEARS = ("2014", "2017")
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


def coco_annotated(root: Path, split: str, annotations: Path, tell: Tell = untold) -> Iterator[Entry]:
    """Open a split of COCO by its official annotations and return its records.

    Args:
        root: the folder with `train2014` and `val2014`, or `train2017` and `val2017`.
        split: `train` or `val`.
        annotations: the folder with `instances_train2014.json` and so on, or one such file.
        tell: takes lines for the user on what could not be used.

    Raises:
        DataError: unknown split, a folder or file is not there, or the JSON is not COCO's.
    """
    _folder_of(split)
    year = _release(root, annotations)
    images = existing_folder(root / f"{split}{year}", f"pictures; the annotations are COCO {year}'s")
    return annotated_records(_json_of(annotations, split, year), images, tell)


def annotated_info(root: Path, splits: Sequence[str], annotations: Path, tell: Tell = untold) -> DatasetInfo:
    """Return COCO, under the name `coco2017` and without known sizes if it is that release.

    Raises:
        DataError: `annotations` is one file, for several splits.
    """
    if _is_one_file(annotations) and len(splits) > 1:
        raise DataError(
            f"--annotations names one file, {annotations}, for the splits {', '.join(splits)}; "
            "name its split with --splits, or the folder that it lies in"
        )
    year = _release(root, annotations)
    if year == _YEARS[0]:
        return COCO
    tell(f"this is COCO {year}, whose splits are not those of published results; named {COCO.name}{year}")
    return renamed(COCO, f"{COCO.name}{year}")


def _release(root: Path, annotations: Path) -> str:
    """Return the year of the first release with annotations and pictures, else with annotations."""
    annotated = [y for y in _YEARS if any(_json_of(annotations, s, y).is_file() for s in _FOLDERS)]
    both = [y for y in annotated if any((root / f"{s}{y}").is_dir() for s in _FOLDERS)]
    return (both + annotated + [_YEARS[0]])[0]


def _json_of(annotations: Path, split: str, year: str) -> Path:
    """Return the file of a split and year, `annotations` itself where it is one, unless of another year."""
    other = any(y in annotations.name for y in _YEARS) and year not in annotations.name
    usual = annotations / f"instances_{split}{year}.json"
    return annotations if _is_one_file(annotations) and not other else usual


def _is_one_file(annotations: Path) -> bool:
    """Whether `annotations` is a file, or, where it is not there, would be one."""
    return annotations.is_file() or (annotations.suffix == ".json" and not annotations.is_dir())


def _folder_of(split: str) -> str:
    """Return the folder of a split's pictures; raises `DataError` for a split that COCO has not."""
    if split not in _FOLDERS:
        raise DataError(f"COCO has no split '{split}'{nearest_name(split, _FOLDERS)}; known: train, val")
    return _FOLDERS[split]
