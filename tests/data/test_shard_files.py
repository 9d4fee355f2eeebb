"""Opening shards where they are, through a node's cache, and by a copy that leaves nothing behind."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest

from cosa_dist.data.errors import DataError
from cosa_dist.data.shards import remote
from cosa_dist.data.shards.split import Split, describe_split, open_split
from tests.data.shard_server import ShardServer, cut_short, served, unavailable

Maker = Callable[..., Path]
SHARD = "train/shard-00001-of-00002.arrow"


@pytest.fixture
def root(make_shards: Maker) -> Path:
    return make_shards(6, shards=2)


@pytest.fixture
def server(root: Path) -> Iterator[ShardServer]:
    with served(root) as running:
        yield running


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Short pauses before retries, and temporary files where the tests see them."""
    monkeypatch.setattr(remote, "TRANSFER_BACKOFF", (0.01, 0.02))
    monkeypatch.setattr(remote, "CONNECT_BACKOFF", (0.01,))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))


def files(location: str, cache: Path | str = "") -> Split:
    return describe_split(location, "train", str(cache))


def ids(opened: Split, number: int) -> list[str]:
    return list(opened.open_shard(number)["id"])


def test_remote_shards_are_those_of_the_folder_and_leave_no_file(
    root: Path, server: ShardServer, tmp_path: Path
) -> None:
    here, there = files(str(root)), files(server.url + "/")
    assert there.fingerprint == here.fingerprint
    for number in range(2):
        shard = there.open_shard(number)
        assert list((tmp_path / "temporary").iterdir()) == []
        assert shard.to_list() == here.open_shard(number).to_list()
    assert len(server.asked_for(".arrow")) == 2


def test_other_stores_and_file_urls(root: Path) -> None:
    store = fsspec.filesystem("memory")
    store.put(str(root), "/shards-of-a-test", recursive=True)
    try:
        assert ids(files("memory://shards-of-a-test"), 1) == ids(files(str(root)), 1)
    finally:
        store.rm("/shards-of-a-test", recursive=True)
    assert ids(files(root.as_uri()), 1) == ids(files(str(root)), 1)
    assert open_split(root.as_uri(), "train").size == 6


def test_a_cache_is_asked_first_and_mapped_reading_works_with_it(
    root: Path, server: ShardServer, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    first = open_split(server.url, "train", str(cache))
    assert first.ids == open_split(root, "train").ids
    asked = len(server.asked_for(".arrow"))
    again = open_split(server.url, "train", str(cache))
    assert again.record(5).image == open_split(root, "train").record(5).image
    assert (asked, len(server.asked_for(".arrow"))) == (2, 2)
    assert list(cache.rglob("*.partial")) == []
    with pytest.raises(DataError, match=r"streaming, or give --data\.cache"):
        open_split(server.url, "train")


@pytest.mark.parametrize("damage", ["shorter", "rubbish", "other"])
def test_a_broken_cached_shard_is_fetched_again(
    root: Path, server: ShardServer, tmp_path: Path, damage: str
) -> None:
    cached = files(server.url, tmp_path / "cache")
    expected = ids(cached, 1)
    (copy,) = (tmp_path / "cache").rglob("shard-00001-of-00002.arrow")
    content = copy.read_bytes()
    broken = {
        "shorter": content[:-200],
        "rubbish": bytes(len(content)),
        "other": (root / "val" / "shard-00000-of-00002.arrow").read_bytes(),
    }
    copy.write_bytes(broken[damage])
    assert ids(cached, 1) == expected
    assert copy.read_bytes() == content
    assert len(server.asked_for(SHARD)) == 2


def test_many_readers_of_a_node_fetch_a_shard_once(server: ShardServer, tmp_path: Path) -> None:
    cached = files(server.url, tmp_path / "cache")
    started = threading.Barrier(4)

    def read(_: int) -> list[str]:
        started.wait()
        return ids(cached, 1)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(read, range(4)))
    assert found == [ids(cached, 1)] * 4
    assert len(server.asked_for(SHARD)) == 1


def test_changed_data_have_a_cache_of_their_own(
    make_shards: Maker, root: Path, server: ShardServer, tmp_path: Path
) -> None:
    ids(files(server.url, tmp_path / "cache"), 1)
    make_shards(7, shards=2, overwrite=True)
    assert len(ids(files(server.url, tmp_path / "cache"), 1)) == 4


@pytest.mark.parametrize("fault", [cut_short, unavailable])
def test_what_passes_is_tried_again(server: ShardServer, fault: Callable[..., bool]) -> None:
    opened = files(server.url)
    server.fault = lambda handler: len(server.asked_for(SHARD)) < 3 and fault(handler)
    assert len(ids(opened, 1)) == 3
    assert len(server.asked_for(SHARD)) == 3


@pytest.mark.parametrize("cache", ["", "cache"])
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (cut_short, r"cannot read http.*00001-of-00002\.arrow: .*\(3 attempts\)"),
        (unavailable, r"cannot read http.*00001-of-00002\.arrow: 503.*\(3 attempts\)"),
    ],
)
def test_what_stays_is_one_line(
    server: ShardServer, tmp_path: Path, cache: str, fault: Callable[..., bool], words: str
) -> None:
    opened = files(server.url, cache and tmp_path / cache)
    server.fault = fault
    with pytest.raises(DataError, match=words) as caught:
        opened.open_shard(1)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.rglob("*.partial")) == list((tmp_path / "temporary").iterdir()) == []


def test_a_missing_shard_a_short_one_and_a_dead_server(root: Path, server: ShardServer) -> None:
    opened = files(server.url)
    content = (root / SHARD).read_bytes()
    (root / SHARD).write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"00001-of-00002\.arrow.*(bytes|damaged)"):
        opened.open_shard(1)
    (root / SHARD).unlink()
    asked = len(server.requests)
    with pytest.raises(DataError, match=r"shard http.*00001-of-00002\.arrow is missing on the server"):
        opened.open_shard(1)
    assert len(server.requests) == asked + 1
    server.shutdown()
    server.server_close()
    with pytest.raises(
        DataError, match=r"cannot read http.*Connect.*\(3 attempts\); is the server up"
    ) as dead:
        opened.open_shard(0)
    assert "\n" not in str(dead.value)


def test_what_is_no_shard_folder_on_a_server(root: Path, server: ShardServer) -> None:
    with pytest.raises(DataError, match=r"no split 'trian' in http.*did you mean 'train'"):
        describe_split(server.url, "trian")
    (root / "dataset.json").rename(root / "elsewhere.json")
    with pytest.raises(DataError, match="is not a shard folder"):
        describe_split(server.url, "train")
    server.fault = lambda handler: bool(handler.send_error(403)) or True
    with pytest.raises(DataError, match=r"access is denied"):
        describe_split(server.url, "train")
    with pytest.raises(DataError, match=r"cannot open nowhere://x/dataset\.json: Protocol not known"):
        describe_split("nowhere://x", "train")
    with pytest.raises(DataError, match=r"cannot read http://127\.0\.0\.1:1/.*\(2 attempts\)"):
        describe_split("http://127.0.0.1:1", "train")
