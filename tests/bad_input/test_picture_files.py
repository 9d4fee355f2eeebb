"""All picture files through ingest and through predict: each is done whole, or refused in one line."""

from __future__ import annotations

import json
import os
from hashlib import sha256
from pathlib import Path

import pytest

from cosa_dist.data.decode import decode_image, decode_mask
from cosa_dist.data.shards.split import open_split
from cosa_dist.data.sources.record import id_of
from tests.bad_input.outcome import COUNTS, call, leftovers
from tests.bad_input.picture_cases import EXPECTED, content_of, reason_of

SPECIAL = ("dangling.jpg", "loop.jpg", "pipe.jpg", "device.jpg", "folder.jpg")
"""what is no plain file; a folder is not a picture and not a mistake"""
MISTAKES = SPECIAL[:4]
WRITTEN: dict[str, str] = {}
"""hash of each file as it was made"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A class folder with a file of every case."""
    place = tmp_path_factory.mktemp("pictures") / "root" / "cat"
    place.mkdir(parents=True)
    for name in EXPECTED:
        (place / name).write_bytes(content_of(name))
        WRITTEN[name] = sha256((place / name).read_bytes()).hexdigest()
    (place / "dangling.jpg").symlink_to(place / "nothing.jpg")
    (place / "loop.jpg").symlink_to(place / "loop.jpg")
    (place / "device.jpg").symlink_to("/dev/zero")
    os.mkfifo(place / "pipe.jpg")
    (place / "folder.jpg").mkdir()
    return place


@pytest.fixture(scope="module")
def capture(request):
    """Output of a job that runs once for a module."""
    from _pytest.capture import CaptureFixture, SysCapture

    fixture = CaptureFixture(SysCapture, request, _ispytest=True)
    fixture._start()
    yield fixture
    fixture.close()


@pytest.fixture(scope="module")
def predicted(folder, trained_run, capture) -> tuple[Path, dict, dict[str, str]]:
    """Output folder, summary, and reason by file name of one prediction over all files."""
    out = folder.parent.parent / "predicted"
    words = (trained_run, folder, "--out", out, "--batch-size", 8, "--outputs", "masks,overlays")
    done = call(capture, "predict", *words, count="predict, whole folders")
    assert done.code == 3
    assert "Traceback" not in done.err
    manifest = json.loads((out / "predictions.json").read_text())
    return out, manifest, {Path(row["source"]).name: row["reason"] for row in manifest["skipped"]}


@pytest.fixture(scope="module")
def ingested(folder, capture) -> tuple[Path, dict[str, str]]:
    """Shard folder and reason by id of one ingest over all files."""
    out = folder.parent.parent / "shards"
    words = ("folder", folder.parent, "--out", out, "--max-bad-fraction", 0.99, "--val-fraction", 0)
    done = call(capture, "ingest", *words, count="ingest, whole folders")
    assert done.code == 0, done.err
    assert "Traceback" not in done.err
    rejected = json.loads((out / "rejected.json").read_text())
    rows = rejected["train"] if isinstance(rejected, dict) else rejected
    return out, {row["where"].rpartition("/")[2] or row["id"]: row["reason"] for row in rows}


def good_line(reason: str) -> bool:
    return bool(reason) and "\n" not in reason and len(reason) < 300


@pytest.mark.parametrize("name", EXPECTED)
def test_through_predict(name, folder, predicted):
    COUNTS["predict"] += 1
    out, manifest, skipped = predicted
    done = [row for row in manifest["pictures"] if Path(row["source"]).name == name]
    assert len(done) + (name in skipped) == 1, "neither done nor listed"
    if name in skipped:
        assert EXPECTED[name] != "good", skipped[name]
        assert good_line(skipped[name])
        assert reason_of(name) in skipped[name]
        return
    assert EXPECTED[name] != "bad"
    image = decode_image((folder / name).read_bytes())
    mask = decode_mask((out / "masks" / f"{done[0]['name']}.png").read_bytes())
    assert mask.shape == (image.height, image.width)
    assert (out / "overlays" / f"{done[0]['name']}.jpg").is_file()


@pytest.mark.parametrize("name", EXPECTED)
def test_through_ingest(name, folder, ingested):
    COUNTS["ingest"] += 1
    out, rejected = ingested
    split = open_split(out, "train")
    kept = {split.ids[index]: index for index in range(len(split))}
    own = id_of(f"cat/{name}")
    if name in rejected:
        assert EXPECTED[name] != "good", rejected[name]
        assert good_line(rejected[name])
        assert reason_of(name) in rejected[name]
        return
    assert EXPECTED[name] != "bad"
    assert split.record(kept[own]).image == (folder / name).read_bytes()


@pytest.mark.parametrize("name", MISTAKES)
def test_what_is_no_plain_file_is_refused_by_both(name, predicted, ingested):
    COUNTS["predict"] += 1
    COUNTS["ingest"] += 1
    assert good_line(predicted[2][name])
    assert good_line(ingested[1][name])


def test_nothing_is_half_written_and_the_pictures_are_as_they_were(folder, predicted, ingested):
    assert leftovers(predicted[0]) == []
    assert leftovers(ingested[0]) == []
    for name in EXPECTED:
        assert sha256((folder / name).read_bytes()).hexdigest() == WRITTEN[name]


def test_the_same_pictures_are_refused_by_both(predicted, ingested):
    both = set(EXPECTED) & set(predicted[2])
    assert both == {name for name in EXPECTED if name in ingested[1]}
