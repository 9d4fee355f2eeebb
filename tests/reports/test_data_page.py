"""The data page: facts are right, pictures are what they say, and data cannot inject markup."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from cosa_dist.data.reading.loader import TrainingLoader
from cosa_dist.data.shards.split import open_split
from cosa_dist.reports.data_page import ViewSettings, render, summarise
from cosa_dist.reports.page import data_uri, mask_colours, with_box, with_mask
from tests.integration.small_run import make_shards

SETTINGS = ViewSettings(crop_size=40, scale_range=(0.5, 1.0), seed=3)


@pytest.fixture(scope="module")
def summary(tmp_path_factory):
    root = make_shards(tmp_path_factory.mktemp("shards") / "synthetic")
    return summarise(open_split(root, "train"), 3, SETTINGS)


def pixels(uri: str) -> np.ndarray:
    head, _, text = uri.partition(",")
    assert head == "data:image/jpeg;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


def test_the_facts_are_those_of_the_shards(summary):
    assert (summary.split.size, summary.split.mask_count) == (24, 24)
    assert summary.sizes.startswith("width 48 to 48 (median 48)")
    assert sum(images for _, images in summary.tags_per_image) == 24
    tags = sum(tags * images for tags, images in summary.tags_per_image)
    assert tags == sum(count for _, count, _ in summary.class_counts)
    counts = [count for _, count, _ in summary.class_counts]
    assert counts == sorted(counts, reverse=True)
    assert ("beetle", "#800000") in [(name, colour) for name, _, colour in summary.class_counts]


def test_samples_are_those_of_the_run_with_that_seed(summary, tmp_path):
    root = make_shards(tmp_path / "synthetic")
    split = open_split(root, "train")
    views = {"crop_size": 40, "scale_range": (0.5, 1.0), "seed": 3}
    [batch] = next(iter(TrainingLoader(split, global_batch_size=3, stop_step=1, **views)))
    assert [card.id for card in summary.samples] == batch.ids
    shown = pixels(summary.samples[1].weak).astype(int)
    top, bottom, left, right = batch.boxes[1].tolist()
    inner = np.s_[top + 3 : bottom - 3, left + 3 : right - 3]
    expected = batch.weak[1].permute(1, 2, 0).numpy().astype(int)
    assert shown.shape == expected.shape
    # The page holds JPEGs, so pixels are near, not equal.
    assert np.abs(shown[inner] - expected[inner]).mean() < 12


def test_a_mask_is_laid_over_the_image_and_leaves_the_background_clear():
    image = Image.new("RGB", (4, 2), (100, 100, 100))
    mask = np.array([[0, 0, 1, 255], [0, 0, 1, 255]], dtype=np.uint8)
    result = np.asarray(with_mask(image, mask))
    assert (result[:, :2] == 100).all()
    share = int(255 * 0.6) / 255
    np.testing.assert_allclose(result[0, 2], share * mask_colours()[1] + (1 - share) * 100.0, atol=1.5)
    np.testing.assert_allclose(result[0, 3], share * np.array((224, 224, 192)) + (1 - share) * 100, atol=1.5)


def test_a_box_is_drawn_inside_its_half_open_edges():
    box = np.asarray(with_box(Image.new("RGB", (10, 8)), (1, 7, 2, 9)))
    red = (box == (255, 64, 64)).all(-1)
    rows, columns = np.nonzero(red)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (1, 6, 2, 8)
    assert not red[3:5, 4:7].any()


def test_large_pictures_are_scaled_down():
    assert pixels(data_uri(Image.new("RGB", (900, 300)), 300)).shape == (100, 300, 3)


def test_names_from_the_data_are_escaped_and_nothing_is_loaded_from_elsewhere(summary):
    html = render("<script>alert(1)</script>", [summary], SETTINGS)
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    sources = re.findall(r'src="([^"]{0,30})', html)
    assert len(sources) == 12
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert "http" not in html.replace("data:image", "")
