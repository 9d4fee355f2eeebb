"""Pictures and masks in the folders of VOC and of COCO, named by lists of ids.

VOC's `train_aug` is the union of its training images and those of SBD (Hariharan et al., "Semantic contours
from inverse detectors", ICCV 2011) without VOC's validation images. Many repositories bring it as a list and
a folder `SegmentationClassAug`; from SBD's own release it is made here. Own data come in these layouts as
well: their classes are VOC's or COCO's only if the ids are; otherwise a list of classes is needed.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
from scipy.io import loadmat

from cosa_dist.data.catalog import COCO, VOC, DatasetInfo
from cosa_dist.data.decode import encode_mask
from cosa_dist.data.errors import DataError, RecordError, Rejection, nearest_name
from cosa_dist.data.sources.classes import read_class_names
from cosa_dist.data.sources.record import Entry, File, SourceOptions, SourceRecord, read_text, unsafe_id

AUGMENTED = "train_aug"
CLASS_LISTS = ("labelmap.txt", "class_names.txt", "labels.txt", "classes.txt")
"""Files of class names that tools write beside their masks (CVAT, labelme, ...)."""
_AUGMENTED_LISTS = tuple(
    f"{folder}/{name}.txt"
    for folder in ("Segmentation", "SegmentationAug")
    for name in (AUGMENTED, "trainaug")
)
_VOC_IDS = re.compile(r"20(0[7-9]|1[0-2])_\d{6}")
_COCO_IDS = re.compile(r"(COCO_(train|val)2014_)?\d{12}")
# Lists of some repositories give paths instead of ids: "/JPEGImages/ID.jpg /SegmentationClassAug/ID.png".
_LISTED_PATH = re.compile(r"/?JPEGImages/([^/\\]+)\.jpg")


def parse_id_list(text: str) -> list[str]:
    """Return the first word of each line that is not empty; `/JPEGImages/ID.jpg` is read as `ID`."""
    words = [line.split()[0] for line in text.removeprefix("\ufeff").splitlines() if line.split()]
    return [match[1] if (match := _LISTED_PATH.fullmatch(word)) else word for word in words]


def read_id_list(path: Path) -> list[str]:
    """Read a list file; raises `DataError` if it is absent, not text, or empty."""
    there = sorted(entry.stem for entry in path.parent.glob("*.txt"))
    cure = f"{nearest_name(path.stem, there)}; lists there: {', '.join(there) or 'none'}"
    entries = parse_id_list(read_text(path, "id list", cure))
    if not entries:
        raise DataError(f"id list {path} names no record; fill it or take the split out of --splits")
    return entries


def existing_folder(path: Path, what: str) -> Path:
    """Return `path` if it is a folder; raises `DataError` that says what was looked for."""
    if not path.is_dir():
        raise DataError(f"no folder {path} ({what})")
    return path


def listed_records(ids: Iterable[str], images: Path, masks: Path | None) -> Iterator[Entry]:
    """Yield the record of each id: `images/ID.jpg` and, where `masks` is given, `masks/ID.png`."""
    for record_id in ids:
        if reason := unsafe_id(record_id):
            yield Rejection(record_id, reason)
        else:
            mask = File(masks, f"{record_id}.png") if masks else None
            yield SourceRecord(record_id, File(images, f"{record_id}.jpg"), mask)


def _data_set(
    known: DatasetInfo,
    ids: re.Pattern[str],
    homes: Sequence[Path],
    entries: Mapping[str, Sequence[Entry]],
    options: SourceOptions,
) -> DatasetInfo:
    """Return `known`, after which the layout is named, or own data under the name of the first home."""
    classes = options.classes
    lists = (path for home in homes for name in CLASS_LISTS if (path := home / name).is_file())
    if classes is None and (found := next(lists, None)):
        classes = read_class_names(found, options.note)
        options.note(f"the masks' {len(classes)} classes are those of {found}")
    records = (entry for listed in entries.values() for entry in listed if isinstance(entry, SourceRecord))
    foreign = next((record.id for record in records if not ids.fullmatch(record.id)), None)
    if foreign is None and classes in (None, known.class_names):
        return known
    if classes is None:
        raise DataError(
            f"'{foreign}' is no image id of {known.name.upper()}, so the masks may hold other classes; "
            f"give the class names in id order with --classes FILE, or in {homes[0] / 'labels.txt'}"
        )
    name = homes[0].resolve().name
    return DatasetInfo(f"own_{name}" if name.casefold() == known.name else name, classes)


class SbdMask(File):
    """The class mask of an SBD image, in the .mat file of the release."""

    __slots__ = ()

    def read(self) -> bytes:
        """Return `GTcls.Segmentation` (0 background, 1..20) as a PNG; raises `RecordError`."""
        data = super().read()
        try:
            ids = loadmat(io.BytesIO(data), squeeze_me=True, struct_as_record=False)["GTcls"].Segmentation
        except Exception as error:  # the reader raises many kinds on damaged files
            raise RecordError("no class mask GTcls.Segmentation can be read; get the file again") from error
        if not isinstance(ids, np.ndarray) or ids.ndim != 2 or ids.dtype != np.uint8:
            raise RecordError("GTcls.Segmentation is not a table of 8-bit ids; get the file again")
        return encode_mask(ids)


def voc_source(
    root: Path, splits: Sequence[str], options: SourceOptions, sbd: Path | None = None
) -> tuple[DatasetInfo, dict[str, list[Entry]]]:
    """Open splits of a VOC devkit, or of own data in its layout; return data set and entries by split."""
    entries = {split: list(voc_records(root, split, sbd)) for split in splits}
    return _data_set(VOC, _VOC_IDS, (root, _home(root)), entries, options), entries


def voc_records(root: Path, split: str, sbd: Path | None = None) -> Iterator[Entry]:
    """Open a split of a VOC devkit (or a folder above it) and return its records.

    `split` names a list in `ImageSets/Segmentation`. `test` has no masks. `train_aug` is made from `sbd`,
    SBD's release, or takes `SegmentationClassAug`; its list may be called `trainaug` and lie in
    `ImageSets/SegmentationAug`. All others take `SegmentationClass` where it exists, else
    `SegmentationClassAug`. Raises `DataError` if a folder or list is not there.
    """
    home = _home(root)
    if split == AUGMENTED and sbd is not None:
        return _sbd_records(home, sbd)
    lists = existing_folder(home / "ImageSets" / "Segmentation", "id lists")
    own, augmented = home / "SegmentationClass", home / "SegmentationClassAug"
    masks: Path | None = None
    if split == AUGMENTED:
        found = [path for name in _AUGMENTED_LISTS if (path := home / "ImageSets" / name).is_file()]
        if not found:
            looked = f"{home / 'ImageSets'} (looked for {', '.join(_AUGMENTED_LISTS)})"
            raise DataError(f"no list of train_aug in {looked}; give SBD's release with --sbd to make it")
        names = read_id_list(found[0])
        masks = existing_folder(augmented, "masks of train_aug; --sbd makes them of SBD's release")
    else:
        names = read_id_list(lists / f"{split}.txt")
        if split != "test":
            masks = existing_folder(own if own.is_dir() else augmented, "masks")
    return listed_records(names, home / "JPEGImages", masks)


def _home(root: Path) -> Path:
    for home in (root, root / "VOC2012", root / "VOCdevkit" / "VOC2012"):
        if (home / "JPEGImages").is_dir():
            return home
    raise DataError(f"no VOC devkit in {root}: it or its VOC2012 folder must hold JPEGImages")


def _sbd_records(home: Path, sbd: Path) -> Iterator[Entry]:
    """Return the records of `train_aug`, with VOC's own mask wherever VOC has one."""
    folders = [sbd, sbd / "dataset", sbd / "benchmark_RELEASE" / "dataset"]
    release = next((folder for folder in folders if (folder / "cls").is_dir()), None)
    if release is None:
        raise DataError(f"no SBD release in {sbd}: it or its dataset folder must hold cls/*.mat")
    own = existing_folder(home / "SegmentationClass", "VOC's own masks")
    lists = home / "ImageSets" / "Segmentation"
    wanted = (lists / "train.txt", release / "train.txt", release / "val.txt")
    ids = sorted({*chain(*map(read_id_list, wanted))}.difference(read_id_list(lists / "val.txt")))
    annotated = {path.stem for path in own.glob("*.png")}
    return (
        replace(entry, mask=SbdMask(release / "cls", f"{entry.id}.mat"))
        if isinstance(entry, SourceRecord) and entry.id not in annotated
        else entry
        for entry in listed_records(ids, home / "JPEGImages", own)
    )


def coco_source(
    root: Path, splits: Sequence[str], options: SourceOptions
) -> tuple[DatasetInfo, dict[str, list[Entry]]]:
    """Open COCO, or own data in its layout with folders of masks; return data set and entries by split."""
    entries = {split: list(coco_records(root, split)) for split in splits}
    return _data_set(COCO, _COCO_IDS, (root,), entries, options), entries


def coco_records(root: Path, split: str) -> Iterator[Entry]:
    """Open a split of COCO in the folder layout of WSSS repositories and return its records.

    `root` holds `train.txt`, `val.txt`, `train2014`, `val2014`, and masks in `SegmentationClass/train2014`
    and `val2014`. Raises `DataError` for an unknown split, or if a folder or list is not there.
    """
    check_coco_split(split)
    images = existing_folder(root / f"{split}2014", "images")
    what = "masks; or name COCO's JSON files with --annotations"
    masks = existing_folder(root / "SegmentationClass" / f"{split}2014", what)
    return listed_records(read_id_list(root / f"{split}.txt"), images, masks)


def check_coco_split(split: str) -> None:
    """Raise `DataError` for a split that COCO has not."""
    if split not in COCO.split_sizes:
        near = nearest_name(split, COCO.split_sizes)
        raise DataError(f"COCO has no split '{split}'{near}; known: train, val")
