"""One shard labelled with a trained network: same records, new masks, nothing repeated, exact counts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cosa_dist.config.loading import to_yaml
from cosa_dist.config.method import PseudoMaskConfig
from cosa_dist.data.decode import decode_mask
from cosa_dist.data.shards.split import open_split
from cosa_dist.distributed.labelling.run import labelling_task, run_labelling
from cosa_dist.distributed.labelling.worker import ShardLabeller, finished_labels
from cosa_dist.distributed.run_folder import RunFolder
from cosa_dist.distributed.worker import run_worker
from cosa_dist.training.checkpoint_files import find_checkpoint
from tests.integration.small_run import make_shards, small_config, task_of


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A trained tiny run: its configuration and folder."""
    place = tmp_path_factory.mktemp("trained")
    config = small_config(make_shards(place / "shards"), place, "run", training={"steps": 5})
    run_worker(task_of(config, place / "runs" / "run", 4))
    return config, place / "runs" / "run"


def task_for(trained, out: Path, **settings):
    config, run = trained
    masks = PseudoMaskConfig(**settings)
    task = labelling_task(run, find_checkpoint(run, "newest"), "assignment", config, masks, out)
    out.mkdir(exist_ok=True)
    return task


def test_a_shard_holds_the_same_records_with_pseudo_masks(trained, tmp_path):
    from datasets import Dataset

    config, _ = trained
    task = task_for(trained, tmp_path / "new", reliability=True)
    made = ShardLabeller(task).label(1)
    source = open_split(config.data.shards, "train")
    first = source.shard_counts[0]
    rows = list(Dataset.from_file(str(tmp_path / "new" / "00001.arrow")))
    assert len(rows) == source.shard_counts[1] == made.summary.count == made.counts.images
    for number, row in enumerate(rows):
        record = source.record(first + number)
        assert row["id"] == record.id
        assert row["image"]["bytes"] == record.image
        classes, truth = decode_mask(row["mask"]["bytes"]), decode_mask(record.mask)
        assert classes.shape == truth.shape == decode_mask(row["reliability"]["bytes"]).shape
        tagged = {0, 255} | {int(index) + 1 for index in np.flatnonzero(record.labels)}
        assert set(np.unique(classes).tolist()) <= tagged, "only the image's tags may be given"
    assert int(made.counts.table[:, :-1].sum()) == sum(
        int((decode_mask(r["mask"]["bytes"]) != 255).sum()) for r in rows
    )


def test_a_finished_shard_is_taken_over_and_a_damaged_or_foreign_one_is_not(trained, tmp_path):
    out = tmp_path / "new"
    task = task_for(trained, out)
    made = ShardLabeller(task).label(0)
    found = finished_labels(task, 0)
    assert found is not None
    assert found.summary == made.summary
    assert torch.equal(found.counts.table, made.counts.table)
    before = (out / "00000.arrow").stat().st_mtime_ns
    assert ShardLabeller(task).label(0).summary == made.summary
    assert (out / "00000.arrow").stat().st_mtime_ns == before

    assert finished_labels(replace(task, key="another"), 0) is None
    record = json.loads((out / "00000.json").read_text(encoding="utf-8"))
    record["counts"]["confusion"] = record["counts"].pop("table")
    (tmp_path / "kept.json").write_bytes((out / "00000.json").read_bytes())
    (out / "00000.json").write_text(json.dumps(record), encoding="utf-8")
    assert finished_labels(task, 0) is None, "counts of an earlier version are not read as today's"
    (tmp_path / "kept.json").replace(out / "00000.json")
    assert finished_labels(task, 0) is not None
    with (out / "00000.arrow").open("ab") as file:
        file.write(b"x")
    assert finished_labels(task, 0) is None
    (out / "00000.json").write_text("{", encoding="utf-8")
    assert finished_labels(task, 0) is None
    assert finished_labels(task, 1) is None


def test_the_key_knows_checkpoint_network_and_settings(trained, tmp_path):
    config, run = trained
    newest = find_checkpoint(run, "newest")

    def key(network="online", **settings):
        masks = PseudoMaskConfig(**settings)
        return labelling_task(run, newest, network, config, masks, tmp_path).key

    assert key() == key()
    assert (
        len({key(), key("assignment"), key(source="cam"), key(scales=(0.5,)), key(min_probability=0.5)}) == 5
    )


def test_nothing_half_written_remains_when_the_disk_refuses(trained, tmp_path, monkeypatch):
    from datasets.arrow_writer import ArrowWriter

    task = task_for(trained, tmp_path / "new")
    monkeypatch.setattr(ArrowWriter, "finalize", lambda self: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        ShardLabeller(task).label(0)
    assert list((tmp_path / "new").iterdir()) == []


def test_threads_change_nothing(trained, tmp_path, monkeypatch):
    made = []
    for name in ("threads", "in turn"):
        task = task_for(trained, tmp_path / name, reliability=True)
        ShardLabeller(task).label(0)
        made.append([(tmp_path / name / file).read_bytes() for file in ("00000.arrow", "00000.json")])
        monkeypatch.setattr(
            "cosa_dist.distributed.labelling.worker.in_background",
            lambda work, items, pool, ahead: map(work, items),
        )
    assert made[0] == made[1]


def test_the_record_is_plain_json(trained, tmp_path):
    task = task_for(trained, tmp_path / "new")
    ShardLabeller(task).label(0)
    content = json.loads((tmp_path / "new" / "00000.json").read_text(encoding="utf-8"))
    assert content["key"] == task.key
    assert {"summary", "traces", "counts"} < set(content)


def test_scales_that_the_network_cannot_take_are_refused_before_anything_is_made(trained, tmp_path):
    config, run = trained
    RunFolder(run).config_file.write_text(to_yaml(config))
    with pytest.raises(ValueError, match=r"evaluation.size 32: .* input of 22 pixels"):
        run_labelling(run, tmp_path / "masks", PseudoMaskConfig(scales=(0.7,)), {})
    assert not list(tmp_path.iterdir())
