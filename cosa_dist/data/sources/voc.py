"""PASCAL VOC 2012: its devkit, and the augmented training set of 10,582 images in either of its forms.

`train_aug` is the union of VOC's training images and those of SBD (Hariharan et al., "Semantic
contours from inverse detectors", ICCV 2011) without VOC's validation images. Many repositories
bring it as a list and a folder `SegmentationClassAug`; from SBD's own release it is made here.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.io import loadmat

from cosa_dist.data.catalog import VOC, DatasetInfo
from cosa_dist.data.decode import encode_mask
from cosa_dist.data.errors import DataError, RecordError
from cosa_dist.data.sources.id_list import existing_folder, listed_data_set, listed_records, read_id_list
from cosa_dist.data.sources.record import Entry, File, SourceRecord, Tell, untold

AUGMENTED = "train_aug"
_AUGMENTED_LISTS = (
    "Segmentation/train_aug.txt",
    "Segmentation/trainaug.txt",
    "SegmentationAug/train_aug.txt",
    "SegmentationAug/trainaug.txt",
)
_IDS = re.compile(r"20(0[7-9]|1[0-2])_\d{6}")


@dataclass(frozen=True, slots=True)
class SbdMask:
    """The class mask of an SBD image, in the .mat file of the release."""

    file: File

    @property
    def where(self) -> str:
        """The .mat file."""
        return self.file.where

    def read(self) -> bytes:
        """Return `GTcls.Segmentation` (0 background, 1..20) as a PNG; raises `RecordError`."""
        data = self.file.read()
        try:
            ids = loadmat(io.BytesIO(data), squeeze_me=True, struct_as_record=False)["GTcls"].Segmentation
        except Exception as error:  # the reader raises many kinds on damaged files
            raise RecordError("no class mask GTcls.Segmentation can be read; get the file again") from error
        if not isinstance(ids, np.ndarray) or ids.ndim != 2 or ids.dtype != np.uint8:
            raise RecordError("GTcls.Segmentation is not a table of 8-bit ids; get the file again")
        return encode_mask(ids)

    def identity(self) -> str:
        """That of the file."""
        return self.file.identity()


def voc_source(
    root: Path,
    splits: Sequence[str],
    sbd: Path | None = None,
    classes: tuple[str, ...] | None = None,
    tell: Tell = untold,
) -> tuple[DatasetInfo, dict[str, list[Entry]]]:
    """Open splits of a VOC devkit, or of own data in its layout; return data set and entries by split.

    Args:
        root: see `voc_records`; so are `splits` and `sbd`.
        splits: names of lists.
        sbd: SBD's release.
        classes: class names in id order; None takes those of a list in `root`, else VOC's.
        tell: takes lines for the user on how it was read.

    Raises:
        DataError: a folder or list is not there, or the pictures are not VOC's and no classes are known.
    """
    entries = {split: list(voc_records(root, split, sbd)) for split in splits}
    return listed_data_set(VOC, _IDS, (root, _home(root)), entries, classes, tell), entries


def voc_records(root: Path, split: str, sbd: Path | None = None) -> Iterator[Entry]:
    """Open a split of a VOC devkit and return its records.

    Args:
        root: the folder with `JPEGImages`, or one above it (`VOC2012`, `VOCdevkit/VOC2012`).
        split: name of a list in `ImageSets/Segmentation`. `test` has no masks. `train_aug` takes
            `SegmentationClassAug`, and its list may be called `trainaug` and lie in
            `ImageSets/SegmentationAug`; all others take `SegmentationClass` where it exists and
            `SegmentationClassAug` otherwise.
        sbd: SBD's release (`benchmark_RELEASE`, or its `dataset`); then `train_aug` is made from it.

    Raises:
        DataError: the folder or the list is not there.
    """
    home = _home(root)
    if split == AUGMENTED and sbd is not None:
        return _sbd_records(home, sbd)
    lists = existing_folder(home / "ImageSets" / "Segmentation", "id lists")
    masks: Path | None = None
    if split == AUGMENTED:
        names = read_id_list(_augmented_list(home))
        masks = existing_folder(
            home / "SegmentationClassAug", "masks of train_aug; --sbd makes them of SBD's release"
        )
        return listed_records(names, home / "JPEGImages", masks)
    names = read_id_list(lists / f"{split}.txt")
    if split != "test":
        plain, augmented = home / "SegmentationClass", home / "SegmentationClassAug"
        masks = existing_folder(plain if plain.is_dir() else augmented, "masks")
    return listed_records(names, home / "JPEGImages", masks)


def _home(root: Path) -> Path:
    """Return the folder with `JPEGImages`, `root` or one below it; raises `DataError` if there is none."""
    homes = [root, root / "VOC2012", root / "VOCdevkit" / "VOC2012"]
    home = next((folder for folder in homes if (folder / "JPEGImages").is_dir()), None)
    if home is None:
        raise DataError(f"no VOC devkit in {root}: it or its VOC2012 folder must hold JPEGImages")
    return home


def augmented_ids(root: Path, sbd: Path) -> list[str]:
    """Return the ids of `train_aug`: those of VOC `train` and of SBD, without VOC's `val`, sorted.

    Args:
        root: VOC's `ImageSets/Segmentation`.
        sbd: SBD's folder with `train.txt` and `val.txt`.

    Raises:
        DataError: a list is not there.
    """
    wanted = {*read_id_list(root / "train.txt")}
    wanted |= {*read_id_list(sbd / "train.txt"), *read_id_list(sbd / "val.txt")}
    return sorted(wanted - {*read_id_list(root / "val.txt")})


def _sbd_records(home: Path, sbd: Path) -> Iterator[Entry]:
    """Return the records of `train_aug`, with VOC's own mask wherever VOC has one."""
    folders = [sbd, sbd / "dataset", sbd / "benchmark_RELEASE" / "dataset"]
    release = next((folder for folder in folders if (folder / "cls").is_dir()), None)
    if release is None:
        raise DataError(f"no SBD release in {sbd}: it or its dataset folder must hold cls/*.mat")
    own = existing_folder(home / "SegmentationClass", "VOC's own masks")
    ids = augmented_ids(home / "ImageSets" / "Segmentation", release)
    annotated = {path.stem for path in own.glob("*.png")}

    def records() -> Iterator[Entry]:
        for entry in listed_records(ids, home / "JPEGImages", own):
            if isinstance(entry, SourceRecord) and entry.id not in annotated:
                mask = SbdMask(File(release / "cls", f"{entry.id}.mat"))
                yield SourceRecord(entry.id, entry.image, mask)
            else:
                yield entry

    return records()


def _augmented_list(home: Path) -> Path:
    """Return the list of `train_aug` under any of its names; raises `DataError` if there is none."""
    paths = [home / "ImageSets" / name for name in _AUGMENTED_LISTS]
    found = next((path for path in paths if path.is_file()), None)
    if found is None:
        raise DataError(
            f"no list of train_aug in {home / 'ImageSets'} (looked for {', '.join(_AUGMENTED_LISTS)}); "
            "give SBD's release with --sbd to make it"
        )
    return found
