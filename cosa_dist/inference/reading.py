"""Reads one picture for prediction, with the limits and the decoder of training.

As in training, EXIF rotation is not applied: a mask belongs to the pixels as they are stored. The note is
kept, so that what is written can be shown as the picture is.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor

from cosa_dist.data.decode import decode_image, orientation_of
from cosa_dist.data.errors import RecordError
from cosa_dist.data.reading.views import to_tensor
from cosa_dist.data.shards.split import MappedSplit, open_split
from cosa_dist.data.sources.record import MAX_FILE_BYTES
from cosa_dist.inference.pictures import Picture, Skipped


@dataclass(frozen=True)
class ReadPicture:
    """A picture's pixels `[3, H, W]` uint8 as they are stored, and its EXIF orientation (1..8)."""

    pixels: Tensor
    orientation: int = 1


def read_picture(picture: Picture) -> ReadPicture | Skipped:
    """The picture, or why it cannot be read."""
    try:
        data = _file_bytes(picture.path) if picture.path else _record_bytes(picture)
        decoded = decode_image(data)
        return ReadPicture(to_tensor(decoded), orientation_of(decoded))
    except RecordError as error:
        return Skipped(picture.where, str(error))
    except OSError as error:
        return Skipped(picture.where, f"cannot be read: {error.strerror or type(error).__name__}")


def _file_bytes(path: str) -> bytes:
    """A plain file's bytes; pipes and devices, which may never end, are not opened."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise RecordError("is not a plain file; put the picture's file in its place")
    if not status.st_size:
        raise RecordError("file is empty (0 bytes); copy it again")
    if status.st_size > MAX_FILE_BYTES:
        raise RecordError(f"file is larger than {MAX_FILE_BYTES} bytes; scale the picture down")
    with open(path, "rb") as opened:
        return opened.read(MAX_FILE_BYTES + 1)


def _record_bytes(picture: Picture) -> bytes:
    return _opened(picture.root, picture.split).record(picture.index, annotations=False).image


@lru_cache(maxsize=8)
def _opened(root: str, split: str) -> MappedSplit:
    return open_split(root, split)
