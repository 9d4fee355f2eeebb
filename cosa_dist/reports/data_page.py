"""A page that shows a shard folder as training will see it.

Per split: counts, image sizes, tags per image, images per class, and the first samples of a run: image, mask,
weak and strong view with the valid box. What is wrong with a data set (swapped classes, masks that are
shifted, tags that do not fit) is seen here before hours are spent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from cosa_dist.data.decode import decode_image, decode_mask
from cosa_dist.data.reading.order import sample_at
from cosa_dist.data.reading.views import as_image, draw_view, strong_view, weak_view
from cosa_dist.data.shards.split import MappedSplit
from cosa_dist.reports.page import data_uri, mask_colours, render_page, with_box, with_mask


@dataclass(frozen=True)
class ViewSettings:
    """How the views of the page are cut: side of the crop in pixels, scale range, seed of the run."""

    crop_size: int
    scale_range: tuple[float, float]
    seed: int


@dataclass(frozen=True)
class SampleCard:
    """One sample: facts in words, and its pictures as data URIs (`mask` empty where there is none)."""

    id: str
    size: str
    tags: tuple[str, ...]
    cut: str
    """of both views"""
    change: str
    """of the strong view"""
    image: str
    mask: str
    weak: str
    strong: str


@dataclass(frozen=True)
class SplitSummary:
    """What a split holds, and its first samples."""

    split: MappedSplit
    sizes: str
    tags_per_image: tuple[tuple[int, int], ...]
    """(number of tags, images with so many)"""
    class_counts: tuple[tuple[str, int, str], ...]
    """(class, images with it, its mask colour as #rrggbb), most frequent first"""
    samples: tuple[SampleCard, ...]


def summarise(split: MappedSplit, samples: int, settings: ViewSettings) -> SplitSummary:
    """Collect a split's facts and draw its first `samples` samples as a run with that seed sees them.

    Raises DataError for a record that cannot be decoded, or settings that make no view.
    """
    columns = split.columns("width", "height", "labels")
    sizes = [
        f"{side} {min(columns[side])} to {max(columns[side])} (median {median(columns[side]):g})"
        for side in ("width", "height")
    ]
    colours = {
        name: "#{:02x}{:02x}{:02x}".format(*colour)
        for name, colour in zip(split.class_names, mask_colours()[1:], strict=False)
    }
    counts = sorted(split.class_counts.items(), key=lambda item: -item[1])
    return SplitSummary(
        split=split,
        sizes=f"{', '.join(sizes)} pixels",
        tags_per_image=tuple(sorted(Counter(len(labels) for labels in columns["labels"]).items())),
        class_counts=tuple((name, count, colours[name]) for name, count in counts),
        samples=tuple(_card(split, position, settings) for position in range(min(samples, split.size))),
    )


def _card(split: MappedSplit, position: int, settings: ViewSettings) -> SampleCard:
    """Draw the sample at a position of the run's sequence."""
    epoch, index = sample_at(position, split.size, settings.seed)
    record = split.record(index)
    image = decode_image(record.image)
    draw = draw_view(
        seed=settings.seed,
        epoch=epoch,
        position=position,
        size=image.size,
        crop_size=settings.crop_size,
        scale_range=settings.scale_range,
    )
    weak, box = weak_view(image, draw, settings.crop_size)
    blur = "no blur" if draw.blur_radius is None else f"blur {draw.blur_radius:.1f} px"
    return SampleCard(
        id=record.id,
        size=f"{image.width} x {image.height}",
        tags=tuple(split.class_names[number] for number in record.labels.nonzero()[0]),
        cut=f"scaled to {draw.width} x {draw.height}, {'mirrored, ' if draw.flip else ''}{blur}",
        change=f"{draw.operation} {draw.magnitude}",
        image=data_uri(image),
        mask="" if record.mask is None else data_uri(with_mask(image, decode_mask(record.mask))),
        weak=data_uri(with_box(as_image(weak), box)),
        strong=data_uri(with_box(as_image(strong_view(weak, draw.operation, draw.magnitude)), box)),
    )


def render(title: str, splits: Sequence[SplitSummary], settings: ViewSettings) -> str:
    """Return the page as HTML; everything that came from the data is escaped."""
    return render_page("data_page.html.j2", title=title, splits=splits, settings=settings)
