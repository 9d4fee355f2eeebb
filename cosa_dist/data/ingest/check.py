"""One record's way in: read it, decode it completely, check it, or say why it is left out.

Pictures keep the bytes of their file; masks become (or stay) 8-bit grey-level PNGs. Everything here
is a function of one record, so that several processes can share the work.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cosa_dist.data.catalog import IGNORE
from cosa_dist.data.decode import as_grey_png, decode_image, decode_mask, orientation_of
from cosa_dist.data.errors import RecordError
from cosa_dist.data.sources.record import Content, Entry, Rejection, SourceRecord

UNTAGGED = ("keep", "leave-out")
"""What may become of images without any tag."""


@dataclass(frozen=True)
class CheckedRecord:
    """One record as it goes into a shard; `labels` are sorted 0-based foreground indices.

    Beside that for the counts: the mask's values and number of ignored pixels, whether the tags were
    given (and not taken from the mask), and whether the picture carries an EXIF rotation.
    """

    id: str
    image: bytes
    mask: bytes | None
    labels: tuple[int, ...]
    width: int
    height: int
    context: bytes | None
    mask_values: tuple[int, ...] = ()
    ignored: int = 0
    own_tags: bool = False
    turned: bool = False


Result = CheckedRecord | Rejection
"""What checking makes of an entry."""


def check_entry(entry: Entry, num_foreground: int, untagged: str = "keep") -> Result:
    """Read and decode one record; damaged or inconsistent ones come back as a `Rejection`.

    Args:
        entry: what a source yielded; a rejection passes through.
        num_foreground: C; masks may hold 0..C and 255, tags 0..C-1.
        untagged: `keep` images without tags, or `leave-out`: then they are rejections by rule.
    """
    if isinstance(entry, Rejection):
        return entry
    if entry.tags == () and untagged == "leave-out":
        return _without_tags(entry)
    content: bytes | Content | None = entry.image
    try:
        image = _read(entry.image, "image")
        picture = decode_image(image)
        width, height = picture.size
        mask, labels, ignored = None, entry.tags or (), 0
        values: tuple[int, ...] = ()
        if entry.mask is not None:
            content = entry.mask
            mask, pixels = _checked_mask(entry.mask, (width, height), num_foreground)
            values, ignored = tuple(np.flatnonzero(pixels).tolist()), int(pixels[IGNORE])
            if entry.tags is None:
                labels = tuple(value - 1 for value in values if value not in (0, IGNORE))
        if any(not 0 <= label < num_foreground for label in labels):
            raise RecordError(f"tag outside 0..{num_foreground - 1}: {labels}")
        content = entry.context
        context = None if entry.context is None else _read(entry.context, "context mask")
    except RecordError as error:
        return _rejection(entry.id, str(error), content)
    if not labels and untagged == "leave-out":
        return _without_tags(entry, values)
    return CheckedRecord(
        entry.id,
        image,
        mask,
        tuple(sorted(set(labels))),
        width,
        height,
        context,
        mask_values=values,
        ignored=ignored,
        own_tags=entry.tags is not None,
        turned=orientation_of(picture) != 1,
    )


def _checked_mask(
    content: bytes | Content, size: tuple[int, int], num_foreground: int
) -> tuple[bytes, NDArray[np.int64]]:
    """Return a mask as a grey PNG, and its number of pixels of each value `[256]`; raises `RecordError`.

    Args:
        content: the mask.
        size: width and height of the image.
        num_foreground: C.
    """
    data = _read(content, "mask")
    ids = decode_mask(data)
    width, height = size
    if ids.shape != (height, width):
        raise RecordError(
            f"mask is {ids.shape[1]}x{ids.shape[0]} pixels, the image {width}x{height}; make them equal"
        )
    pixels = np.bincount(ids.ravel(), minlength=IGNORE + 1)
    _refuse_unknown(np.flatnonzero(pixels), num_foreground)
    return as_grey_png(data, ids), pixels


def _refuse_unknown(values: NDArray[np.int64], num_foreground: int) -> None:
    """Raise `RecordError` if one of a mask's values is neither a class nor ignored."""
    outside = values[(values > num_foreground) & (values != IGNORE)]
    if outside.size:
        raise RecordError(
            f"mask value {int(outside[0])} is outside 0..{num_foreground} and {IGNORE}; "
            "write the classes' ids into it"
        )


def _read(content: bytes | Content, what: str) -> bytes:
    """Return a content's bytes; raises `RecordError` where they are absent or cannot be read."""
    if isinstance(content, bytes):
        return content
    try:
        return content.read()
    except FileNotFoundError as error:
        raise RecordError(f"no {what} file; get it, or take the id off the list") from error
    except OSError as error:
        reason = (
            f"{what} file cannot be read: {error.strerror or error}; look at its permissions and the disk"
        )
        raise RecordError(reason) from error


def _without_tags(record: SourceRecord, mask_values: tuple[int, ...] = ()) -> Rejection:
    """Return the rejection of an image that has no tag."""
    reason = "image has no tag and such images are left out (--untagged keep takes them)"
    if record.tags is None and mask_values:
        reason = f"mask holds no class (only {' and '.join(map(str, mask_values))}): {reason}"
    return Rejection(record.id, reason, by_rule=True)


def _rejection(record_id: str, reason: str, content: bytes | Content | None) -> Rejection:
    """Return the rejection of a bad record, with a way to mend it and the place of its file."""
    if ";" not in reason:
        reason += "; replace it, or take the id off the list"
    return Rejection(
        record_id, reason, "" if content is None or isinstance(content, bytes) else content.where
    )
