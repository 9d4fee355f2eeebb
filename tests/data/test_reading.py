"""The choice of the reading mode: what is refused, and what is checked before a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cosa_dist.config.errors import ConfigError
from cosa_dist.config.loading import build_config
from cosa_dist.config.schema import DataConfig
from cosa_dist.data.errors import DataError
from cosa_dist.data.reading.loader import check_reading, open_reading
from cosa_dist.data.reading.streaming import StreamingSplit
from cosa_dist.data.shards.split import MappedSplit
from tests.data.shard_server import served

Maker = Callable[..., Path]


def test_a_split_is_opened_as_configured(make_shards: Maker) -> None:
    root = str(make_shards(4))
    assert isinstance(open_reading(DataConfig(shards=root), "train"), MappedSplit)
    assert isinstance(open_reading(DataConfig(shards=root, reading="streaming"), "train"), StreamingSplit)


def test_remote_shards_need_streaming_or_a_cache() -> None:
    url = "http://host/voc"
    for data in ({"reading": "streaming"}, {"cache": "copies"}):
        assert build_config({"data": {"shards": url, **data}}).data.shards == url
    with pytest.raises(ConfigError, match=r"mapped cannot read http://host/voc .*streaming, or data\.cache"):
        build_config({"data": {"shards": url}})
    assert build_config({"data": {"shards": "file:///voc"}}).data.reading == "mapped"
    with pytest.raises(ConfigError, match="reading"):
        build_config({"data": {"reading": "streamed"}})


def test_the_check_before_a_run_takes_no_long_transfer(make_shards: Maker) -> None:
    root = make_shards(4)
    with served(root) as server:
        described = check_reading(DataConfig(shards=server.url, cache="unused"), "train")
        assert server.requests == ["/dataset.json"]
    here = check_reading(DataConfig(shards=str(root)), "train")
    assert (described.size, described.fingerprint) == (here.size, here.fingerprint) == (4, here.fingerprint)
    (root / "train" / here.shards[0].file).unlink()
    with pytest.raises(DataError, match="is missing"):
        check_reading(DataConfig(shards=str(root)), "train")
