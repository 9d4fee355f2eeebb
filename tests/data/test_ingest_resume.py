"""An ingest that was killed continues; nothing stale is taken over; nothing is written twice at once."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image
from rich.console import Console

from cosa_dist.data.catalog import DatasetInfo
from cosa_dist.data.decode import ORIENTATION, encode_jpeg
from cosa_dist.data.errors import DataError
from cosa_dist.data.ingest import shard as ingest_shard
from cosa_dist.data.ingest.ingest import IngestOptions, ingest
from cosa_dist.data.ingest.shard import shard_pool
from cosa_dist.data.shards.split import open_split
from cosa_dist.data.shards.writer import partial_path
from cosa_dist.data.sources.record import File, SourceRecord

INFO = DatasetInfo("ab", ("a", "b"))
JOB = Path(__file__).resolve().parents[2] / "jobs" / "ingest.py"


class Interruption(BaseException):
    """Ends an ingest as a kill does, without anything to catch it."""


class Files:
    """Pictures in a folder as a source."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.count = folder, count
        folder.mkdir()
        for number in range(count):
            Image.fromarray(np.full((4, 6, 3), number, np.uint8)).save(folder / f"{number:02d}.png")

    def records(self) -> Iterator[SourceRecord]:
        for number in range(self.count):
            yield SourceRecord(f"{number:02d}", File(self.folder, f"{number:02d}.png"), tags=(number % 2,))


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path / "pictures", 12)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were read; an entry `stop NAME` ends the ingest when that file is due."""
    names: list[str] = []
    original = File.read

    def reading(self: File) -> bytes:
        if f"stop {self.name}" in names:
            raise Interruption
        names.append(self.name)
        return original(self)

    monkeypatch.setattr(File, "read", reading)
    return names


def stop_at(files: Files, read: list[str], out: Path, name: str, **options: object) -> None:
    read.append(f"stop {name}")
    with pytest.raises(Interruption):
        ingest({"val": files.records()}, INFO, out, IngestOptions(shards=4, **options))  # type: ignore[arg-type]
    read.clear()


def finish(files: Files, out: Path, info: DatasetInfo = INFO, **options: object) -> str:
    shown = io.StringIO()
    settings = {"shards": 4} | options
    ingest({"val": files.records()}, info, out, IngestOptions(**settings), Console(file=shown))  # type: ignore[arg-type]
    return shown.getvalue()


def test_an_interrupted_ingest_continues_after_its_finished_shards(
    files: Files, read: list[str], tmp_path: Path
) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    note = Image.Exif()
    note[ORIENTATION] = 6
    Image.new("RGB", (6, 4)).save(files.folder / "02.png", exif=note)
    stop_at(files, read, out, "07.png")
    assert not out.exists()
    assert sorted(path.name for path in (partial_path(out) / "val").iterdir()) == [
        "00000.arrow", "00000.json", "00001.arrow", "00001.json",
    ]  # fmt: skip
    said = finish(files, out)
    assert read == [f"{number:02d}.png" for number in range(6, 12)]
    assert said.splitlines()[0] == "val: 2 of 4 shards are there from an earlier attempt"
    assert not partial_path(out).exists()
    assert finish(files, whole).splitlines() == said.splitlines()[1:]
    assert "val: 1 pictures carry an EXIF rotation (first: 02)" in said
    for name in sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file()):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    assert len(list(out.rglob("*"))) == len(list(whole.rglob("*")))


def test_only_shards_whose_files_changed_are_made_anew(files: Files, read: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    stop_at(files, read, out, "07.png")
    Image.fromarray(np.full((5, 6, 3), 200, np.uint8)).save(files.folder / "04.png")
    said = finish(files, out)
    assert read == [f"{number:02d}.png" for number in range(3, 12)]
    assert "1 of 4 shards are there" in said
    assert "1 shards of an earlier attempt had other files or options; they are made anew" in said
    assert open_split(out, "val").record(4).height == 5


@pytest.mark.parametrize("change", ["shards", "untagged", "classes", "rules", "damage", "truncation"])
def test_other_options_and_damaged_shards_start_anew(
    files: Files, read: list[str], tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    stop_at(files, read, out, "07.png")
    folder = partial_path(out) / "val"
    info, options = INFO, {}
    if change == "shards":
        options = {"shards": 6}
    elif change == "untagged":
        options = {"untagged": "leave-out"}
    elif change == "classes":
        info = DatasetInfo("ab", ("a", "c"))
    elif change == "rules":
        monkeypatch.setattr(ingest_shard, "_RULES", 0)
    else:
        victims = folder.glob("*.json" if change == "damage" else "*.arrow")
        for path in victims:
            path.write_bytes(path.read_bytes()[:-9])
    said = finish(files, out, info, **options)
    assert len(read) == 12
    assert "2 shards of an earlier attempt had other files or options; they are made anew" in said
    assert open_split(out, "val").ids == tuple(f"{number:02d}" for number in range(12))
    assert open_split(out, "val").class_names == info.class_names


def test_what_another_source_left_is_not_in_the_output(files: Files, read: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    stop_at(files, read, out, "07.png")
    records = list(files.records())
    ingest({"train": records}, INFO, out, IngestOptions(shards=2))
    assert sorted(path.name for path in out.iterdir()) == [
        "dataset.json",
        "rejected.json",
        "repeated.json",
        "train",
    ]
    assert len(list((out / "train").iterdir())) == 2
    assert not partial_path(out).exists()


def test_too_many_bad_records_can_be_mended_or_allowed(files: Files, read: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    (files.folder / "08.png").write_bytes(b"noise")
    with pytest.raises(
        DataError, match=r"1 of 12 records are bad.*first: 08 \(pictures/08.png\).*--max-bad-fraction"
    ):
        finish(files, out)
    read.clear()
    assert "rejected '08'" in finish(files, out, max_bad_fraction=0.1)
    assert read == ["09.png", "10.png", "11.png"]
    assert open_split(out, "val").size == 11


def test_an_ingest_that_finished_nothing_leaves_nothing(
    files: Files, read: list[str], tmp_path: Path
) -> None:
    stop_at(files, read, tmp_path / "out", "01.png")
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]


def test_one_ingest_at_a_time(files: Files, tmp_path: Path) -> None:
    out = tmp_path / "out"
    partial_path(out).mkdir()
    with (
        FileLock(partial_path(out) / "ingest.lock"),
        pytest.raises(DataError, match="another ingest is writing"),
    ):
        finish(files, out)
    finish(files, out)
    assert open_split(out, "val").size == 12


def write_pictures(root: Path, count: int) -> None:
    (root / "a").mkdir(parents=True)
    noise = np.random.default_rng(0)
    for number in range(count):
        pixels = noise.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        (root / "a" / f"{number:04d}.jpg").write_bytes(encode_jpeg(pixels))


def test_a_killed_job_continues(tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures", 1500)
    out, options = tmp_path / "out", ("--val-fraction", "0", "--shards", "50", "--processes", "2")
    command = [sys.executable, str(JOB), "folder", str(tmp_path / "pictures"), *options, "--out", str(out)]
    job = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    folder = partial_path(out) / "train"
    deadline = time.monotonic() + 300
    while len(list(folder.glob("*.json"))) < 2 and time.monotonic() < deadline and job.poll() is None:
        time.sleep(0.002)
    children = Path(f"/proc/{job.pid}/task/{job.pid}/children")
    workers = [int(pid) for pid in children.read_text().split()] if children.is_file() else []
    job.send_signal(signal.SIGKILL)
    assert job.wait() == -signal.SIGKILL
    while any(os.path.exists(f"/proc/{pid}") for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in workers if os.path.exists(f"/proc/{pid}")]
    there = len(list(folder.glob("*.json")))
    assert there >= 2
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0] == f"train: {there} of 50 shards are there from an earlier attempt"
    split = open_split(out, "train")
    assert len(set(split.ids)) == split.size == 1500
    assert json.loads((out / "rejected.json").read_text()) == {"train": []}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "pictures"]


def _end_of_the_process(task: object) -> None:
    os._exit(9)


def test_a_process_that_dies_ends_the_ingest_with_one_line(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cosa_dist.data.ingest.shard.write_shard", _end_of_the_process)
    with shard_pool(2) as write, pytest.raises(DataError, match=r"a process of the ingest died.*--processes"):
        list(write([None]))  # type: ignore[list-item]
