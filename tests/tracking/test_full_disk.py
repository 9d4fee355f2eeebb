"""The mirror on a disk that fills up: no line is lost, doubled or cut."""

from __future__ import annotations

import logging

import pytest

from cosa_dist.tracking.mirror import read_metrics
from cosa_dist.tracking.tracker import Tracker


class FullDisk:
    """An unbuffered file that takes `room` more bytes."""

    def __init__(self, file) -> None:
        self.file = file
        self.room = 10**9

    def write(self, data: bytes) -> int:
        if not self.room:
            raise OSError(28, "No space left on device")
        taken = self.file.write(data[: self.room])
        self.room -= taken
        return taken

    def __getattr__(self, name):
        return getattr(self.file, name)


@pytest.mark.parametrize("room", [0, 17])
def test_what_a_full_disk_refuses_is_written_later(tmp_path, caplog, room):
    tracker = Tracker(tmp_path)
    disk = tracker._file = FullDisk(tracker._file)
    tracker.log_metrics({"loss": 1.0}, 1)
    disk.room = room
    with caplog.at_level(logging.WARNING):
        for step in (2, 3, 4):
            tracker.log_metrics({"loss": float(step)}, step)
        tracker.flush()
    assert caplog.text.count("No space left on device") == 1
    assert [line.step for line in read_metrics(tmp_path / "metrics.jsonl")] == [1]
    disk.room = 10**9
    tracker.log_metrics({"loss": 5.0}, 5)
    tracker.close()
    assert [line.step for line in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5]
