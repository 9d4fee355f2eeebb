"""Masks in training batches: the geometry of the views, 255 outside the image, both ways of reading."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from cosa_dist.data.decode import encode_mask
from cosa_dist.data.errors import RecordError
from cosa_dist.data.reading.loader import TrainingLoader
from cosa_dist.data.reading.samples import PlacedRecord, ViewSettings, training_batch
from cosa_dist.data.reading.streaming import open_stream
from cosa_dist.data.reading.views import draw_view
from cosa_dist.data.shards.split import Record, open_split
from tests.integration.small_run import make_shards

SIZE = (30, 22)
"""(width, height): smaller than the crop, so that there is padding"""


def record(**changes) -> Record:
    """A lossless picture whose red channel is its mask and whose green channel is its reliability."""
    random = np.random.default_rng(0)
    red = random.integers(0, 6, (SIZE[1], SIZE[0]), dtype=np.uint8)
    green = random.integers(0, 256, red.shape, dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(np.stack([red, green, red], axis=-1)).save(buffer, format="PNG")
    fields = {
        "id": "one",
        "image": buffer.getvalue(),
        "labels": np.ones(5, dtype=np.float32),
        "width": SIZE[0],
        "height": SIZE[1],
        "mask": encode_mask(red),
        "reliability": encode_mask(green),
    }
    return Record(**{**fields, **changes})


def batch(records, masks=True):
    placed = [PlacedRecord(position, 0, each) for position, each in enumerate(records)]
    return training_batch(placed, ViewSettings(0, 40, (1.0, 1.0), masks), "here")


def test_masks_have_the_geometry_of_the_views_and_255_outside():
    made = batch([record()] * 16)
    sharp = 0
    for index in range(16):
        top, bottom, left, right = made.boxes[index].tolist()
        outside = torch.ones(40, 40, dtype=torch.bool)
        outside[top:bottom, left:right] = False
        assert (made.masks[index][outside] == 255).all()
        assert (made.reliability[index][outside] == 0).all()
        draw = draw_view(seed=0, epoch=0, position=index, size=SIZE, crop_size=40, scale_range=(1.0, 1.0))
        if draw.blur_radius is None:
            sharp += 1
            red, green, _ = made.weak[index][:, top:bottom, left:right]
            assert torch.equal(red, made.masks[index][top:bottom, left:right])
            assert torch.equal(green, made.reliability[index][top:bottom, left:right])
    assert sharp >= 4, "blur has probability one half"
    flipped = {tuple(made.masks[index][made.masks[index] != 255].tolist()) for index in range(16)}
    assert len(flipped) == 2, "as it is and mirrored"


def test_masks_are_read_only_when_asked_for():
    made = batch([record(mask=b"not a picture", reliability=None)], masks=False)
    assert made.masks is None
    assert made.reliability is None


def test_reliability_is_there_only_if_every_record_has_it():
    made = batch([record(), record(reliability=None)])
    assert made.masks.shape == (2, 40, 40)
    assert made.reliability is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"mask": None}, "no mask to train on"),
        ({"mask": b"broken"}, "record 'one' of here"),
        ({"mask": encode_mask(np.zeros((4, 4), dtype=np.uint8))}, "differ in size"),
        ({"reliability": encode_mask(np.zeros((4, 4), dtype=np.uint8))}, "differ in size"),
    ],
)
def test_what_is_wrong_with_a_mask_is_said(changes, reason):
    with pytest.raises(RecordError, match=reason):
        batch([record(**changes)])


def test_both_ways_of_reading_give_masks(tmp_path):
    shards = make_shards(tmp_path / "shards")
    settings = {"crop_size": 32, "seed": 0, "global_batch_size": 4, "stop_step": 6, "masks": True}
    for split in (open_split(shards, "train"), open_stream(shards, "train")):
        seen = set()
        for (made,) in TrainingLoader(split, **settings):
            assert made.masks.shape == (4, 32, 32)
            assert made.reliability is None
            seen |= set(made.masks.unique().tolist())
            assert made.to("cpu").masks is not None
        assert {0, 255} < seen <= {*range(8), 255}
