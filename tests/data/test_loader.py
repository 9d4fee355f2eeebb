"""Loaders in both reading modes, here and over HTTP: right views, exact resumes, each image once."""

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cosa_dist.config.errors import ConfigError
from cosa_dist.config.schema import DataConfig
from cosa_dist.data.decode import decode_image
from cosa_dist.data.errors import DataError, RecordError
from cosa_dist.data.reading import samples
from cosa_dist.data.reading.loader import Batch, EvaluationLoader, TrainingLoader, open_reading
from cosa_dist.data.reading.views import draw_view, strong_view, weak_view
from cosa_dist.data.shards.split import MappedSplit, Split, open_split
from tests.data.shard_server import served

Maker = Callable[..., Path]
Opener = Callable[..., Split]
READINGS = ("mapped", "mapped cached", "streaming", "streaming http", "streaming cached")


@pytest.fixture(params=READINGS)
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opener]:
    """Opener of a split of a shard folder, by one of the ways to read it."""
    reading, _, place = request.param.partition(" ")
    cache = str(tmp_path / "cache") if place == "cached" else ""
    with served(tmp_path) as server:

        def open_it(root: Path, split: str = "train") -> Split:
            shards = f"{server.url}/{root.name}" if place else str(root)
            return open_reading(DataConfig(shards=shards, reading=reading, cache=cache), split)

        yield open_it


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


def test_a_batch_holds_the_views_of_its_positions(make_shards: Maker, opened: Opener) -> None:
    root = make_shards(7)
    split, records = opened(root), open_split(root, "train")
    steps = list(loader(split))
    assert len(loader(split)) == len(steps) == 4
    for step, batches in enumerate(steps):
        (batch,) = batches
        assert batch.positions.tolist() == list(range(4 * step, 4 * step + 4))
        assert batch.weak.shape == batch.strong.shape == (4, 3, 24, 24)
        assert batch.weak.dtype == batch.strong.dtype == torch.uint8
        for row, position in enumerate(batch.positions.tolist()):
            epoch = position // 7
            record = records.record(records.ids.index(batch.ids[row]))
            image = decode_image(record.image)
            draw = draw_view(seed=3, epoch=epoch, position=position, size=image.size, crop_size=24)
            weak, box = weak_view(image, draw, 24)
            assert np.array_equal(batch.weak[row], weak)
            assert np.array_equal(batch.strong[row], strong_view(weak, draw.operation, draw.magnitude))
            assert batch.boxes[row].tolist() == list(box)
            assert batch.labels[row].tolist() == record.labels.tolist()
    seen = [name for batches in steps for batch in batches for name in batch.ids]
    assert sorted(seen[:7]) == sorted(seen[7:14]) == sorted(records.ids)


@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 0), (2, 0), (1, 2), (4, 1)])
def test_an_epoch_has_each_image_once_over_all_workers(
    make_shards: Maker, opened: Opener, world_size: int, num_workers: int
) -> None:
    root = make_shards(11, shards=3)
    split = opened(root)
    seen: dict[int, str] = {}
    for rank in range(world_size):
        settings = {"rank": rank, "world_size": world_size, "num_workers": num_workers}
        for step, batches in enumerate(loader(split, stop_step=7, micro_batch_size=1, **settings)):
            first = 4 * step + rank * (4 // world_size)
            positions = [int(p) for batch in batches for p in batch.positions]
            assert positions == list(range(first, first + 4 // world_size))
            seen |= zip(positions, (name for batch in batches for name in batch.ids), strict=True)
    ids = sorted(open_split(root, "train").ids)
    for epoch in range(2):
        assert sorted(seen[p] for p in range(11 * epoch, 11 * epoch + 11)) == ids
    assert len(seen) == 28


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_mapped_step_is_the_same_for_any_number_of_workers(
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


@pytest.mark.parametrize(("reading", "num_workers"), [("mapped", 2), ("streaming", 1)])
def test_processes_beside_a_gpu_come_from_a_server_and_give_the_same(
    make_shards: Maker, monkeypatch: pytest.MonkeyPatch, reading: str, num_workers: int
) -> None:
    split = open_reading(DataConfig(shards=str(make_shards(5, shards=2)), reading=reading), "train")
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    spawned, methods = [], []
    for batches in loader(split, stop_step=2, num_workers=num_workers):
        spawned.append(batches)
        methods += [type(process).__name__ for process in multiprocessing.active_children()]
    assert set(methods) == {"ForkServerProcess"}
    ids = [sample.id for sample in EvaluationLoader(split, num_workers=num_workers)]
    monkeypatch.undo()
    for left, right in zip(spawned, loader(split, stop_step=2), strict=True):
        assert_same(left, right)
    assert ids == [sample.id for sample in EvaluationLoader(split)]


PROGRAM = """
import sys
import ray
import torch
from cosa_dist.config.schema import DataConfig
from cosa_dist.data.reading.loader import EvaluationLoader, open_reading

if __name__ == "__main__":
    torch.cuda.is_initialized = lambda: True
    split = open_reading(DataConfig(shards=sys.argv[1]), "train")
    print(len(list(EvaluationLoader(split, num_workers=2))))
"""


def test_processes_beside_a_gpu_do_not_each_import_ray(make_shards: Maker, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "ray.py").write_text(
        f"import os\nwith open({str(tmp_path / 'imports')!r}, 'a') as file: print(os.getpid(), file=file)\n"
    )
    project = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, str(tmp_path / "program.py"), str(make_shards(5))],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), project])},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["5"], done.stderr
    # The program itself and the server, of which the processes are forks.
    assert len((tmp_path / "imports").read_text().split()) == 2


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_resume_needs_only_the_step(make_shards: Maker, opened: Opener, num_workers: int) -> None:
    split = opened(make_shards(7, shards=3))
    settings = {"rank": 1, "world_size": 2, "num_workers": num_workers, "shuffle_window": 2}
    whole = list(loader(split, **settings))
    for start in range(1, 4) if num_workers == 0 else (3,):
        resumed = list(loader(split, start_step=start, **settings))
        assert len(resumed) == 4 - start
        for left, right in zip(resumed, whole[start:], strict=True):
            assert_same(left, right)
    assert list(loader(split, start_step=4)) == []


def test_the_runs_own_random_numbers_are_left_alone(make_shards: Maker, opened: Opener) -> None:
    split = opened(make_shards(5))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(loader(split))
    list(EvaluationLoader(split))
    assert torch.equal(torch.get_rng_state(), before)


def test_an_image_without_tags_has_a_row_of_zeros(make_shards: Maker, opened: Opener) -> None:
    split = opened(make_shards(4))
    (batch,) = next(iter(loader(split)))
    rows = dict(zip(batch.ids, batch.labels.sum(dim=1).tolist(), strict=True))
    assert rows == {"drawn_000": 0.0, "drawn_001": 1.0, "drawn_002": 1.0, "drawn_003": 1.0}


def test_each_image_is_decoded_once_for_both_views(
    make_shards: Maker, opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = opened(make_shards(4))
    decoded: list[bytes] = []

    def counting(data: bytes) -> Image.Image:
        decoded.append(data)
        return decode_image(data)

    monkeypatch.setattr(samples, "decode_image", counting)
    next(iter(loader(split)))
    assert len(decoded) == 4


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("reading", ["mapped", "streaming"])
def test_a_damaged_image_is_named_in_one_line(
    make_shards: Maker, monkeypatch: pytest.MonkeyPatch, num_workers: int, reading: str
) -> None:
    split = open_reading(DataConfig(shards=str(make_shards(5)), reading=reading), "train")

    def refuse(data: bytes) -> Image.Image:
        raise RecordError("image cannot be decoded: it is damaged")

    monkeypatch.setattr(samples, "decode_image", refuse)
    words = r"^record 'drawn_00\d' of split 'train' in .*: image cannot be decoded: [^\n]*$"
    with pytest.raises(RecordError, match=words) as caught:
        list(loader(split, num_workers=num_workers))
    assert "\n" not in str(caught.value)
    with pytest.raises(RecordError, match=words):
        list(EvaluationLoader(split, num_workers=num_workers))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_lost_shard_is_named_in_one_line(make_shards: Maker, num_workers: int) -> None:
    root = make_shards(5, shards=2)
    split = open_reading(DataConfig(shards=str(root), reading="streaming"), "train")
    (root / "train" / "shard-00000-of-00002.arrow").unlink()
    for samples_of in (
        loader(split, num_workers=num_workers),
        EvaluationLoader(split, 0, 1, None, num_workers),
    ):
        with pytest.raises(DataError, match=r"^shard .*shard-00000-of-00002\.arrow is missing; [^\n]*$"):
            list(samples_of)


@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 0), (2, 0), (3, 2)])
def test_evaluation_takes_every_image_once(
    make_shards: Maker, opened: Opener, world_size: int, num_workers: int
) -> None:
    root = make_shards(7, shards=2)
    split = opened(root)
    ranks = [EvaluationLoader(split, rank, world_size, None, num_workers) for rank in range(world_size)]
    taken = [[sample.id for sample in samples_of] for samples_of in ranks]
    assert [len(part) for part in taken] == [len(samples_of) for samples_of in ranks]
    assert sorted(name for part in taken for name in part) == sorted(open_split(root, "train").ids)
    if isinstance(split, MappedSplit):
        assert taken == [list(split.ids[rank::world_size]) for rank in range(world_size)]


@pytest.mark.parametrize(
    ("world_size", "num_workers", "limit"), [(1, 0, 3), (2, 0, 1), (3, 2, 4), (2, 0, 99)]
)
def test_the_first_images_and_the_rest_are_all_of_them_once(
    make_shards: Maker, opened: Opener, world_size: int, num_workers: int, limit: int
) -> None:
    root = make_shards(7, shards=2)
    split, ids = opened(root), open_split(root, "train").ids

    def taken(limit: int | None, start: int) -> list[str]:
        ranks = [
            EvaluationLoader(split, rank, world_size, limit, num_workers, start=start)
            for rank in range(world_size)
        ]
        found = [[sample.id for sample in samples_of] for samples_of in ranks]
        assert [len(part) for part in found] == [len(samples_of) for samples_of in ranks]
        return sorted(name for part in found for name in part)

    assert taken(limit, 0) == sorted(ids[:limit])
    assert taken(None, limit) == sorted(ids[limit:])


def test_evaluation_samples_have_the_original_size(make_shards: Maker, opened: Opener) -> None:
    split = opened(make_shards(3, context=True), "val")
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
    assert sorted(len(EvaluationLoader(split, rank, 7)) for rank in range(7)) == [0, 0, 1, 1, 1, 1, 1]


def test_batches_move_as_a_whole(make_shards: Maker) -> None:
    split = open_split(make_shards(4), "train")
    (batch,) = next(iter(loader(split)))
    moved = batch.to("meta")
    assert moved.ids == batch.ids
    assert {moved.weak.device.type, moved.boxes.device.type, moved.positions.device.type} == {"meta"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"start_step": 5}, "start step"),
        ({"world_size": 3}, "4 cannot be shared evenly by 3"),
        ({"micro_batch_size": 3}, "micro_batch_size 3"),
    ],
)
def test_settings_are_checked(make_shards: Maker, changes: dict[str, object], words: str) -> None:
    split = open_split(make_shards(4), "train")
    with pytest.raises((DataError, ConfigError), match=words):
        loader(split, **changes)
    with pytest.raises(DataError, match="limit"):
        EvaluationLoader(split, limit=0)
