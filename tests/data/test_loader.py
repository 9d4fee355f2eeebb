"""Loaders: the same samples for any number of workers, after any resume, and each image once."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cosa_dist.data import samples
from cosa_dist.data.decode import decode_image
from cosa_dist.data.errors import DataError, RecordError
from cosa_dist.data.loader import Batch, EvaluationLoader, TrainingLoader
from cosa_dist.data.order import sample_at
from cosa_dist.data.shards import Record, Split, open_split
from cosa_dist.data.views import draw_view, strong_view, to_tensor, weak_view

Maker = Callable[..., Path]


def loader(split: Split, **changes: object) -> TrainingLoader:
    settings: dict[str, object] = {
        "crop_size": 24,
        "seed": 3,
        "global_batch_size": 4,
        "stop_step": 4,
    }
    return TrainingLoader(split, **(settings | changes))  # type: ignore[arg-type]


def joined(batches: list[Batch]) -> dict[str, object]:
    """A step's samples, whichever way they were cut into batches."""
    tensors = ("positions", "weak", "strong", "labels", "boxes")
    content: dict[str, object] = {
        name: torch.cat([getattr(batch, name) for batch in batches]) for name in tensors
    }
    return content | {"ids": [name for batch in batches for name in batch.ids]}


def assert_same(left: list[Batch], right: list[Batch]) -> None:
    one, other = joined(left), joined(right)
    assert one["ids"] == other["ids"]
    for name in ("positions", "weak", "strong", "labels", "boxes"):
        assert torch.equal(one[name], other[name]), name  # type: ignore[arg-type]


def test_a_batch_holds_the_views_of_its_positions(make_shards: Maker) -> None:
    split = open_split(make_shards(7), "train")
    steps = list(loader(split))
    assert len(loader(split)) == len(steps) == 4
    for step, batches in enumerate(steps):
        (batch,) = batches
        assert batch.positions.tolist() == list(range(4 * step, 4 * step + 4))
        assert batch.weak.shape == batch.strong.shape == (4, 3, 24, 24)
        assert batch.weak.dtype == batch.strong.dtype == torch.uint8
        for row, position in enumerate(batch.positions.tolist()):
            epoch, index = sample_at(position, split.size, 3)
            record = split.record(index)
            image = decode_image(record.image)
            draw = draw_view(seed=3, epoch=epoch, position=position, size=image.size, crop_size=24)
            weak, box = weak_view(image, draw, 24)
            assert batch.ids[row] == record.id
            assert torch.equal(batch.weak[row], to_tensor(weak))
            assert torch.equal(
                batch.strong[row], to_tensor(strong_view(weak, draw.operation, draw.magnitude))
            )
            assert batch.boxes[row].tolist() == list(box)
            assert batch.labels[row].tolist() == record.labels.tolist()
    first_epoch = [name for batches in steps for batch in batches for name in batch.ids][:7]
    assert sorted(first_epoch) == sorted(split.ids)


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_step_is_the_same_for_any_number_of_workers(
    make_shards: Maker, world_size: int, num_workers: int
) -> None:
    split = open_split(make_shards(7), "train")
    expected = list(loader(split))
    ranks = [
        list(loader(split, rank=rank, world_size=world_size, micro_batch_size=1, num_workers=num_workers))
        for rank in range(world_size)
    ]
    for step, whole in enumerate(expected):
        assert all(len(rank[step]) == 4 // world_size for rank in ranks)
        assert_same([batch for rank in ranks for batch in rank[step]], whole)


def test_spawned_workers_give_the_same(make_shards: Maker) -> None:
    split = open_split(make_shards(5), "train")
    spawned = loader(split, stop_step=2, num_workers=1, multiprocessing_context="spawn")
    for left, right in zip(spawned, loader(split, stop_step=2), strict=True):
        assert_same(left, right)


def test_a_resume_needs_only_the_step(make_shards: Maker) -> None:
    split = open_split(make_shards(7), "train")
    whole = list(loader(split))
    resumed = list(loader(split, start_step=2))
    assert len(resumed) == 2
    for left, right in zip(resumed, whole[2:], strict=True):
        assert_same(left, right)
    assert list(loader(split, start_step=4)) == []


def test_the_runs_own_random_numbers_are_left_alone(make_shards: Maker) -> None:
    split = open_split(make_shards(5), "train")
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(loader(split))
    list(EvaluationLoader(split))
    assert torch.equal(torch.get_rng_state(), before)


def test_an_image_without_tags_has_a_row_of_zeros(make_shards: Maker) -> None:
    split = open_split(make_shards(4), "train")
    (batch,) = next(iter(loader(split)))
    rows = dict(zip(batch.ids, batch.labels.sum(dim=1).tolist(), strict=True))
    assert rows == {"drawn_000": 0.0, "drawn_001": 1.0, "drawn_002": 1.0, "drawn_003": 1.0}


def test_each_image_is_decoded_once_for_both_views(
    make_shards: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = open_split(make_shards(4), "train")
    decoded: list[bytes] = []

    def counting(data: bytes) -> Image.Image:
        decoded.append(data)
        return decode_image(data)

    monkeypatch.setattr(samples, "decode_image", counting)
    next(iter(loader(split)))
    assert len(decoded) == 4


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_damaged_image_is_named_in_one_line(
    make_shards: Maker, monkeypatch: pytest.MonkeyPatch, num_workers: int
) -> None:
    split = open_split(make_shards(5), "train")
    whole = Split.record

    def damaged(self: Split, index: int, *, annotations: bool = True) -> Record:
        record = whole(self, index, annotations=annotations)
        image = record.image[:200] if record.id == "drawn_003" else record.image
        return Record(record.id, image, record.labels, record.width, record.height, record.mask)

    monkeypatch.setattr(Split, "record", damaged)
    words = r"^record 'drawn_003' of split 'train' in .*: image cannot be decoded: [^\n]*$"
    with pytest.raises(RecordError, match=words) as caught:
        list(loader(split, num_workers=num_workers, multiprocessing_context="fork"))
    assert "\n" not in str(caught.value)
    with pytest.raises(RecordError, match=words):
        list(EvaluationLoader(split, num_workers=num_workers, multiprocessing_context="fork"))


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_takes_every_image_once(make_shards: Maker, world_size: int, num_workers: int) -> None:
    split = open_split(make_shards(7), "train")
    ranks = [
        [sample.id for sample in EvaluationLoader(split, rank, world_size, num_workers=num_workers)]
        for rank in range(world_size)
    ]
    assert ranks == [list(split.ids[rank::world_size]) for rank in range(world_size)]


def test_evaluation_samples_have_the_original_size(make_shards: Maker) -> None:
    split = open_split(make_shards(3, context=True), "val")
    taken = list(EvaluationLoader(split, limit=2))
    assert len(taken) == len(EvaluationLoader(split, limit=2)) == 2
    for sample, number in zip(taken, (3, 4), strict=True):
        assert sample.id == f"drawn_{number:03d}"
        assert sample.image.shape == (3, 30 + number, 44)
        expected = np.zeros((30 + number, 44), dtype=np.uint8)
        expected[:, :9] = number % 3 + 1
        assert sample.mask is not None
        np.testing.assert_array_equal(sample.mask.numpy(), expected)
        assert sample.context is not None
        np.testing.assert_array_equal(sample.context.numpy(), expected > 1)
        assert sample.labels.tolist() == [float(number % 3 == index) for index in range(3)]
    assert len(EvaluationLoader(split, limit=99)) == 5
    assert len(EvaluationLoader(split, rank=5, world_size=7)) == 0


def test_batches_move_as_a_whole(make_shards: Maker) -> None:
    split = open_split(make_shards(4), "train")
    (batch,) = next(iter(loader(split)))
    moved = batch.to("meta")
    assert moved.ids == batch.ids
    assert {moved.weak.device.type, moved.boxes.device.type, moved.positions.device.type} == {"meta"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"crop_size": 0}, "crop size"),
        ({"scale_range": (2.0, 1.0)}, "scale range"),
        ({"scale_range": (0.0, 1.0)}, "scale range"),
        ({"seed": -1}, "seed"),
        ({"num_workers": -1}, "workers"),
        ({"start_step": 5}, "start step"),
        ({"world_size": 3}, "4 cannot be shared equally by 3"),
        ({"micro_batch_size": 3}, "micro-batches of 3"),
    ],
)
def test_settings_are_checked(make_shards: Maker, changes: dict[str, object], words: str) -> None:
    split = open_split(make_shards(4), "train")
    with pytest.raises(DataError, match=words):
        loader(split, **changes)
    with pytest.raises(DataError, match="limit"):
        EvaluationLoader(split, limit=0)
