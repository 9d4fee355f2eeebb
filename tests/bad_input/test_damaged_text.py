"""Every reader of JSON, CSV and YAML on damaged files: a result, or its own error in one line."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosa_dist.config.errors import ConfigError
from cosa_dist.config.loading import load_config, read_yaml, stacked
from cosa_dist.data.errors import DataError, Rejection
from cosa_dist.data.shards.split import describe_split
from cosa_dist.data.sources.classes import read_class_names
from cosa_dist.data.sources.record import SourceOptions, SourceRecord
from cosa_dist.data.sources.table import table_source
from cosa_dist.distributed.run_folder import RunFolder
from cosa_dist.distributed.sweep.plan import check_space, read_space
from cosa_dist.evaluation.report import EvalReport, SegmentationScore, read_reports
from cosa_dist.training.checkpoint_files import CheckpointError, best_checkpoint, best_score
from tests.bad_input.test_parsers import ODD, ONE_FOLDER, refusing, spoilt

JSON_ROWS = [
    {"image": "a.jpg", "tags": ["cat", "dog"], "split": "train"},
    {"image": "b.jpg", "tags": "cat;owl", "split": "val", "mask": "b.png"},
    {"image": "c.jpg", "tags": [], "split": "train", "mask": None},
]
CSV = """image,tags,split,score
a.jpg,"cat;dog",train,0.5
b.jpg,"['cat', 'owl']",val,1
c.jpg,,train,nan
"""
DESCRIPTION = {
    "format": "cosa_dist shards",
    "format_version": 1,
    "name": "own",
    "class_names": ["cat", "dog"],
    "splits": {
        "train": {
            "count": 3,
            "fingerprint": "sha256:0",
            "class_counts": {"cat": 2, "dog": 1},
            "shards": [{"file": "shard-00000-of-00001.arrow", "count": 3, "bytes": 99}],
        }
    },
}
SPACE = "losses.energy: {loguniform: [1e-5, 1e-3]}\nassignment.threshold.low: {choice: [0.2, 0.25]}\n"
SETTINGS = "losses: {energy: 1e-2, separation: 0.1}\nmodel:\n  aux_layer: -2\ntraining: {steps: 9000}\n"


REPORT = json.loads(
    EvalReport(
        "online",
        ("cat",),
        3,
        0,
        {"unfiltered": SegmentationScore(50.0, 80.0, 60.0, (90.0, None))},
        50.0,
        None,
        1.0,
    ).to_json()
)


@dataclass(frozen=True)
class Reader:
    """A file as it should be, what reads it, and the errors that it may raise."""

    file: str
    content: Any
    read: Callable[[Path], object]
    errors: tuple[type[Exception], ...]


def _table(path: Path) -> None:
    told: list[str] = []
    _, entries = table_source(path.parent, path, SourceOptions(notify=told.append))
    assert all(isinstance(entry, SourceRecord | Rejection) for made in entries.values() for entry in made)
    assert all(len(line.splitlines()) <= 1 for line in told), told


def _description(path: Path) -> None:
    describe_split(str(path.parent), "train")


def _space(path: Path) -> None:
    check_space(read_space(path), load_config("tiny", None, []), str(path))


READERS = {
    reader.file: reader
    for reader in (
        Reader("table.json", JSON_ROWS, _table, (DataError,)),
        Reader("table.jsonl", "\n".join(map(json.dumps, JSON_ROWS)), _table, (DataError,)),
        Reader("table.csv", CSV, _table, (DataError,)),
        Reader("table.tsv", CSV.replace(",", "\t"), _table, (DataError,)),
        Reader("dataset.json", DESCRIPTION, _description, (DataError,)),
        Reader("names.json", {"0": "background", "1": "cat", "2": "dog"}, read_class_names, (DataError,)),
        Reader("data.yaml", "nc: 2\nnames: [cat, dog]\n", read_class_names, (DataError,)),
        Reader("classes.csv", "name,r,g,b\nbackground,0,0,0\ncat,128,0,0\n", read_class_names, (DataError,)),
        Reader(
            "labelmap.txt",
            "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:128,0,0::\n",
            read_class_names,
            (DataError,),
        ),
        Reader("space.yaml", SPACE, _space, (ConfigError,)),
        Reader("config.yaml", SETTINGS, lambda path: stacked([(str(path), read_yaml(path))]), (ConfigError,)),
        Reader(
            "run.json",
            {"tracking_uri": "", "run_id": "", "finished": False},
            lambda path: RunFolder(path.parent).read_note(),
            (ConfigError,),
        ),
        Reader(
            "best.json",
            {"checkpoint": "step-00000002", "score": {"miou": 40.0, "network": "online", "images": 5}},
            lambda path: (best_checkpoint(path.parent), best_score(path.parent)),
            (CheckpointError,),
        ),
    )
}


def as_text(content: Any) -> str:
    """A file's content: text as it is, anything else as JSON."""
    return content if isinstance(content, str) else json.dumps(content)


@st.composite
def otherwise(draw: st.DrawFn, content: Any) -> Any:
    """JSON content with a value replaced, taken out, wrapped or written as text, one to three times."""
    whole = [copy.deepcopy(content)]
    for _ in range(draw(st.integers(1, 3))):
        parent: Any = whole
        place: Any = 0
        while isinstance(parent[place], list | dict) and parent[place] and draw(st.integers(0, 4)) > 0:
            parent = parent[place]
            place = draw(st.sampled_from(list(parent) if isinstance(parent, dict) else range(len(parent))))
        old = parent[place]
        odd = json.loads(draw(st.sampled_from(ODD.split())))
        changed = draw(st.sampled_from([odd, odd, str(old), [old], {"value": old}, ...]))
        if changed is ... and parent is not whole:
            del parent[place]
        elif changed is not ...:
            parent[place] = copy.deepcopy(changed)
    return whole[0]


@pytest.mark.parametrize("name", READERS)
def test_the_undamaged_file_is_read(name: str, tmp_path: Path) -> None:
    reader = READERS[name]
    (tmp_path / "step-00000002").mkdir()
    (tmp_path / name).write_text(as_text(reader.content))
    reader.read(tmp_path / name)


@pytest.mark.parametrize("name", READERS)
@ONE_FOLDER
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused(name: str, data: st.DataObject, tmp_path: Path) -> None:
    reader = READERS[name]
    (tmp_path / "step-00000002").mkdir(exist_ok=True)
    damaged = spoilt(as_text(reader.content).encode())
    if not isinstance(reader.content, str):
        damaged |= otherwise(reader.content).map(lambda content: json.dumps(content).encode())
    (tmp_path / name).write_bytes(data.draw(damaged))
    with refusing(*reader.errors):
        reader.read(tmp_path / name)


@ONE_FOLDER
@given(
    cells=st.lists(
        st.text(max_size=12) | st.sampled_from([word.strip('"') for word in ODD.split()]),
        min_size=1,
        max_size=6,
    )
)
def test_every_row_of_a_table_is_a_record_or_listed(cells: list[str], tmp_path: Path) -> None:
    rows = [{"image": f"{number}.jpg", "tags": cell} for number, cell in enumerate(cells)]
    (tmp_path / "t.json").write_text(json.dumps([*rows, {"image": "last.jpg", "tags": "cat"}]))
    with refusing(DataError):
        _, entries = table_source(tmp_path, tmp_path / "t.json", SourceOptions())
        ids = sorted(entry.id for made in entries.values() for entry in made)
        assert ids == sorted([*(str(number) for number in range(len(cells))), "last"])


@ONE_FOLDER
@given(report=otherwise({**REPORT, "settings": {**REPORT["settings"], "crf": None}}))
def test_a_damaged_report_is_one_or_a_value_error(report: Any, tmp_path: Path) -> None:
    (tmp_path / "report_online.json").write_text(json.dumps(report))
    with refusing(ValueError):
        read_reports(tmp_path)
