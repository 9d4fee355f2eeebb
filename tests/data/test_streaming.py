"""Streams of rows: uneven shards over HTTP, one shard ahead and no more, fewer shards than readers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import Dataset, concatenate_datasets
from datasets.arrow_writer import ArrowWriter

from cosa_dist.data.reading.loader import TrainingLoader
from cosa_dist.data.reading.order import StreamOrder
from cosa_dist.data.reading.streaming import open_stream
from cosa_dist.data.shards.split import DESCRIPTION, Split, open_split
from tests.data.shard_server import served

Maker = Callable[..., Path]


def recut(root: Path, counts: tuple[int, ...]) -> None:
    """Cut the training split of a shard folder into shards of these sizes."""
    description = json.loads((root / DESCRIPTION).read_text())
    entry = description["splits"]["train"]
    parts = [Dataset.from_file(str(root / "train" / shard["file"])) for shard in entry["shards"]]
    rows, first, entry["shards"] = concatenate_datasets(parts), 0, []
    for number, count in enumerate(counts):
        name = f"cut-{number}.arrow"
        with ArrowWriter(path=str(root / "train" / name), features=rows.features) as writer:
            writer.write_table(rows.select(range(first, first + count)).with_format("arrow")[:])
            writer.finalize()
        entry["shards"].append({"file": name, "count": count})
        first += count
    (root / DESCRIPTION).write_text(json.dumps(description))


@pytest.mark.parametrize("counts", [(1, 9, 3), (13,)])
@pytest.mark.parametrize(("world_size", "num_workers"), [(2, 0), (2, 2)])
def test_uneven_or_few_shards_neither_starve_a_worker_nor_lose_an_image(
    make_shards: Maker, counts: tuple[int, ...], world_size: int, num_workers: int
) -> None:
    root = make_shards(13)
    recut(root, counts)
    ids = open_split(root, "train").ids
    with served(root) as server:
        split = open_stream(server.url, "train")
        seen: dict[int, str] = {}
        for rank in range(world_size):
            loader = TrainingLoader(
                split,
                crop_size=16,
                seed=1,
                global_batch_size=2,
                rank=rank,
                world_size=world_size,
                stop_step=13,
                num_workers=num_workers,
            )
            steps = list(loader)
            assert len(steps) == 13
            for batches in steps:
                for batch in batches:
                    seen |= zip(batch.positions.tolist(), batch.ids, strict=True)
    for epoch in range(2):
        assert Counter(seen[13 * epoch + place] for place in range(13)) == Counter(ids)


def test_rows_are_a_stream_of_datasets_that_opens_one_shard_ahead(
    make_shards: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = open_stream(make_shards(8, shards=4), "train")
    opened: list[int] = []
    whole = Split.open_shard

    def counting(self: Split, number: int) -> Dataset:
        opened.append(number)
        return whole(self, number)

    monkeypatch.setattr(Split, "open_shard", counting)
    (part,) = split.evaluation_parts(0, 8, 1)
    for place, _ in enumerate(part()):
        assert len(opened) <= place // 2 + 2
    assert sorted(opened) == [0, 1, 2, 3]


def test_training_rows_have_no_masks(make_shards: Maker) -> None:
    split = open_stream(make_shards(4, context=True), "train")
    row = next(split.evaluation_parts(0, 4, 1)[0]())
    assert {"mask", "context"} <= set(row)
    order = StreamOrder(split.shard_counts, 0, 4, 2, 1, 1, 1)
    assert set(next(split.training_parts(order, 0, 0, 1)[0]())) == {
        "position",
        "epoch",
        "id",
        "image",
        "labels",
        "width",
        "height",
    }
