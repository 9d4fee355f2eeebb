"""Generated batches, the run's own shards, and the facts of a report."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
import torch
from rich.console import Console

from cosa_dist.benchmark.loading import (
    generated_samples,
    measure_evaluation,
    measure_loader,
    measure_reading,
)
from cosa_dist.benchmark.measure import Report, Table, as_text, machine_facts, processor_name
from cosa_dist.benchmark.workload import class_count, generated_batch, prepare
from cosa_dist.config.errors import ConfigError
from tests.benchmark.tiny_run import tiny_config
from tests.integration.small_run import make_shards

CPU = torch.device("cpu")


def test_a_generated_batch_is_like_a_loaders():
    batch = generated_batch(5, 32, 7)
    assert batch.weak.shape == batch.strong.shape == (5, 3, 32, 32)
    assert batch.weak.dtype == batch.strong.dtype == torch.uint8
    assert batch.labels.sum(1).tolist() == [1, 2, 1, 2, 1]
    assert batch.boxes[3].tolist() == [4, 32, 0, 28]
    assert batch.boxes[[0, 1, 2, 4]].tolist() == [[0, 32, 0, 32]] * 4
    assert batch.weak.float().std() > 20
    assert not torch.equal(batch.weak, batch.strong)
    assert torch.equal(batch.weak, generated_batch(5, 32, 7).weak)
    assert not torch.equal(batch.weak, generated_batch(5, 32, 7, seed=1).weak)
    assert generated_batch(2, 16, 1).labels.tolist() == [[1], [1]]


@pytest.mark.parametrize(
    ("label", "shards", "classes"), [("COCO", "x", 80), ("", "data/voc", 20), ("", "x", 20)]
)
def test_classes_of_a_data_set_that_is_not_here(label, shards, classes):
    assert class_count(tiny_config(data={"label": label, "shards": shards})) == classes


def test_micro_batches_and_a_batch_that_cannot_be_cut():
    work = prepare(tiny_config(training={"micro_batch_size": 2}), CPU)
    first, second = next(work.steps), next(work.steps)
    assert [len(batch.ids) for batch in first] == [2, 2]
    different = [first[0].weak, first[1].weak, second[0].weak]
    assert not any(torch.equal(a, b) for a, b in pairwise(different))
    with pytest.raises(ConfigError, match="does not divide"):
        prepare(tiny_config(training={"micro_batch_size": 3}), CPU)


def test_shards_are_read_where_there_are_some(tmp_path):
    shards = make_shards(tmp_path / "shards")
    config = tiny_config(data={"shards": str(shards)})
    work = prepare(config, CPU)
    (batch,) = next(work.steps)
    assert work.source == str(shards)
    assert batch.ids[0].startswith("train")
    assert batch.labels.shape == (4, class_count(config))
    assert work.state.online.classifier.weight.shape[0] == class_count(config) != 20
    report = measure_loader(config, 1, 16)
    (row,) = report.tables[0].rows
    assert row["ms of a core per image"] == pytest.approx(1000 / row["images/s per core"])
    assert report.facts["pictures"] == str(shards)
    ways = {row["reading"]: row["of mapped"] for row in measure_reading(config, 1, 8).tables[0].rows}
    assert ways.pop("mapped, local") == 1
    assert len(ways) == 3
    (row,) = measure_evaluation(config, CPU, 1, 3).tables[0].rows
    assert row["s per image"] == pytest.approx(1 / row["images/s"])


def test_pictures_are_generated_where_there_are_no_shards(monkeypatch):
    monkeypatch.setattr("cosa_dist.benchmark.loading.GENERATED_PICTURES", 8)
    monkeypatch.setattr("cosa_dist.benchmark.loading.GENERATED_SIDE", 48)
    report = measure_loader(tiny_config(), 1, 8)
    assert report.facts["pictures"] == "8 generated pictures of 48 x 48"
    assert report.tables[0].rows[0]["images/s per core"] > 0


def test_evaluated_samples_have_two_objects_and_their_tags():
    for sample in generated_samples(4, 5, (10, 12)):
        present = set(sample.mask.unique().tolist()) - {0}
        assert present == set((sample.labels.nonzero()[:, 0] + 1).tolist())
    (row,) = measure_evaluation(tiny_config(), CPU, 1, 2).tables[0].rows
    assert row["views per image"] == 2


def test_a_report_in_the_terminal_and_as_json(tmp_path):
    report = Report("step", {"cores": 2}, [Table("parts", [{"part": "EMA", "s": 0.123456}])], ["a note"])
    console = Console(record=True, width=80)
    report.show(console)
    shown = console.export_text()
    assert all(words in shown for words in ("cores 2", "EMA", "0.1235", "- a note"))
    report.store(tmp_path / "new" / "all.json")
    (read,) = json.loads((tmp_path / "new" / "all.json").read_text())
    assert read["tables"][0]["rows"] == [{"part": "EMA", "s": 0.123456}]


def test_cells_and_the_processors_name(tmp_path):
    assert [as_text(cell) for cell in (None, 3, "x", 0.12345, 12345.6)] == ["", "3", "x", "0.1235", "12,346"]
    (tmp_path / "cpuinfo").write_text("processor : 0\nmodel name\t: Fast: One\nmodel name : Other\n")
    assert processor_name(tmp_path / "cpuinfo") == "Fast: One"
    assert machine_facts(CPU)["threads"] == torch.get_num_threads()
