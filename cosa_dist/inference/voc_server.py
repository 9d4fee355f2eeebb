"""The archive that the VOC evaluation server takes: one palette PNG per image of the test set.

    results/VOC2012/Segmentation/comp5_test_cls/2008_000006.png        (comp6: other training data than VOC)

The server judges whole test sets, so an archive with a missing image is not made. Equal masks give equal
archives: names are sorted and times are left out.
"""

from __future__ import annotations

import gzip
import io
import re
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from cosa_dist.data.catalog import VOC_CLASSES
from cosa_dist.data.errors import DataError
from cosa_dist.inference.writing import MASKS, write_file

COMPETITIONS = ("comp5", "comp6")
ARCHIVE = "voc_server.tgz"
IMAGE_ID = re.compile(r"\d{4}_\d{6}")


def check_voc(class_names: Sequence[str], names: Sequence[str]) -> None:
    """Refuse what the server could not judge.

    Args:
        class_names: of the network.
        names: of the pictures.

    Raises:
        DataError: other classes than VOC's, or a picture that is not named as VOC names its images.
    """
    if tuple(class_names) != VOC_CLASSES:
        raise DataError("--voc-server: the network was not trained on VOC's 20 classes in VOC's order")
    for name in names:
        if not IMAGE_ID.fullmatch(name.rpartition("/")[2]):
            raise DataError(f"--voc-server: {name} is no VOC image id such as 2008_000006")
    ids = [name.rpartition("/")[2] for name in names]
    if len(set(ids)) < len(ids):
        twice = next(name for name in ids if ids.count(name) > 1)
        raise DataError(f"--voc-server: image {twice} occurs twice")


def write_archive(out: Path, names: Sequence[str], competition: str) -> Path:
    """Pack the masks in `out` of these pictures to `out/voc_server.tgz` and return its path.

    Raises:
        WriteError: the disk is full.
    """
    folder = f"results/VOC2012/Segmentation/{competition}_test_cls"

    def write(file: IO[bytes]) -> None:
        packed = gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0)
        with packed, tarfile.open(fileobj=packed, mode="w") as archive:
            for name in sorted(names, key=lambda name: name.rpartition("/")[2]):
                data = (out / MASKS / f"{name}.png").read_bytes()
                entry = tarfile.TarInfo(f"{folder}/{name.rpartition('/')[2]}.png")
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))

    return write_file(out, ARCHIVE, write)
