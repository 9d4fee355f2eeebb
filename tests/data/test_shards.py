"""Opening shards: records as written, copies for workers, and clear words where something is wrong."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cosa_dist.data.catalog import COCO
from cosa_dist.data.errors import DataError
from cosa_dist.data.shards.split import DESCRIPTION, open_split

Maker = Callable[..., Path]


def change_description(root: Path, **changes: object) -> None:
    path = root / DESCRIPTION
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_records_and_what_is_known_of_the_split(make_shards: Maker) -> None:
    root = make_shards(10)
    split = open_split(root, "train")
    assert (split.size, len(split), split.class_names) == (10, 10, ("a", "b", "c"))
    assert split.info.name == "drawn"
    assert split.class_counts == {"a": 3, "b": 3, "c": 3}
    for index, name in enumerate(split.ids):
        record = split.record(index)
        number = int(name[-3:])
        assert record.id == name
        assert (record.width, record.height) == (44, 30 + number)
        expected = np.zeros(3, dtype=np.float32)
        if number:
            expected[number % 3] = 1
        np.testing.assert_array_equal(record.labels, expected)
        assert record.mask is not None
        assert record.context is None


def test_training_does_not_get_to_see_annotations(make_shards: Maker) -> None:
    split = open_split(make_shards(4, context=True), "train")
    assert split.record(0).context is not None
    bare = split.record(0, annotations=False)
    assert (bare.mask, bare.context) == (None, None)
    assert bare.image == split.record(0).image


def test_indices_outside_are_refused(make_shards: Maker) -> None:
    split = open_split(make_shards(4), "train")
    for index in (-1, 4):
        with pytest.raises(IndexError, match=r"records 0\.\.3; got"):
            split.record(index)


def test_a_copy_opens_the_files_anew(make_shards: Maker) -> None:
    split = open_split(make_shards(4), "train")
    packed = pickle.dumps(split)
    assert len(packed) < 1000
    assert pickle.loads(packed).record(2).image == split.record(2).image


def test_a_moved_folder_is_the_same_data(make_shards: Maker, tmp_path: Path) -> None:
    root = make_shards(4)
    before = open_split(root, "train").fingerprint
    moved = root.rename(tmp_path / "elsewhere")
    assert open_split(str(moved), "train").fingerprint == before


def test_what_is_not_a_shard_folder(make_shards: Maker, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no shard folder .*jobs/ingest\.py"):
        open_split(tmp_path / "nowhere", "train")
    with pytest.raises(DataError, match="is not a shard folder"):
        open_split(tmp_path, "train")
    root = make_shards(4)
    with pytest.raises(DataError, match=r"no split 'trian' .*did you mean 'train'\?\); there: train, val"):
        open_split(root, "trian")
    with pytest.raises(DataError, match=r"no split '../val'"):
        open_split(root, "../val")
    description = json.loads((root / "dataset.json").read_text())
    splits = description["splits"]
    for there, split, words in (
        (
            ("train", "val"),
            "test",
            "there: train, val; training takes another with --data.val_split val; to take",
        ),
        (
            ("train",),
            "val",
            "there: train; to take a fraction of train, ingest own data with --val-fraction 0.2",
        ),
        (("val",), "train", "there: val; training takes another with --data.train_split NAME"),
    ):
        description["splits"] = {name: splits[name] for name in there}
        (root / "dataset.json").write_text(json.dumps(description))
        with pytest.raises(DataError, match=words):
            open_split(root, split)


def test_other_versions_and_damaged_descriptions(make_shards: Maker) -> None:
    root = make_shards(4)
    change_description(root, format_version=99)
    with pytest.raises(DataError, match="shard format 99, this version reads 1"):
        open_split(root, "train")
    change_description(root, format_version=1, splits={"train": {"count": 4}})
    with pytest.raises(DataError, match="is damaged"):
        open_split(root, "train")
    change_description(root, splits=[])
    with pytest.raises(DataError, match="no splits"):
        open_split(root, "train")
    for text in ("{", "[]", '{"format": "other"}'):
        (root / DESCRIPTION).write_text(text)
        with pytest.raises(DataError, match=r"not readable JSON|does not describe"):
            open_split(root, "train")


@pytest.mark.parametrize("known", [True, False])
def test_missing_damaged_and_exchanged_shards(make_shards: Maker, known: bool) -> None:
    root = make_shards(6, shards=2)
    if not known:
        splits = json.loads((root / DESCRIPTION).read_text())["splits"]
        for shard in splits["train"]["shards"]:
            shard.pop("bytes", None)
        change_description(root, splits=splits)
    shard = root / "train" / "shard-00001-of-00002.arrow"
    content = shard.read_bytes()
    shard.unlink()
    with pytest.raises(DataError, match=r"shard .*shard-00001-of-00002\.arrow is missing"):
        open_split(root, "train")
    shard.write_bytes(content[:100])
    with pytest.raises(DataError, match="has 100 bytes instead of" if known else "is damaged"):
        open_split(root, "train")
    shard.write_bytes(bytes(len(content)))
    with pytest.raises(DataError, match="is damaged"):
        open_split(root, "train")
    shard.write_bytes((root / "val" / "shard-00000-of-00002.arrow").read_bytes())
    with pytest.raises(DataError, match="bytes instead of" if known else "holds 2 records instead of 3"):
        open_split(root, "train")


def test_shard_names_cannot_leave_the_split(make_shards: Maker) -> None:
    root = make_shards(4)
    content = json.loads((root / DESCRIPTION).read_text())
    content["splits"]["train"]["shards"] = [{"file": "../val/shard-00000-of-00005.arrow", "count": 1}]
    (root / DESCRIPTION).write_text(json.dumps(content))
    with pytest.raises(DataError, match="leaves its folder"):
        open_split(root, "train")


def test_shards_of_a_known_data_set_bring_its_entry(make_shards: Maker) -> None:
    root = make_shards(4)
    change_description(root, name="coco", class_names=list(COCO.class_names))
    assert open_split(root, "train").info is COCO


@pytest.mark.parametrize("file", ["..", "/etc/passwd", "a/b.arrow", "..%2Fb.arrow", "b.arrow?x=1", ""])
def test_no_name_in_a_description_reaches_outside(make_shards: Maker, file: str) -> None:
    root = make_shards(4)
    splits = json.loads((root / DESCRIPTION).read_text())["splits"]
    splits["train"]["shards"][0]["file"] = file
    change_description(root, splits={**splits, "../val": splits["val"]})
    with pytest.raises(DataError, match="leaves its folder"):
        open_split(root, "train")
    with pytest.raises(DataError, match="leaves its folder"):
        open_split(root, "../val")


def test_counts_that_contradict_each_other(make_shards: Maker) -> None:
    root = make_shards(4)
    splits = json.loads((root / DESCRIPTION).read_text())["splits"]
    splits["train"]["count"] = 5
    change_description(root, splits=splits)
    with pytest.raises(DataError, match=r"is damaged \(split 'train' has 5 records, its shards 4\)"):
        open_split(root, "train")
