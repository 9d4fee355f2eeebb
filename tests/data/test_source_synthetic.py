"""Generated pictures as a source: drawn when they are read, the same each time."""

import pickle

import numpy as np
import pytest

from cosa_dist.data.decode import decode_image, decode_mask
from cosa_dist.data.errors import DataError
from cosa_dist.data.sources.synthetic import Drawn, synthetic_info, synthetic_records
from cosa_dist.data.synthetic.images import generate_image


def test_generated_records_carry_masks_and_context() -> None:
    records = list(synthetic_records("train", 3, seed=1, image_size=48))
    assert [record.id for record in records] == [f"train_{number:06d}" for number in range(3)]
    for number, record in enumerate(records):
        image, mask, context = record.image, record.mask, record.context
        assert isinstance(image, Drawn)
        assert isinstance(mask, Drawn)
        assert isinstance(context, Drawn)
        picture = generate_image("train", number, 1, 48)
        assert decode_image(image.read()).size == (48, 48)
        np.testing.assert_array_equal(decode_mask(mask.read()), picture.mask)
        np.testing.assert_array_equal(decode_mask(context.read()), picture.context_mask)
        assert decode_mask(mask.read()).max() <= synthetic_info().num_foreground


def test_they_cost_nothing_until_they_are_read() -> None:
    (record,) = synthetic_records("val", 1, seed=0, image_size=512)
    assert len(pickle.dumps(record)) < 1000


def test_settings_that_the_generator_refuses() -> None:
    with pytest.raises(DataError, match="generated split 'train'"):
        list(synthetic_records("train", 3, seed=1, image_size=1))
    with pytest.raises(DataError, match="must not be negative"):
        list(synthetic_records("train", -1, seed=1, image_size=48))
